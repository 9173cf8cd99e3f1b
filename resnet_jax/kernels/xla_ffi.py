"""Functions in Python that XLA calls in the midst of a program on a CPU, with the addresses of its buffers.

XLA's foreign function interface is one of C, so that no compiler is needed here: the structures and constants below are
those of xla/ffi/api/c_api.h.
"""

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import jax

# A kind of extension, a stage of execution, and a code of an error.
_METADATA, _EXECUTE, _INTERNAL = 1, 3, 13
_MAJOR_VERSION = 0


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.c_void_p),
    ]


class _Buffers(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("values", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    ]


class _Version(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    ]


class _Metadata(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("version", _Version),
        ("traits", ctypes.c_uint32),
        ("state_type", ctypes.c_int64),
    ]


class _Extension(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.POINTER(_Metadata)),
    ]


class _Error(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    ]


class _Api(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("create_error", ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.POINTER(_Error))),
    ]


class _CallFrame(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.POINTER(_Extension)),
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
    ]


_Handler = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.POINTER(_CallFrame))
_lock = threading.Lock()
_handlers: dict[str, Any] = {}  # XLA keeps the functions; they must not be freed.


def register(name: str, function: Callable[[list[int]], None]) -> None:
    """Makes ``function`` what ``jax.ffi.ffi_call(name, ...)`` calls; a name that is registered already stays as it is.

    It gets the addresses of the arguments and then of the results, and may be called from several threads at a time.
    What it raises becomes an error of the program.
    """
    with _lock:
        if name not in _handlers:  # Two threads may trace the same program.
            _handlers[name] = _Handler(functools.partial(_handle, function))
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(_handlers[name]), platform="cpu")


def _handle(function: Callable[[list[int]], None], pointer: Any) -> int:
    """What XLA calls, to learn of the interface's version and to compute. Gives 0, or the address of an error."""
    frame = pointer.contents
    if frame.extension and frame.extension.contents.type == _METADATA:
        metadata, own = frame.extension.contents.metadata.contents, frame.api.contents.version
        # Another major version, of which the structures here know nothing, is for XLA to refuse.
        metadata.version.major, metadata.version.minor = _MAJOR_VERSION, own.minor
        metadata.traits = metadata.state_type = 0
    elif frame.stage == _EXECUTE:
        try:
            buffers = [part.values[i] for part in (frame.arguments, frame.results) for i in range(part.size)]
            function([buffer.contents.data for buffer in buffers])
        # Python would only print it, and XLA would continue with uninitialised memory; also after Ctrl-C.
        except BaseException as error:
            message = str(error) or type(error).__name__
            described = _Error(ctypes.sizeof(_Error), None, message.encode(), _INTERNAL)
            return frame.api.contents.create_error(ctypes.byref(described))
    return 0
