import json
import re
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from resnet_jax.errors import UserError
from resnet_jax.train.writers import MetricsWriter, read_metrics, to_json


def record(step):
    return {"step": step, "train_loss": 1 / (step + 2), "learning_rate": 0.1}


def write(workdir, start, steps):
    writer = MetricsWriter(workdir, start, total_steps=10)
    for step in steps:
        writer.advance(1)
        writer.write(record(step))
    writer.close()


def events(workdir):
    """(step, name, value) of every scalar, read by the TFRecord layout: length, its checksum, data, its checksum."""
    scalars = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            event = Event.FromString(data[start + 12 : start + 12 + length])
            scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            start += 12 + length + 4
    return scalars


def test_records_come_back_as_written(tmp_path):
    write(tmp_path, 0, [1, 2, 3])
    assert read_metrics(tmp_path / "metrics.jsonl") == [record(1), record(2), record(3)]


def test_a_record_is_on_disk_before_write_returns(tmp_path):
    writer = MetricsWriter(tmp_path, 0, total_steps=10)
    writer.write(record(1))
    assert read_metrics(tmp_path / "metrics.jsonl") == [record(1)]
    writer.close()


def test_no_file_is_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_evaluations_of_a_run_without_checkpoints_are_kept_aside(tmp_path, capsys):
    for number in (1, 2):
        write(tmp_path, 0, [1])  # A kill before the first checkpoint: nothing is lost with it.
        writer = MetricsWriter(tmp_path, 1, total_steps=10)
        writer.amend({"step": 1, "test_error": float(number)})
        writer.close()
        write(tmp_path, 0, [1])
        kept = tmp_path / f"metrics.{number}.jsonl"
        assert read_metrics(kept) == [record(1) | {"test_error": number}]
        assert f"are kept as {kept}" in capsys.readouterr().err
    assert read_metrics(tmp_path / "metrics.jsonl") == [record(1)]


def test_records_after_the_resume_step_are_dropped_and_written_once(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4])
    write(tmp_path, 2, [])
    assert read_metrics(tmp_path / "metrics.jsonl") == [record(1), record(2)]
    write(tmp_path, 2, [3, 4, 5])
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kept", range(1, len(json.dumps(record(3))), 7))
def test_a_last_line_torn_by_a_kill_is_dropped(tmp_path, kept):
    write(tmp_path, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(record(3))[:kept])
    assert read_metrics(path) == [record(1), record(2)]
    write(tmp_path, 2, [3])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record(1), record(2), record(3)]


def test_tensorboard_gets_every_value_but_the_step(tmp_path):
    write(tmp_path, 0, [1, 2])
    expected = [(step, name, record(step)[name]) for step in (1, 2) for name in ("train_loss", "learning_rate")]
    found = events(tmp_path)
    assert [scalar[:2] for scalar in found] == [scalar[:2] for scalar in expected]
    assert [scalar[2] for scalar in found] == pytest.approx([scalar[2] for scalar in expected], rel=1e-6)


def test_on_a_terminal_a_bar_shows_the_step_and_the_latest_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    writer = MetricsWriter(tmp_path, 4, total_steps=10)
    writer.advance(3)
    writer.write({"step": 7, "train_loss": 0.125, "test_error": 12.345})
    writer.close()
    captured = capsys.readouterr()
    assert "7/10" in captured.err and "train loss 0.125, test error 12.35%" in captured.err
    assert captured.out == ""


def test_in_a_log_file_each_record_is_a_short_line_with_the_time(tmp_path, capsys):
    writer = MetricsWriter(tmp_path, 4, total_steps=10)
    for step in (7, 10):
        writer.advance(3)
        writer.write({"step": step, "train_loss": 0.5, "train_error": 12.345, "learning_rate": 0.1})
    writer.write({"step": 10, "images_per_second": 812.4})
    writer.close()
    captured = capsys.readouterr()
    assert "\r" not in captured.err and captured.out == ""
    first, second, third = captured.err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d step 7/10: train loss 0\.500, train error 12\.35%, lr 0\.1", first)
    assert "step 10/10: " in second and third.endswith("step 10/10: 812 images/s")


def test_a_damaged_line_is_named(tmp_path):
    write(tmp_path, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text("{" + path.read_text())
    with pytest.raises(UserError, match=rf"{path}, line 1 is damaged; fix or remove the line"):
        read_metrics(path)


def test_numbers_that_are_not_finite_become_null():
    assert json.loads(to_json({"step": 1, "loss": float("nan")})) == {"step": 1, "loss": None}
