import re
from functools import partial

import jax
import numpy as np
import PIL.Image
import pytest

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.errors import UserError
from resnet_jax.evaluation import classify
from resnet_jax.evaluation.classify import Scores, error_rates, make_evaluator

NUM_EXAMPLES = 84
NORMALIZATION = Normalization(np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.25, 0.3], np.float32))


def scores(logits, labels):
    return Scores(np.array(jax.nn.log_softmax(np.asarray(logits, np.float32))), np.asarray(labels, np.int32), set())


def slow_error_rates(log_probs, labels):
    """Top-1 and top-5 error in percent and mean loss, one example at a time and by sorting."""
    top1, top5, loss, count = 0, 0, 0.0, 0
    for row, label in zip(log_probs.tolist(), labels, strict=True):
        if label == -1:
            continue
        ranking = sorted(range(len(row)), key=lambda c: -row[c])  # Stable: of equals the lower class first.
        top1 += label != ranking[0]
        top5 += label not in ranking[:5]
        loss -= row[label]
        count += 1
    rates = {"num_examples": count, "top1_error": round(100 * top1 / count, 4)}
    if log_probs.shape[1] > 5:
        rates["top5_error"] = round(100 * top5 / count, 4)
    return rates | {"loss": pytest.approx(loss / count, rel=1e-9)}


@pytest.mark.parametrize("num_classes", [2, 4, 5, 6, 12, 1000])
def test_error_rates_are_those_of_a_slow_loop(num_classes):
    rng = np.random.default_rng(0)
    found = scores(rng.normal(size=(NUM_EXAMPLES, num_classes)), rng.integers(num_classes, size=NUM_EXAMPLES))
    rates = error_rates(found)
    assert rates == slow_error_rates(found.log_probs, found.labels)
    assert rates["top1_error"] > 0
    assert ("top5_error" in rates) == (num_classes > 5)  # Of five classes, all are among five.


def test_ties_among_few_values_agree_with_a_stable_sort():
    rng = np.random.default_rng(1)
    found = scores(rng.integers(3, size=(NUM_EXAMPLES, 12)), rng.integers(12, size=NUM_EXAMPLES))
    rates = error_rates(found)
    assert rates == slow_error_rates(found.log_probs, found.labels)
    assert 0 < rates["top5_error"] < rates["top1_error"] < 100


def test_of_equal_scores_the_lower_class_wins():
    rates = error_rates(scores(np.zeros((12, 12)), np.arange(12)))
    # Of twelve equal classes only class 0 is first, and only 0 to 4 are among five.
    assert (rates["top1_error"], rates["top5_error"]) == (round(100 * 11 / 12, 4), round(100 * 7 / 12, 4))


def test_scores_that_are_not_numbers_are_errors_and_beat_nothing():
    log_probs = np.zeros((4, 12), np.float32)
    log_probs[:, 0] = 1  # Right for label 0.
    log_probs[1] = np.nan
    log_probs[2, 0] = np.nan
    log_probs[3, 1:] = np.nan
    rates = error_rates(Scores(log_probs, np.zeros(4, np.int32), set()))
    assert (rates["top1_error"], rates["top5_error"]) == (50, 50)
    assert np.isnan(rates["loss"])


def test_examples_without_a_label_are_left_out():
    rng = np.random.default_rng(2)
    found = scores(rng.normal(size=(NUM_EXAMPLES, 12)), rng.integers(-1, 12, size=NUM_EXAMPLES))
    found.log_probs[found.labels == -1] = -np.inf  # As the evaluator leaves them.
    rates = error_rates(found)
    assert 0 < rates["num_examples"] < NUM_EXAMPLES
    assert rates == slow_error_rates(found.log_probs, found.labels)


@pytest.mark.parametrize("labels", [[], [-1, -1]])
def test_no_examples_are_a_user_error(labels):
    with pytest.raises(UserError, match="no example of the split can be read"):
        error_rates(scores(np.zeros((len(labels), 12)), labels))


class Linear:
    """The simplest network: every class scores a weighted sum of all pixels."""

    def __init__(self, num_classes):
        self.num_classes = num_classes

    def apply(self, variables, images, train):
        assert not train
        return images.reshape(len(images), -1) @ variables["kernel"]


def linear(num_classes, pixels):
    """A network that says of each image what ``expected_log_probs`` says."""
    rng = np.random.default_rng(3)
    return Linear(num_classes), {"kernel": rng.normal(0, pixels**-0.5, (pixels, num_classes)).astype(np.float32)}


def expected_log_probs(variables, images):
    logits = ((images / 255 - NORMALIZATION.mean) / NORMALIZATION.std).reshape(len(images), -1) @ variables["kernel"]
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.fixture
def seen(monkeypatch):
    """The index of every example that an evaluator is shown, as it goes."""
    inputs, indices = classify.evaluation_inputs, []

    def spied(*args):
        for batch in inputs(*args):
            there = batch["index"] if "label" not in batch else np.where(batch["label"] < 0, -1, batch["index"])
            indices.extend(index for index in np.asarray(there).tolist() if index >= 0)
            yield batch

    monkeypatch.setattr(classify, "evaluation_inputs", spied)
    return indices


@pytest.mark.parametrize("batch_size", [1, 12, 30, 500])
def test_every_resident_example_is_scored_once_at_any_batch_size(mesh, seen, batch_size):
    rng = np.random.default_rng(5)
    # The training split is longer than the test split, so that a mix-up of the two would show.
    images = rng.integers(256, size=(NUM_EXAMPLES + 90, 6, 4, 3), dtype=np.uint8)
    labels = np.append(9, rng.integers(10, size=NUM_EXAMPLES + 89)).astype(np.int32)
    dataset = ResidentDataset.from_arrays(images, labels, images[90:], labels[90:])
    model, variables = linear(10, images[0].size)
    evaluate = make_evaluator(model, NORMALIZATION, dataset, "test", mesh, batch_size)
    for _ in range(2):
        seen.clear()
        found = evaluate(variables)
        assert seen == list(range(NUM_EXAMPLES))
        np.testing.assert_allclose(found.log_probs, expected_log_probs(variables, images[90:]), atol=1e-4)
        np.testing.assert_array_equal(found.labels, labels[90:])
        assert (found.log_probs.dtype, found.labels.dtype) == (np.float32, np.int32)
    size = -(-min(batch_size, NUM_EXAMPLES) // mesh.size) * mesh.size
    assert found.shapes == {(size,)}
    assert error_rates(found) == slow_error_rates(found.log_probs, found.labels)


def write_photographs(root, count, size=8):
    """Two classes of photographs that are as large as the crop, without loss: (N, size, size, 3) and labels."""
    images = np.random.default_rng(4).integers(256, size=(count, size, size, 3), dtype=np.uint8)
    labels = np.sort(np.arange(count) % 2)
    for folder in ("train", "val"):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / folder / f"class{label}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image).save(path)
    return images, labels


@pytest.mark.parametrize("batch_size", [10, 23, 60])
def test_every_photograph_is_scored_once_at_any_batch_size(mesh, seen, tmp_path, open_folder, batch_size):
    images, labels = write_photographs(tmp_path, 23)
    dataset = open_folder(tmp_path, crop_size=8, eval_shorter_side=8)
    model, variables = linear(2, images[0].size)
    found = make_evaluator(model, NORMALIZATION, dataset, "validation", mesh, batch_size)(variables)
    assert seen == list(range(23))
    np.testing.assert_allclose(found.log_probs, expected_log_probs(variables, images), atol=1e-5)
    np.testing.assert_array_equal(found.labels, labels)
    size = -(-min(batch_size, 23) // mesh.size) * mesh.size
    assert found.shapes == {(size, 8, 8, 3)}


@pytest.fixture
def damaged(tmp_path, open_folder):
    """(images, labels, open) of photographs of which the fourth is empty and the last cut short."""
    images, labels = write_photographs(tmp_path, 11)
    (tmp_path / "val/class0/003.png").write_bytes(b"")
    last = tmp_path / "val/class1/010.png"
    last.write_bytes(last.read_bytes()[:-60])
    return images, labels, lambda most: open_folder(tmp_path, crop_size=8, eval_shorter_side=8, max_unreadable=most)


def test_photographs_that_cannot_be_decoded_are_named_and_skipped(mesh, damaged, capsys):
    images, labels, open_damaged = damaged
    model, variables = linear(2, images[0].size)
    found = make_evaluator(model, NORMALIZATION, open_damaged(2), "validation", mesh, 4)(variables)
    expected = expected_log_probs(variables, images)
    labels[[3, 10]], expected[[3, 10]] = -1, -np.inf
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)
    assert error_rates(found) == slow_error_rates(found.log_probs, found.labels)
    named = re.findall(r"warning: (\S+) \(.*\) cannot be decoded", capsys.readouterr().err)
    assert named == ["val/class0/003.png", "val/class1/010.png"]


def test_too_many_photographs_that_cannot_be_decoded_are_a_user_error(damaged, mesh):
    images, _, open_damaged = damaged
    model, variables = linear(2, images[0].size)
    evaluate = make_evaluator(model, NORMALIZATION, open_damaged(1), "validation", mesh, 500)
    with pytest.raises(UserError, match=r"2 photographs cannot be decoded, more than config\.data\.max_unreadable 1"):
        evaluate(variables)


def test_a_network_that_is_not_finite_makes_errors_and_no_warning(mesh, digits):
    pixels = int(np.prod(digits.image_shape))
    evaluate = make_evaluator(Linear(10), NORMALIZATION, digits, "test", mesh, 500)
    found = error_rates(evaluate({"kernel": np.full((pixels, 10), np.nan, np.float32)}))
    assert (found["num_examples"], found["top1_error"], found["top5_error"]) == (360, 100, 100)
    assert np.isnan(found["loss"])


@pytest.mark.parametrize("split", ["validation", "nonsense"])
def test_a_split_that_there_is_not_is_a_user_error(mesh, digits, split):
    with pytest.raises(UserError, match=f"no split '{split}'"):
        make_evaluator(Linear(10), NORMALIZATION, digits, split, mesh, 500)


def test_a_progress_bar_is_for_terminals(one_device, digits, capsys, monkeypatch):
    monkeypatch.setattr(classify, "tqdm", partial(classify.tqdm, mininterval=0, miniters=1))
    model, variables = linear(10, int(np.prod(digits.image_shape)))
    make_evaluator(model, NORMALIZATION, digits, "test", one_device, 100)(variables)
    assert capsys.readouterr().err == ""
