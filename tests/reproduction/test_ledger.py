import json

import pytest

from resnet_jax.errors import UserError
from resnet_jax.reproduction.ledger import read_ledger, read_record, record_path, write_record


def record(name, **more):
    plain = {"run": name, "scale": "small", "results": {"single": {"loss": 0.5}}, "commands": {}, "network": "plain20"}
    return plain | {"config": "plain20_cifar10", "seed": 0, "steps": 3, "values": {}, "curves": {}} | more


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
    ensemble = {"run": "e", "scale": "small", "results": {}, "commands": {}, "members": {"a": 0.5}}
    write_record(record_path(tmp_path, "small", "e"), ensemble)
    record_path(tmp_path, "small", "c").write_text("{")
    assert list(read_ledger(tmp_path, "small", lambda record: record["steps"] == 3)) == ["a", "e"]
    first, second = capsys.readouterr().err.splitlines()
    assert "b.json is of a run with other settings" in first and "c.json is damaged" in second


def test_a_file_is_json_with_a_line_a_key(tmp_path):
    path = tmp_path / "a.json"
    write_record(path, record("a"))
    assert json.loads(path.read_text()) == record("a")
    assert len(path.read_text().splitlines()) == len(record("a")) + 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"run": "a", "results": {}}'])
def test_a_damaged_record_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json is damaged .*; remove it"):
        read_record(path)
