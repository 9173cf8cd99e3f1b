"""Eight simulated devices, of which a test uses one unless it asks for more; programs compiled once for all tests."""

import os
import sys

# Before JAX is imported: the count is read once.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from jax.sharding import Mesh

from resnet_jax import parallel
from resnet_jax.data.sources.detection.shapes import CLASSES, ShapesSource

ROOT = Path(__file__).resolve().parent.parent

# A failure of what these assert is explained as that of a test.
pytest.register_assert_rewrite(
    "tests.data.decode.encoded_images", "tests.interop.torch_networks", "tests.programs.program_calls"
)


def pytest_configure(config):
    """Compiled programs are kept for the worker's other tests and the next run and, but for slow tests, not optimised.

    Each worker has a folder of its own, because JAX does not write its cache atomically. Most of these tests' time is
    compilation; the slow ones, which train longest, run what users run.
    """
    if config.getoption("markexpr") != "slow":
        jax.config.update("jax_disable_most_optimizations", True)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # For the programs that tests start.
        if jax.__version_info__ < (0, 11):  # Later ones do not know it. Halves the time of compilation.
            os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    folder = ROOT / ".pytest_cache" / "compiled" / os.environ.get("PYTEST_XDIST_WORKER", "alone")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)  # For the programs that tests start.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """No file outside of pytest's own folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def torch_without_onednn():
    """On some CPUs PyTorch 2.13's oneDNN corrupts memory at convolutions of tiny channels-last images."""
    if "torch" in sys.modules:
        sys.modules["torch"].backends.mkldnn.enabled = False


@pytest.fixture(params=[1, 8], ids=["1-device", "8-devices"])
def mesh(request) -> Mesh:
    return parallel.data_mesh(jax.devices()[: request.param])


@pytest.fixture(scope="session")
def one_device() -> Mesh:
    return parallel.data_mesh(jax.devices()[:1])


@pytest.fixture(scope="session")
def eight_devices() -> Mesh:
    return parallel.data_mesh(jax.devices())


@pytest.fixture
def prepared_tfds() -> Path:
    """The folder of data sets prepared by TFDS: TFDS_DATA_DIR, or shared/tfds beside the project."""
    folder = Path(os.environ.get("TFDS_DATA_DIR") or ROOT.parent / "shared" / "tfds")
    if not (folder / "cifar10").is_dir():
        pytest.skip(f"needs cifar10 prepared in {folder}; set TFDS_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def random_variables():
    """``(model, seed=0) -> variables`` as after training: scales, biases and statistics that differ by channel.

    A network at its start has no use for masks: its biases and running means are 0.
    """

    def make(model, seed=0, image_shape=(32, 32, 3)):
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            name = path[-1].key
            if name in ("scale", "var"):
                return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
            if name == "kernel":
                return rng.normal(0, (1.5 / np.prod(leaf.shape[-4:-1])) ** 0.5, leaf.shape).astype(np.float32)
            return rng.normal(0, 0.5, leaf.shape).astype(np.float32)

        return jax.tree_util.tree_map_with_path(draw, shapes)

    return make


class Folder(NamedTuple):
    """Photographs in class folders; height and width, and label, of each in the validation split, in its order."""

    root: Path
    class_names: list[str]
    sizes: list[tuple[int, int]]
    labels: list[int]


@pytest.fixture(scope="session")
def photograph_folder(tmp_path_factory) -> Folder:
    """Four photographs of noise of odd sizes, whose every pixel counts, in three classes; and six to train on."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    # Sorted by class and path, as the split is.
    sizes = {
        "ant/lying.png": (45, 60),
        "ant/upright.jpg": (61, 47),
        "bee/square.png": (51, 51),
        "cat/lying.jpg": (43, 58),
    }
    files = {f"val/{name}": size for name, size in sizes.items()}
    files |= {f"train/{name}/{i}.png": (30, 30) for name in ("ant", "bee", "cat") for i in range(2)}
    for name, size in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(256, size=(*size, 3), dtype=np.uint8)).save(root / name, quality=95)
    return Folder(root, ["ant", "bee", "cat"], list(sizes.values()), [0, 0, 1, 2])


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory) -> Path:
    """A folder in VOC's layout with 12 and 4 drawn photographs."""
    root, source = tmp_path_factory.mktemp("shapes"), ShapesSource("train")
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for index in range(16):
        PIL.Image.fromarray(source[index]["image"]).save(root / "JPEGImages" / f"{index:02}.jpg", quality=95)
        found = source.objects(index)
        objects = "".join(
            f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x1 + 1:.2f}</xmin><ymin>{y1 + 1:.2f}</ymin>"
            f"<xmax>{x2:.2f}</xmax><ymax>{y2:.2f}</ymax></bndbox></object>"
            for (x1, y1, x2, y2), label in zip(found.boxes, found.labels, strict=True)
        )
        (root / "Annotations" / f"{index:02}.xml").write_text(f"<annotation>{objects}</annotation>")
    for split, numbers in (("train", range(12)), ("val", range(12, 16))):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{number:02}\n" for number in numbers))
    return root
