"""Networks out of workdirs and out of files of PyTorch weights."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax import build, parallel
from resnet_jax.config import Config, flatten, load_config, override, read_config, to_json
from resnet_jax.data.class_names import imagenet_names
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.experiment.networks import (
    FoundWeights,
    find_weights,
    load_network,
    load_run,
    load_weights,
    refuse_other_network,
)
from resnet_jax.experiment.scoring import score
from resnet_jax.interop.torch_weights import save_torch

NAMES = ["ant", "bee", "cat"]
NORMALIZATION = Normalization(np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.25, 0.3], np.float32))


def assert_same_tree(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


def the_error(function, *args):
    """The message of a UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, digits_config, save_run):
    workdir, config = tmp_path_factory.mktemp("saved"), digits_config()
    return workdir, save_run(workdir, config, {10: 5.0, 20: 9.0}, normalize=NORMALIZATION, class_names=NAMES)


@pytest.fixture
def run(tmp_path, digits_config, saved):
    """(workdir, config, variables by step) of a run with a better checkpoint before its latest."""
    workdir, variables = saved
    shutil.copytree(workdir, tmp_path / "run")
    return tmp_path / "run", digits_config(), variables


def test_a_run_is_loaded_from_its_folder_alone_with_all_that_it_takes_to_apply_it(run):
    workdir, config, variables = run
    network = load_run(workdir)
    assert (network.class_names, network.step) == (NAMES, 20)
    assert network.config == config
    assert network.model == build.make_model(config, 3)
    assert_same_tree(network.variables, variables[20])
    images = np.random.default_rng(0).integers(256, size=(4, 32, 32, 3), dtype=np.uint8)
    # The class's own formula, against the one in words.
    found = jax.nn.softmax(network.model.apply(network.variables, network.normalize(images)))
    logits = network.model.apply(variables[20], (np.float32(images) / 255 - NORMALIZATION.mean) / NORMALIZATION.std)
    odds = np.exp(np.float64(logits))
    np.testing.assert_allclose(found, odds / odds.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(("which", "step"), [("latest", 20), ("best", 10)])
def test_the_latest_or_the_best_checkpoint_is_loaded_on_any_devices(run, mesh, which, step):
    workdir, _, variables = run
    network = load_run(workdir, which, mesh=mesh)
    assert network.step == step
    assert_same_tree(network.variables, variables[step])
    assert {leaf.sharding for leaf in jax.tree.leaves(network.variables)} == {parallel.replicated(mesh)}


def test_the_moving_average_is_loaded_where_the_run_kept_one(tmp_path, digits_config, save_run):
    used = save_run(tmp_path, digits_config(ema_decay=0.9), {10: 5.0})
    assert_same_tree(load_run(tmp_path).variables, used[10])


def test_a_run_whose_evaluations_are_missing_has_no_best_checkpoint(tmp_path, digits_config, save_run):
    save_run(tmp_path, digits_config(), {10: None})
    assert load_run(tmp_path).step == 10
    assert f"there is no best checkpoint in {tmp_path}" in the_error(load_run, tmp_path, "best")


def test_a_folder_without_a_run_is_named(tmp_path):
    for workdir in (tmp_path, tmp_path / "nothing"):
        assert the_error(load_run, workdir).startswith(f"there is no run in {workdir};")
    assert not (tmp_path / "nothing").exists()


def test_a_run_that_never_saved_is_named(run):
    workdir, _, _ = run
    for path in (workdir / "checkpoints").iterdir():
        path.rename(workdir / path.name)
    for which in ("latest", "best"):
        assert the_error(load_run, workdir, which).startswith(f"there is no {which} checkpoint in {workdir};")


@pytest.mark.parametrize("name", ["config.json", "class_names.json", "image_shape.json", "normalization.npz"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"PK\x03\x04 cut short"])
def test_a_file_that_is_missing_or_damaged_is_named_with_the_fix(run, name, content):
    workdir, _, _ = run
    (workdir / name).unlink()
    if content is not None:
        (workdir / name).write_bytes(content)
    error = the_error(load_run, workdir)
    assert re.match(re.escape(str(workdir / name)) + r" is (missing or )?damaged \(", error)
    assert error.count("damaged (") == error.count("; ") == 1  # One fault and one fix.


def test_a_model_that_does_not_fit_the_checkpoint_is_named(run, digits_config):
    workdir, _, _ = run
    error = the_error(load_run, workdir, "latest", digits_config(**{"model.width": 8}))
    assert "is of another model: params/" in error


def test_a_config_that_is_given_stands_in_for_the_stored_one(run, digits_config):
    workdir, _, _ = run
    (workdir / "config.json").unlink()
    config = digits_config(seed=3)
    assert load_run(workdir, config=config).config.seed == 3


def test_a_stored_config_comes_back_whole_with_tuples(tmp_path, folder_config):
    changes = {"normalization.mean": (0.1, 0.2, 0.3), "schedule.name": "step", "schedule.boundaries": (7, 8)}
    config = folder_config("somewhere", **changes)
    (tmp_path / "config.json").write_text(to_json(config))
    assert read_config(tmp_path / "config.json") == config
    for key in ("normalization.mean", "data.crop.shorter_side", "schedule.boundaries", "model.stage_sizes"):
        assert type(flatten(read_config(tmp_path / "config.json"))[key]) is tuple


def test_keys_that_are_newer_than_the_run_have_their_defaults(tmp_path):
    old = {"steps": 7, "model": {"name": "plain20", "width": 8}, "data": {"kind": "resident", "holdout": 3}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    changes = {"steps": 7, "model.name": "plain20", "model.width": 8, "data.holdout": 3}
    assert read_config(tmp_path / "config.json") == override(Config(), changes)


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "null", '{"steps": "many"}', '{"model": 3}', '{"normalization": {"mean": 0.5}}', '{"steps": [1]}'],
)
def test_a_stored_config_that_is_none_is_named(run, content):
    workdir, _, _ = run
    (workdir / "config.json").write_text(content)
    assert re.match(re.escape(str(workdir / "config.json")) + " is (missing or )?damaged", the_error(load_run, workdir))


@pytest.fixture
def weights(tmp_path, random_variables):
    """Writes random weights for the model of a config; returns the path and the variables."""

    def write(config, num_classes, name="weights.safetensors"):
        model = build.make_model(config, num_classes)
        variables = random_variables(model, seed=5)
        save_torch(variables, tmp_path / name, model=model)
        return tmp_path / name, variables

    return write


def test_weights_are_loaded_for_the_model_of_the_config(mesh, weights, digits_config):
    config = digits_config()
    path, variables = weights(config, 3)
    network = load_weights(path, config, NAMES, NORMALIZATION, mesh, (32, 32, 3))
    assert_same_tree(network.variables, variables)
    assert (network.class_names, network.normalize, network.config, network.step) == (
        NAMES,
        NORMALIZATION,
        config,
        None,
    )
    assert network.model == build.make_model(config, 3, mesh)
    assert {leaf.sharding for leaf in jax.tree.leaves(network.variables)} == {parallel.replicated(mesh)}


@pytest.mark.parametrize(
    ("settings", "notes"),
    [
        ({"model.name": "resnet50"}, ["model.stride_placement"]),
        ({"model.name": "resnet50", "model.stride_placement": "v1"}, ["model.stride_placement"]),
        ({"model.name": "resnet50", "model.stride_placement": "v1.5"}, []),
        ({"model.name": "resnet18"}, []),
        ({"model.name": "resnet18", "normalization.name": "per_pixel_mean"}, ["normalization.name"]),
    ],
)
def test_settings_that_published_weights_do_not_share_are_noted(weights, folder_config, capsys, settings, notes):
    config = folder_config("", **settings)
    path, _ = weights(config, 3)
    assert find_weights(str(path), config, (32, 32, 3)) == FoundWeights(path)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" is ")[0] for line in lines] == [f"note: config.{note}" for note in notes]


def test_weights_that_do_not_fit_are_a_user_error(weights, digits_config):
    path, _ = weights(digits_config(), 4)
    mesh = parallel.data_mesh()
    rest = (digits_config(), NAMES, NORMALIZATION, mesh, (32, 32, 3))
    assert "fc.weight gives shape" in the_error(load_weights, path, *rest)
    missing = path.with_name("other.pth")
    assert str(missing) in the_error(load_weights, missing, *rest)


@pytest.mark.parametrize("sources", [(None, None), ("run", "weights.pth")])
def test_a_network_has_exactly_one_source(digits_config, sources):
    assert the_error(load_network, digits_config(), *sources) == "give either --workdir or --torch_weights"


def test_a_network_of_a_run_is_loaded_with_the_config_that_is_given(run, digits_config):
    workdir, _, variables = run
    config = digits_config(batch_size=4096)  # Of training, and so no matter here.
    network = load_network(config, str(workdir), None, "best")
    assert (network.step, network.config, network.class_names) == (10, config, NAMES)
    assert_same_tree(network.variables, variables[10])


def test_a_network_of_a_run_of_another_model_is_refused(run, digits_config):
    workdir, _, _ = run
    config = digits_config(**{"model.name": "plain20"})
    error = the_error(load_network, config, str(workdir), None)
    assert re.search(r"config\.model\.name \(was 'resnet20', now 'plain20'\)", error)


DETECTOR = "configs/detection_quickstart.py:fpn"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task.anchor_sizes", (8.0, 16.0, 32.0, 48.0)),
        ("task.pooling.aligned", None),
        ("task.box.weights", (1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_a_detector_is_used_as_it_was_trained_also_where_no_weights_tell_of_it(tmp_path, key, value):
    config = load_config(DETECTOR)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(to_json(config))
    value = not flatten(config)[key] if value is None else value
    other = override(config, {key: value})
    for use in (lambda: load_network(other, str(tmp_path), None), lambda: score(other, [tmp_path])):
        assert f"holds a run with another config: config.{key} (was " in the_error(use)
    free = {"task.box.min_score": 0.5, "task.metric": "voc07", "task.rpn.test_post_nms": 10}
    refuse_other_network(override(config, free), tmp_path)


@pytest.mark.parametrize(
    ("name", "stage"), [("detection_quickstart.py:c4", "detector"), ("localisation_quickstart.py", "rcnn")]
)
def test_a_run_of_proposals_alone_has_no_second_stage_to_read(tmp_path, name, stage):
    def config(trains):
        more = {"task.rcnn": True} if stage == "rcnn" else {}
        return override(load_config(f"configs/{name}"), {"task.trains": trains} | more)

    for trained, read, fits in (("rpn", stage, False), ("rpn", "rpn", True), (stage, "rpn", True)):
        (tmp_path / "config.json").write_text(to_json(config(trained)))
        if fits:
            refuse_other_network(config(read), tmp_path)
        else:
            message = the_error(refuse_other_network, config(read), tmp_path)
            assert f"trained the proposals alone (config.task.trains 'rpn'), and '{stage}' would read" in message


@pytest.mark.parametrize("path", [DETECTOR, "configs/localisation_quickstart.py"])
def test_keys_of_a_network_are_keys(path):
    config = load_config(path)
    for prefix in config.task.keys_of_network:
        assert any(key.startswith(f"task.{prefix}") for key in flatten(config)), prefix


def test_a_wrong_config_is_refused(run, digits_config):
    workdir, _, _ = run
    error = the_error(load_network, digits_config(accumulate_steps=3), str(workdir), None)
    assert "config.batch_size 64 is not divisible" in error


def test_weights_for_imagenet_take_no_data_set(weights, folder_config):
    config = folder_config("/nowhere", **{"data.name": "imagenet2012"})
    path, variables = weights(config, 1000)
    network = load_network(config, None, str(path))
    assert network.class_names == imagenet_names()
    np.testing.assert_allclose(network.normalize.mean, [0.485, 0.456, 0.406])
    np.testing.assert_allclose(network.normalize.std, [0.229, 0.224, 0.225])
    assert_same_tree(network.variables, variables)


def test_weights_for_other_data_take_their_classes_and_normalization(weights, folder_config, photograph_folder):
    config = folder_config(photograph_folder.root, **{"normalization.name": "per_pixel_mean"})
    path, _ = weights(config, 3)
    network = load_network(config, None, str(path))
    assert network.class_names == ["ant", "bee", "cat"]
    assert network.normalize.mean.shape == (32, 32, 3)
    # Where the data are not there, neither is a network.
    missing = str(photograph_folder.root / "nowhere")
    assert missing in the_error(load_network, override(config, {"data_dir": missing}), None, str(path))


def test_a_name_that_needs_more_than_is_installed_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'pydantic'", name="pydantic")

    monkeypatch.setattr(resnet_jax.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r'^resnet_jax\.load_run needs pydantic; pip install "\.\[train\]"'):
        resnet_jax.load_run  # noqa: B018


def test_loading_a_run_is_part_of_the_package_s_face():
    assert resnet_jax.load_run is load_run
