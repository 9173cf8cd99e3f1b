"""The training step against PyTorch, on one device and on eight, and what its state carries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import resnet_jax
from resnet_jax import parallel, recipes
from resnet_jax.data.resident import Split
from resnet_jax.train.schedules import make_schedule
from resnet_jax.train.state import init_state
from resnet_jax.train.step import ERROR_MEMORY, make_resident_step, train_step

CHANNEL = (np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32))


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


def run_steps(config, model, mesh, num_steps, steps_per_call=1):
    """The state after ``num_steps`` steps on random images, and the metrics of every call."""
    split = parallel.to_global(random_split(), parallel.replicated(mesh))
    state = init_state(config, model, (8, 8, 3), mesh)
    step = make_resident_step(config, model, *CHANNEL, mesh)
    indices = np.random.default_rng(1).integers(0, 48, (num_steps, config.batch_size), dtype=np.int32)
    history = []
    for first in range(0, num_steps, steps_per_call):
        chosen = indices[first : first + steps_per_call]
        state, metrics = step(state, split, parallel.to_global(chosen, parallel.sharded_batch(mesh, axis=1)))
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("bn_group_size", [None, 4])
def test_eight_devices_compute_what_one_does(bn_group_size):
    config, model = tiny_config(), tiny_model(bn_group_size=bn_group_size)
    one, one_metrics = run_steps(config, model, parallel.data_mesh(jax.devices()[:1]), 3)
    eight, eight_metrics = run_steps(config, model, parallel.data_mesh(jax.devices()), 3)
    assert_trees_close(one.variables, eight.variables, rtol=1e-4, atol=1e-5)
    assert_trees_close(one_metrics, eight_metrics, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_several_steps_in_one_call_are_the_same_steps(scan_blocks):
    config, model = tiny_config(), tiny_model(stage_sizes=(3,), scan_blocks=scan_blocks)
    mesh = parallel.data_mesh(jax.devices()[:1])
    single, single_metrics = run_steps(config, model, mesh, 4)
    together, together_metrics = run_steps(config, model, mesh, 4, steps_per_call=4)
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
    mesh = parallel.data_mesh(jax.devices()[:1])
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
    mesh = parallel.data_mesh(jax.devices()[:1])
    _, every_step = run_steps(tiny_config(log_every=1), tiny_model(), mesh, 4)
    _, every_second = run_steps(tiny_config(log_every=2), tiny_model(), mesh, 4)
    for name in ("train_loss", "train_error"):
        each = [metrics[name] for metrics in every_step]
        np.testing.assert_allclose(every_second[1][name], np.mean(each[:2]), rtol=1e-5)
        np.testing.assert_allclose(every_second[3][name], np.mean(each[2:]), rtol=1e-5)


def test_warm_up_rule_ends_when_the_training_error_falls_below_its_threshold():
    # The mean error starts at 1 and must pass 0.99; an error of about 0.9 moves it there within some six steps.
    mesh = parallel.data_mesh(jax.devices()[:1])
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
    mesh = parallel.data_mesh(jax.devices()[:1])
    _, history = run_steps(tiny_config(**{"optimizer.learning_rate": 1e30}), tiny_model(), mesh, 4)
    # The very first update leaves parameters whose squares overflow.
    assert [int(metrics["nonfinite_step"]) for metrics in history] == [1, 1, 1, 1]


def test_augmentation_is_a_function_of_seed_and_step():
    mesh = parallel.data_mesh(jax.devices()[:1])
    first, again = (run_steps(tiny_config(), tiny_model(), mesh, 2)[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
