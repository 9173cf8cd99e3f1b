"""Checks of what callers give, beyond what arrays and modules check themselves."""

from typing import Any, get_args

from resnet_jax.errors import UserError


def check_one_of(name: str, value: object, literal: Any) -> None:
    """Raises UserError unless ``value`` is one of those of a ``Literal``."""
    if value not in get_args(literal):
        raise UserError(f"{name} is {value!r}; it must be {' or '.join(map(repr, get_args(literal)))}")


def check_backbone(network: Any, family: str) -> None:
    """Raises UserError unless a classification network is of this family and without a classifier."""
    if network.family != family:
        raise UserError(
            f"this backbone needs a network of the family {family!r}, not of {network.family!r}; use "
            f"detection.backbones.c4, in a config task.kind 'c4', which takes both"
        )
    if network.num_classes:
        raise UserError(
            f"a backbone's network has no classifier; make it with num_classes=0, not {network.num_classes}"
        )
