import pytest

from resnet_jax.kernels import PLAIN, fast_kernels


@pytest.mark.parametrize("platform", ["gpu", "tpu", "another"])
def test_platforms_other_than_cpus_get_plain_kernels(platform):
    assert fast_kernels(platform, 1) is PLAIN


@pytest.mark.parametrize("num_devices", [1, 8])
def test_cpus_get_others_and_the_same_ones_each_time(num_devices):
    kernels = fast_kernels("cpu", num_devices)
    assert kernels != PLAIN and hash(kernels)
    assert fast_kernels("cpu", num_devices) is kernels
