"""The training step against PyTorch, on one device and on eight, and what its state carries."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import resnet_jax
from resnet_jax import parallel, recipes
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.resident import Split
from resnet_jax.train.schedules import make_schedule
from resnet_jax.train.state import init_state
from resnet_jax.train.step import ERROR_MEMORY, gradients, make_train_step, train_step, training_batch

CHANNEL = Normalization(np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32))


def tiny_config(**settings):
    config = recipes.base()
    config.update_from_flattened_dict(
        {"batch_size": 16, "log_every": 2, "schedule.name": "constant", "data.pad": 1, **settings}
    )
    return config


def tiny_model(**fields):
    return resnet_jax.create_model("resnet20", **{"width": 4, "stage_sizes": (1, 1), **fields})


def random_split(num_examples=48, size=8):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_examples, size, size, 3), dtype=np.uint8)
    return Split(images, rng.integers(0, 10, num_examples).astype(np.int32))


def one_device():
    return parallel.data_mesh(jax.devices()[:1])


def every_call(config, model, mesh, num_steps, streamed=False):
    """The state and the metrics after each call, for ``num_steps`` steps on random images."""
    examples = random_split()
    split = None if streamed else parallel.to_global(examples, parallel.replicated(mesh))
    state = init_state(config, model, (8, 8, 3), mesh)
    step = make_train_step(config, model, CHANNEL, mesh)
    indices = np.random.default_rng(1).integers(0, 48, (num_steps, config.batch_size), dtype=np.int32)
    for first in range(0, num_steps, config.steps_per_dispatch):
        chosen = indices[first : first + config.steps_per_dispatch]
        batches = {"image": examples.images[chosen], "label": examples.labels[chosen]} if streamed else chosen
        state, metrics = step(state, split, parallel.to_global(batches, parallel.sharded_batch(mesh, axis=1)))
        yield jax.device_get(state), jax.device_get(metrics)


def run_steps(config, model, mesh, num_steps, streamed=False):
    """The state after ``num_steps`` steps, and the metrics of every call."""
    states, history = zip(*every_call(config, model, mesh, num_steps, streamed), strict=True)
    return states[-1], list(history)


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("bn_group_size", [None, 4])
def test_eight_devices_compute_what_one_does(bn_group_size):
    config, model = tiny_config(), tiny_model(bn_group_size=bn_group_size)
    one, one_metrics = run_steps(config, model, one_device(), 3)
    eight, eight_metrics = run_steps(config, model, parallel.data_mesh(jax.devices()), 3)
    assert_trees_close(one.variables, eight.variables, rtol=1e-4, atol=1e-5)
    assert_trees_close(one_metrics, eight_metrics, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scan_blocks", "accumulate_steps"), [(False, 2), (True, 1)])
def test_several_steps_in_one_call_are_the_same_steps(scan_blocks, accumulate_steps):
    settings = {"accumulate_steps": accumulate_steps, "ema_decay": 0.99, "label_smoothing": 0.1}
    config, model = tiny_config(**settings), tiny_model(stage_sizes=(3,), scan_blocks=scan_blocks)
    mesh = one_device()
    single, single_metrics = run_steps(config, model, mesh, 4)
    together, together_metrics = run_steps(tiny_config(steps_per_dispatch=4, **settings), model, mesh, 4)
    assert together.step == 4
    assert_trees_close(single, together, rtol=1e-4, atol=1e-5)
    assert_trees_close(single_metrics[-1], together_metrics[-1], rtol=1e-4, atol=1e-5)


class TorchResNet(torch.nn.Module):
    """Two basic blocks of 4 and 8 filters with option A, in torchvision's key layout."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 4, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(4)
        for stage, (inputs, outputs, strides) in enumerate([(4, 4, 1), (4, 8, 2)], start=1):
            block = torch.nn.Module()
            block.conv1 = torch.nn.Conv2d(inputs, outputs, 3, strides, 1, bias=False)
            block.bn1 = torch.nn.BatchNorm2d(outputs)
            block.conv2 = torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            block.bn2 = torch.nn.BatchNorm2d(outputs)
            setattr(self, f"layer{stage}", torch.nn.ModuleList([block]))
        self.fc = torch.nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for block in (self.layer1[0], self.layer2[0]):
            y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
            if y.shape != x.shape:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
            x = F.relu(x + y)
        return self.fc(x.mean(dim=(2, 3)))


def test_three_steps_follow_pytorch():
    torch.manual_seed(0)
    reference = TorchResNet()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    config, model = tiny_config(), tiny_model()
    mesh = one_device()
    fields = {"width": 4, "stage_sizes": (1, 1)}
    variables = resnet_jax.load_torch("resnet20", reference.state_dict(), **fields)
    state = init_state(config, model, (8, 8, 3), mesh).replace(**variables)
    schedule = make_schedule(config)
    step = jax.jit(lambda state, batch: train_step(config, model, schedule, state, batch))

    rng = np.random.default_rng(0)
    for _ in range(3):
        images = rng.normal(size=(16, 8, 8, 3)).astype(np.float32)
        labels = rng.integers(0, 10, 16)
        state, metrics = step(state, {"image": jnp.asarray(images), "label": jnp.asarray(labels)})
        optimizer.zero_grad()
        loss = F.cross_entropy(reference(torch.from_numpy(images.transpose(0, 3, 1, 2))), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
    expected = resnet_jax.load_torch("resnet20", reference.state_dict(), **fields)
    assert_trees_close(state.params, expected["params"], rtol=1e-3, atol=1e-5)
    means = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.batch_stats) if path[-1].key == "mean"]
    expected_means = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(expected["batch_stats"]) if path[-1].key == "mean"
    ]
    assert_trees_close(means, expected_means, rtol=1e-3, atol=1e-5)
    assert np.isfinite(metrics["train_loss"])


def test_metrics_are_means_over_the_logging_interval():
    mesh = one_device()
    _, every_step = run_steps(tiny_config(log_every=1), tiny_model(), mesh, 4)
    _, every_second = run_steps(tiny_config(log_every=2), tiny_model(), mesh, 4)
    for name in ("train_loss", "train_error"):
        each = [metrics[name] for metrics in every_step]
        np.testing.assert_allclose(every_second[1][name], np.mean(each[:2]), rtol=1e-5)
        np.testing.assert_allclose(every_second[3][name], np.mean(each[2:]), rtol=1e-5)


def test_warm_up_rule_ends_when_the_training_error_falls_below_its_threshold():
    # The mean error starts at 1 and must pass 0.99; an error of about 0.9 moves it there within some six steps.
    mesh = one_device()
    config = tiny_config(**{"schedule.warmup_error": 0.99, "log_every": 1})
    state, history = run_steps(config, tiny_model(), mesh, 12)
    mean_error, rates = 1.0, []
    warming_up = True
    for metrics in history:
        rates.append(0.01 if warming_up else 0.1)
        mean_error = ERROR_MEMORY * mean_error + (1 - ERROR_MEMORY) * metrics["train_error"]
        warming_up = warming_up and mean_error >= 0.99
    np.testing.assert_allclose([metrics["learning_rate"] for metrics in history], rates, rtol=1e-6)
    assert set(rates) == {0.01, 0.1}
    assert not state.warming_up


def test_first_step_that_is_not_finite_is_remembered():
    mesh = one_device()
    _, history = run_steps(tiny_config(**{"optimizer.learning_rate": 1e30}), tiny_model(), mesh, 4)
    # The very first update leaves parameters whose squares overflow.
    assert [int(metrics["nonfinite_step"]) for metrics in history] == [1, 1, 1, 1]


def test_augmentation_is_a_function_of_seed_and_step():
    mesh = one_device()
    first, again = (run_steps(tiny_config(), tiny_model(), mesh, 2)[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_photographs_as_batches_are_trained_on_as_those_gathered_by_index():
    config, mesh = tiny_config(steps_per_dispatch=2), parallel.data_mesh()
    gathered, gathered_metrics = run_steps(config, tiny_model(), mesh, 2)
    streamed, streamed_metrics = run_steps(config, tiny_model(), mesh, 2, streamed=True)
    jax.tree.map(np.testing.assert_array_equal, streamed, gathered)
    jax.tree.map(np.testing.assert_array_equal, streamed_metrics, gathered_metrics)


def test_a_training_batch_is_normalised_and_without_augmentation_as_it_was():
    config, images = tiny_config(**{"data.pad": 0, "data.flip": False}), random_split(6)
    normalization = Normalization(np.array([0.1, 0.5, 0.7], np.float32), np.array([1.0, 0.5, 0.25], np.float32))
    batch = training_batch(config, normalization, None, {"image": images.images, "label": images.labels}, jnp.int32(3))
    expected = (images.images / 255 - [0.1, 0.5, 0.7]) / [1.0, 0.5, 0.25]
    np.testing.assert_allclose(batch["image"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(batch["label"], images.labels)


def random_batch(size=16):
    rng = np.random.default_rng(2)
    images = rng.normal(size=(size, 8, 8, 3)).astype(np.float32)
    return {"image": images, "label": rng.integers(0, 10, size).astype(np.int32)}


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_loss_and_error_are_those_written_out_by_hand(smoothing):
    config, model, batch = tiny_config(label_smoothing=smoothing), tiny_model(), random_batch()
    state = init_state(config, model, (8, 8, 3), one_device())
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits, _ = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, batch["image"])
    logits = np.asarray(logits, np.float64)
    losses, slopes = [], []
    for scores, label in zip(logits, batch["label"], strict=True):
        target = np.full(10, smoothing / 10)  # Each class its share, the right one included (Szegedy et al.).
        target[label] += 1 - smoothing
        probabilities = np.exp(scores) / np.exp(scores).sum()
        losses.append(-(target * np.log(probabilities)).sum())
        slopes.append(probabilities - target)
    loss, error, _, grads = jax.jit(partial(gradients, config, model))(state, batch)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(error, np.mean(logits.argmax(axis=1) != batch["label"]), rtol=1e-6)
    np.testing.assert_allclose(grads["head"]["bias"], np.mean(slopes, axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("bn_group_size", [None, 4])
def test_accumulation_is_the_mean_over_interleaved_parts(mesh, k, bn_group_size):
    model, batch = tiny_model(bn_group_size=bn_group_size), random_batch(32)
    config = tiny_config(label_smoothing=0.1, accumulate_steps=k)
    state = init_state(config, model, (8, 8, 3), mesh)
    sharded = parallel.to_global(batch, parallel.sharded_batch(mesh))
    found = jax.jit(partial(gradients, config, model))(state, sharded)

    alone = jax.jit(partial(gradients, tiny_config(label_smoothing=0.1), model))
    host = jax.device_get(state)
    parts = [alone(host, jax.tree.map(lambda x, i=i: x[i::k], batch)) for i in range(k)]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64), *map(jax.device_get, parts))
    assert_trees_close(found, expected, rtol=1e-4, atol=1e-5)
    # The parts differ, so that no one of them, and no other cut of the batch, would do.
    assert np.ptp([float(loss) for loss, *_ in parts]) > 1e-3


@pytest.mark.parametrize("bn_group_size", [None, 2])
def test_accumulation_is_one_large_batch_with_batch_norm_over_groups(bn_group_size):
    """k parts are one batch of groups of a part (or of bn_group_size), the parts laid end to end."""
    k, batch = 4, random_batch(32)
    group = bn_group_size or 32 // k
    state = init_state(tiny_config(), tiny_model(), (8, 8, 3), one_device())
    parts = jax.jit(partial(gradients, tiny_config(accumulate_steps=k), tiny_model(bn_group_size=bn_group_size)))
    whole = jax.jit(partial(gradients, tiny_config(), tiny_model(bn_group_size=group)))
    end_to_end = jax.tree.map(lambda x: np.concatenate([x[i::k] for i in range(k)]), batch)
    assert_trees_close(parts(state, batch), whole(state, end_to_end), rtol=1e-4, atol=1e-5)


def test_a_step_with_accumulation_takes_its_gradients_and_statistics_from_all_parts():
    config, model = tiny_config(accumulate_steps=2, log_every=1), tiny_model()
    state = init_state(config, model, (8, 8, 3), one_device())
    loss, error, batch_stats, grads = jax.jit(partial(gradients, config, model))(state, random_batch())
    step = jax.jit(partial(train_step, config, model, make_schedule(config)))
    after, metrics = step(state, random_batch())
    params = jax.tree.map(lambda w, g: w - 0.1 * (g + 1e-4 * w), state.params, grads)
    assert_trees_close(after.variables, {"params": params, "batch_stats": batch_stats}, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([metrics["train_loss"], metrics["train_error"]], [loss, error], rtol=1e-6)


def test_the_moving_average_is_the_plain_recursion_and_changes_nothing_else():
    config = tiny_config(ema_decay=0.3)  # The decay climbs 1/10, 2/11, 3/12, 4/13 and is 0.3 from there on.
    start = jax.device_get(init_state(config, tiny_model(), (8, 8, 3), one_device()).variables)
    mean = jax.tree.map(lambda leaf: leaf.astype(np.float64), start)
    steps, steps_without = (every_call(c, tiny_model(), one_device(), 6) for c in (config, tiny_config()))
    for t, ((state, metrics), (without, other_metrics)) in enumerate(zip(steps, steps_without, strict=True)):
        assert without.ema == {}
        assert without.variables == {"params": without.params, "batch_stats": without.batch_stats}
        assert_trees_close(state.replace(ema={}), without, rtol=1e-4, atol=1e-5)
        assert_trees_close(metrics, other_metrics, rtol=1e-4)
        decay = min(0.3, (1 + t) / (10 + t))
        mean = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, mean, without.variables)
        assert_trees_close(state.ema, mean, rtol=1e-4, atol=1e-5)
        assert state.variables is state.ema  # What evaluations see.
    assert np.abs(state.ema["params"]["head"]["kernel"] - state.params["head"]["kernel"]).max() > 1e-3


def test_the_scale_of_the_plateau_multiplies_the_learning_rate():
    config = tiny_config(**{"schedule.name": "plateau", "schedule.warmup_steps": 2, "log_every": 1})
    model, batch = tiny_model(), random_batch()
    state = init_state(config, model, (8, 8, 3), one_device())
    assert state.plateau.scale == 1
    state = state.replace(plateau=state.plateau._replace(scale=jnp.float32(0.25)))
    step = jax.jit(partial(train_step, config, model, make_schedule(config)))
    after, metrics = step(state, batch)
    rate = 0.25 * 0.05  # Half way up.
    np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
    *_, grads = jax.jit(partial(gradients, config, model))(state, batch)
    expected = jax.tree.map(lambda w, g: w - rate * (g + 1e-4 * w), state.params, grads)
    assert_trees_close(after.params, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(step(after, batch)[1]["learning_rate"], 0.25 * 0.1, rtol=1e-6)
    assert after.plateau.scale == 0.25  # Only evaluations change it.
