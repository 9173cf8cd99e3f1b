import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from resnet_jax import parallel
from resnet_jax.data import Photographs, feed
from resnet_jax.data.chunks import TrainChunks
from resnet_jax.data.crops import ScaleJitter
from resnet_jax.data.dataset import Share
from resnet_jax.data.feed import evaluation_inputs, training_inputs
from resnet_jax.data.order import example_indices
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.data.sources.protocol import Opened
from resnet_jax.data.streamed import StreamedDataset
from resnet_jax.errors import UserError

CROP = 8
SEED, BATCH_SIZE = 5, 16
JITTER = ScaleJitter(shorter_side=(10, 14))


class Source(list):
    shorter_side = None

    def files(self):
        return []


def photographs(count=21, max_unreadable=0):
    records = Source()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(1, 256, size=(12 + i % 5, 20 - i % 7, 3), dtype=np.uint8)
        records.append({"image": pixels, "label": i, "name": f"{i}.jpg"})
    splits = {"train": records, "validation": Source(records[:13])}
    settings = Photographs(crop=JITTER, crop_size=CROP, eval_shorter_side=10, threads=2, max_unreadable=max_unreadable)
    return StreamedDataset(Opened(("train", "validation"), splits.__getitem__, ["cat"]), settings)


def resident(count):
    images = np.random.default_rng(0).integers(256, size=(count, 4, 4, 3), dtype=np.uint8)
    return ResidentDataset.from_arrays(images, np.arange(count), images, np.arange(count))


def assert_cut(array, mesh, axis):
    """One equal part of ``axis`` is on each device, in order."""
    assert array.sharding.mesh == mesh
    assert array.sharding.spec == PartitionSpec(*[None] * axis, "data")
    size = array.shape[axis] // mesh.size
    whole = np.asarray(array)
    assert len(array.addressable_shards) == mesh.size
    for number, (device, shard) in enumerate(zip(mesh.devices.flat, array.addressable_shards, strict=True)):
        assert shard.device == device
        expected = np.take(whole, range(number * size, (number + 1) * size), axis)
        np.testing.assert_array_equal(shard.data, expected)


@pytest.mark.parametrize(
    ("start", "stop", "groups"),  # How many steps are in each group, by steps_per_dispatch.
    [(0, 6, {1: [1] * 6, 3: [3, 3]}), (3, 7, {1: [1] * 4, 3: [3, 1]})],
)
@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
def test_resident_data_are_on_every_device_and_indices_come_in_groups_of_steps(
    mesh, steps_per_dispatch, start, stop, groups
):
    data = resident(37)
    split, inputs = training_inputs(data, SEED, BATCH_SIZE, steps_per_dispatch, start, stop, mesh)
    for array, given in zip(split, data.resident("train"), strict=True):
        assert array.sharding.is_fully_replicated and array.sharding.device_set == set(mesh.devices.flat)
        np.testing.assert_array_equal(array, given, strict=True)
    batches = [batch["index"] for batch in inputs]
    assert [batch.shape for batch in batches] == [(k, 16) for k in groups[steps_per_dispatch]]
    for batch in batches:
        assert batch.dtype == np.int32
        assert_cut(batch, mesh, axis=1)
    expected = example_indices(SEED, np.arange(start * 16, stop * 16), 37)
    np.testing.assert_array_equal(np.concatenate(batches).ravel(), expected)


@pytest.mark.parametrize(("start", "stop", "groups"), [(0, 3, {1: [1] * 3, 3: [3]}), (3, 7, {1: [1] * 4, 3: [3, 1]})])
@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
def test_photographs_come_in_groups_of_steps_cut_over_the_devices(mesh, steps_per_dispatch, start, stop, groups):
    data = photographs()
    split, inputs = training_inputs(data, SEED, BATCH_SIZE, steps_per_dispatch, start, stop, mesh)
    assert split is None
    batches = list(inputs)
    # 16 photographs make one chunk.
    make = TrainChunks(data.source("train"), SEED, 16, JITTER, CROP, Share())
    expected = [make(step) for step in range(start, stop)]
    for key, shape in (("image", (16, CROP, CROP, 3)), ("label", (16,))):
        assert [batch[key].shape for batch in batches] == [(k, *shape) for k in groups[steps_per_dispatch]]
        np.testing.assert_array_equal(
            np.concatenate([batch[key] for batch in batches]), np.stack([chunk[key] for chunk in expected]), strict=True
        )
        for batch in batches:
            assert batch.keys() == {"image", "label"}
            assert_cut(batch[key], mesh, axis=1)


@pytest.mark.parametrize("make", [photographs, lambda: resident(20)], ids=["streamed", "resident"])
def test_a_run_that_is_over_has_no_batches(mesh, make):
    assert list(training_inputs(make(), SEED, BATCH_SIZE, 1, 4, 4, mesh)[1]) == []


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    # The size of each batch on one device, and on eight.
    [
        (32, 16, ([16, 16], [16, 16])),
        (37, 16, ([16] * 3, [16] * 3)),
        (37, 12, ([12] * 4, [16] * 3)),
        (5, 16, ([5], [8])),
        (1, 1, ([1], [8])),
        (13, 500, ([13], [16])),
    ],
)
def test_evaluation_shows_each_resident_example_once(mesh, count, batch_size, sizes):
    data = resident(count)
    batches = list(evaluation_inputs(data, "test", data.single_view("test"), batch_size, mesh))
    assert [batch["index"].shape[0] for batch in batches] == sizes[mesh.size == 8]
    for batch in batches:
        assert batch.keys() == {"index"} and batch["index"].dtype == np.int32
        assert_cut(batch["index"], mesh, axis=0)
    seen = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(seen[:count], np.arange(count))
    assert (seen[count:] == -1).all()


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(13, 4, ([4] * 4, [8] * 2)), (5, 16, ([5], [8]))])
def test_evaluation_shows_each_photograph_of_a_view_once(mesh, count, batch_size, sizes):
    data = photographs()
    view = dataclasses.replace(data.square_view("validation"), indices=np.arange(12, 12 - count, -1))
    batches = list(evaluation_inputs(data, "validation", view, batch_size, mesh))
    assert [batch["image"].shape for batch in batches] == [(size, 10, 10, 3) for size in sizes[mesh.size == 8]]
    for batch in batches:
        assert batch.keys() == {"image", "size", "label", "index"}
        for array in batch.values():
            assert_cut(array, mesh, axis=0)
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels[:count], np.arange(12, 12 - count, -1))
    assert (labels[count:] == -1).all()
    images = np.concatenate([batch["image"] for batch in batches])
    assert images[:count].any(axis=(1, 2, 3)).all() and not images[count:].any()


def assert_joined(batches, parts, axis):
    """The processes' parts of each batch make it up, one after the other."""
    assert batches
    for batch, *pieces in zip(batches, *parts, strict=True):
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis), *pieces)
        jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, other, strict=True), joined, batch)


@pytest.mark.parametrize(
    ("make", "split"), [(photographs, "validation"), (lambda: resident(37), "test")], ids=["streamed", "resident"]
)
def test_processes_of_a_job_make_equal_parts_of_every_batch(monkeypatch, make, split):
    data, mesh = make(), parallel.data_mesh()
    # What a process would put on its own devices.
    monkeypatch.setattr(parallel, "from_local", lambda tree, sharding: tree)

    def of_process(index, count):
        monkeypatch.setattr(feed, "_share", lambda: Share(index, count))
        _, training = training_inputs(data, SEED, BATCH_SIZE, 2, 1, 5, mesh)
        return list(training), list(evaluation_inputs(data, split, data.single_view(split), 16, mesh))

    whole, parts = of_process(0, 1), [of_process(index, 4) for index in range(4)]
    assert_joined(whole[0], [part[0] for part in parts], axis=1)
    assert_joined(whole[1], [part[1] for part in parts], axis=0)


def test_too_many_undecodable_photographs_stop_the_run(mesh):
    data = photographs(max_unreadable=1)
    for i in range(2):
        data.source("train")[i]["image"] = b"garbage"
    with pytest.raises(UserError, match="max_unreadable 1"):
        list(training_inputs(data, SEED, BATCH_SIZE, 1, 0, 2, mesh)[1])
