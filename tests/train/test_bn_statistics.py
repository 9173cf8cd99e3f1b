"""Batch statistics computed anew after training, against numpy on the inputs of each batch normalisation."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import resnet_jax
from resnet_jax import parallel, recipes
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.order import example_indices
from resnet_jax.data.resident import Dataset, Split
from resnet_jax.models.norm import BatchNorm
from resnet_jax.train.bn_statistics import recompute_batch_stats
from resnet_jax.train.state import init_state

BATCH, STEPS = 16, 3
NORMALIZATION = Normalization(np.array([0.2, 0.5, 0.6], np.float32), np.array([0.25, 0.5, 1.0], np.float32))


def tiny_config(**settings):
    config = recipes.base()
    # No augmentation, so that the batches are plain to see.
    tiny = {"batch_size": BATCH, "steps": STEPS, "data.pad": 0, "data.flip": False, "bn_recompute_batches": 1}
    config.update_from_flattened_dict({**tiny, **settings})
    return config


def tiny_model(**fields):
    return resnet_jax.create_model("resnet20", **{"width": 4, "stage_sizes": (1, 1), **fields})


def random_split(num_examples=40):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_examples, 8, 8, 3), dtype=np.uint8)
    images //= rng.integers(1, 9, (num_examples, 1, 1, 1), dtype=np.uint8)  # Some dark, so that batches differ.
    return Split(images, rng.integers(0, 10, num_examples).astype(np.int32))


DATA = Dataset(random_split(), None, random_split(8), [str(digit) for digit in range(10)])


def random_state(config, model, mesh):
    """A state whose parameters and statistics all are random, those of a moving average others than the network's."""
    rng = np.random.default_rng(1)
    state = jax.device_get(init_state(config, model, (8, 8, 3), mesh))
    variables = state.params, state.batch_stats, state.ema
    drawn = jax.tree.map(lambda leaf: rng.uniform(0.2, 1.0, leaf.shape).astype(np.float32) * (1 + leaf), variables)
    params, batch_stats, ema = parallel.to_global(drawn, parallel.replicated(mesh))
    return parallel.to_global(state, parallel.replicated(mesh)).replace(params=params, batch_stats=batch_stats, ema=ema)


def recomputed(config, model, mesh):
    """The state before, and after."""
    state = random_state(config, model, mesh)
    return state, jax.device_get(recompute_batch_stats(config, model, NORMALIZATION, DATA, mesh, state))


def coming_batches(count, batch_size=BATCH):
    """The normalised images that training would see from step ``STEPS`` on."""
    for step in range(STEPS, STEPS + count):
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        images = DATA.train.images[example_indices(0, positions, len(DATA.train))]
        yield ((images / 255 - NORMALIZATION.mean) / NORMALIZATION.std).astype(np.float32)


def convolve(images, kernel):
    """A 3x3 convolution of stride 1, nine products added up."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
    return sum(
        padded[:, i : i + height, j : j + width] @ np.asarray(kernel[i, j], np.float64)
        for i in range(3)
        for j in range(3)
    )


def inputs_of_batch_norms(model, variables, images):
    """Path -> (N, H, W, C), in a forward pass of training."""
    inputs = {}

    def keep(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm):
            inputs[context.module.path] = np.asarray(args[0], np.float64)
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        model.apply(variables, images, train=True, mutable=["batch_stats"])
    return inputs


def assert_statistics(found, inputs, **tolerance):
    np.testing.assert_allclose(found["mean"], inputs.mean(axis=(0, 1, 2)), **tolerance)
    np.testing.assert_allclose(found["var"], inputs.var(axis=(0, 1, 2)), **tolerance)  # Biased.


@pytest.mark.parametrize("count", [1, 4])
def test_the_first_layer_has_the_mean_and_variance_of_all_images_together(mesh, count):
    # Forty examples: four batches of 16 from the third on run over the end of a pass.
    before, after = recomputed(tiny_config(bn_recompute_batches=count), tiny_model(), mesh)
    outputs = [convolve(images, before.params["stem_conv"]["kernel"]) for images in coming_batches(count)]
    assert_statistics(after.batch_stats["stem_bn"], np.concatenate(outputs), rtol=1e-4, atol=1e-5)
    if count > 1:  # The mean of the batches' variances is another number.
        within = np.mean([batch.var(axis=(0, 1, 2)) for batch in outputs], axis=0)
        assert np.abs(after.batch_stats["stem_bn"]["var"] / within - 1).max() > 1e-2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bn_recompute_batches": 3, "steps_per_dispatch": 3, "accumulate_steps": 2},  # Neither changes the batches.
    ],
    ids=str,
)
def test_every_layer_has_the_mean_and_variance_of_its_inputs_in_all_batches(settings):
    config, model, mesh = tiny_config(**settings), tiny_model(), parallel.data_mesh(jax.devices()[:1])
    before, after = recomputed(config, model, mesh)
    batches = coming_batches(config.bn_recompute_batches)
    each = [inputs_of_batch_norms(model, before.variables, images) for images in batches]
    assert set(each[0]) == {path[:-1] for path in flatten_dict(after.batch_stats)} and len(each[0]) == 5
    for path in each[0]:
        found = flatten_dict(after.batch_stats, is_leaf=lambda path, _: path in each[0])[path]
        assert_statistics(found, np.concatenate([inputs[path] for inputs in each]), rtol=1e-4, atol=1e-4)


def test_groups_of_a_batch_are_pooled_like_batches(mesh):
    before, after = recomputed(tiny_config(bn_recompute_batches=3), tiny_model(bn_group_size=2), mesh)
    outputs = [convolve(images, before.params["stem_conv"]["kernel"]) for images in coming_batches(3)]
    assert_statistics(after.batch_stats["stem_bn"], np.concatenate(outputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ema_decay", [0.0, 0.99])
def test_only_the_statistics_that_are_evaluated_change(ema_decay):
    config, mesh = tiny_config(ema_decay=ema_decay), parallel.data_mesh(jax.devices()[:1])
    before, after = recomputed(config, tiny_model(), mesh)
    kernel = before.variables["params"]["stem_conv"]["kernel"]  # Of the moving average, where there is one.
    outputs = np.concatenate([convolve(images, kernel) for images in coming_batches(1)])
    assert_statistics(after.variables["batch_stats"]["stem_bn"], outputs, rtol=1e-4, atol=1e-5)
    if ema_decay:
        restored = after.replace(ema={**after.ema, "batch_stats": before.ema["batch_stats"]})
    else:
        restored = after.replace(batch_stats=before.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(before))


def test_a_constant_feature_has_a_variance_that_is_not_negative():
    """Equal images, and a first layer that only weighs their pixels: its outputs are constant, and far from 0."""
    split = Split(np.full((40, 8, 8, 3), 255, np.uint8), np.zeros(40, np.int32))
    config, mesh = tiny_config(bn_recompute_batches=7), parallel.data_mesh(jax.devices()[:1])
    state = jax.device_get(random_state(config, tiny_model(), mesh))
    kernel = np.zeros((3, 3, 3, 4), np.float32)
    kernel[1, 1] = np.random.default_rng(0).uniform(5, 25, (3, 4))
    state.params["stem_conv"]["kernel"] = kernel
    state = parallel.to_global(state, parallel.replicated(mesh))
    after = recompute_batch_stats(config, tiny_model(), NORMALIZATION, DATA._replace(train=split), mesh, state)
    assert min(np.abs(after.batch_stats["stem_bn"]["mean"])) > 10
    for path, leaf in flatten_dict(jax.device_get(after.batch_stats)).items():
        if path[-1] == "var":
            assert leaf.min() >= 0, path


def test_evaluating_the_one_batch_repeats_the_training_pass_over_it():
    before, after = recomputed(tiny_config(), tiny_model(), parallel.data_mesh(jax.devices()[:1]))
    (images,) = coming_batches(1)
    training, _ = tiny_model().apply(before.variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(tiny_model().apply(after.variables, images, train=False), training, rtol=1e-3, atol=1e-3)
