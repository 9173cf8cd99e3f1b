"""Small data sets."""

import pytest

from resnet_jax.data import Photographs, Resident


@pytest.fixture(scope="session")
def digits():
    return Resident(name="digits").load()


@pytest.fixture(scope="session")
def open_folder():
    """``(root, **settings) -> StreamedDataset`` of the photographs in a folder, in tiny crops."""

    def make(root, **settings):
        defaults = {"name": "folder", "crop_size": 32, "eval_shorter_side": 41, "threads": 2}
        return Photographs(**defaults | settings).load(str(root))

    return make
