import json

import pytest

from reproduction.ledger import imported, read_ledger, read_record, record_path, write_record
from resnet_jax.errors import UserError


def record(name, **more):
    plain = {"kind": "run", "run": name, "scale": "small", "results": {"single": {"loss": 0.5}}, "commands": {}}
    plain |= {"network": "plain20", "config": "configs/cifar10.py:plain20", "seed": 0, "steps": 3, "recipe_steps": 3}
    plain |= {"parameters": 5, "images_per_second": 2.0, "values": {}, "curves": {}, "environment": {}, "numerics": []}
    return plain | more


def test_records_come_back_by_name_and_in_order(tmp_path):
    records = {name: record(name) for name in ("b", "a")}
    for name, written in records.items():
        write_record(record_path(tmp_path, "small", name), written)
    everything = lambda record: True  # noqa: E731
    assert list(read_ledger(tmp_path, "small", everything).items()) == [("a", records["a"]), ("b", records["b"])]
    assert read_ledger(tmp_path, "paper", everything) == {}
    assert read_record(tmp_path / "none.json") is None


def test_records_that_are_damaged_or_of_other_settings_are_left_out_and_named(tmp_path, capsys):
    for name, steps in (("a", 3), ("b", 4)):
        write_record(record_path(tmp_path, "small", name), record(name, steps=steps))
    ensemble = {"kind": "ensemble", "run": "e", "scale": "small", "results": {}, "commands": {}, "members": {"a": 0.5}}
    write_record(record_path(tmp_path, "small", "e"), ensemble)
    record_path(tmp_path, "small", "c").write_text("{")
    assert list(read_ledger(tmp_path, "small", lambda record: record.get("steps", 3) == 3)) == ["a", "e"]
    first, second = capsys.readouterr().err.splitlines()
    assert "b.json is of a run with other settings" in first and "c.json is damaged" in second


def test_a_file_is_json_with_a_line_a_key(tmp_path):
    path = tmp_path / "a.json"
    write_record(path, record("a"))
    assert json.loads(path.read_text()) == record("a")
    assert len(path.read_text().splitlines()) == len(record("a")) + 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "3", '{"run": "a"}', '{"kind": "x"}', '{"kind": "run", "run": 3}']
)
def test_a_damaged_record_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json is damaged .*; remove it"):
        read_record(path)


def test_a_line_of_eval_py_becomes_a_score(tmp_path):
    printed = {"top1_error": 8.27, "num_examples": 10000, "data": "cifar10", "split": "test"}
    found = imported("public", printed, "python eval.py", "Public weights", "abc", "123")
    assert found["kind"] == "score" and found["result"] == printed and found["numerics"] == ["123"]
    write_record(tmp_path / "public.json", found)
    assert read_record(tmp_path / "public.json") == found


def test_a_file_of_benchmarks_run_becomes_a_benchmark(tmp_path):
    sides = {"ours": [100.0, 300.0, 200.0], "PyTorch": [100.0, 100.0, 100.0], "PyTorch, compiled": [50.0, 150.0, 200.0]}
    sides |= {"PyTorch, memory kept": [10.0, 400.0, 400.0], "naive Flax": [50.0, 50.0, 50.0]}
    printed = {"suite": "cpu", "smoke": False, "environment": {"processor": "X"}, "images_per_second": {"a": sides}}
    found = imported("cpu", printed, "python -m benchmarks.run", "", None, "123")
    comparison = found["comparisons"]["a"]
    assert comparison["sides"]["ours"] == {"median": 200.0, "min": 100.0, "max": 300.0, "ratio": 2.0}
    assert (comparison["reference"], comparison["rounds"]) == ("PyTorch", 3)
    assert comparison["beside"] == {
        "the fastest PyTorch as installed": 1.0,  # Of 1, 2 and 1, by rounds.
        "the fastest PyTorch given the same malloc setting": 0.75,
        "naive Flax": 4.0,
    }
    write_record(tmp_path / "cpu.json", found)
    assert read_record(tmp_path / "cpu.json") == found


def test_the_input_suite_has_its_speeds_a_level_further_down():
    trainer = {"bare step": [100.0, 100.0], "bare loader": [50.0, 200.0], "whole trainer": [49.0, 98.0]}
    speeds = {
        "input_pipeline": {"title": "2 cores", "images_per_second": {"JPEG": [2.0, 2.0], "tf.data": [1.0, 1.0]}},
        "streaming_train": {"title": "resnet18", "images_per_second": trainer},
    }
    speeds["input_pipeline"]["disk_kB"] = {"JPEG": 112, "tf.data": 112}
    found = imported("input", {"suite": "input", "images_per_second": speeds}, "c", "", None, "1")
    assert found["comparisons"]["input_pipeline, 2 cores"]["sides"]["JPEG"]["ratio"] == 2.0
    assert found["comparisons"]["streaming_train, resnet18"]["trainer_share"] == 0.98
    assert found["disk_kB"] == {"JPEG": 112, "tf.data": 112}


@pytest.mark.parametrize(
    "printed", [{}, {"images_per_second": {}, "smoke": True}, {"step": 5, "images_per_second": 99.5}, 5, [1]], ids=str
)
def test_nothing_else_becomes_a_record(printed):
    with pytest.raises(UserError):
        imported("x", printed, "c", "", None, "1")
