import csv

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from jax import lax

from resnet_jax import recipes
from resnet_jax.analysis.responses import layer_responses, plot_responses, write_responses
from resnet_jax.data.dataset import load_data
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.evaluation.networks import Network
from resnet_jax.models import create_model
from resnet_jax.models.stacking import stack_blocks

NORMALIZE = Normalization(np.full(3, 0.4, np.float32), np.full(3, 0.3, np.float32))
CLASSES = [str(digit) for digit in range(10)]


def network(name, seed=0, **fields):
    """A tiny network with random variables, and statistics that are not those of the data."""
    model = create_model(name, 10, width=2, **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        positive = path[-1].key in ("scale", "var")
        return (rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(0, 0.5, leaf.shape)).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    config = recipes.digits_quickstart()
    config.eval_batch_size = 50  # Does not divide the 360 digits.
    return Network(model, variables, NORMALIZE, CLASSES, config, step=1)


def convolved(variables, block, layer, x, strides=1):
    kernel = variables["params"][block][layer]["kernel"] if block else variables["params"][layer]["kernel"]
    pad = [(kernel.shape[0] // 2,) * 2] * 2
    return lax.conv_general_dilated(x, kernel, (strides,) * 2, pad, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def normalised(variables, block, layer, x):
    params, stats = (variables[name][block] if block else variables[name] for name in ("params", "batch_stats"))
    params, stats = params[layer], stats[layer]
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


def test_responses_are_the_deviations_of_the_normalised_outputs(mesh):
    net = network("resnet20", stage_sizes=(2, 1))
    data = load_data(net.config)
    found = layer_responses(net, data, "test", mesh)

    x = np.float32(NORMALIZE(data.test.images))
    expected = {"stem": normalised(net.variables, "", "stem_bn", convolved(net.variables, "", "stem_conv", x))}
    x = np.maximum(expected["stem"], 0)
    for block, strides in (("stage1_block1", 1), ("stage1_block2", 1), ("stage2_block1", 2)):
        first = normalised(net.variables, block, "bn1", convolved(net.variables, block, "conv1", x, strides))
        second = convolved(net.variables, block, "conv2", np.maximum(first, 0))
        second = normalised(net.variables, block, "bn2", second)
        expected |= {f"{block}/conv1": first, f"{block}/conv2": second}
        if strides == 2:
            x = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 1)))
        x = np.maximum(x + second, 0)
    assert list(found) == list(expected)
    for layer, response in expected.items():
        assert found[layer] == pytest.approx(np.std(np.float64(response)), rel=1e-4), layer


def test_a_scanned_network_answers_as_its_unrolled_twin(mesh):
    net = network("plain20", stage_sizes=(3, 2))
    data = load_data(net.config)
    scanned = net._replace(model=net.model.clone(scan_blocks=True), variables=stack_blocks(net.variables))
    assert layer_responses(scanned, data, "test", mesh) == pytest.approx(layer_responses(net, data, "test", mesh))


def test_of_bottlenecks_the_middle_layer_answers_and_a_7x7_stem_does_not(mesh):
    net = network("resnet50", stage_sizes=(1, 2))
    layers = list(layer_responses(net, load_data(net.config), "test", mesh))
    assert layers == ["stage1_block1/conv2", "stage2_block1/conv2", "stage2_block2/conv2"]


def test_a_network_without_batch_normalisation_is_refused(mesh):
    model = create_model("vgg16", 10, width=2, hidden=4)
    net = network("resnet20", stage_sizes=(1,))._replace(model=model)
    with pytest.raises(UserError, match="no batch normalisation"):
        layer_responses(net, load_data(net.config), "test", mesh)


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
