"""State dicts and their files as variables: what fits, what does not, new heads and images of other channels."""

import argparse
import pickle
from functools import partial
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.torch import save_file

from resnet_jax.interop.torch_keys import variable_shapes
from resnet_jax.interop.torch_weights import load_torch, save_torch
from resnet_jax.models import create_model
from tests.interop.torch_networks import (
    TINY,
    assert_logits_equal,
    assert_same_variables,
    images,
    tiny_network,
    torch_logits,
    user_error,
)

torch = pytest.importorskip("torch")
nn = torch.nn


def test_arrays_land_in_their_places_in_jax_layout(tiny_weights, tiny_variables):
    params, stats = tiny_variables["params"], tiny_variables["batch_stats"]
    kernel = tiny_weights["layer2.0.conv1.weight"].numpy()
    assert kernel.shape == (8, 4, 3, 3)
    np.testing.assert_array_equal(params["stage2_block1"]["conv1"]["kernel"], np.einsum("oihw->hwio", kernel))
    np.testing.assert_array_equal(params["stage1_block3"]["bn2"]["scale"], tiny_weights["layer1.2.bn2.weight"])
    np.testing.assert_array_equal(stats["stem_bn"]["var"], tiny_weights["bn1.running_var"])
    np.testing.assert_array_equal(stats["stage2_block2"]["bn1"]["mean"], tiny_weights["layer2.1.bn1.running_mean"])
    np.testing.assert_array_equal(params["head"]["kernel"], tiny_weights["fc.weight"].T)


def test_keys_of_data_parallel_wrappers_and_of_either_classifier_are_the_same(tiny_weights, tiny_variables):
    linear = {key.replace("fc.", "linear."): value for key, value in tiny_weights.items()}
    wrapped = {f"module.{key}": value for key, value in tiny_weights.items()}
    for weights in (
        linear,
        wrapped,
        {"state_dict": wrapped, "epoch": 3},
        {"state_dict": {f"module.{key}": value for key, value in linear.items()}},
        {"model": tiny_weights, "optimizer": {}},
        {"state_dict": {f"model.{key}": value for key, value in tiny_weights.items()}},
        {"state_dict": {key: -value for key, value in tiny_weights.items()}, "state_dict_ema": wrapped},
        {"model": {key: -value for key, value in tiny_weights.items()}, "model_ema": wrapped | {"n_averaged": 7}},
        {f"_orig_mod.{key}": value for key, value in tiny_weights.items()},
        {f"module._orig_mod.{key}": value for key, value in tiny_weights.items()},
        {f"_orig_mod.module.{key}": value for key, value in tiny_weights.items()},
        {key: value.numpy() for key, value in tiny_weights.items()},
        {key: value for key, value in tiny_weights.items() if not key.endswith("num_batches_tracked")},
    ):
        assert_same_variables(load_torch("resnet20", weights, **TINY), tiny_variables)


def test_the_state_dict_itself_is_left_as_it_was(tiny_weights):
    keys = list(tiny_weights)
    load_torch("resnet20", tiny_weights, **TINY)
    assert list(tiny_weights) == keys


def test_number_of_classes_follows_the_weights_unless_given(tiny_weights):
    tiny_weights["fc.weight"], tiny_weights["fc.bias"] = torch.zeros(7, 8), torch.zeros(7)
    assert load_torch("resnet20", tiny_weights, **TINY)["params"]["head"]["kernel"].shape == (8, 7)
    message = user_error(tiny_weights, fields={**TINY, "num_classes": 10})
    assert "fc.weight gives shape (8, 7) where resnet20 has (8, 10)" in message
    assert message.endswith("or new_head=True for a new classifier")


@pytest.mark.parametrize("scan_blocks", [False, True], ids=["unrolled", "scanned"])
def test_new_head_leaves_the_backbone_and_depends_on_the_seed(tiny_weights, scan_blocks):
    fields = {**TINY, "scan_blocks": scan_blocks}
    expected = load_torch("resnet20", tiny_weights, **fields)

    def load(**options):
        variables = load_torch("resnet20", tiny_weights, new_head=True, **options, **fields)
        head = variables["params"].pop("head")
        backbone = {**expected, "params": {key: expected["params"][key] for key in variables["params"]}}
        assert len(backbone["params"]) == len(expected["params"]) - 1
        assert_same_variables(variables, backbone)
        return head

    head = load(num_classes=1000)
    assert head["kernel"].shape == (8, 1000)
    # He's initialisation: standard deviation sqrt(2 / features). With 8000 draws 5 % is six times the error.
    assert float(head["kernel"].std()) == pytest.approx((2 / 8) ** 0.5, rel=0.05)
    np.testing.assert_array_equal(head["bias"], np.zeros(1000))
    assert_same_variables(load(num_classes=1000, seed=0), head)
    assert not np.array_equal(load(num_classes=1000, seed=1)["kernel"], head["kernel"])
    # As many classes as the weights have are a new classifier, too.
    assert load()["kernel"].shape == (8, 10)
    assert not np.array_equal(load()["kernel"], expected["params"]["head"]["kernel"])


@pytest.mark.parametrize("new_head", [False, True])
def test_without_classes_the_classifier_is_left_aside(tiny_weights, tiny_variables, new_head):
    del tiny_variables["params"]["head"]
    for weights in (tiny_weights, {key: value for key, value in tiny_weights.items() if "fc" not in key}):
        assert_same_variables(load_torch("resnet20", weights, 0, new_head=new_head, **TINY), tiny_variables)
    tiny_weights["extra.weight"] = tiny_weights["fc.weight"]
    assert "extra.weight has no place" in user_error(tiny_weights, fields={**TINY, "num_classes": 0})


@pytest.mark.parametrize("head", ["fc", "linear", "none"])
def test_new_head_takes_the_place_of_either_classifier_or_of_none(tiny_weights, head):
    names = {} if head == "none" else {"fc.weight": f"{head}.weight", "fc.bias": f"{head}.bias"}
    weights = {names.get(key, key): value for key, value in tiny_weights.items() if key in names or "fc" not in key}
    variables = load_torch("resnet20", weights, num_classes=3, new_head=True, **TINY)
    assert variables["params"]["head"]["kernel"].shape == (8, 3)
    if head == "none":
        assert user_error(weights).endswith("or new_head=True for a new classifier")


def test_new_head_is_not_the_mend_where_the_backbone_does_not_fit(tiny_weights):
    del tiny_weights["bn1.bias"]
    assert "new_head" not in user_error(tiny_weights, fields={**TINY, "num_classes": 3})
    message = user_error(tiny_weights, fields={**TINY, "num_classes": 3, "new_head": True})
    assert message.split(": ")[1].split("; ")[:-1] == ["bn1.bias is missing"]


def test_greyscale_equals_the_colour_network_on_three_equal_channels():
    network, name, fields = tiny_network("basic-B")
    variables = load_torch(name, network.state_dict(), channels=1, **fields)
    assert variables["params"]["stem_conv"]["kernel"].shape == (7, 7, 1, 8)
    x = images(32)[..., :1]
    logits = jax.jit(create_model(name, 10, **fields).apply)(variables, x)
    assert_logits_equal(logits, torch_logits(network, np.repeat(x, 3, axis=-1)))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_stem_of_any_number_of_channels_comes_back_and_does_not_fit_images_of_others(tmp_path, channels):
    model, path = create_model("resnet20", **TINY), tmp_path / "weights.safetensors"
    rng = np.random.default_rng(0)
    drawn = {place: rng.random(shape, np.float32) for place, shape in variable_shapes(model, channels).items()}
    variables = flax.traverse_util.unflatten_dict(drawn)
    save_torch(variables, path, model=model)
    for given in (None, channels):
        assert_same_variables(load_torch("resnet20", path, channels=given, **TINY), variables)
    message = user_error(path, fields={**TINY, "channels": 3})
    assert f"conv1.weight gives shape (3, 3, {channels}, 4) where resnet20 has (3, 3, 3, 4)" in message
    assert message.endswith(f"or channels={channels}")


@pytest.mark.parametrize("suffix", [".pth", ".th", ".pt", ".tar", ".safetensors"])
@pytest.mark.parametrize("as_text", [False, True], ids=["Path", "str"])
def test_files_give_the_variables_of_their_state_dict(tmp_path, tiny_weights, tiny_variables, suffix, as_text):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(tiny_weights, path)
    else:
        torch.save({"state_dict": tiny_weights, "best_prec1": 91.7}, path)
    assert_same_variables(load_torch("resnet20", str(path) if as_text else path, **TINY), tiny_variables)


def test_missing_left_over_and_misshapen_keys_are_all_listed_in_one_line(tmp_path, tiny_weights):
    for key in ("bn1.bias", "layer1.2.conv2.weight", "layer2.0.bn1.running_var"):
        del tiny_weights[key]
    tiny_weights["layer3.0.conv1.weight"] = torch.zeros(16, 8, 3, 3)
    tiny_weights["layer2.0.downsample.0.weight"] = torch.zeros(8, 4, 1, 1)
    tiny_weights["conv1.weight"] = torch.zeros(4, 3, 7, 7)
    tiny_weights["layer1.0.bn1.weight"] = torch.zeros(5)
    problems = [
        "bn1.bias is missing",
        "layer1.2.conv2.weight is missing",
        "layer2.0.bn1.running_var is missing",
        "layer3.0.conv1.weight has no place in resnet20",
        "layer2.0.downsample.0.weight has no place in resnet20",
        "conv1.weight gives shape (7, 7, 3, 4) where resnet20 has (3, 3, 3, 4)",
        "layer1.0.bn1.weight gives shape (5,) where resnet20 has (4,)",
    ]
    message = user_error(tiny_weights)
    assert message.startswith("the state dict does not fit resnet20: ")
    # Between the opening and the advice at the end: these problems and no others.
    assert sorted(message.split(": ", 1)[1].split("; ")[:-1]) == sorted(problems)
    torch.save(tiny_weights, tmp_path / "odd.pth")
    assert user_error(tmp_path / "odd.pth").startswith(f"{tmp_path / 'odd.pth'} does not fit resnet20: ")


def test_weights_of_another_network_do_not_fit(tiny_weights):
    assert "layer2.2.bn1.running_mean is missing" in user_error(tiny_weights, fields={})
    assert "layer2.0.downsample.0.weight is missing" in user_error(tiny_weights, fields={**TINY, "shortcut": "B"})
    assert "unknown model 'resnet21'" in user_error(tiny_weights, name="resnet21")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_absent_file_is_a_user_error_that_names_it(tmp_path, suffix):
    path = tmp_path / f"absent{suffix}"
    assert f"there is no file {path}" in user_error(path)
    of_folder = user_error(tmp_path)
    assert f"{tmp_path} is a folder" in of_folder and "--workdir" in of_folder


@pytest.mark.parametrize("source", [None, 3, ["resnet.pth"]])
def test_what_is_neither_a_file_nor_a_state_dict_is_a_user_error(source):
    assert user_error(source).startswith(f"source is {source!r}; it must be the path of a file of weights, or")


def test_a_path_may_begin_with_the_home_folder(tmp_path, tiny_weights, tiny_variables, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(tiny_weights, tmp_path / "weights.safetensors")
    assert_same_variables(load_torch("resnet20", "~/weights.safetensors", **TINY), tiny_variables)


@pytest.mark.parametrize("suffix", [".pth", ".th", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"<html>404: Not Found</html>\n" * 20, "truncated"], ids=["empty", "html", "cut"]
)
def test_damaged_file_is_a_user_error_that_names_it(tmp_path, tiny_weights, suffix, content):
    path = tmp_path / f"damaged{suffix}"
    if content == "truncated":
        save_file(tiny_weights, path) if suffix == ".safetensors" else torch.save(tiny_weights, path)
        content = path.read_bytes()[:-2000]
    path.write_bytes(content)
    assert f"{path} cannot be read as PyTorch weights" in user_error(path)


def test_file_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "ran"

    class Malicious:
        def __reduce__(self):
            return Path.touch, (marker,)

    path = tmp_path / "malicious.pth"
    path.write_bytes(pickle.dumps({"fc.weight": Malicious()}))
    assert str(path) in user_error(path)
    assert not marker.exists()


def test_flags_beside_the_weights_do_no_harm(tmp_path, tiny_weights, tiny_variables):
    path = tmp_path / "training.pth"
    torch.save({"model": tiny_weights, "args": argparse.Namespace(lr=0.1, output_dir="run")}, path)
    assert_same_variables(load_torch("resnet20", path, **TINY), tiny_variables)


def test_a_prefix_that_only_some_keys_have_is_part_of_them(tiny_weights):
    tiny_weights["module.bn1.bias"] = tiny_weights["bn1.bias"] + 1
    assert "module.bn1.bias has no place in resnet20" in user_error(tiny_weights)


def test_many_problems_of_a_kind_are_counted(tiny_weights):
    extra = {f"extra{i}.weight": torch.zeros(1) for i in range(9)}
    for count, listed in ((8, 8), (9, 3)):
        message = user_error({**tiny_weights, **dict(list(extra.items())[:count])})
        assert message.count("has no place in resnet20") == listed
        assert ("; ... and 6 more have no place; " in message) == (count == 9)
    message = user_error(tiny_weights, name="resnet50", fields={})
    assert "more are missing" in message and "more have other shapes" in message and len(message) < 1000


def test_whole_module_in_place_of_its_state_dict_is_a_user_error(tmp_path):
    path = tmp_path / "module.pth"
    torch.save(nn.Linear(2, 2), path)
    assert str(path) in user_error(path)


def test_file_that_holds_no_state_dict_is_a_user_error(tmp_path):
    path = tmp_path / "wrong.pth"
    torch.save([torch.zeros(3)], path)
    assert f"{path} holds a list, not a state dict" in user_error(path)


@pytest.mark.parametrize(
    "content",
    [{"epoch": 3}, {"state_dict": {}}, {0: torch.zeros(3)}, {"fc.weight": 0.5}],
    ids=["no-weights", "empty", "numbered", "number-for-a-tensor"],
)
def test_file_that_holds_other_things_is_a_user_error(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    message = user_error(path)
    assert str(path) in message


@pytest.mark.parametrize(
    "convert", [torch.Tensor.bfloat16, torch.Tensor.half, nn.Parameter], ids=["bf16", "f16", "parameter"]
)
def test_tensors_of_other_kinds_become_float32(tmp_path, tiny_weights, tiny_variables, convert):
    def converted(value):
        return convert(value) if value.is_floating_point() else value

    weights = {key: converted(value) for key, value in tiny_weights.items()}
    save_file(weights, tmp_path / "weights.safetensors")
    for source in (weights, tmp_path / "weights.safetensors"):
        variables = load_torch("resnet20", source, **TINY)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        # bfloat16 keeps eight significant bits.
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2**-8), variables, tiny_variables)
