"""Batch statistics computed anew after training, against numpy on the inputs of each batch normalisation."""

import signal
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from resnet_jax import parallel
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.order import example_indices
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.data.transforms import Transforms
from resnet_jax.models.layers import BatchNorm
from resnet_jax.stopping import Interrupted, interruptible
from resnet_jax.train.bn_statistics import recompute_batch_stats
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.state import init_state
from resnet_jax.train.step import loss_key

BATCH, STEPS = 16, 3
NORMALIZATION = Normalization(np.array([0.2, 0.5, 0.6], np.float32), np.array([0.25, 0.5, 1.0], np.float32))


def random_data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    images //= rng.integers(1, 9, (40, 1, 1, 1), dtype=np.uint8)  # Some dark, so that batches differ.
    return images, rng.integers(0, 10, 40).astype(np.int32)


def data_of(images, labels):
    return ResidentDataset.from_arrays(images, labels, images[:8], labels[:8], [str(digit) for digit in range(10)])


DATA = data_of(*random_data())


@pytest.fixture(scope="module")
def task_of(tiny_task):
    """Without augmentation, so that the batches are plain to see."""
    return lambda **fields: tiny_task(transforms=Transforms(), normalization=NORMALIZATION, **fields)


def random_state(task, mesh, ema_decay=0.0):
    """A state whose parameters and statistics all are random, those of a moving average others than the network's."""
    rng = np.random.default_rng(1)
    state = jax.device_get(init_state(task, SGD().make(), 0, ema_decay, 0.0, (8, 8, 3), mesh))
    variables = state.params, state.batch_stats, state.ema
    drawn = jax.tree.map(lambda leaf: rng.uniform(0.2, 1.0, leaf.shape).astype(np.float32) * (1 + leaf), variables)
    params, batch_stats, ema = parallel.to_global(drawn, parallel.replicated(mesh))
    state = parallel.to_global(state.replace(step=np.int32(STEPS)), parallel.replicated(mesh))
    return state.replace(params=params, batch_stats=batch_stats, ema=ema)


def recomputed(task, mesh, count=1, ema_decay=0.0):
    """The state before, and after."""
    state = random_state(task, mesh, ema_decay)
    return state, jax.device_get(recompute_batch_stats(task, DATA, 0, BATCH, count, mesh, state))


def coming_batches(count, batch_size=BATCH):
    """The normalised images that training would see from step ``STEPS`` on."""
    for step in range(STEPS, STEPS + count):
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        images = DATA.resident("train").images[example_indices(0, positions, DATA.num_train)]
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
@pytest.mark.extensive
def test_the_first_layer_has_the_mean_and_variance_of_all_images_together(task_of, mesh, count):
    # Forty examples: four batches of 16 from the third on run over the end of a pass.
    before, after = recomputed(task_of(), mesh, count)
    outputs = [convolve(images, before.params["stem_conv"]["kernel"]) for images in coming_batches(count)]
    assert_statistics(after.batch_stats["stem_bn"], np.concatenate(outputs), rtol=1e-4, atol=1e-5)
    if count > 1:  # The mean of the batches' variances is another number.
        within = np.mean([batch.var(axis=(0, 1, 2)) for batch in outputs], axis=0)
        assert np.abs(after.batch_stats["stem_bn"]["var"] / within - 1).max() > 1e-2


@pytest.mark.parametrize("parts", [1, 2])
def test_every_layer_has_the_mean_and_variance_of_its_inputs_in_all_parts_of_all_batches(task_of, one_device, parts):
    task = task_of()
    before = random_state(task, one_device)
    after = jax.device_get(recompute_batch_stats(task, DATA, 0, BATCH, 3, one_device, before, accumulate_steps=parts))
    taken = [images[i::parts] for images in coming_batches(3) for i in range(parts)]
    each = [inputs_of_batch_norms(task.model, before.variables, images) for images in taken]
    assert set(each[0]) == {path[:-1] for path in flatten_dict(after.batch_stats)} and len(each[0]) == 5
    for path in each[0]:
        found = flatten_dict(after.batch_stats, is_leaf=lambda path, _: path in each[0])[path]
        assert_statistics(found, np.concatenate([inputs[path] for inputs in each]), rtol=1e-4, atol=1e-4)


def test_groups_of_a_batch_are_pooled_like_batches(task_of, mesh):
    before, after = recomputed(task_of(bn_group_size=2), mesh, count=3)
    outputs = [convolve(images, before.params["stem_conv"]["kernel"]) for images in coming_batches(3)]
    assert_statistics(after.batch_stats["stem_bn"], np.concatenate(outputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ema_decay", [0.0, 0.99])
def test_only_the_statistics_that_are_evaluated_change(task_of, one_device, ema_decay):
    before, after = recomputed(task_of(), one_device, ema_decay=ema_decay)
    kernel = before.variables["params"]["stem_conv"]["kernel"]  # Of the moving average, where there is one.
    outputs = np.concatenate([convolve(images, kernel) for images in coming_batches(1)])
    assert_statistics(after.variables["batch_stats"]["stem_bn"], outputs, rtol=1e-4, atol=1e-5)
    if ema_decay:
        restored = after.replace(ema={**after.ema, "batch_stats": before.ema["batch_stats"]})
    else:
        restored = after.replace(batch_stats=before.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(before))


def test_a_constant_feature_has_a_variance_that_is_not_negative(task_of, one_device):
    """Equal images, and a first layer that only weighs their pixels: its outputs are constant, and far from 0."""
    white = data_of(np.full((40, 8, 8, 3), 255, np.uint8), np.zeros(40, np.int32))
    state = jax.device_get(random_state(task_of(), one_device))
    kernel = np.zeros((3, 3, 3, 4), np.float32)
    kernel[1, 1] = np.random.default_rng(0).uniform(5, 25, (3, 4))
    state.params["stem_conv"]["kernel"] = kernel
    state = parallel.to_global(state, parallel.replicated(one_device))
    after = recompute_batch_stats(task_of(), white, 0, BATCH, 7, one_device, state)
    assert min(np.abs(after.batch_stats["stem_bn"]["mean"])) > 10
    for path, leaf in flatten_dict(jax.device_get(after.batch_stats)).items():
        if path[-1] == "var":
            assert leaf.min() >= 0, path


def test_evaluating_the_one_batch_repeats_the_training_pass_over_it(task_of, one_device):
    model = task_of().model
    before, after = recomputed(task_of(), one_device)
    (images,) = coming_batches(1)
    training, _ = model.apply(before.variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(model.apply(after.variables, images, train=False), training, rtol=1e-3, atol=1e-3)


def test_dropped_paths_have_their_random_numbers(task_of, one_device):
    task = task_of(drop_path=0.5)
    before, after = recomputed(task, one_device)
    (images,) = coming_batches(1)

    @jax.jit
    def statistics(key):
        return task.statistics(before.variables, {"image": images, "label": np.zeros(BATCH, np.int32)}, key)

    close = partial(np.allclose, rtol=1e-4, atol=1e-4)
    same = [jax.tree.map(close, after.batch_stats, statistics(loss_key(0, step))) for step in (STEPS, 0)]
    assert [all(jax.tree.leaves(each)) for each in same] == [True, False]  # Those of the step that would come next.


def test_a_signal_is_heeded_between_two_batches(task_of, one_device):
    asked = iter([None, None, signal.SIGTERM])
    with interruptible(lambda: next(asked)), pytest.raises(Interrupted) as interrupted:
        recomputed(task_of(), one_device, count=100)
    assert interrupted.value.signum == signal.SIGTERM
