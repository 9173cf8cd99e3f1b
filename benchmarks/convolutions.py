"""The same convolutions in several formulations: ``python -m benchmarks.convolutions``.

``--check`` times nothing, and compares what this machine computes, forward and both gradients, with XLA's plain
convolution and JAX's own gradients, for every convolution of every network.

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
from resnet_jax.models import conv, create_model, list_models, onednn
from resnet_jax.models.onednn import Geometry
from resnet_jax.models.resnet import ResNet

# Batch, size of the image, input channels, filters, size of the kernel, stride.
SHAPES = [
    (128, 32, 16, 16, 3, 1),
    (128, 16, 32, 32, 3, 1),
    (128, 8, 64, 64, 3, 1),
    (128, 32, 16, 32, 3, 2),
    (16, 56, 64, 64, 3, 1),
    (16, 56, 64, 256, 1, 1),
    (16, 28, 128, 128, 3, 1),
    (16, 14, 1024, 256, 1, 1),
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
    strides, padding = geometry.strides, geometry.padding

    def one_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.concatenate(taps(x, geometry), axis=-1) @ kernel.reshape(-1, kernel.shape[-1])

    def product_a_tap(x: jax.Array, kernel: jax.Array) -> jax.Array:
        kernels = kernel.reshape(-1, *kernel.shape[2:])
        return sum(part @ kernels[place] for place, part in enumerate(taps(x, geometry)))  # type: ignore[return-value]

    def batched_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.einsum("tnhwi,tio->nhwo", jnp.stack(taps(x, geometry)), kernel.reshape(-1, *kernel.shape[2:]))

    found: dict[str, Convolution] = {
        "XLA": partial(conv._conv, strides=strides, padding=padding),
        "XLA, gradients restated": lambda x, kernel: conv._conv_canonical(x, kernel, strides, padding),
        "one product (im2col)": one_product,
        "a product a tap": product_a_tap,
        "batched products": batched_products,
    }
    if onednn.library() is not None:
        found["oneDNN"] = lambda x, kernel: conv._conv_onednn(x, kernel, geometry)
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
    batch, size, inputs, filters, k, strides = shape
    geometry = Geometry((batch, size, size, inputs), (k, k, inputs, filters), strides, ((k // 2, k // 2),) * 2)
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
        print(f"| {title} | {name} | {speeds} | {whole:.0f} |", flush=True)


def all_geometries(batch_size: int) -> list[Geometry]:
    """The convolutions of every listed network at its image size, with any shortcut, each once."""
    found: dict[Geometry, None] = {}

    def note(next_call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if isinstance(module, conv.Conv) and context.method_name == "__call__":
            kernel = (module.size, module.size, args[0].shape[-1], module.filters)
            found[Geometry(args[0].shape, kernel, module.strides, ((module.size // 2,) * 2,) * 2)] = None
        return next_call(*args, **kwargs)

    for name in list_models():
        model = create_model(name)
        variants = [model]
        if isinstance(model, ResNet):
            model = model.clone(scan_blocks=True)
            variants = [model, model.clone(stride_placement="v1.5")]
            if model.shortcut in ("A", "B", "C"):
                variants += [model.clone(shortcut=shortcut) for shortcut in ("A", "B", "C")]
        for variant in variants:
            images = jax.ShapeDtypeStruct((batch_size, model.image_size, model.image_size, 3), jnp.float32)
            with nn.intercept_methods(note):
                jax.eval_shape(variant.init, jax.random.key(0), images)
    return list(found)


def check(batch_size: int) -> None:
    """Prints the largest difference from the plain convolution, as a part of the largest value."""
    worst, geometries = 0.0, all_geometries(batch_size)
    for number, geometry in enumerate(geometries, start=1):
        rng = np.random.default_rng(number)
        x, kernel, g = (
            jnp.asarray(rng.normal(size=s), jnp.float32) for s in (geometry.image, geometry.kernel, geometry.output)
        )

        def value_and_gradients(convolve: Any, x: Any, kernel: Any, g: Any, geometry: Geometry = geometry) -> Any:
            y, pullback = jax.vjp(lambda x, k: convolve(x, k, geometry.strides, geometry.padding), x, kernel)
            return y, *pullback(g)

        ours, plain = (
            jax.jit(partial(value_and_gradients, convolve))(x, kernel, g) for convolve in (conv.conv2d, conv._conv)
        )
        for a, b in zip(ours, plain, strict=True):
            error = float(jnp.abs(a - b).max() / jnp.abs(b).max())
            worst = max(worst, error)
            # The rounding of a sum of as many terms as the longest of the three has.
            terms = max(math.prod(geometry.output[:3]), math.prod(geometry.kernel[:2]) * max(geometry.kernel[2:]))
            if not error < 1e-7 * max(10, math.sqrt(terms)):
                raise SystemExit(f"error: {geometry} differs by {error:.1e} of its largest value")
    by = "oneDNN" if onednn.library() is not None else "XLA"
    print(f"{len(geometries)} convolutions of {len(list_models())} networks, batch {batch_size}, large ones by {by}:")
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
