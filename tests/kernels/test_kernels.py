from functools import partial

import jax
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.kernels import PLAIN, divided, fast_kernels


@pytest.mark.parametrize("platform", ["gpu", "tpu", "another"])
def test_platforms_other_than_cpus_get_plain_kernels(platform):
    assert fast_kernels(platform, 1) is PLAIN


@pytest.mark.parametrize("num_devices", [1, 8])
def test_cpus_get_others_and_the_same_ones_each_time(num_devices):
    kernels = fast_kernels("cpu", num_devices)
    assert kernels != PLAIN and hash(kernels)
    assert fast_kernels("cpu", num_devices) is kernels


@pytest.mark.parametrize("kernels", [PLAIN, fast_kernels("cpu", 8)], ids=["plain", "fast"])
@pytest.mark.parametrize(("size", "strides"), [(1, 1), (3, 2)])
def test_grouped_convolutions_stay_on_the_devices_of_their_images(eight_devices, kernels, size, strides):
    """The numbers of one device, and no gathered batch in the program; XLA alone would gather."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(16, 8, 8, 12)), rng.normal(size=(size, size, 3, 8))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    padding = ((size // 2, size // 2),) * 2

    def squares(convolution, x, kernel):
        return (convolution(x, kernel, strides, padding, groups=4) ** 2).sum()

    expected = jax.jit(jax.value_and_grad(partial(squares, PLAIN.convolution), argnums=(0, 1)))(x, kernel)
    on_mesh = divided(kernels, eight_devices).convolution
    run = jax.jit(jax.value_and_grad(partial(squares, on_mesh), argnums=(0, 1)))
    placed = (
        parallel.to_global(x, parallel.sharded_batch(eight_devices)),
        parallel.to_global(kernel, parallel.replicated(eight_devices)),
    )
    compiled = run.lower(*placed).compile()
    assert "all-gather" not in compiled.as_text()
    found = compiled(*placed)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3), jax.device_get(found), expected)


def test_divided_kernels_are_one_value_for_a_mesh_and_take_any_batch(eight_devices):
    kernels = divided(PLAIN, eight_devices)
    assert divided(PLAIN, eight_devices) is kernels and kernels.max_pool is PLAIN.max_pool
    x, kernel = np.ones((1, 4, 4, 4), np.float32), np.ones((1, 1, 2, 4), np.float32)
    found = kernels.convolution(x, kernel, 1, ((0, 0), (0, 0)), groups=2)
    np.testing.assert_array_equal(found, np.full((1, 4, 4, 4), 2))
