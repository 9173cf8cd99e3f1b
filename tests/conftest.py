"""Eight simulated devices for every test, and no file outside of pytest's own folders."""

import os

# Before JAX is imported: the count is read once.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import jax
import pytest
from jax.sharding import Mesh

from resnet_jax import parallel

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=[1, 8], ids=["1-device", "8-devices"])
def mesh(request) -> Mesh:
    return parallel.data_mesh(jax.devices()[: request.param])


@pytest.fixture
def prepared_tfds() -> Path:
    """The folder of data sets prepared by TFDS: TFDS_DATA_DIR, or shared/tfds beside the project."""
    folder = Path(os.environ.get("TFDS_DATA_DIR") or ROOT.parent / "shared" / "tfds")
    if not (folder / "cifar10").is_dir():
        pytest.skip(f"needs cifar10 prepared in {folder}; set TFDS_DATA_DIR")
    return folder
