import csv

import matplotlib.image
import numpy as np
import pytest
from jax import lax

from resnet_jax.analysis.responses import layer_responses, plot_responses, write_responses
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.errors import UserError
from resnet_jax.models import create_model
from resnet_jax.models.stacking import stack_blocks

NORMALIZE = Normalization(np.full(3, 0.4, np.float32), np.full(3, 0.3, np.float32))
NUM_TEST, BATCH_SIZE = 70, 32  # Which does not divide the examples.


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(1)
    images = rng.integers(256, size=(NUM_TEST, 16, 16, 3), dtype=np.uint8)
    return ResidentDataset.from_arrays(images[:9], np.arange(9), images, np.arange(NUM_TEST) % 10)


@pytest.fixture
def make(random_variables):
    """``(name, **fields)`` to a tiny network and variables, with statistics that are not those of the data."""

    def network(name, **fields):
        model = create_model(name, 10, width=2, **fields)
        return model, random_variables(model)

    return network


def convolved(variables, block, layer, x, strides=1):
    kernel = variables["params"][block][layer]["kernel"] if block else variables["params"][layer]["kernel"]
    pad = [(kernel.shape[0] // 2,) * 2] * 2
    return lax.conv_general_dilated(x, kernel, (strides,) * 2, pad, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def normalised(variables, block, layer, x):
    params, stats = (variables[name][block] if block else variables[name] for name in ("params", "batch_stats"))
    params, stats = params[layer], stats[layer]
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


@pytest.mark.extensive
def test_responses_are_the_deviations_of_the_normalised_outputs(mesh, dataset, make):
    model, variables = make("resnet20", stage_sizes=(2, 1))
    found = layer_responses(model, variables, NORMALIZE, dataset, "test", mesh, BATCH_SIZE)

    x = np.float32(NORMALIZE(dataset.splits["test"].images))
    expected = {"stem": normalised(variables, "", "stem_bn", convolved(variables, "", "stem_conv", x))}
    x = np.maximum(expected["stem"], 0)
    for block, strides in (("stage1_block1", 1), ("stage1_block2", 1), ("stage2_block1", 2)):
        first = normalised(variables, block, "bn1", convolved(variables, block, "conv1", x, strides))
        second = convolved(variables, block, "conv2", np.maximum(first, 0))
        second = normalised(variables, block, "bn2", second)
        expected |= {f"{block}/conv1": first, f"{block}/conv2": second}
        if strides == 2:
            x = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 1)))
        x = np.maximum(x + second, 0)
    assert list(found) == list(expected)
    for layer, response in expected.items():
        assert found[layer] == pytest.approx(np.std(np.float64(response)), rel=1e-4), layer


def test_a_scanned_network_answers_as_its_unrolled_twin(one_device, dataset, make):
    model, variables = make("plain20", stage_sizes=(3, 2))
    rest = NORMALIZE, dataset, "test", one_device, BATCH_SIZE
    found = layer_responses(model.scanned(), stack_blocks(variables), *rest)
    assert found == pytest.approx(layer_responses(model, variables, *rest))


def test_of_bottlenecks_the_middle_layer_answers_and_a_7x7_stem_does_not(one_device, dataset, make):
    layers = list(layer_responses(*make("resnet50", stage_sizes=(1, 2)), NORMALIZE, dataset, "test", one_device, 70))
    assert layers == ["stage1_block1/conv2", "stage2_block1/conv2", "stage2_block2/conv2"]


def test_a_network_without_batch_normalisation_is_refused(one_device, dataset):
    model = create_model("vgg16", 10, width=2, hidden=4)
    with pytest.raises(UserError, match="outputs of batch normalisations of 3x3 layers; this network has none"):
        layer_responses(model, {}, NORMALIZE, dataset, "test", one_device, BATCH_SIZE)


def test_a_split_that_there_is_not_is_refused(one_device, dataset, make):
    with pytest.raises(UserError, match="no split 'validation'"):
        layer_responses(*make("resnet20", stage_sizes=(1,)), NORMALIZE, dataset, "validation", one_device, BATCH_SIZE)


def test_the_table_has_a_line_a_layer_in_order_with_its_rank(tmp_path):
    path = tmp_path / "new" / "responses.csv"
    write_responses(path, {"stem": 1.0, "stage1_block1/conv1": 0.25, "stage1_block1/conv2": 2.0})
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["layer"] for row in rows] == ["stem", "stage1_block1/conv1", "stage1_block1/conv2"]
    assert [row["position"] for row in rows] == ["1", "2", "3"]
    assert [row["rank"] for row in rows] == ["2", "3", "1"]
    assert [float(row["std"]) for row in rows] == [1.0, 0.25, 2.0]


def test_the_picture_is_drawn(tmp_path):
    picture = tmp_path / "responses.png"
    plot_responses(picture, {"plain-20": {"a": 1.0, "b": 2.0}, "ResNet-20": {"a": 0.5, "b": 0.7}})
    pixels = matplotlib.image.imread(picture, format="png")
    assert pixels.ndim == 3 and pixels.std() > 0.01
