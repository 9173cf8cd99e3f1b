import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from resnet_jax import parallel, recipes
from resnet_jax.data import feed
from resnet_jax.data.dataset import load_data
from resnet_jax.data.feed import evaluation_inputs, training_inputs
from resnet_jax.data.order import example_indices
from resnet_jax.data.resident import Dataset, Split
from resnet_jax.data.streaming import Loading, Photographs, Share, TrainChunks, square_view, training_box
from resnet_jax.errors import UserError

CROP = 8


def make_config(name, steps_per_dispatch=1, batch_size=16):
    config = recipes.base()
    config.seed = 5
    config.batch_size = batch_size
    config.steps_per_dispatch = steps_per_dispatch
    config.data.name = name
    config.data.crop_size, config.data.shorter_side = CROP, (10, 14)
    config.data.threads = 2
    return config


def photographs(count=21):
    records = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(256, size=(12 + i % 5, 20 - i % 7, 3), dtype=np.uint8)
        records.append({"image": pixels, "label": i, "name": f"{i}.jpg"})
    return Photographs({"train": records, "validation": records[:13]}.__getitem__, ["cat"], (CROP, CROP, 3), lambda: [])


def resident(count):
    images = np.random.default_rng(0).integers(256, size=(count, 4, 4, 3), dtype=np.uint8)
    split = Split(images, np.arange(count, dtype=np.int32))
    return Dataset(split, None, split, ["cat"])


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
    config, data = make_config("digits", steps_per_dispatch), load_data(make_config("digits"))
    split, inputs = training_inputs(config, data, mesh, start, stop)
    for array, given in ((split.images, data.train.images), (split.labels, data.train.labels)):
        assert array.sharding.is_fully_replicated and array.sharding.device_set == set(mesh.devices.flat)
        np.testing.assert_array_equal(array, given, strict=True)
    batches = list(inputs)
    assert [batch.shape for batch in batches] == [(k, 16) for k in groups[steps_per_dispatch]]
    for batch in batches:
        assert batch.dtype == np.int32
        assert_cut(batch, mesh, axis=1)
    expected = example_indices(5, np.arange(start * 16, stop * 16), len(data.train))
    np.testing.assert_array_equal(np.concatenate(batches).ravel(), expected)


@pytest.mark.parametrize(("start", "stop", "groups"), [(0, 3, {1: [1] * 3, 3: [3]}), (3, 7, {1: [1] * 4, 3: [3, 1]})])
@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
def test_photographs_come_in_groups_of_steps_cut_over_the_devices(mesh, steps_per_dispatch, start, stop, groups):
    config, data = make_config("folder", steps_per_dispatch), photographs()
    split, inputs = training_inputs(config, data, mesh, start, stop)
    assert split is None
    batches = list(inputs)
    # 16 photographs make one chunk.
    make = TrainChunks(data.train, 5, 16, training_box(config), CROP, Share())
    expected = [make(step) for step in range(start, stop)]
    for key, shape in (("image", (16, CROP, CROP, 3)), ("label", (16,))):
        assert [batch[key].shape for batch in batches] == [(k, *shape) for k in groups[steps_per_dispatch]]
        np.testing.assert_array_equal(
            np.concatenate([batch[key] for batch in batches]), np.stack([chunk[key] for chunk in expected]), strict=True
        )
        for batch in batches:
            assert batch.keys() == {"image", "label"}
            assert_cut(batch[key], mesh, axis=1)


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_a_run_that_is_over_has_no_batches(mesh, name):
    data = photographs() if name == "folder" else resident(20)
    assert list(training_inputs(make_config(name), data, mesh, 4, 4)[1]) == []


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
    config = make_config("digits")
    batches = list(evaluation_inputs(config, resident(count), "test", None, batch_size, mesh))
    assert [batch["index"].shape[0] for batch in batches] == sizes[mesh.size == 8]
    for batch in batches:
        assert batch.keys() == {"index"} and batch["index"].dtype == np.int32
        assert_cut(batch["index"], mesh, axis=0)
    seen = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(seen[:count], np.arange(count))
    assert (seen[count:] == -1).all()


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(13, 4, ([4] * 4, [8] * 2)), (5, 16, ([5], [8]))])
def test_evaluation_shows_each_photograph_of_a_view_once(mesh, count, batch_size, sizes):
    config, data = make_config("folder"), photographs()
    view = square_view(np.arange(12, 12 - count, -1), 6)
    batches = list(evaluation_inputs(config, data, "validation", view, batch_size, mesh))
    assert [batch["image"].shape for batch in batches] == [(size, 6, 6, 3) for size in sizes[mesh.size == 8]]
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


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_processes_of_a_job_make_equal_parts_of_every_batch(monkeypatch, name):
    config, data = make_config(name, steps_per_dispatch=2), photographs() if name == "folder" else resident(37)
    view = square_view(np.arange(13), 6) if name == "folder" else None
    mesh = parallel.data_mesh()
    # What a process would put on its own devices.
    monkeypatch.setattr(parallel, "from_local", lambda tree, sharding: tree)

    def of_process(index, count):
        monkeypatch.setattr(feed, "_share", lambda: Share(index, count))
        _, training = training_inputs(config, data, mesh, 1, 5)
        evaluation = evaluation_inputs(config, data, "validation" if view else "test", view, 16, mesh)
        return list(training), list(evaluation)

    whole, parts = of_process(0, 1), [of_process(index, 4) for index in range(4)]
    assert_joined(whole[0], [part[0] for part in parts], axis=1)
    assert_joined(whole[1], [part[1] for part in parts], axis=0)


def test_the_config_says_how_photographs_are_loaded(mesh, monkeypatch):
    config, data = make_config("folder"), photographs()
    config.data.threads, config.data.workers, config.data.max_unreadable = 3, 2, 1
    given = []
    monkeypatch.setattr(feed, "training_batches", lambda chunks, start, stop, *rest: given.append(rest) or iter(()))
    monkeypatch.setattr(feed, "evaluation_batches", lambda chunks, *rest: given.append(rest) or iter(()))
    assert list(training_inputs(config, data, mesh, 0, 3)[1]) == []
    assert list(evaluation_inputs(config, data, "train", square_view(np.arange(3), 6), 8, mesh)) == []
    # Evaluation stays in this process: it is over before others have started.
    assert given == [(Loading(3, 2), 1), (Loading(3, 0), 1)]


def test_too_many_undecodable_photographs_stop_the_run(mesh):
    config, data = make_config("folder"), photographs()
    for i in range(2):
        data.train[i]["image"] = b"garbage"
    config.data.max_unreadable = 1
    with pytest.raises(UserError, match="max_unreadable 1"):
        list(training_inputs(config, data, mesh, 0, 2)[1])
