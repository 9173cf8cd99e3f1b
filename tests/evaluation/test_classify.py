import jax
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.data.resident import Split
from resnet_jax.evaluation.classify import evaluate, make_eval_step, masked_batches

NUM_EXAMPLES = 83


class TableModel:
    """Looks an example's logits up in a table, by the number that its first pixel spells in base 256."""

    def apply(self, variables, images, train):
        assert not train
        # Normalised with mean 0 and standard deviation 1/255, the pixels are their uint8 values again.
        digits = images[:, 0, 0, :2].round().astype(int)
        return variables["logits"][digits[:, 0] + 256 * digits[:, 1]]


def run(logits, labels, batch_size, mesh):
    count = len(labels)
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    eval_step = make_eval_step(TableModel(), np.zeros(3, np.float32), np.full(3, 1 / 255, np.float32), mesh)
    split, variables = parallel.to_global(
        (Split(images, np.asarray(labels, np.int32)), {"logits": np.asarray(logits, np.float32)}),
        parallel.replicated(mesh),
    )
    return evaluate(eval_step, variables, split, batch_size, mesh)


def slow_scores(logits, labels):
    """Top-1 error, top-5 error in percent and mean loss, one example at a time and by sorting."""
    top1, top5, loss = 0, 0, 0.0
    for scores, label in zip(logits.astype(np.float64), labels, strict=True):
        ranking = sorted(range(len(scores)), key=lambda c: -scores[c])  # Stable: of equals the lower class first.
        top1 += label != ranking[0]
        top5 += label not in ranking[:5]
        loss += np.log(np.exp(scores).sum()) - scores[label]
    return 100 * top1 / len(labels), 100 * top5 / len(labels), loss / len(labels)


def random_problem(num_classes, num_examples=NUM_EXAMPLES):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num_examples, num_classes)), rng.integers(num_classes, size=num_examples)


@pytest.mark.parametrize("batch_size", [1, 10, NUM_EXAMPLES, 500])
def test_errors_and_loss_are_those_of_a_slow_loop_at_any_batch_size(mesh, batch_size):
    logits, labels = random_problem(num_classes=12)
    top1, top5, loss = slow_scores(logits, labels)
    assert 0 < top5 < top1 < 100
    found = run(logits, labels, batch_size, mesh)
    assert found["num_examples"] == NUM_EXAMPLES
    # The counts are whole numbers, so the percentages agree to the digits they are rounded to.
    assert (found["top1_error"], found["top5_error"]) == (round(top1, 4), round(top5, 4))
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_with_five_classes_or_fewer_the_right_one_is_always_among_five(mesh, num_classes):
    logits, labels = random_problem(num_classes)
    top1, _, _ = slow_scores(logits, labels)
    found = run(logits, labels, 20, mesh)
    assert (found["top1_error"], found["top5_error"]) == (round(top1, 4), 0)


def test_of_equal_scores_the_lower_class_wins(mesh):
    logits, labels = np.zeros((12, 12)), np.arange(12)
    found = run(logits, labels, 5, mesh)
    # Of twelve equal classes only class 0 is first, and only 0 to 4 are among five.
    assert found["top1_error"] == round(100 * 11 / 12, 4)
    assert found["top5_error"] == round(100 * 7 / 12, 4)


def test_ties_among_few_values_agree_with_a_stable_sort(mesh):
    rng = np.random.default_rng(1)
    logits, labels = rng.integers(3, size=(NUM_EXAMPLES, 12)), rng.integers(12, size=NUM_EXAMPLES)
    top1, top5, _ = slow_scores(logits, labels)
    found = run(logits, labels, 20, mesh)
    assert (found["top1_error"], found["top5_error"]) == (round(top1, 4), round(top5, 4))


def test_scores_that_are_not_numbers_are_errors(mesh):
    logits = np.zeros((4, 12))
    logits[:, 0] = 1  # Right for label 0.
    logits[1] = np.nan
    logits[2, 0] = np.nan
    found = run(logits, np.zeros(4, int), 3, mesh)
    assert (found["top1_error"], found["top5_error"]) == (50, 50)
    assert np.isnan(found["loss"])


@pytest.mark.parametrize("num_examples", [1, 7, 8, 83])
@pytest.mark.parametrize("batch_size", [1, 8, 30, 100])
@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_masked_batches_cover_each_example_once_in_equal_batches_the_devices_can_share(
    num_examples, batch_size, num_devices
):
    batches = list(masked_batches(num_examples, batch_size, num_devices))
    indices, mask = (np.stack(arrays) for arrays in zip(*batches, strict=True))
    size = indices.shape[1]
    assert size % num_devices == 0
    assert min(batch_size, num_examples) <= size < min(batch_size, num_examples) + num_devices
    assert len(batches) == -(-num_examples // size)
    assert set(np.unique(mask)) <= {0, 1}
    np.testing.assert_array_equal(indices[mask == 1], np.arange(num_examples))
    assert indices.min() >= 0 and indices.max() < num_examples
    assert (indices.dtype, mask.dtype) == (np.int32, np.int32)


def test_eval_step_sums_only_where_the_mask_is_one():
    mesh = parallel.data_mesh(jax.devices()[:1])
    images = np.zeros((3, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(3)
    split = Split(images, np.array([0, 1, 1], np.int32))
    logits = np.array([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0]], np.float32)
    eval_step = make_eval_step(TableModel(), np.zeros(3, np.float32), np.full(3, 1 / 255, np.float32), mesh)
    arrays = parallel.to_global((split, np.array([2, 1, 0]), np.array([1, 1, 0])), parallel.replicated(mesh))
    sums = eval_step(parallel.to_global({"logits": logits}, parallel.replicated(mesh)), *arrays)
    assert (int(sums["num_examples"]), int(sums["top1_errors"]), int(sums["top5_errors"])) == (2, 1, 0)
    # log(1 + exp(-1)) where right and log(1 + exp(1)) where wrong, by a difference of one in the scores.
    np.testing.assert_allclose(sums["loss"], np.log1p(np.exp(-1)) + np.log1p(np.exp(1)), rtol=1e-6)
