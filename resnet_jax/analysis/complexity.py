"""Parameters and multiply-adds of a network, as the paper counts them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from resnet_jax.kernels import PLAIN
from resnet_jax.models import Model


def count_parameters(model: Model, image_size: int = 32) -> int:
    """Trainable parameters (batch statistics not counted). Nothing is computed or allocated."""
    return _count_parameters(_abstract_variables(model, image_size))


def count_both(model: Model, image_size: int) -> tuple[int, int]:
    """``count_parameters`` and ``count_multiply_adds`` with one initialisation traced for both."""
    variables = _abstract_variables(model, image_size)
    return _count_parameters(variables), _count_multiply_adds(model, variables, image_size)


def count_multiply_adds(model: Model, image_size: int) -> int:
    """Multiply-adds of one forward pass over one ``image_size`` x ``image_size`` image.

    Counts the convolutions and the last layer only, as the paper's FLOPs do (Table 1). Read off the traced program,
    so it holds for any field of the model.
    """
    return _count_multiply_adds(model, _abstract_variables(model, image_size), image_size)


def _abstract_variables(model: Model, image_size: int) -> Any:
    """The shapes and types of the model's variables."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def _count_parameters(variables: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def _count_multiply_adds(model: Model, variables: Any, image_size: int) -> int:
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    model = model.clone(kernels=PLAIN)  # Others may call functions that are not counted.
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)
    return _count(program.jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "conv_general_dilated":
            height, width, channels, _ = equation.invars[1].aval.shape
            total += outputs * height * width * channels
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += outputs * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        else:
            repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
            for inner in jaxprs_in_params(equation.params):
                total += repeats * _count(inner)
    return total
