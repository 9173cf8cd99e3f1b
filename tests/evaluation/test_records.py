import csv
import os
import shutil

import numpy as np
import pytest

from resnet_jax.data.resident import ResidentDataset
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import Scores, error_rates
from resnet_jax.evaluation.records import append_result, read_best_classes, write_scores

RECORD = {"model": "resnet20", "weights": "a, b", "step": None, "top1_error": 8.75}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_table_of_results_grows_by_one_line_a_run_below_one_header(tmp_path):
    path = tmp_path / "new" / "folder" / "results.csv"
    for error in (8.75, 7.5, 6.25):
        append_result(path, RECORD | {"top1_error": error})
    lines = [["resnet20", "a, b", "", error] for error in ("8.75", "7.5", "6.25")]
    assert rows(path) == [["model", "weights", "step", "top1_error"], *lines]
    assert path.read_bytes().count(b"\n") == 4


def test_an_empty_file_gets_a_header(tmp_path):
    path = tmp_path / "results.csv"
    path.touch()
    append_result(path, RECORD)
    assert rows(path) == [list(RECORD), ["resnet20", "a, b", "", "8.75"]]


def test_columns_that_a_record_lacks_stay_empty_and_others_find_their_place(tmp_path):
    path = tmp_path / "results.csv"
    append_result(path, {"top1_error": 9.5, "top5_error": 1.25, "loss": 0.5})
    append_result(path, {"top1_error": 3.5, "loss": 0.25})  # Of five classes or fewer.
    append_result(path, {"loss": 0.75, "top5_error": 2.5, "top1_error": 4.5})
    assert rows(path)[1:] == [["9.5", "1.25", "0.5"], ["3.5", "", "0.25"], ["4.5", "2.5", "0.75"]]


@pytest.mark.parametrize("cut", [1, 2])  # The line break is "\r\n".
def test_a_table_whose_last_line_has_no_end_gets_one_first(tmp_path, cut):
    path = tmp_path / "results.csv"
    append_result(path, RECORD)
    path.write_bytes(path.read_bytes()[:-cut])
    append_result(path, RECORD | {"top1_error": 7.5})
    assert [row[3] for row in rows(path) if row] == ["top1_error", "8.75", "7.5"]


@pytest.mark.parametrize("header", ["model,weights,step", "model,weights,top5_error,step", "some text", "\n"])
def test_a_file_that_lacks_a_column_is_refused_and_stays_as_it_is(tmp_path, header):
    path = tmp_path / "results.csv"
    path.write_text(f"{header}\n1,2,3\n")
    with pytest.raises(UserError, match=f"{path} has the columns") as caught:
        append_result(path, RECORD)
    assert "\n" not in str(caught.value)
    assert path.read_text() == f"{header}\n1,2,3\n"


def slow_rows(scores, names, class_names, top):
    """What each line says, by sorting the classes of one image."""
    found = []
    for i, (log_probs, label) in enumerate(zip(scores.log_probs.tolist(), scores.labels.tolist(), strict=True)):
        if label == -1:
            continue
        ranking = sorted(range(len(log_probs)), key=lambda c: -log_probs[c])  # Stable: the lower class first.
        line = [i, names[i], class_names[label], ranking.index(label) + 1, np.exp(log_probs[label])]
        for best in ranking[:top]:
            line += [class_names[best], np.exp(log_probs[best])]
        found.append(line)
    return found


def assert_same_rows(found, expected):
    assert len(found) == len(expected)
    for row, line in zip(found, expected, strict=True):
        for text, value in zip(row, line, strict=True):
            if isinstance(value, float):
                assert float(text) == pytest.approx(value, rel=1e-5)
            else:
                assert text == str(value)


def random_scores(count, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(num_classes), size=count)
    return Scores(
        np.log(probabilities).astype(np.float32), rng.integers(num_classes, size=count, dtype=np.int32), set()
    )


def test_every_image_has_a_line_with_its_rank_and_its_best_classes(tmp_path, digits):
    names = [f'a "{digit}", so to speak' for digit in range(10)]
    data = ResidentDataset(digits.name, digits.splits, names)
    scores = random_scores(360, 10)
    scores.labels[[5, 359]] = -1
    scores.log_probs[::2] = scores.log_probs[::2].round()  # Ties, which both rank by class.
    path = tmp_path / "new" / "scores.csv"
    write_scores(path, scores, data, "test")
    header, *found = rows(path)
    assert header[:5] == ["index", "name", "label", "rank", "probability"]
    assert header[5:] == [f"{what}{place}" for place in range(1, 6) for what in ("class", "probability")]
    assert_same_rows(found, slow_rows(scores, [f"test[{i}]" for i in range(360)], data.class_names, top=5))
    # The ranks are those that the error rates count.
    ranks, rates = np.array([int(row[3]) for row in found]), error_rates(scores)
    assert rates["num_examples"] == len(ranks) == 358
    assert rates["top1_error"] == round(100 * float((ranks > 1).mean()), 4)
    assert rates["top5_error"] == round(100 * float((ranks > 5).mean()), 4)


def test_photographs_are_named_and_fewer_than_five_classes_are_all_there_are(tmp_path, photograph_folder, open_folder):
    data = open_folder(photograph_folder.root)
    scores = random_scores(4, 3)._replace(labels=np.array(photograph_folder.labels, np.int32))
    scores.labels[1] = -1
    write_scores(tmp_path / "scores.csv", scores, data, "validation")
    header, *found = rows(tmp_path / "scores.csv")
    assert header[5:] == ["class1", "probability1", "class2", "probability2", "class3", "probability3"]
    names = ["val/ant/lying.png", "val/ant/upright.jpg", "val/bee/square.png", "val/cat/lying.jpg"]
    assert_same_rows(found, slow_rows(scores, names, ["ant", "bee", "cat"], top=3))
    assert [row[1] for row in found] == [names[0], *names[2:]]


def test_names_that_are_not_utf_8_are_written_and_read_as_they_are(tmp_path, photograph_folder, open_folder):
    root = tmp_path / "photographs"
    shutil.copytree(photograph_folder.root, root)
    named = root / "val" / "ant" / os.fsdecode(b"caf\xe9.png")
    (root / "val" / "ant" / "lying.png").rename(named)
    data, path = open_folder(root), tmp_path / "scores.csv"
    write_scores(path, random_scores(4, 3), data, "validation")
    assert b"val/ant/caf\xe9.png" in path.read_bytes()
    assert len(read_best_classes(path, data.class_names, [named.name])) == 1
    append_result(tmp_path / "results.csv", {"weights": str(named)})
    assert os.fsencode(named) in (tmp_path / "results.csv").read_bytes()


def test_a_file_of_scores_is_replaced(tmp_path, digits):
    path = tmp_path / "scores.csv"
    path.write_text("old\n" * 1000)
    write_scores(path, random_scores(360, 10), digits, "test")
    assert len(rows(path)) == 361
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv"]


def test_the_best_classes_are_read_again_by_the_photographs_names(tmp_path, photograph_folder, open_folder):
    data = open_folder(photograph_folder.root)
    scores = random_scores(4, 3)._replace(labels=np.array(photograph_folder.labels, np.int32))
    path = tmp_path / "scores.csv"
    write_scores(path, scores, data, "validation")
    expected = np.argsort(-scores.log_probs, axis=1)
    path.write_text(path.read_text().replace("val/bee/square.png", "val/bee/round.png"))  # Two are called lying.
    with pytest.raises(UserError, match="two photographs called lying"):
        read_best_classes(path, data.class_names, [])
    path.write_text(path.read_text().replace("val/cat/lying.jpg", "val/cat/flat.jpg"))
    names = ["flat.JPEG", "elsewhere/lying.jpg", "round"]
    found = read_best_classes(path, ["cat", "bee", "ant"], names)  # The labels of another data set.
    np.testing.assert_array_equal(found, (2 - expected)[[3, 0, 2]])
    for given, message in (
        ((data.class_names, ["square.png"]), "lacks the photograph square.png; make it with eval.py --scores_csv"),
        ((["ant", "bee"], names), "has the class 'cat', which the data set does not have"),
    ):
        with pytest.raises(UserError, match=message):
            read_best_classes(path, *given)


@pytest.mark.parametrize("content", ["", "index,name\n0,a.png\n", "some text\n1,2,3\n", "name,class1\n\xff\n", None])
def test_what_is_no_table_of_scores_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "scores.csv"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=f"{path} (is not a table of scores|lacks the )") as caught:
        read_best_classes(path, ["ant"], ["a.png"])
    assert "\n" not in str(caught.value)
