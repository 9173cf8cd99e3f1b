"""The same convolutions in several formulations: ``python -m benchmarks.convolutions``.

``--check`` times nothing, and compares what this machine computes, forward and both gradients, with XLA's plain
convolution and JAX's own gradients, for every convolution of the paper's networks, and for grouped and dilated ones.

For the kinds of convolution in ResNet-20 (batch 128) and ResNet-50 (batch 16), the GFLOP/s of the forward pass and of
both gradients, beside those of a large matrix product, which is about what the processor can do. All of them give the
same numbers, up to rounding, which is checked first.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.host_memory import keep_freed_memory
from resnet_jax.kernels import PLAIN, convolution, fast_kernels, onednn
from resnet_jax.kernels.onednn import Geometry
from resnet_jax.models import create_model, list_models, variant
from resnet_jax.models.layers import Conv

# Batch, size of the image, input channels, filters, size of the kernel, stride, groups.
SHAPES = [
    (128, 32, 16, 16, 3, 1, 1),
    (128, 16, 32, 32, 3, 1, 1),
    (128, 8, 64, 64, 3, 1, 1),
    (128, 32, 16, 32, 3, 2, 1),
    (16, 56, 64, 64, 3, 1, 1),
    (16, 56, 64, 256, 1, 1, 1),
    (16, 28, 128, 128, 3, 1, 1),
    (16, 14, 1024, 256, 1, 1, 1),
    (16, 56, 128, 128, 3, 1, 32),
]

# Those of networks that are not listed, as in SHAPES without the batch: the 3x3 convolutions of ResNeXt-50 (32x4d), a
# depthwise convolution, and a grouped 1x1 one.
GROUPED = [
    (56, 128, 128, 3, 1, 32),
    (56, 256, 256, 3, 2, 32),
    (28, 256, 256, 3, 1, 32),
    (28, 512, 512, 3, 2, 32),
    (14, 512, 512, 3, 1, 32),
    (14, 1024, 1024, 3, 2, 32),
    (7, 1024, 1024, 3, 1, 32),
    (56, 128, 128, 3, 1, 128),
    (28, 256, 512, 1, 2, 32),
]

Convolution = Callable[[jax.Array, jax.Array], jax.Array]


def taps(x: jax.Array, geometry: Geometry) -> list[jax.Array]:
    """What each place of the kernel is multiplied with: (N, H', W', I) for each."""
    (kh, kw), (_, rows, columns, _), s = geometry.kernel[:2], geometry.output, geometry.strides
    padded = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))
    return [
        padded[:, i : i + s * (rows - 1) + 1 : s, j : j + s * (columns - 1) + 1 : s]
        for i in range(kh)
        for j in range(kw)
    ]


def formulations(geometry: Geometry) -> dict[str, Convolution]:
    """Functions of (x, kernel). Those without gradients of their own get JAX's."""
    window = convolution._Window(*geometry[2:])

    def one_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.concatenate(taps(x, geometry), axis=-1) @ kernel.reshape(-1, kernel.shape[-1])

    def product_a_tap(x: jax.Array, kernel: jax.Array) -> jax.Array:
        kernels = kernel.reshape(-1, *kernel.shape[2:])
        return sum(part @ kernels[place] for place, part in enumerate(taps(x, geometry)))  # type: ignore[return-value]

    def batched_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.einsum("tnhwi,tio->nhwo", jnp.stack(taps(x, geometry)), kernel.reshape(-1, *kernel.shape[2:]))

    found: dict[str, Convolution] = {
        "XLA": lambda x, kernel: convolution.plain_convolution(x, kernel, *window),
        "XLA, gradients restated": lambda x, kernel: convolution._conv_canonical(x, kernel, window),
    }
    if geometry.groups == 1:
        found["one product (im2col)"] = one_product
        found["a product a tap"] = product_a_tap
        found["batched products"] = batched_products
    if onednn.library() is not None:
        found["oneDNN"] = lambda x, kernel: convolution._conv_onednn(x, kernel, geometry)
    return found


def seconds(function: Callable[..., Any], *arguments: Any, repeats: int) -> float:
    """The median time of a call, compiled."""
    compiled = jax.jit(function).lower(*arguments).compile()
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(shape: tuple[int, ...], repeats: int) -> None:
    batch, size, inputs, filters, k, strides, groups = shape
    geometry = square(*shape)
    rng = np.random.default_rng(0)
    x, kernel, g = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in (geometry.image, geometry.kernel, geometry.output)
    )
    gflop = 2 * geometry.multiply_adds / 1e9
    expected = None
    for name, convolve in formulations(geometry).items():
        to_image = lambda kernel, g, f=convolve: jax.vjp(lambda x: f(x, kernel), x)[1](g)[0]  # noqa: E731
        to_kernel = lambda x, g, f=convolve: jax.vjp(lambda kernel: f(x, kernel), kernel)[1](g)[0]  # noqa: E731
        found = convolve(x, kernel), to_image(kernel, g), to_kernel(x, g)
        expected = expected or found
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.abs(b).max()))
        times = (
            seconds(convolve, x, kernel, repeats=repeats),
            seconds(to_image, kernel, g, repeats=repeats),
            seconds(to_kernel, x, g, repeats=repeats),
        )
        speeds = " | ".join(f"{gflop / t:.0f}" for t in times)
        whole = 3 * gflop / sum(times)
        title = f"{batch} x {size} x {size}, {inputs} to {filters}, {k} x {k}" + (" / 2" if strides > 1 else "")
        title += f", {groups} groups" if groups > 1 else ""
        print(f"| {title} | {name} | {speeds} | {whole:.0f} |", flush=True)


def square(batch: int, size: int, inputs: int, filters: int, k: int, strides: int, groups: int) -> Geometry:
    """A convolution of square images with a square kernel, padded by half of it."""
    return Geometry(
        (batch, size, size, inputs), (k, k, inputs // groups, filters), strides, ((k // 2,) * 2,) * 2, groups
    )


def all_geometries(batch_size: int) -> list[Geometry]:
    """The convolutions of the paper's networks at their image sizes, with any shortcut, each once; and grouped ones."""
    found: dict[Geometry, None] = {}

    def note(next_call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if isinstance(module, Conv) and context.method_name == "__call__":
            kernel = (module.size, module.size, args[0].shape[-1] // module.groups, module.filters)
            pad = (module.dilation * (module.size // 2),) * 2
            found[Geometry(args[0].shape, kernel, module.strides, (pad, pad), module.groups, module.dilation)] = None
        return next_call(*args, **kwargs)

    for name in _models():
        fields = variant(name).own_fields
        changes: list[dict[str, Any]] = [{}]
        changes += [{"stride_placement": "v1.5"}] if "stride_placement" in fields else []
        changes += [{"shortcut": shortcut} for shortcut in ("A", "B", "C")] if "shortcut" in fields else []
        for overrides in changes:
            model = create_model(name, **overrides).scanned()
            images = jax.ShapeDtypeStruct((batch_size, model.image_size, model.image_size, 3), jnp.float32)
            with nn.intercept_methods(note):
                jax.eval_shape(model.init, jax.random.key(0), images)
    for shape in GROUPED:
        found[square(batch_size, *shape)] = None
    wide = Geometry((batch_size, 28, 28, 64), (3, 3, 64, 64), 1, ((2, 2), (2, 2)), dilation=2)
    return [*found, wide, wide._replace(kernel=(3, 3, 8, 64), groups=8)]


def _models() -> list[str]:
    return [name for name in list_models() if variant(name).in_paper]


def check(batch_size: int) -> None:
    """Prints the largest difference from the plain convolution, as a part of the largest value."""
    worst, geometries = 0.0, all_geometries(batch_size)
    for number, geometry in enumerate(geometries, start=1):
        rng = np.random.default_rng(number)
        x, kernel, g = (
            jnp.asarray(rng.normal(size=s), jnp.float32) for s in (geometry.image, geometry.kernel, geometry.output)
        )

        def value_and_gradients(convolve: Any, x: Any, kernel: Any, g: Any, geometry: Geometry = geometry) -> Any:
            y, pullback = jax.vjp(lambda x, k: convolve(x, k, *geometry[2:]), x, kernel)
            return y, *pullback(g)

        ours, plain = (
            jax.jit(partial(value_and_gradients, kernels.convolution))(x, kernel, g)
            for kernels in (fast_kernels(jax.default_backend(), 1), PLAIN)
        )
        for a, b in zip(ours, plain, strict=True):
            error = float(jnp.abs(a - b).max() / jnp.abs(b).max())
            worst = max(worst, error)
            # The rounding of a sum of as many terms as the longest of the three has.
            terms = max(
                math.prod(geometry.output[:3]),
                math.prod(geometry.kernel[:2]) * max(geometry.kernel[2], geometry.kernel[3] // geometry.groups),
            )
            if not error < 1e-7 * max(10, math.sqrt(terms)):
                raise SystemExit(f"error: {geometry} differs by {error:.1e} of its largest value")
    by = "oneDNN" if onednn.library() is not None else "XLA"
    grouped = sum(geometry.groups > 1 for geometry in geometries)
    print(
        f"{len(geometries)} convolutions of {len(_models())} networks and beyond, {grouped} of them grouped, ",
        end="",
    )
    print(f"batch {batch_size}, large ones by {by}:")
    print(f"outputs and both gradients differ by at most {worst:.1e} of their largest value")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="compare with the plain convolution, and time nothing")
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.check:
        check(batch_size=2)
        return
    a = jnp.ones((2048, 2048))
    print(
        f"a product of 2048 x 2048 matrices: {2 * 2048**3 / 1e9 / seconds(jnp.matmul, a, a, repeats=9):.0f} GFLOP/s\n"
    )
    print("| convolution | formulation | forward (GFLOP/s) | to the image | to the kernel | all three |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        measure(shape, arguments.repeats)


if __name__ == "__main__":
    main()
