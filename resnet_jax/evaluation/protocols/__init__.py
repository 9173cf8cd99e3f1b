"""How an image becomes class probabilities. A new protocol is a file of its own here and a line in ``PROTOCOLS``."""

from resnet_jax.errors import UserError
from resnet_jax.evaluation.protocols.multi_scale import MULTI_SCALE, MULTI_SCALE_WINDOWS
from resnet_jax.evaluation.protocols.protocol import Protocol
from resnet_jax.evaluation.protocols.single import SINGLE
from resnet_jax.evaluation.protocols.ten_crop import TEN_CROP, TEN_CROP_WHOLE

__all__ = ["PROTOCOLS", "Protocol", "find_protocol"]

PROTOCOLS: dict[str, Protocol] = {
    "single": SINGLE,
    "ten_crop": TEN_CROP,
    "ten_crop_whole": TEN_CROP_WHOLE,
    "multi_scale": MULTI_SCALE,
    "multi_scale_windows": MULTI_SCALE_WINDOWS,
}


def find_protocol(name: str) -> Protocol:
    """A protocol by its name. Raises UserError for an unknown one."""
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}; use {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
