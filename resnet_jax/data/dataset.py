"""Data sets by name: those that live on the device, and those that are streamed."""

from typing import TypeAlias

from ml_collections import ConfigDict

from resnet_jax.data import resident, streaming
from resnet_jax.data.resident import Dataset
from resnet_jax.data.streaming import Photographs
from resnet_jax.errors import UserError

Data: TypeAlias = Dataset | Photographs


def load_data(config: ConfigDict) -> Data:
    """Loads or opens config.data.name. Raises UserError for an unknown name or where the data are not found."""
    name = config.data.name
    if name in resident.NAMES:
        return resident.load_dataset(config)
    if name in streaming.NAMES:
        return streaming.load_photographs(config)
    raise UserError(f"config.data.name is {name!r}; it must be one of {', '.join(resident.NAMES + streaming.NAMES)}")


def evaluation_split(data: Data) -> str:
    """The split that a run is evaluated on as it goes: what is held out, or else what the data set has for it."""
    if isinstance(data, Photographs) or data.validation is not None:
        return "validation"
    return "test"
