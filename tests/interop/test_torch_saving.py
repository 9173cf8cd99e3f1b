"""Variables as files that PyTorch loads strictly."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.interop.torch_weights import load_torch, save_torch
from resnet_jax.models import create_model, list_models, variant
from resnet_jax.models.stacking import stack_blocks
from tests.interop.torch_networks import (
    TINY,
    TINY_NETWORKS,
    TorchVGG,
    assert_logits_equal,
    assert_same_tensors,
    assert_same_variables,
    images,
    load_tensors,
    randomised,
    tiny_network,
    torch_logits,
    user_error,
)

torch = pytest.importorskip("torch")


def random_variables(model):
    """Random numbers for every variable of a model. NumPy draws them: large networks take long to initialise."""
    rng = np.random.default_rng(0)
    template = jax.eval_shape(model.init, jax.random.key(0), images(32))

    def draw(path, leaf):
        return rng.random(leaf.shape, np.float32) - (0 if path[-1].key == "var" else 0.5)

    return jax.tree_util.tree_map_with_path(draw, template)


def test_vgg_s_weights_come_back_as_they_were(tmp_path):
    network = randomised(TorchVGG((2, 2, 3, 3, 3), width=2, hidden=8, num_classes=10))
    variables = load_torch("vgg16", network.state_dict(), width=2, hidden=8)
    path = tmp_path / "vgg.safetensors"
    save_torch(variables, path, model=create_model("vgg16", 10, width=2, hidden=8))
    assert_same_tensors(load_tensors(path), network.state_dict())
    with pytest.raises(UserError, match=r"does not fit vgg19: features\.16\.bias is missing"):
        load_torch("vgg19", path, width=2, hidden=8)
    # timm's keys, whose first two fully-connected layers are convolutions.
    timm = dict(network.state_dict())
    for ours, theirs in (
        ("classifier.0", "pre_logits.fc1"),
        ("classifier.3", "pre_logits.fc2"),
        ("classifier.6", "head.fc"),
    ):
        kernel, bias = timm.pop(f"{ours}.weight"), timm.pop(f"{ours}.bias")
        side = {"pre_logits.fc1": (7, 7), "pre_logits.fc2": (1, 1), "head.fc": ()}[theirs]
        timm |= {f"{theirs}.weight": kernel.reshape(len(kernel), -1, *side), f"{theirs}.bias": bias}
    assert_same_variables(load_torch("vgg16", timm, width=2, hidden=8), variables)
    new = load_torch("vgg16", path, 3, width=2, hidden=8, new_head=True, channels=1)["params"]
    assert new["head"]["kernel"].shape == (8, 3) and new["conv1_1"]["kernel"].shape == (3, 3, 1, 2)


def save_error(variables, path, model, **options):
    with pytest.raises(UserError) as caught:
        save_torch(variables, path, model=model, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", TINY_NETWORKS)
@pytest.mark.extensive
def test_pytorch_loads_strictly_what_was_saved_and_gives_equal_outputs(tmp_path, kind, suffix):
    network, name, fields = tiny_network(kind)
    model = create_model(name, 10, **fields)
    variables = random_variables(model)
    save_torch(variables, tmp_path / f"saved{suffix}", model=model)
    network.load_state_dict(load_tensors(tmp_path / f"saved{suffix}"), strict=True)
    assert_logits_equal(torch_logits(network, images(32)), jax.jit(model.apply)(variables, images(32)))


@pytest.mark.parametrize("kind, head", [("cifar-A", "linear"), ("basic-B", "fc"), ("bottleneck-B", "fc")])
@pytest.mark.extensive
def test_loading_and_saving_gives_the_very_tensors_of_the_source(tmp_path, kind, head):
    network, name, fields = tiny_network(kind, head)
    source = network.state_dict()
    assert source["bn1.num_batches_tracked"].dtype == torch.int64
    variables = load_torch(name, source, **fields)
    paths = {tmp_path / f"saved{suffix}" for suffix in (".pth", ".pt", ".th", ".safetensors")}
    for path in paths:
        save_torch(variables, str(path), model=create_model(name, 10, **fields), head=head)
        assert_same_tensors(load_tensors(path), source)
    assert set(tmp_path.iterdir()) == paths


# One of each kind; the others have the same layers more often.
QUICK = ("resnet20",)
LATER = ("resnetrs50", "ecaresnet26t", "resnetv2_50d_evos", "resnetv2_50d_frn", "resnetv2_50x1_bit", "wrn28_10")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.extensive)
        for name in [*(name for name in list_models() if variant(name).in_paper), *LATER]
    ],
)
def test_saving_and_loading_gives_the_same_bits_for_every_model(tmp_path, name):
    # The CIFAR networks as they are, the ImageNet ones a quarter as wide.
    model = create_model(name, width=16)
    variables = random_variables(model)
    save_torch(variables, tmp_path / "saved.pth", model=model)
    assert_same_variables(load_torch(name, tmp_path / "saved.pth", width=16), variables)
    save_torch(variables, tmp_path / "saved.safetensors", model=model)
    assert_same_tensors(load_tensors(tmp_path / "saved.safetensors"), load_tensors(tmp_path / "saved.pth"))


def test_an_initialised_scanned_network_comes_back_from_its_file(tmp_path):
    fields = {"stage_sizes": (3,), "width": 4, "scan_blocks": True}
    model = create_model("resnet20", **fields)
    variables = jax.jit(model.init)(jax.random.key(0), images(8))
    for suffix in (".pth", ".safetensors"):
        save_torch(variables, tmp_path / f"saved{suffix}", model=model)
        assert_same_variables(load_torch("resnet20", tmp_path / f"saved{suffix}", **fields), variables)


def test_scanned_networks_are_saved_as_unrolled_ones(tmp_path, tiny_weights, tiny_variables):
    model = create_model("resnet20", **TINY, scan_blocks=True)
    save_torch(stack_blocks(tiny_variables), tmp_path / "scanned.pth", model=model)
    assert_same_tensors(load_tensors(tmp_path / "scanned.pth"), tiny_weights)


@pytest.mark.parametrize("shortcut", ["A", "C", "none"])
def test_shortcuts_that_torchvision_lacks_are_saved_as_well(tmp_path, shortcut):
    fields = {**TINY, "shortcut": shortcut}
    model = create_model("resnet20", **fields)
    variables = random_variables(model)
    save_torch(variables, tmp_path / "saved.pth", model=model)
    assert_same_variables(load_torch("resnet20", tmp_path / "saved.pth", **fields), variables)
    assert any("downsample" in key for key in load_tensors(tmp_path / "saved.pth")) == (shortcut == "C")


def test_without_pytorch_safetensors_are_written_and_read_and_others_are_a_user_error(
    tmp_path, monkeypatch, tiny_weights, tiny_variables
):
    torch.save(tiny_weights, tmp_path / "old.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    model = create_model("resnet20", **TINY)
    save_torch(tiny_variables, tmp_path / "new.safetensors", model=model)
    assert_same_variables(load_torch("resnet20", tmp_path / "new.safetensors", **TINY), tiny_variables)
    assert user_error(tmp_path / "old.pth").endswith("needs torch: pip install torch")
    message = save_error(tiny_variables, tmp_path / "new.pth", model)
    assert message.endswith("needs torch: pip install torch, or write .safetensors")
    assert not (tmp_path / "new.pth").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_variables_that_do_not_fit_the_model_are_listed_and_nothing_is_written(tmp_path, tiny_variables, suffix):
    params, stats = tiny_variables["params"], tiny_variables["batch_stats"]
    del params["stem_bn"]["bias"], stats["stage1_block3"]["bn2"]["var"]
    params["head"]["kernel"] = jnp.zeros((8, 7))
    params["stage2_block1"]["projection_conv"] = {"kernel": jnp.zeros((1, 1, 4, 8))}
    message = save_error(tiny_variables, tmp_path / f"saved{suffix}", create_model("resnet20", **TINY))
    problems = [
        "params/stem_bn/bias is missing",
        "batch_stats/stage1_block3/bn2/var is missing",
        "params/head/kernel gives shape (8, 7) where the model has (8, 10)",
        "params/stage2_block1/projection_conv/kernel has no place in the model",
    ]
    assert message.startswith("the variables do not fit the model: ")
    assert sorted(message.split(": ", 1)[1].split("; ")[:-1]) == sorted(problems)
    assert not list(tmp_path.iterdir())


def test_parameters_without_statistics_or_of_the_other_layout_do_not_fit(tmp_path, tiny_variables):
    model, path = create_model("resnet20", **TINY), tmp_path / "saved.pth"
    message = save_error({"params": tiny_variables["params"]}, path, model)
    assert "batch_stats/stage1_block1/bn1/mean is missing" in message and "has no place" not in message
    message = save_error(tiny_variables["params"], path, model)
    assert "more are missing" in message and "head/kernel has no place in the model" in message
    scanned = create_model("resnet20", **TINY, scan_blocks=True)
    assert "batch_stats/stage1_blocks/bn1/mean is missing" in save_error(tiny_variables, path, scanned)


@pytest.mark.parametrize("name", ["saved.npz", "saved", "saved.tar"])
def test_another_suffix_is_a_user_error_that_names_the_valid_ones(tmp_path, tiny_variables, name):
    message = save_error(tiny_variables, tmp_path / name, create_model("resnet20", **TINY))
    assert message == (f"{tmp_path / name} has no known suffix of PyTorch weights; use .pth, .pt, .th or .safetensors")


def test_places_that_cannot_be_written_are_user_errors_that_name_them(tmp_path, tiny_variables):
    model = create_model("resnet20", **TINY)
    message = save_error(tiny_variables, tmp_path / "absent" / "saved.pth", model)
    assert message.startswith(f"there is no folder {tmp_path / 'absent'} to write saved.pth in")
    (tmp_path / "folder.pth").mkdir()
    assert save_error(tiny_variables, tmp_path / "folder.pth", model).startswith(
        f"cannot write {tmp_path / 'folder.pth'}"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pth"]


def test_another_name_of_the_classifier_is_a_user_error(tmp_path, tiny_variables):
    message = save_error(tiny_variables, tmp_path / "saved.pth", create_model("resnet20", **TINY), head="top")
    assert message == "head is 'top'; it must be 'fc' or 'linear'"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_was_there_stays_when_the_disk_is_full(tmp_path, monkeypatch, tiny_variables, suffix):
    path = tmp_path / f"saved{suffix}"
    path.write_bytes(b"old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    message = save_error(tiny_variables, path, create_model("resnet20", **TINY))
    assert message.startswith(f"cannot write {path} ([Errno 28] No space left on device)")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
