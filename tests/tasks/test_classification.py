"""The classification task: loss and error against numpy, soft targets, preparation, and its evaluation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.data.transforms import Flip, Transforms
from resnet_jax.models.zoo import create_model
from resnet_jax.tasks import Classification, ClassificationTask
from resnet_jax.tasks.classification import _streams
from resnet_jax.tasks.task import Task

NORMALIZATION = Normalization(np.array([0.1, 0.5, 0.7], np.float32), np.array([1.0, 0.5, 0.25], np.float32))


@pytest.fixture(scope="module")
def model():
    return create_model("resnet20", width=4, stage_sizes=(1,))


@pytest.fixture(scope="module")
def variables(model):
    return jax.jit(partial(ClassificationTask(model).init, image_shape=(8, 8, 3)))(jax.random.key(0))


def random_batch(size=16):
    rng = np.random.default_rng(2)
    images = rng.normal(size=(size, 8, 8, 3)).astype(np.float32)
    return {"image": images, "label": rng.integers(0, 10, size).astype(np.int32)}


@pytest.fixture(scope="module")
def logits(model, variables):
    """Of the random batch in training, float64."""
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    return np.asarray(apply(variables, random_batch()["image"])[0], np.float64)


def loss_of(task, variables, batch):
    """(loss, error, gradient of the head's bias)"""

    def loss(params):
        value, (metrics, _) = task.loss(variables | {"params": params}, batch, jax.random.key(1))
        return value, metrics

    (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    assert set(metrics) == set(task.metrics) == task.percentages
    return value, metrics["error"], grads["head"]["bias"]


def by_hand(logits, targets):
    """(mean cross-entropy, its gradient by the head's bias)"""
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -(targets * np.log(probabilities)).sum(axis=1).mean(), (probabilities - targets).mean(axis=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft targets"])
def test_loss_and_error_are_those_written_out_by_hand(model, variables, logits, soft, smoothing):
    batch = random_batch()
    targets = np.eye(10)[batch["label"]]
    if soft:  # As mixing makes them: each with the next, three to seven.
        targets = 0.7 * targets + 0.3 * np.roll(targets, 1, axis=0)
        batch["target"] = targets.astype(np.float32)
    # Each class its share, the right one included (Szegedy et al.).
    expected, slope = by_hand(logits, (1 - smoothing) * targets + smoothing / 10)
    loss, error, gradient = loss_of(ClassificationTask(model, label_smoothing=smoothing), variables, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(error, np.mean(logits.argmax(axis=1) != batch["label"]), rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


@pytest.mark.parametrize(
    ("soft", "smoothing", "threshold", "summed"),
    [(False, 0.0, None, False), (True, 0.1, None, True), (True, 0.1, 0.2, False), (True, 0.0, 0.4, True)],
)
def test_binary_cross_entropy_is_that_of_each_class(model, variables, logits, soft, smoothing, threshold, summed):
    batch = random_batch()
    targets = np.eye(10)[batch["label"]]
    if soft:
        targets = 0.7 * targets + 0.3 * np.roll(targets, 1, axis=0)
        batch["target"] = targets.astype(np.float32)
    targets = (1 - smoothing) * targets + smoothing / 10
    if threshold is not None:  # Of mixed images both classes are there at 0.2, and one at 0.4.
        targets = (targets > threshold).astype(float)
    each = softplus(logits) - targets * logits  # -t log s(x) - (1 - t) log(1 - s(x))
    slope = (1 / (1 + np.exp(-logits)) - targets).mean(axis=0)
    task = ClassificationTask(
        model, label_smoothing=smoothing, loss_kind="bce", target_threshold=threshold, sum_classes=summed
    )
    loss, _, gradient = loss_of(task, variables, batch)
    np.testing.assert_allclose(loss, each.sum(axis=1).mean() if summed else each.mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, slope if summed else slope / 10, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("values", [{"target_threshold": 0.2}, {"sum_classes": True}], ids=str)
def test_what_only_binary_cross_entropy_reads_is_refused_with_softmax(values):
    with pytest.raises(pydantic.ValidationError, match="is set but not read, because loss is 'softmax'"):
        Classification(**values)
    Classification(loss="bce", **values)


def test_another_criterion_is_what_is_minimised_of_labels_and_of_targets(model, variables):
    class Brier(ClassificationTask):
        def criterion(self, logits, batch):
            return jnp.mean((jax.nn.softmax(logits) - self.targets(logits, batch)) ** 2)

    task = Brier(model, label_smoothing=0.1)
    images = np.random.default_rng(0).normal(size=(6, 32, 32, 3)).astype(np.float32)
    labels = np.arange(6)
    logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    for targets in ({}, {"target": np.eye(model.num_classes, dtype=np.float32)[(labels + 1) % 6]}):
        smooth = 0.9 * targets.get("target", np.eye(model.num_classes)[labels]) + 0.1 / model.num_classes
        loss, _ = task.loss(variables, {"image": images, "label": labels, **targets}, jax.random.key(0))
        np.testing.assert_allclose(loss, np.mean((jax.nn.softmax(logits) - smooth) ** 2), rtol=1e-4)


def test_one_hot_targets_are_the_labels(model, variables):
    batch = random_batch()
    soft = batch | {"target": np.eye(10, dtype=np.float32)[batch["label"]]}
    found, expected = (loss_of(ClassificationTask(model), variables, b) for b in (soft, batch))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, expected)


def test_a_batch_is_prepared_by_normalisation_and_without_transforms_as_it_was(model):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), np.arange(6)
    batch = ClassificationTask(model, NORMALIZATION).prepare(jax.random.key(0), {"image": images, "label": labels})
    expected = (images / 255 - [0.1, 0.5, 0.7]) / [1.0, 0.5, 0.25]
    np.testing.assert_allclose(batch["image"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(batch["label"], labels)
    mirrored = ClassificationTask(model, NORMALIZATION, Transforms(flip=Flip(probability=1.0)))
    batch = mirrored.prepare(jax.random.key(0), {"image": images, "label": labels})
    np.testing.assert_allclose(batch["image"], expected[:, :, ::-1], rtol=1e-5, atol=1e-6)


def test_the_statistics_are_those_of_the_batch_alone(model, variables):
    """Whatever the running statistics, the momentum and the groups are."""
    groups = create_model("resnet20", width=4, stage_sizes=(1,), bn_group_size=4)
    other = jax.tree.map(lambda leaf: leaf + 3, variables["batch_stats"])
    images = random_batch()
    found = ClassificationTask(groups).statistics(variables | {"batch_stats": other}, images, jax.random.key(0))
    stem = jax.lax.conv_general_dilated(
        jnp.asarray(images["image"]),
        variables["params"]["stem_conv"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(found["stem_bn"]["mean"], stem.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["stem_bn"]["var"], stem.var(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)


def test_random_streams_of_a_network_differ_by_name_and_by_key():
    model = create_model("resnet20", width=4, stage_sizes=(2,), drop_path=0.5)
    task = ClassificationTask(model)
    variables = task.init(jax.random.key(0), (8, 8, 3))
    loss = jax.jit(lambda key: task.loss(variables, random_batch(), key)[0])
    first, again, other = (float(loss(jax.random.key(seed))) for seed in (1, 1, 2))
    assert first == again != other
    streams = [jax.random.key_data(stream).tolist() for stream in _streams(jax.random.key(1)).values()]
    assert len(streams) == 2 and streams[0] != streams[1]


def test_an_evaluation_is_exact_and_of_the_evaluation_split(model, variables, mesh):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, 40)
    dataset = ResidentDataset.from_arrays(images[:20], labels[:20], images[20:33], labels[20:33], list("0123456789"))
    task: Task = Classification().make(model, dataset, NORMALIZATION, Transforms(), mesh, 8)
    found = task.evaluate(variables)
    scores = np.asarray(model.apply(variables, NORMALIZATION(images[20:33]), train=False), np.float64)
    errors = 100 * np.mean(scores.argmax(axis=1) != labels[20:33])
    assert found["num_examples"] == 13
    np.testing.assert_allclose(found[task.best], errors, atol=1e-4)
    np.testing.assert_allclose(found["loss"], by_hand(scores, np.eye(10)[labels[20:33]])[0], rtol=1e-4)
    assert set(task.recorded) <= set(found)
    assert task.title == "resnet on arrays"


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_smoothing_out_of_range_is_refused(value):
    with pytest.raises(pydantic.ValidationError, match="label_smoothing"):
        Classification(label_smoothing=value)
