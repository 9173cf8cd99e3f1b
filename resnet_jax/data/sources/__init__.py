"""Where images come from, by data set name. A new source is a file here and a line in one of the tables.

Whatever is in neither table is looked for in TensorFlow Datasets. Imports no jax, and what only one source needs is
imported by that source when it is used.
"""

from collections.abc import Callable

from resnet_jax.data.sources import digits, folder, huggingface, listed, packed, tfds
from resnet_jax.data.sources.protocol import Images, Opened
from resnet_jax.errors import UserError

# Each takes the name and config.data_dir.
RESIDENT_SOURCES: dict[str, Callable[[str, str | None], Images]] = {"digits": digits.load_images}
PHOTOGRAPH_SOURCES: dict[str, Callable[[str, str | None], Opened]] = {
    "folder": folder.open_photographs,
    "packed": packed.open_photographs,
    "csv": listed.open_photographs,
    "jsonl": listed.open_photographs,
    "huggingface": huggingface.open_photographs,
}


def load_images(name: str, data_dir: str | None) -> Images:
    """Loads images of one size into memory: a name of ``RESIDENT_SOURCES``, or any data set of TensorFlow Datasets.

    Raises UserError where it is not found, or its images are of several sizes.
    """
    if name in PHOTOGRAPH_SOURCES:
        raise UserError(f"config.data.name is {name!r}, which holds photographs; set config.data.kind=photographs")
    return RESIDENT_SOURCES.get(name, tfds.load_images)(name, data_dir)


def open_photographs(name: str, data_dir: str | None) -> Opened:
    """Opens photographs: a name of ``PHOTOGRAPH_SOURCES``, or any data set of TensorFlow Datasets.

    Raises UserError where it is not found; for a split of it that is not, when it is opened.
    """
    if name in RESIDENT_SOURCES:
        raise UserError(f"config.data.name is {name!r}, which is small images; set config.data.kind=resident")
    return PHOTOGRAPH_SOURCES.get(name, tfds.open_photographs)(name, data_dir)
