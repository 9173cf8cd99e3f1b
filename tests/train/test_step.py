"""The training step against PyTorch, on one device and on eight, and what its state carries."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.interop.torch_weights import load_torch
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.optimizers.masked import only
from resnet_jax.train.schedules import Constant, Plateau
from resnet_jax.train.state import init_state
from resnet_jax.train.step import ERROR_MEMORY, StepSettings, gradients, loss_key, make_train_step, train_step

torch = pytest.importorskip("torch")
F = torch.nn.functional

BATCH = 16
SGD_PAPER = SGD().make()
CONSTANT = Constant().make(0.1, 64_000, 1)
EVERY_SECOND = StepSettings(log_every=2)


class Streamed:
    """A data set whose batches carry the images."""

    def gather(self, resident, batch):
        return batch


def every_call(task, dataset, mesh, num_steps, settings=EVERY_SECOND, stride=1, schedule=CONSTANT, streamed=False):
    """The state and the metrics after each call, for ``num_steps`` steps on random images."""
    images, labels = dataset.resident("train").images, dataset.resident("train").labels
    resident = None if streamed else parallel.to_global(dataset.resident("train"), parallel.replicated(mesh))
    state = start(task, mesh, settings)
    source = Streamed() if streamed else dataset
    step = make_train_step(task, source, SGD_PAPER, schedule, settings, stride, mesh)
    indices = np.random.default_rng(1).integers(0, 48, (num_steps, BATCH), dtype=np.int32)
    for first in range(0, num_steps, stride):
        chosen = indices[first : first + stride]
        batches = {"image": images[chosen], "label": labels[chosen]} if streamed else {"index": chosen}
        state, metrics = step(state, resident, parallel.to_global(batches, parallel.sharded_batch(mesh, axis=1)))
        yield jax.device_get(state), jax.device_get(metrics)


def run_steps(*arguments, **options):
    """The state after the last step, and the metrics of every call."""
    states, history = zip(*every_call(*arguments, **options), strict=True)
    return states[-1], list(history)


def start(task, mesh, settings=EVERY_SECOND, image_shape=(8, 8, 3)):
    return init_state(task, SGD_PAPER, settings.seed, settings.ema_decay, settings.hold_error, image_shape, mesh)


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.fixture(scope="module")
def two_steps(tiny_task, random_images, one_device):
    """Each of two steps on one device."""
    return list(every_call(tiny_task(), random_images, one_device, 2))


def test_eight_devices_compute_what_one_does(tiny_task, random_images, one_device, eight_devices):
    task = tiny_task(bn_group_size=4)
    one, one_metrics = run_steps(task, random_images, one_device, 3)
    eight, eight_metrics = run_steps(task, random_images, eight_devices, 3)
    assert_trees_close(one.variables, eight.variables, rtol=1e-4, atol=1e-5)
    assert_trees_close(one_metrics, eight_metrics, rtol=1e-4, atol=1e-5)


@pytest.mark.extensive
def test_eight_devices_have_the_batch_statistics_of_the_whole_batch(tiny_task, random_images, two_steps, eight_devices):
    (state, _), (after, metrics) = every_call(tiny_task(), random_images, eight_devices, 2)
    assert_trees_close(state.variables, two_steps[0][0].variables, rtol=1e-4, atol=1e-5)
    assert_trees_close(after.variables, two_steps[1][0].variables, rtol=1e-4, atol=1e-5)
    assert_trees_close(metrics, two_steps[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scan_blocks", "accumulate_steps"), [(False, 2), (True, 1)])
@pytest.mark.extensive
def test_several_steps_in_one_call_are_the_same_steps(
    tiny_task, random_images, one_device, scan_blocks, accumulate_steps
):
    task = tiny_task(0.1, stage_sizes=(3,), scan_blocks=scan_blocks)
    settings = StepSettings(log_every=2, accumulate_steps=accumulate_steps, ema_decay=0.99)
    single, single_metrics = run_steps(task, random_images, one_device, 4, settings)
    together, together_metrics = run_steps(task, random_images, one_device, 4, settings, stride=4)
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


def test_three_steps_follow_pytorch(tiny_task, one_device):
    torch.manual_seed(0)
    reference = TorchResNet()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    fields = {"width": 4, "stage_sizes": (1, 1)}
    state = start(tiny_task(), one_device).replace(**load_torch("resnet20", reference.state_dict(), **fields))
    step = jax.jit(partial(train_step, tiny_task(), SGD_PAPER, CONSTANT, EVERY_SECOND))

    rng = np.random.default_rng(0)
    for _ in range(3):
        images = rng.normal(size=(BATCH, 8, 8, 3)).astype(np.float32)
        labels = rng.integers(0, 10, BATCH)
        state, metrics = step(state, {"image": jnp.asarray(images), "label": jnp.asarray(labels)})
        optimizer.zero_grad()
        loss = F.cross_entropy(reference(torch.from_numpy(images.transpose(0, 3, 1, 2))), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
    expected = load_torch("resnet20", reference.state_dict(), **fields)
    assert_trees_close(state.params, expected["params"], rtol=1e-3, atol=1e-5)
    means, expected_means = (
        [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if path[-1].key == "mean"]
        for tree in (state.batch_stats, expected["batch_stats"])
    )
    assert_trees_close(means, expected_means, rtol=1e-3, atol=1e-5)
    assert np.isfinite(metrics["train_loss"])


def test_metrics_are_means_over_the_logging_interval(tiny_task, random_images, one_device):
    _, every_step = run_steps(tiny_task(), random_images, one_device, 4, StepSettings(log_every=1))
    _, every_second = run_steps(tiny_task(), random_images, one_device, 4)
    for name in ("train_loss", "train_error"):
        each = [metrics[name] for metrics in every_step]
        np.testing.assert_allclose(every_second[1][name], np.mean(each[:2]), rtol=1e-5)
        np.testing.assert_allclose(every_second[3][name], np.mean(each[2:]), rtol=1e-5)


@pytest.mark.extensive
def test_the_hold_rule_ends_when_the_training_error_falls_below_its_threshold(tiny_task, random_images, one_device):
    # The mean error starts at 1 and must pass 0.99; an error of about 0.9 moves it there within some six steps. The
    # schedule warms up: over the first step its rate is lower than the rule's.
    settings = StepSettings(log_every=1, hold_error=0.99, hold_rate=0.01)
    schedule = Constant(warmup_steps=16).make(0.1, 64_000, 1)
    state, history = run_steps(tiny_task(), random_images, one_device, 12, settings, schedule=schedule)
    mean_error, rates = 1.0, []
    warming_up = True
    for step, metrics in enumerate(history):
        scheduled = 0.1 * (step + 1) / 16
        rates.append(min(0.01, scheduled) if warming_up else scheduled)
        mean_error = ERROR_MEMORY * mean_error + (1 - ERROR_MEMORY) * metrics["train_error"]
        warming_up = warming_up and mean_error >= 0.99
    np.testing.assert_allclose([metrics["learning_rate"] for metrics in history], rates, rtol=1e-6)
    assert rates[0] < 0.01 == rates[1] == rates[2] < rates[-1]
    assert not state.warming_up


def test_steps_that_are_not_finite_are_skipped_and_counted(tiny_task, random_images, one_device):
    settings = StepSettings(log_every=2, skip_nonfinite=True, ema_decay=0.9)

    def schedule(step):
        return jnp.where((step >= 1) & (step <= 3), jnp.inf, 0.1)

    calls = list(every_call(tiny_task(), random_images, one_device, 6, settings, schedule=schedule))
    states = [state for state, _ in calls]
    before, *skipped = [state.replace(step=0, nonfinite_step=0, sums={}) for state in states[:4]]
    for state in skipped:
        jax.tree.map(np.testing.assert_array_equal, state, before)
    assert [int(state.step) for state in states] == [1, 2, 3, 4, 5, 6]
    assert [int(state.nonfinite_step) for state in states] == [-1, -2, -3, -4, -4, -4]
    assert [int(state.sums["count"]) for state in states] == [1, 1, 0, 0, 1, 2]
    # An interval of which no step was taken has no mean.
    assert [bool(np.isfinite(metrics["train_loss"])) for _, metrics in calls] == [True, True, False, False, True, True]
    assert not np.array_equal(jax.tree.leaves(states[4].params)[0], jax.tree.leaves(before.params)[0])


@pytest.mark.extensive
def test_first_step_that_is_not_finite_is_remembered(tiny_task, random_images, one_device):
    wild = Constant().make(1e30, 64_000, 1)
    _, history = run_steps(tiny_task(), random_images, one_device, 4, schedule=wild)
    # The very first update leaves parameters whose squares overflow.
    assert [int(metrics["nonfinite_step"]) for metrics in history] == [1, 1, 1, 1]


def test_the_same_steps_are_the_same_to_the_bit(tiny_task, random_images, one_device, two_steps):
    again = list(every_call(tiny_task(), random_images, one_device, 2))
    jax.tree.map(np.testing.assert_array_equal, two_steps, again)


@pytest.mark.slow  # Compiled as users do: to the bit.
def test_photographs_as_batches_are_trained_on_as_those_gathered_by_index(tiny_task, random_images, two_devices):
    gathered = run_steps(tiny_task(), random_images, two_devices, 2, stride=2)
    streamed = run_steps(tiny_task(), random_images, two_devices, 2, stride=2, streamed=True)
    jax.tree.map(np.testing.assert_array_equal, streamed, gathered)


def random_batch(size=BATCH):
    rng = np.random.default_rng(2)
    images = rng.normal(size=(size, 8, 8, 3)).astype(np.float32)
    return {"image": images, "label": rng.integers(0, 10, size).astype(np.int32)}


@pytest.mark.parametrize(("k", "bn_group_size", "devices"), [(2, None, 1), (4, 4, 1), (4, None, 2)])
@pytest.mark.extensive
def test_accumulation_is_the_mean_over_interleaved_parts(tiny_task, k, bn_group_size, devices):
    task, batch = tiny_task(0.1, bn_group_size=bn_group_size), random_batch(32)
    mesh = parallel.data_mesh(jax.devices()[:devices])
    state = start(task, mesh)
    sharded = parallel.to_global(batch, parallel.sharded_batch(mesh))
    found = jax.jit(partial(gradients, task, StepSettings(accumulate_steps=k)))(state, sharded)

    alone = jax.jit(partial(gradients, task, StepSettings()))
    host = jax.device_get(state)
    parts = [alone(host, jax.tree.map(lambda x, i=i: x[i::k], batch)) for i in range(k)]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64), *map(jax.device_get, parts))
    assert_trees_close(found, expected, rtol=1e-4, atol=1e-5)
    # The parts differ, so that no one of them, and no other cut of the batch, would do.
    assert np.ptp([float(loss) for loss, *_ in parts]) > 1e-3


@pytest.mark.parametrize("bn_group_size", [None, 2])
@pytest.mark.extensive
def test_accumulation_is_one_large_batch_with_batch_norm_over_groups(tiny_task, one_device, bn_group_size):
    """k parts are one batch of groups of a part (or of bn_group_size), the parts laid end to end."""
    k, batch = 4, random_batch(32)
    group = bn_group_size or 32 // k
    state = start(tiny_task(), one_device)
    in_parts = StepSettings(accumulate_steps=k)
    parts = jax.jit(partial(gradients, tiny_task(bn_group_size=bn_group_size), in_parts))
    whole = jax.jit(partial(gradients, tiny_task(bn_group_size=group), StepSettings()))
    end_to_end = jax.tree.map(lambda x: np.concatenate([x[i::k] for i in range(k)]), batch)
    assert_trees_close(parts(state, batch), whole(state, end_to_end), rtol=1e-4, atol=1e-5)


@pytest.mark.extensive
def test_a_step_with_accumulation_takes_its_gradients_and_statistics_from_all_parts(tiny_task, one_device):
    task, settings = tiny_task(), StepSettings(accumulate_steps=2, log_every=1)
    state = start(task, one_device)
    loss, metrics, batch_stats, grads = jax.jit(partial(gradients, task, settings))(state, random_batch())
    step = jax.jit(partial(train_step, task, SGD_PAPER, CONSTANT, settings))
    after, means = step(state, random_batch())
    params = jax.tree.map(lambda w, g: w - 0.1 * (g + 1e-4 * w), state.params, grads)
    assert_trees_close(after.variables, {"params": params, "batch_stats": batch_stats}, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([means["train_loss"], means["train_error"]], [loss, metrics["error"]], rtol=1e-6)


def test_the_moving_average_is_the_plain_recursion_and_changes_nothing_else(tiny_task, random_images, one_device):
    averaged = StepSettings(log_every=2, ema_decay=0.3)  # The decay climbs 1/10, 2/11, 3/12, 4/13, then stays at 0.3.
    mean = jax.tree.map(lambda leaf: leaf.astype(np.float64), jax.device_get(start(tiny_task(), one_device).variables))
    steps, steps_without = (
        every_call(tiny_task(), random_images, one_device, 6, settings) for settings in (averaged, EVERY_SECOND)
    )
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


@pytest.mark.extensive
def test_the_moving_average_may_be_a_copy_first_and_be_updated_now_and_then(tiny_task, random_images, one_device):
    """As torchvision's: every second step, a copy before step 4, then with the whole decay."""
    settings = StepSettings(log_every=2, ema_decay=0.7, ema_every=2, ema_start=4)
    mean = None
    for t, (state, _) in enumerate(every_call(tiny_task(), random_images, one_device, 8, settings)):
        new = jax.tree.map(
            lambda leaf: leaf.astype(np.float64), {"params": state.params, "batch_stats": state.batch_stats}
        )
        if t % 2 == 0:
            mean = new if t < 4 else jax.tree.map(lambda old, now: 0.7 * old + 0.3 * now, mean, new)
        assert_trees_close(state.ema, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.extensive
def test_the_gradient_may_be_taken_uphill(tiny_task, one_device):
    """Sharpness-aware minimisation by hand, from two plain gradients; statistics and loss are the first pass's."""
    task, batch = tiny_task(), random_batch()
    state = start(task, one_device)
    plain = jax.jit(partial(gradients, task, StepSettings()))
    loss, _, batch_stats, grads = plain(state, batch)
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(grads)))
    uphill = jax.tree.map(lambda w, g: w + np.float32(0.3 / norm) * g, state.params, grads)
    uphill_grads = plain(state.replace(params=uphill), batch)[3]
    expected = jax.tree.map(lambda w, g: w - 0.1 * (g + 1e-4 * w), state.params, uphill_grads)
    step = jax.jit(partial(train_step, task, SGD_PAPER, CONSTANT, StepSettings(sam_radius=0.3)))
    after, metrics = step(state, batch)
    assert_trees_close(after.params, expected, rtol=1e-4, atol=1e-5)
    assert_trees_close(after.batch_stats, batch_stats, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["train_loss"], loss, rtol=1e-5)
    downhill = jax.tree.map(lambda w, g: w - 0.1 * (g + 1e-4 * w), state.params, grads)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (downhill, expected)), strict=True)) > 1e-3


def test_the_scale_of_the_plateau_multiplies_the_learning_rate(tiny_task, one_device):
    task, settings = tiny_task(), StepSettings(log_every=1)
    state, batch = start(task, one_device), random_batch()
    state = state.replace(plateau=state.plateau._replace(scale=jnp.float32(0.25)))
    schedule = Plateau(warmup_steps=2).make(0.1, 100, 1)
    step = jax.jit(partial(train_step, task, SGD_PAPER, schedule, settings))
    after, metrics = step(state, batch)
    rate = 0.25 * 0.1 / 2
    np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
    grads = jax.jit(partial(gradients, task, settings))(state, batch)[3]
    expected = jax.tree.map(lambda w, g: w - rate * (g + 1e-4 * w), state.params, grads)
    assert_trees_close(after.params, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(step(after, batch)[1]["learning_rate"], 0.25 * 0.1, rtol=1e-6)
    assert after.plateau.scale == 0.25  # Only evaluations change it.


class Regression:
    """A linear fit of the mean pixel: a task that has neither classes nor batch statistics."""

    title, metrics, percentages = "regression", ("distance", "bias"), frozenset()
    best, recorded = "distance", {"distance": "distance"}

    def init(self, key, image_shape):
        return {"params": {"kernel": jax.random.normal(key, image_shape)}, "batch_stats": {}}

    def prepare(self, key, batch):
        return {"image": batch["image"] / 255, "noise": 0.1 * jax.random.normal(key, batch["label"].shape)}

    def loss(self, variables, batch, key):
        errors = jnp.tensordot(batch["image"], variables["params"]["kernel"], 3) - batch["image"].mean((1, 2, 3))
        errors += batch["noise"] + jax.random.uniform(key)
        return (errors**2).mean(), ({"distance": abs(errors).mean(), "bias": errors.mean()}, {})


def test_the_step_knows_only_the_task(random_images, one_device):
    settings = StepSettings(seed=7, log_every=2, hold_error=1.0)
    calls = list(every_call(Regression(), random_images, one_device, 2, settings, schedule=Constant().make(0.0, 10, 1)))
    first, metrics = calls[0]
    assert set(metrics) == {"train_loss", "train_distance", "train_bias", "learning_rate", "nonfinite_step"}
    assert set(first.sums) == {"loss", "distance", "bias", "count"}
    # What the hold rule reads is the first metric.
    np.testing.assert_allclose(first.train_error, 0.98 + 0.02 * metrics["train_distance"], rtol=1e-5)
    begun = start(Regression(), one_device, settings)  # A rate of 0 leaves the kernel as it is.
    indices = np.random.default_rng(1).integers(0, 48, (2, BATCH), dtype=np.int32)
    biases = []
    for step in (0, 1):  # Each has random numbers of its own, for the batch and for the loss.
        noise = 0.1 * jax.random.normal(jax.random.fold_in(jax.random.key(7), step), (BATCH,))
        images = random_images.resident("train").images[indices[step]] / 255
        shift = jax.random.uniform(jax.random.split(loss_key(7, step), 1)[0])
        errors = np.tensordot(images, begun.params["kernel"], 3) - images.mean((1, 2, 3)) + noise + shift
        biases.append(errors.mean())
        np.testing.assert_allclose(calls[step][1]["train_bias"], np.mean(biases), rtol=1e-4)


class HalfFrozen(Regression):
    """A task whose loss has no gradient in one of two parameters."""

    def init(self, key, image_shape):
        return {"params": {"live": jnp.arange(3.0), "frozen": jnp.full(3, 0.7)}, "batch_stats": {}}

    def loss(self, variables, batch, key):
        live, frozen = variables["params"]["live"], variables["params"]["frozen"]
        loss = ((live * frozen + live**2 - batch["target"]) ** 2).mean() + jnp.sqrt(((frozen - 0.7) ** 2).sum())
        return loss, ({"distance": loss, "bias": loss}, {})


def test_frozen_parameters_are_neither_moved_uphill_nor_part_of_its_radius_nor_of_what_must_be_finite(one_device):
    task, batch, mask = HalfFrozen(), {"target": jnp.array([1.0, -2.0, 3.0])}, {"live": True, "frozen": False}
    optimizer = only(SGD(momentum=0.0, weight_decay=0.0).make(), mask)
    state = init_state(task, optimizer, 0, 0.0, 0.0, (), one_device)
    settings = StepSettings(log_every=1, sam_radius=0.3)
    after, _ = jax.jit(partial(train_step, task, optimizer, CONSTANT, settings))(state, batch)

    def loss(live):
        return task.loss({"params": {"live": live, "frozen": jnp.full(3, 0.7)}}, batch, None)[0]

    live = jnp.arange(3.0)
    gradient = jax.grad(loss)(live)
    uphill = live + 0.3 * gradient / jnp.linalg.norm(gradient)
    np.testing.assert_allclose(after.params["live"], live - 0.1 * jax.grad(loss)(uphill), rtol=1e-5)
    np.testing.assert_array_equal(after.params["frozen"], state.params["frozen"])
    assert int(after.nonfinite_step) == -1


def numbers_reduced(program):
    """How many float32 a compiled program sums over the devices: what stands in a loop, as often as that goes round."""
    rounds = {
        body: int(count)
        for body, count in re.findall(r" while\(.*body=%([\w.-]+).*\"known_trip_count\":\{\"n\":\"(\d+)\"", program)
    }
    sent, computation = 0, ""
    for line in program.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            computation = line.removeprefix("ENTRY ").removeprefix("%").partition(" ")[0]
        if " all-reduce(" in line:
            for dims in re.findall(r"f32\[([\d,]*)\]", line.partition(" all-reduce(")[0]):
                size = np.prod([int(size) for size in dims.split(",") if size], dtype=int)
                sent += int(size) * rounds.get(computation, 1)
    return sent


@pytest.mark.parametrize(("count", "accumulate_steps"), [(2, 1), (8, 1), (2, 4)])
@pytest.mark.extensive
def test_the_gradients_are_reduced_once_for_each_part_of_a_batch(tiny_task, random_images, count, accumulate_steps):
    """What docs/scaling.md says is sent between devices: the gradients of each part, and little else."""
    mesh = parallel.data_mesh(jax.devices()[:count])
    task = tiny_task(bn_group_size=2)
    state = start(task, mesh)
    settings = StepSettings(log_every=2, accumulate_steps=accumulate_steps)
    step = make_train_step(task, random_images, SGD_PAPER, CONSTANT, settings, 1, mesh)
    resident = parallel.to_global(random_images.resident("train"), parallel.replicated(mesh))
    batches = parallel.to_global({"index": np.zeros((1, BATCH), np.int32)}, parallel.sharded_batch(mesh, axis=1))
    sent = numbers_reduced(step.lower(state, resident, batches).compile().as_text())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    statistics = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    assert accumulate_steps * parameters <= sent <= accumulate_steps * (parameters + statistics + 10)
