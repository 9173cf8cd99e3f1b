"""Convolutions by oneDNN inside JAX programs on a CPU, where they are several times as fast as XLA's own.

XLA reaches them through its foreign function interface (``xla_ffi``). oneDNN's is a C interface, too, so that no
compiler is needed here: the constants below are those of oneapi/dnnl/dnnl.h, version 3.
"""

import ctypes
import ctypes.util
import functools
import importlib.metadata
import math
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from resnet_jax.kernels import xla_ffi

# oneDNN's constants.
_CPU, _IN_ORDER = 1, 1  # Kinds of engine and stream.
_FORWARD_TRAINING, _DIRECT = 64, 1  # Kinds of propagation and algorithm.
_F32, _ANY_FORMAT, _USER_SCRATCHPAD = 3, 1, 1
_SOURCE, _RESULT, _WEIGHTS, _SCRATCHPAD = 1, 17, 33, 80  # Kinds of argument.
_GRADIENT = 128  # Added to a kind: the gradient with respect to it.
_QUERY_WEIGHTS, _QUERY_GRADIENT_OF_WEIGHTS, _QUERY_SCRATCHPAD = 131, 132, 136
_ALIGNMENT = 64


class _Argument(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("memory", ctypes.c_void_p)]


class Geometry(NamedTuple):
    """All that a convolution is but for its numbers."""

    image: tuple[int, ...]  # N, H, W, I
    kernel: tuple[int, ...]  # h, w, I / groups, O
    strides: int
    padding: tuple[tuple[int, int], tuple[int, int]]
    groups: int = 1
    dilation: int = 1

    @property
    def output(self) -> tuple[int, ...]:
        rows, columns = (
            (size + sum(pad) - (k - 1) * self.dilation - 1) // self.strides + 1
            for size, k, pad in zip(self.image[1:3], self.kernel[:2], self.padding, strict=True)
        )
        return self.image[0], rows, columns, self.kernel[3]

    @property
    def multiply_adds(self) -> int:
        return math.prod(self.output) * math.prod(self.kernel[:3])


class _Memory(NamedTuple):
    """An argument of a primitive: its kind, its descriptor, and where it lies: in a buffer of XLA's, from a byte on."""

    kind: int
    descriptor: ctypes.c_void_p
    buffer: int
    start: int = 0


class _Call(NamedTuple):
    primitive: ctypes.c_void_p
    arguments: list[_Memory]


# Buffers as XLA numbers them: two arguments, the result, and scratch memory.
_FIRST, _SECOND, _OUT, _SCRATCH = range(4)


@functools.cache
def library() -> ctypes.CDLL | None:
    """oneDNN 3, of the ``onednn-cpu-gomp`` package or else the system's; None if there is neither."""
    # A thread that waits for work must not spin on a core that XLA has work for. OpenMP reads this once, when loaded.
    given = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        for path in _candidates():
            try:
                lib = ctypes.CDLL(path)
                lib.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
                lib.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
                lib.dnnl_memory_desc_create_with_strides  # noqa: B018  # New in version 3.
                return lib
            except (OSError, AttributeError):  # Built for another system, or another version.
                continue
        return None
    finally:
        if given is None:
            os.environ.pop("OMP_WAIT_POLICY", None)


def _candidates() -> Iterator[str]:
    try:
        files = importlib.metadata.files("onednn-cpu-gomp") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    yield from (str(file.locate()) for file in files if file.name == "libdnnl.so.3")
    system = ctypes.util.find_library("dnnl")
    if system is not None:
        yield system


def forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """``x`` (N, H, W, I) convolved with ``kernel`` (h, w, I / groups, O), all float32."""
    return _call(_forward_target(geometry), geometry.output, x, kernel)


def gradient_of_image(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The gradient with respect to ``x``, of that with respect to the result, ``g`` (N, H', W', O)."""
    return _call(_image_target(geometry), geometry.image, g, kernel)


def gradient_of_kernel(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """The gradient with respect to the kernel, of that with respect to the result, ``g`` (N, H', W', O)."""
    return _call(_kernel_target(geometry), geometry.kernel, x, g)


def _call(target: tuple[str, int], shape: tuple[int, ...], *arguments: jax.Array) -> jax.Array:
    name, scratch = target
    results = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((scratch,), jnp.uint8)
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")(*arguments)[0]


@functools.cache
def _forward_target(geometry: Geometry) -> tuple[str, int]:
    """What computes ``forward``: its name, and the bytes of scratch memory it needs."""
    image, _, output = _descriptors(geometry)
    source, result = _Memory(_SOURCE, image, _FIRST), _Memory(_RESULT, output, _OUT)
    return _target_with_kernel("forward", geometry, _forward_descriptor(geometry), source, result)


@functools.cache
def _image_target(geometry: Geometry) -> tuple[str, int]:
    """What computes ``gradient_of_image``, in the same way."""
    image, _, output = _descriptors(geometry)
    descriptor = _convolution("backward_data", (_DIRECT, image, _any_format(geometry), output), geometry)
    source, result = _Memory(_RESULT + _GRADIENT, output, _FIRST), _Memory(_SOURCE + _GRADIENT, image, _OUT)
    return _target_with_kernel("image", geometry, descriptor, source, result)


def _target_with_kernel(
    name: str, geometry: Geometry, descriptor: ctypes.c_void_p, source: _Memory, result: _Memory
) -> tuple[str, int]:
    """Brings the kernel, the second argument, into the order that oneDNN computes in, and computes."""
    given = _Memory(_SOURCE, _descriptors(geometry)[1], _SECOND)
    ordered = _query(descriptor, _QUERY_WEIGHTS)
    scratchpad = _Memory(_SCRATCHPAD, _query(descriptor, _QUERY_SCRATCHPAD), _SCRATCH, _size(ordered))
    calls = [
        _reorder(given, _Memory(_RESULT, ordered, _SCRATCH)),
        _Call(_primitive(descriptor), [source, _Memory(_WEIGHTS, ordered, _SCRATCH), result, scratchpad]),
    ]
    return _register(name, geometry, calls), scratchpad.start + _size(scratchpad.descriptor)


@functools.cache
def _kernel_target(geometry: Geometry) -> tuple[str, int]:
    """What computes ``gradient_of_kernel``: it is reordered in the end."""
    image, kernel, output = _descriptors(geometry)
    descriptor = _convolution("backward_weights", (_DIRECT, image, _any_format(geometry), None, output), geometry)
    ordered = _query(descriptor, _QUERY_GRADIENT_OF_WEIGHTS)
    scratchpad = _Memory(_SCRATCHPAD, _query(descriptor, _QUERY_SCRATCHPAD), _SCRATCH, _size(ordered))
    arguments = [
        _Memory(_SOURCE, image, _FIRST),
        _Memory(_WEIGHTS + _GRADIENT, ordered, _SCRATCH),
        _Memory(_RESULT + _GRADIENT, output, _SECOND),
        scratchpad,
    ]
    result = _reorder(_Memory(_SOURCE, ordered, _SCRATCH), _Memory(_RESULT, kernel, _OUT))
    calls = [_Call(_primitive(descriptor), arguments), result]
    return _register("kernel", geometry, calls), scratchpad.start + _size(scratchpad.descriptor)


# Objects of oneDNN.


def _descriptors(geometry: Geometry) -> tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]:
    """Of the image, the kernel and the result as JAX lays them out, with the axes in oneDNN's order."""
    (n, h, w, c), (_, kw, i, o), (_, ho, wo, _) = geometry.image, geometry.kernel, geometry.output
    strides = (1, o, kw * i * o, i * o)
    return (
        _layout((n, c, h, w), (h * w * c, 1, w * c, c)),
        _layout(_weights(geometry), strides if geometry.groups == 1 else (o // geometry.groups, *strides)),
        _layout((n, o, ho, wo), (ho * wo * o, 1, wo * o, o)),
    )


def _weights(geometry: Geometry) -> tuple[int, ...]:
    """The sizes of a kernel in oneDNN's order: (O, I, h, w), or (groups, O / groups, I / groups, h, w)."""
    kh, kw, i, o = geometry.kernel
    return (o, i, kh, kw) if geometry.groups == 1 else (geometry.groups, o // geometry.groups, i, kh, kw)


def _layout(sizes: tuple[int, ...], strides: tuple[int, ...]) -> ctypes.c_void_p:
    return _created("dnnl_memory_desc_create_with_strides", len(sizes), _integers(*sizes), _F32, _integers(*strides))


def _any_format(geometry: Geometry) -> ctypes.c_void_p:
    """Of a kernel in whatever order oneDNN computes fastest."""
    sizes = _weights(geometry)
    return _created("dnnl_memory_desc_create_with_tag", len(sizes), _integers(*sizes), _F32, _ANY_FORMAT)


def _forward_descriptor(geometry: Geometry) -> ctypes.c_void_p:
    image, _, output = _descriptors(geometry)
    arguments = (_FORWARD_TRAINING, _DIRECT, image, _any_format(geometry), None, output)
    return _convolution("forward", arguments, geometry)


def _convolution(kind: str, arguments: tuple[Any, ...], geometry: Geometry) -> ctypes.c_void_p:
    attributes = _created("dnnl_primitive_attr_create")
    # Memory of oneDNN's own could not be used by two threads at a time.
    _check(_loaded().dnnl_primitive_attr_set_scratchpad_mode(attributes, _USER_SCRATCHPAD))
    strides = _integers(geometry.strides, geometry.strides)
    gaps = _integers(geometry.dilation - 1, geometry.dilation - 1)  # oneDNN counts the pixels left out.
    before, after = (_integers(*sides) for sides in zip(*geometry.padding, strict=True))
    hint = () if kind == "forward" else (_forward_descriptor(geometry),)
    name = f"dnnl_convolution_{kind}_primitive_desc_create"
    return _created(name, _engine(), *arguments, strides, gaps, before, after, *hint, attributes)


def _reorder(source: _Memory, result: _Memory) -> _Call:
    name = "dnnl_reorder_primitive_desc_create"
    descriptor = _created(name, source.descriptor, _engine(), result.descriptor, _engine(), None)
    return _Call(_primitive(descriptor), [source, result])


def _primitive(descriptor: ctypes.c_void_p) -> ctypes.c_void_p:
    return _created("dnnl_primitive_create", descriptor)


def _query(descriptor: ctypes.c_void_p, what: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(_loaded().dnnl_primitive_desc_query_md(descriptor, what, 0))


def _size(descriptor: ctypes.c_void_p) -> int:
    """Bytes, rounded up so that what follows is aligned."""
    return -(-_loaded().dnnl_memory_desc_get_size(descriptor) // _ALIGNMENT) * _ALIGNMENT


_engine_lock = threading.Lock()


def _engine() -> ctypes.c_void_p:
    """The one engine: what is made for another one does not run on its streams."""
    with _engine_lock:  # A cache alone lets two threads that come first make one each.
        return _made_engine()


@functools.cache
def _made_engine() -> ctypes.c_void_p:
    return _created("dnnl_engine_create", _CPU, ctypes.c_size_t(0))


def _created(function: str, *arguments: Any) -> ctypes.c_void_p:
    """The object that a function of oneDNN makes."""
    made = ctypes.c_void_p()
    _check(getattr(_loaded(), function)(ctypes.byref(made), *arguments))
    return made


def _integers(*values: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _loaded() -> ctypes.CDLL:
    lib = library()
    assert lib is not None, "onednn.library() tells whether there is one"
    return lib


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"oneDNN failed with status {status} (dnnl_status_t in oneapi/dnnl/dnnl_common_types.h)")


# In XLA's hands.


def _register(name: str, geometry: Geometry, calls: list[_Call]) -> str:
    """Makes the calls known to XLA, under the name that is returned."""
    (top, bottom), (left, right) = geometry.padding
    window = (geometry.strides, top, bottom, left, right, geometry.groups, geometry.dilation)
    sizes = (*geometry.image, *geometry.kernel, *window)
    name = f"resnet_jax_onednn_{name}_{'_'.join(map(str, sizes))}"
    xla_ffi.register(name, functools.partial(_compute, calls))
    return name


def _compute(calls: list[_Call], addresses: list[int]) -> None:
    # Not one for each thread: to Python, a thread of XLA's is another one at every call.
    stream = _created("dnnl_stream_create", _engine(), _IN_ORDER)
    try:
        for call in calls:
            _execute(call, addresses, stream)
    finally:
        _loaded().dnnl_stream_destroy(stream)


def _execute(call: _Call, addresses: list[int], stream: ctypes.c_void_p) -> None:
    lib = _loaded()
    slots = (_Argument * len(call.arguments))()
    try:
        for slot, memory in zip(slots, call.arguments, strict=True):
            address = ctypes.c_void_p(addresses[memory.buffer] + memory.start)
            slot.kind = memory.kind
            slot.memory = _created("dnnl_memory_create", memory.descriptor, _engine(), address).value
        _check(lib.dnnl_primitive_execute(call.primitive, stream, len(slots), slots))
    finally:
        for slot in slots:
            if slot.memory:
                lib.dnnl_memory_destroy(ctypes.c_void_p(slot.memory))
