"""timm's networks against what timm 1.0.31 computes with weights that keys and shapes determine (tests/golden)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from resnet_jax.errors import UserError
from resnet_jax.interop.torch_keys import HEAD_KERNEL, to_torch_layout, torch_keys, variable_shapes
from resnet_jax.interop.torch_weights import load_torch, save_torch
from resnet_jax.models import create_model, list_models
from tests.interop.drawn_weights import drawn

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
NAMES = sorted(path.stem.removeprefix("timm_") for path in GOLDEN.glob("timm_*.npz"))
# Of the smaller ones, which have many of the parts; all of them compile for minutes.
QUICK = "resnet18d"
SIZES = ((96, 96), (64, 128))


def golden(name):
    return np.load(GOLDEN / f"timm_{name}.npz")


def shapes_of(name):
    return json.loads(str(golden(name)["shapes"]))


def images(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    return rng.normal(size=(2, 3, height, width)).astype(np.float32).transpose(0, 2, 3, 1)


def assert_close(actual, expected):
    assert actual.shape == expected.shape and expected.std() > 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_there_are_fifteen_networks():
    assert len(NAMES) == 15 and QUICK in NAMES and set(NAMES) < set(list_models())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == QUICK else pytest.mark.extensive) for name in NAMES]
)
def test_logits_and_last_map_equal_those_of_timm_and_the_weights_come_back(tmp_path, name):
    expected, weights = golden(name), drawn(shapes_of(name))
    model = create_model(name, 10, scan_blocks=True)  # Compiles in less time.
    variables = load_torch(name, weights, scan_blocks=True)

    @jax.jit
    def run(variables, x):
        is_last = lambda module, _: module.path == ("mean",)  # noqa: E731
        logits, kept = model.apply(variables, x, capture_intermediates=is_last, mutable=["intermediates"])
        return logits, kept["intermediates"]["mean"]["__call__"][0]

    for height, width in SIZES:
        logits, last = run(variables, images(height, width))
        assert_close(logits, expected[f"logits_{height}x{width}"])
        assert_close(last, expected[f"last_{height}x{width}"])

    path = tmp_path / "saved.safetensors"
    save_torch(variables, path, model=model)
    saved = load_file(path)
    assert set(saved) == set(weights)
    for key, array in weights.items():
        np.testing.assert_array_equal(saved[key], array, err_msg=key)
    path.unlink()  # A hundred megabytes, and pytest keeps the folders of three runs.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.extensive
def test_keys_shapes_and_the_count_of_parameters_are_timm_s(name):
    model = create_model(name, 10)
    shapes, key_of = variable_shapes(model.unrolled(), channels=3), torch_keys(model, "fc")
    views = {place: np.broadcast_to(np.float32(0), shape) for place, shape in shapes.items()}
    found = {key_of(place): list(to_torch_layout(view, place, model).shape) for place, view in views.items()}
    expected = shapes_of(name)
    assert found == {key: shape for key, shape in expected.items() if not key.endswith("num_batches_tracked")}
    count = sum(view.size for place, view in views.items() if place[0] == "params")
    features = shapes[HEAD_KERNEL][0]
    assert count + 990 * (features + 1) == golden(name)["parameters_1000"]


def test_stored_filters_of_anti_aliased_networks_are_not_needed_and_other_filters_are_refused():
    fields = {"width": 4, "stage_sizes": (1, 1), "stem": "imagenet_blur"}
    model = create_model("resnetblur18", 10, **fields)
    shapes, key_of = variable_shapes(model, channels=3), torch_keys(model, "fc")
    views = {place: np.broadcast_to(np.float32(0.5), shape) for place, shape in shapes.items()}
    weights = {key_of(place): to_torch_layout(view, place, model) for place, view in views.items()}
    binomial = np.broadcast_to(np.outer([1, 2, 1], [1, 2, 1]) / 16, (8, 1, 3, 3))
    without = load_torch("resnetblur18", weights, **fields)
    stored = load_torch("resnetblur18", weights | {"layer2.0.aa.filt": binomial}, **fields)
    assert jax.tree.all(jax.tree.map(np.array_equal, without, stored))
    with pytest.raises(UserError, match=r"layer2\.0\.aa\.filt has no place"):
        load_torch("resnetblur18", weights | {"layer2.0.aa.filt": np.ones_like(binomial) / 9}, **fields)


def test_a_new_head_and_grey_images_are_as_in_other_networks():
    fields = {"width": 8, "stage_sizes": (1, 1)}
    model = create_model("resnetv2_50d", 10, **fields)
    shapes, key_of = variable_shapes(model, channels=3), torch_keys(model, "fc")
    views = {place: np.broadcast_to(np.float32(0.5), shape) for place, shape in shapes.items()}
    weights = {key_of(place): to_torch_layout(view, place, model) for place, view in views.items()}
    new = load_torch("resnetv2_50d", weights, 3, new_head=True, channels=1, **fields)["params"]
    assert new["head"]["kernel"].shape == (64, 3) and np.all(new["stem_conv1"]["kernel"] == 1.5)
    with pytest.raises(UserError, match=r"does not fit resnet50d: layer1.*missing; .*no place"):
        load_torch("resnet50d", weights, **fields)
