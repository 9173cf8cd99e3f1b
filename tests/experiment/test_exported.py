"""Networks exported out of runs, and those that come along with the package."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from reproduction import paper
from resnet_jax import build
from resnet_jax.config import read_config
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.errors import UserError
from resnet_jax.experiment import exported
from resnet_jax.experiment.exported import export, find_run, is_exported
from resnet_jax.experiment.networks import load_run
from resnet_jax.experiment.scoring import score

ROOT = Path(__file__).resolve().parent.parent.parent
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES = ["ant", "bee", "cat"]
NORMALIZATION = Normalization(np.full((32, 32, 3), 0.4, np.float32), np.array([0.2, 0.25, 0.3], np.float32))


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits_config, save_run):
    workdir = tmp_path_factory.mktemp("run")
    save_run(workdir, digits_config(data_dir="/somewhere"), {10: 5.0, 20: 9.0}, NAMES, NORMALIZATION)
    return workdir


def exported_to(folder, run, **facts):
    network = load_run(run)
    export(
        folder, network.model, network.variables, network.config, network.class_names, network.normalize,
        network.image_shape, {"step": network.step} | facts,
    )  # fmt: skip
    return folder


def the_error(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found.variables), jax.device_get(expected.variables))
    np.testing.assert_array_equal(found.normalize.mean, expected.normalize.mean)
    np.testing.assert_array_equal(found.normalize.std, expected.normalize.std)
    assert (found.model, found.class_names, found.step, found.image_shape) == (
        expected.model, expected.class_names, expected.step, expected.image_shape,
    )  # fmt: skip


def test_an_exported_network_is_loaded_as_its_run_is_and_says_nothing_of_the_machine(run, tmp_path):
    folder = exported_to(tmp_path / "new" / "bees", run)
    assert_same(load_run(folder), load_run(run))
    assert read_config(run / "config.json").data_dir == "/somewhere"
    assert load_run(folder).config.data_dir is None
    assert sorted(path.name for path in folder.iterdir()) == [
        "class_names.json", "config.json", "image_shape.json", "normalization.npz", "trained.json",
        "weights.safetensors",
    ]  # fmt: skip


def test_a_network_for_grey_images_comes_back(tmp_path, digits_config, random_variables):
    config = digits_config(**{"data.name": "mnist"})
    model = build.make_model(config, 10)
    variables = random_variables(model, 0)
    stem = variables["params"]["stem_conv"]
    stem["kernel"] = stem["kernel"][:, :, :1]
    grey = Normalization(np.full(1, 0.4, np.float32), np.full(1, 0.3, np.float32))
    names = [str(digit) for digit in range(10)]
    export(tmp_path / "grey", model, variables, config, names, grey, (28, 28, 1), {"step": 3})
    found = load_run(tmp_path / "grey")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found.variables), jax.device_get(variables))


def test_a_network_that_comes_along_is_found_by_its_name_unless_there_is_a_folder_of_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "INCLUDED", tmp_path / "included")
    exported_to(tmp_path / "included" / "bees", run)
    assert exported.included() == ["bees"]
    monkeypatch.chdir(tmp_path)
    assert_same(load_run("bees"), load_run(run))
    exported_to(tmp_path / "bees", run, step=3)
    assert load_run("bees").step == 3
    assert the_error(find_run, "wasps").endswith("name a network that comes along: bees")


@pytest.mark.parametrize("name", exported.included())
def test_what_comes_along_has_the_error_that_its_record_says(name):
    facts = json.loads((exported.INCLUDED / name / "trained.json").read_text())
    record = json.loads((ROOT / facts["record"]).read_text())
    assert facts["top1_error"] == record["results"]["single"]["top1_error"]
    assert facts["step"] == record["steps"] == load_run(name).step
    assert facts["commit"] == record["environment"]["commit"]
    said = f"({facts['top1_error']:.2f} % test error; the paper's has {paper.top1('single')['resnet20']:.2f} %)"
    assert said in (ROOT / "README.md").read_text()


@pytest.mark.extensive
def test_the_resnet_20_that_comes_along_sees_what_is_in_the_test_images(prepared_tfds):
    config = load_run("resnet20-cifar10").config.model_copy(update={"data_dir": str(prepared_tfds)})
    images = build.make_dataset(config).resident("test")
    few = ResidentDataset.from_arrays(
        images.images[:8], images.labels[:8], images.images[:500], images.labels[:500], CIFAR10
    )
    assert 6 < score(config, [Path("resnet20-cifar10")], data=few).record["top1_error"] < 11  # Of all images 8.51 %.


def test_faults_are_named(run, tmp_path):
    folder = exported_to(tmp_path / "bees", run)
    assert "is there already" in the_error(exported_to, folder, run)
    assert "which has one set of weights" in the_error(load_run, folder, "best")
    facts = (folder / "trained.json").read_text()
    (folder / "trained.json").write_text(json.dumps({"steps": 3}))
    assert "trained.json is missing or damaged" in the_error(load_run, folder)
    (folder / "trained.json").write_text(facts)
    (folder / "weights.safetensors").write_bytes(b"cut short")
    assert "weights.safetensors cannot be read as PyTorch weights" in the_error(load_run, folder)


def test_a_write_that_fails_leaves_nothing_in_the_way_of_the_next(run, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(exported, "write_description", full)
        with pytest.raises(OSError, match="No space left"):
            exported_to(tmp_path / "bees", run)
    assert not list(tmp_path.iterdir())
    exported_to(tmp_path / "bees", run)
    (folder,) = tmp_path.iterdir()
    assert folder.name == "bees" and folder.stat().st_mode & 0o777 == 0o777 & ~umask()


def umask():
    os.umask(now := os.umask(0))
    return now


def test_a_detector_is_refused_and_leaves_no_folder(tmp_path):
    from resnet_jax.config import load_config

    config = load_config("configs/detection_quickstart.py")
    model = build.make_model(config, 3)
    grey = Normalization(np.zeros(3, np.float32), np.ones(3, np.float32))
    refused = the_error(export, tmp_path / "out", model, {}, config, NAMES, grey, (64, 64, 3), {"step": 1})
    assert "detector" in refused and not (tmp_path / "out").exists()


def test_a_run_with_weights_beside_its_checkpoints_is_a_run(tmp_path):
    (tmp_path / "weights.safetensors").touch()
    assert is_exported(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert not is_exported(tmp_path)
