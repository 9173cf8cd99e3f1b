import ctypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.kernels import xla_ffi

FLOATS = ctypes.POINTER(ctypes.c_float)


def at(address, count):
    """The floats at an address."""
    return np.ctypeslib.as_array(ctypes.cast(address, FLOATS), (count,))


def call(name, function, results, *arguments):
    xla_ffi.register(name, function)
    return jax.jit(lambda *arguments: jax.ffi.ffi_call(name, results)(*arguments))(*arguments)


def test_a_function_reads_its_arguments_and_writes_its_results():
    def swapped_and_summed(addresses):
        x, y, first, second, total = (at(address, 4) for address in addresses)
        first[:], second[:], total[:] = y, x, x + y

    shape = jax.ShapeDtypeStruct((4,), jnp.float32)
    x, y = jnp.arange(4.0), jnp.arange(4.0) * 10
    first, second, total = call("test_swapped_and_summed", swapped_and_summed, (shape,) * 3, x, y)
    np.testing.assert_array_equal(first, y)
    np.testing.assert_array_equal(second, x)
    np.testing.assert_array_equal(total, x + y)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "error, said", [(ValueError("the third wheel is missing"), "the third wheel"), (KeyboardInterrupt(), "Keyboard")]
)
def test_what_a_function_raises_is_an_error_of_the_program(error, said):
    def fail(addresses):
        raise error

    shape = jax.ShapeDtypeStruct((4,), jnp.float32)
    with pytest.raises(jax.errors.JaxRuntimeError, match=said):
        jax.block_until_ready(call(f"test_fail_{said[:3]}", fail, shape, jnp.zeros(4)))


def test_a_name_that_is_registered_stays_as_it_is():
    def write(value):
        def function(addresses):
            at(addresses[0], 2)[:] = value

        return function

    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    np.testing.assert_array_equal(call("test_twice", write(1.0), shape), [1, 1])
    np.testing.assert_array_equal(call("test_twice", write(2.0), shape), [1, 1])
