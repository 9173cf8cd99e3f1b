"""Whole scores, alone and as ensembles, against each member applied by hand."""

import importlib.metadata

import jax
import numpy as np
import pytest

from resnet_jax import build, distributed
from resnet_jax.config import load_config
from resnet_jax.data.decode.boxes import CentralCrop
from resnet_jax.data.decode.images import crop_and_resize
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.evaluation.protocols import multi_scale
from resnet_jax.experiment.scoring import _named_weights, score
from resnet_jax.interop.torch_weights import save_torch

NORMALIZATION = Normalization(np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.25, 0.3], np.float32))
NUM_TEST = 360


def probabilities(config, variables, images, normalize=NORMALIZATION, num_classes=10):
    """(N, num_classes) of a network, from its logits."""
    apply = jax.jit(build.make_model(config, num_classes).apply)
    logits = np.float64(apply(variables, (np.float32(images) / 255 - normalize.mean) / normalize.std))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def error_rates(mean, labels):
    """Errors in percent and loss of mean probabilities."""
    ranks = [np.argsort(-row, kind="stable").tolist().index(label) for row, label in zip(mean, labels, strict=True)]
    top5 = {"top5_error": round(100 * np.mean([rank >= 5 for rank in ranks]), 4)} if mean.shape[1] > 5 else {}
    return top5 | {
        "num_examples": len(labels),
        "top1_error": round(100 * np.mean([rank >= 1 for rank in ranks]), 4),
        "loss": pytest.approx(-np.mean(np.log(mean[range(len(labels)), labels])), rel=1e-5),
    }


def assert_scored(found, mean, labels):
    """The record and the scores are those of these probabilities."""
    record, scores, *_ = found
    np.testing.assert_allclose(np.exp(scores.log_probs), mean, atol=1e-5)
    np.testing.assert_array_equal(scores.labels, labels)
    assert record == record | error_rates(mean, labels)
    assert 0 < record["top1_error"] < 100


@pytest.fixture
def weights(tmp_path, random_variables):
    """Writes random weights for the model of a config; returns their variables."""

    def write(name, config, num_classes=10, seed=7):
        model = build.make_model(config, num_classes)
        variables = random_variables(model, seed)
        save_torch(variables, tmp_path / name, model=model)
        return variables

    return write


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits_config, save_run):
    """(workdir, variables by step) of a run with a better checkpoint before its latest."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, save_run(workdir, digits_config(), {10: 5.0, 20: 9.0}, normalize=NORMALIZATION)


@pytest.mark.parametrize(("which", "step"), [("latest", 20), ("best", 10)])
def test_a_run_is_scored_on_the_test_set(digits_config, run, which, step):
    config, (workdir, variables) = digits_config(), run
    found = score(config, [workdir], which=which)
    test = build.make_dataset(config).splits["test"]
    assert_scored(found, probabilities(config, variables[step], test.images), test.labels)
    record = found[0]
    assert list(record) == [
        *("model", "data", "split", "protocol", "weights", "checkpoint", "step"),
        *("num_examples", "top1_error", "top5_error", "loss", "compilations", "seconds"),
    ]
    expected = {
        "model": "resnet20",
        "data": "digits",
        "split": "test",
        "protocol": "single",
        "weights": str(workdir),
        "checkpoint": which,
        "step": step,
    }
    assert record == record | expected | {"num_examples": NUM_TEST, "compilations": 1}
    assert record["seconds"] > 0


@pytest.mark.extensive
def test_another_split_is_scored_on_request(tmp_path, digits_config, save_run):
    config = digits_config(**{"data.holdout": 100})
    variables = save_run(tmp_path, config, {10: 5.0}, normalize=NORMALIZATION)
    for split, count in (("train", 1337), ("validation", 100)):
        found = score(config, [tmp_path], split=split)
        chosen = build.make_dataset(config).splits[split]
        assert_scored(found, probabilities(config, variables[10], chosen.images), chosen.labels)
        assert (found[0]["split"], found[0]["num_examples"]) == (split, count)


def test_weights_are_scored_with_the_normalization_of_the_config(tmp_path, digits_config, weights):
    config, path = digits_config(), str(tmp_path / "a.safetensors")
    variables, data = weights("a.safetensors", config), build.make_dataset(config)
    found = score(config, torch_weights=[path])
    mean = probabilities(config, variables, data.splits["test"].images, build.make_normalization(config, data))
    assert_scored(found, mean, data.splits["test"].labels)
    assert found[0] == found[0] | {"weights": path, "checkpoint": None, "step": None, "split": "test"}


@pytest.mark.extensive
def test_an_ensemble_of_runs_and_weights_is_the_mean_of_its_members_probabilities(
    tmp_path, digits_config, save_run, weights
):
    config = digits_config()
    others = {
        "wide": digits_config(**{"model.width": 8, "model.shortcut": "B"}),
        "plain": digits_config(**{"model.name": "plain20", "normalization.name": "channel"}),
    }
    test = build.make_dataset(config).splits["test"]
    members = []
    for i, (name, other) in enumerate(others.items()):
        normalize = Normalization(NORMALIZATION.mean + np.float32(i / 10), NORMALIZATION.std)
        steps = {10: 1.0, 20 + i: 2.0}
        variables = save_run(tmp_path / name, other, steps, normalize=normalize, seed=i)
        members.append(probabilities(other, variables[20 + i], test.images, normalize))
    own = build.make_normalization(config, build.make_dataset(config))
    plain = digits_config(**{"model.name": "plain20"})
    members.append(probabilities(plain, weights("a=plain.safetensors", plain, seed=8), test.images, own))

    files = [f"plain20={tmp_path / 'a=plain.safetensors'}"]
    workdirs = [tmp_path / name for name in others]
    found = score(config, workdirs, files)
    assert_scored(found, np.mean(members, axis=0), test.labels)
    # The mean is of probabilities: that of their logarithms is another.
    assert np.abs(np.exp(np.mean(np.log(members), axis=0)) - np.mean(members, axis=0)).max() > 0.01
    expected = {
        "model": "resnet20 + plain20 + plain20",
        "weights": " + ".join([*map(str, workdirs), *files]),
        "step": "20 + 21",
        "compilations": 3,
    }
    assert found[0] == found[0] | expected


def test_a_model_is_named_only_before_the_first_equals_sign_and_if_there_is_such_a_model(
    tmp_path, digits_config, weights, monkeypatch
):
    config = digits_config()
    weights("width=4.safetensors", config)
    monkeypatch.chdir(tmp_path)
    assert score(config, torch_weights=["width=4.safetensors"])[0]["num_examples"] == NUM_TEST
    assert score(config, torch_weights=["resnet20=width=4.safetensors"])[0]["num_examples"] == NUM_TEST
    with pytest.raises(UserError, match=r"no file resnet21=width=4\.safetensors"):
        score(config, torch_weights=["resnet21=width=4.safetensors"])
    with pytest.raises(UserError, match=r"width=4\.safetensors does not fit resnet50: "):
        score(config, torch_weights=["resnet50=width=4.safetensors"])


def test_photographs_are_scored_on_their_validation_split(tmp_path, photograph_folder, folder_config, save_run):
    config = folder_config(photograph_folder.root)
    variables = save_run(tmp_path, config, {10: 5.0}, photograph_folder.class_names, NORMALIZATION)
    record, scores, data, *_ = score(config, [tmp_path])
    files = [data.source("validation")[i]["image"] for i in range(4)]
    crops = np.stack([crop_and_resize(file, CentralCrop(41, 32).box, (32, 32)) for file in files])
    mean = probabilities(config, variables[10], crops, num_classes=3)
    np.testing.assert_allclose(np.exp(scores.log_probs), mean, atol=1e-5)
    assert scores.labels.tolist() == photograph_folder.labels
    assert (record["split"], record["num_examples"]) == ("validation", 4)
    assert score(config, [tmp_path], split="train")[0]["num_examples"] == 6
    with pytest.raises(UserError, match="there is no folder test"):
        score(config, [tmp_path], split="test")


@pytest.mark.extensive
def test_an_ensemble_averages_what_a_protocol_says_of_each_member(
    tmp_path, photograph_folder, folder_config, save_run, weights, monkeypatch
):
    monkeypatch.setattr(multi_scale, "SCALES", (36, 40))
    config = folder_config(photograph_folder.root, eval_batch_size=20)
    save_run(tmp_path / "run", config, {10: 5.0}, photograph_folder.class_names)
    weights("a.safetensors", config, num_classes=3)
    workdirs, files = [tmp_path / "run"], [str(tmp_path / "a.safetensors")]
    members = [
        np.exp(score(config, *member, protocol="multi_scale")[1].log_probs) for member in ([workdirs, []], [[], files])
    ]
    record, scores, *_ = score(config, workdirs, files, protocol="multi_scale")
    np.testing.assert_allclose(np.exp(scores.log_probs), np.mean(members, axis=0), atol=1e-6)
    assert record["protocol"] == "multi_scale"
    assert record["compilations"] == 2  # Both scales have the same canvas here.


def test_a_job_compares_what_it_scores_before_it_does(digits_config, run, monkeypatch):
    compared = []
    monkeypatch.setattr(distributed, "active", lambda: True)
    monkeypatch.setattr(distributed, "agree", compared.append)
    score(digits_config(), [run[0]], split="train")
    asked, found, read = compared
    assert asked["config.model.width"] == "4" and asked["the argument split"] == "'train'"
    assert asked["the argument which"] == "'latest'" and asked["the argument workdirs"] == "1"
    assert found["the step of the checkpoints"] == "20" and found["train examples"] == "1437"
    assert list(read) == ["the weights and normalisation of network 1"]
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        assert asked[f"the version of {package}"] == importlib.metadata.version(package)
    assert {"classes", "the names of examples", "the content of examples"} <= found.keys()


def test_an_ensemble_has_members(digits_config):
    for none in ({}, {"workdirs": [], "torch_weights": []}):
        with pytest.raises(UserError, match="give a --workdir or --torch_weights, or several for an ensemble"):
            score(digits_config(), **none)


@pytest.mark.parametrize("class_names", [list("0123456"), list("1234567890")])
def test_a_run_for_other_classes_is_refused(tmp_path, digits_config, save_run, run, class_names):
    config = digits_config()
    save_run(tmp_path, config, {10: 5.0}, class_names)
    message = f"a network for {len(class_names)} classes cannot be scored on digits, which has 10"
    for workdirs in ([tmp_path], [run[0], tmp_path]):
        with pytest.raises(UserError, match=message):
            score(config, workdirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"model.width": 8},
        {"model.name": "plain20"},
        {"model.shortcut": "B"},
        {"data.holdout": 10},
        {"ema_decay": 0.9},
        {"normalization.name": "channel"},
        {"normalization.name": "channel", "normalization.mean": (0.1, 0.2, 0.3)},
    ],
)
def test_a_run_is_refused_under_a_config_that_changes_what_it_says(digits_config, run, settings):
    changed = list(settings)[-1]
    with pytest.raises(UserError, match=rf"config\.{changed} \(was .*--allow_config_change"):
        score(digits_config(**settings), [run[0]])


def test_a_change_can_be_allowed_but_not_to_another_network(digits_config, run):
    workdir, _ = run
    expected = score(digits_config(), [workdir]).record
    # The network is used with the normalisation that it was trained with, whatever the config says.
    changed = digits_config(**{"normalization.name": "channel"})
    found = score(changed, [workdir], allow_config_change=True).record
    assert found["loss"] == expected["loss"]
    with pytest.raises(UserError, match="is of another model: params/"):
        score(digits_config(**{"model.width": 8}), [workdir], allow_config_change=True)


def test_how_photographs_are_read_and_trained_on_may_change(tmp_path, photograph_folder, folder_config, save_run):
    save_run(tmp_path, folder_config(photograph_folder.root, steps=70), {10: 5.0}, photograph_folder.class_names)
    losses = set()
    for settings in ({"data.eval_shorter_side": 50}, {"data.crop_size": 40}):
        config = folder_config(photograph_folder.root, eval_batch_size=2, **settings)
        losses.add(score(config, [tmp_path])[0]["loss"])
    assert len(losses) == 2


def test_no_member_may_have_been_trained_on_what_is_scored(
    tmp_path, photograph_folder, folder_config, digits_config, save_run, run
):
    save_run(tmp_path / "a", folder_config(photograph_folder.root), {10: 5.0}, photograph_folder.class_names)
    other = folder_config(photograph_folder.root, **{"data.validation_fraction": 0.3})
    with pytest.raises(UserError, match=r"config\.data\.validation_fraction \(was 0\.1, now 0\.3\)"):
        score(other, [tmp_path / "a"])
    held_out = digits_config(**{"data.holdout": 100})
    save_run(tmp_path / "b", held_out, {10: 5.0})
    with pytest.raises(UserError, match=r"config\.data\.holdout \(was 0, now 100\)"):
        score(held_out, [tmp_path / "b", run[0]], split="validation")
    assert score(held_out, [tmp_path / "b", run[0]]).record["num_examples"] == 360


def test_a_run_is_missed_before_any_data_are_loaded(tmp_path, folder_config):
    with pytest.raises(UserError, match=f"there is no run in {tmp_path}"):
        score(folder_config("/nowhere"), [tmp_path])


def test_a_wrong_config_is_refused_before_anything_is_loaded(tmp_path, digits_config):
    with pytest.raises(UserError, match=r"config\.batch_size 64 is not divisible"):
        score(digits_config(accumulate_steps=3), [tmp_path])


@pytest.mark.parametrize(
    ("recipe", "text", "placement"),
    [
        ("resnet50", "resnet18=timm/resnet18.a1_in1k", None),
        ("resnet18", "resnet50=timm/resnet50.a1_in1k", "v1.5"),
        ("resnet50", "resnet101=r101.pth", "v1.5"),
        ("resnet18", "resnet50=r50.pth", None),  # A file's is not known: the config says it.
    ],
)
def test_members_of_other_networks_stride_as_they_can(recipe, text, placement):
    named, name = _named_weights(load_config(f"configs/finetune.py:{recipe}"), text)
    assert f"{named.model.name}={name}" == text and named.model.stride_placement == placement
    build.make_model(named, 1000)
