"""Batches of detection on the devices, in one program for several steps, and in the training loop."""

import itertools

import jax
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.data.feed import evaluation_inputs, training_inputs
from resnet_jax.errors import UserError
from resnet_jax.train.loop import LoopSettings, train
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Constant
from resnet_jax.train.step import StepSettings
from tests.data.detection.test_dataset import assert_same, dataset, training


def test_batches_reach_the_devices(mesh):
    data = dataset()
    resident, batches = training_inputs(data, 3, 8, 1, 0, 2, mesh)
    for batch, expected in zip(batches, training(data, 8, 0, 2), strict=True):
        found = data.gather(resident, jax.tree.map(lambda leaf: leaf[0], batch))
        assert_same([jax.device_get(found)], [expected])
    seen = []
    for view in data.whole_views("validation"):
        for batch in evaluation_inputs(data, "validation", view, 3, mesh):
            seen += batch["index"].tolist()
    assert sorted(index for index in seen if index >= 0) == list(range(13))


def test_steps_of_several_canvases_cannot_be_stacked_and_of_one_can():
    mesh = parallel.data_mesh(jax.devices()[:1])
    _, batches = training_inputs(dataset(), 3, 4, 4, 0, 20, mesh)
    with pytest.raises(UserError, match=r"set config\.steps_per_dispatch=1"):
        list(itertools.islice(batches, 5))
    _, batches = training_inputs(dataset(square=True), 3, 4, 4, 0, 20, mesh)
    assert next(batches)["image"].shape == (4, 4, 24, 24, 3)


class Regression:
    """A task: a straight line from the mean colours of a photograph to how much of its canvas boxes cover."""

    title, metrics, percentages, best, recorded = "", ("covered",), frozenset(), "loss", {"loss": "loss"}

    def init(self, key, image_shape):
        return {"params": {"slope": jax.numpy.zeros(3)}, "batch_stats": {}}

    def prepare(self, key, batch):
        return batch | {"image": batch["image"] / 255}

    def loss(self, variables, batch, key):
        areas = (batch["boxes"][..., 2] - batch["boxes"][..., 0]) * (batch["boxes"][..., 3] - batch["boxes"][..., 1])
        covered = (areas * batch["valid"]).sum(axis=1) / batch["image_hw"].prod(axis=1)
        guess = batch["image"].mean(axis=(1, 2)) @ variables["params"]["slope"]
        return ((guess - covered) ** 2).mean(), ({"covered": covered.mean()}, {})

    def evaluate(self, variables):
        return {"loss": 0.0}


@pytest.mark.slow
def test_the_loop_trains_on_it_and_a_run_that_was_cut_short_ends_the_same(tmp_path, mesh):
    def run(workdir, steps):
        settings = LoopSettings(steps=steps, batch_size=8, log_every=2, eval_every=20, checkpoint_every=3)
        optimizer, schedule = SGD().make(), Constant().make(0.1, settings.steps, 10)
        step_settings = StepSettings(log_every=2)
        return train(
            Regression(), dataset(), optimizer, schedule, None, step_settings, settings, mesh, tmp_path / workdir
        )

    whole = run("whole", 9)
    run("cut", 5)
    again = run("cut", 9)
    assert np.abs(whole.params["slope"]).max() > 0 and int(whole.step) == 9
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), jax.device_get(again))
