"""Each program compiled once for all tests of a worker, and a folder of photographs."""

from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module", autouse=True)
def compiled_once(compiled):
    settings = {"jax_compilation_cache_dir": str(compiled), "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """ROOT/train with 20 and ROOT/val with 4 photographs of noise in each of the classes cat and dog."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 4)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                size = tuple(rng.integers(40, 70, 2))
                PIL.Image.fromarray(noise).resize(size).save(folder / f"{number:02}.jpg")
    return root
