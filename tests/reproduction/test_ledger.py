import json

import pytest

from resnet_jax.errors import UserError
from resnet_jax.reproduction.ledger import read_ledger, read_record, record_path, write_record


def test_records_come_back_by_name_and_in_order(tmp_path):
    records = {name: {"run": name, "results": {"single": {"loss": 0.5}}, "curve": [[1, 2.5]]} for name in ("b", "a")}
    for name, record in records.items():
        write_record(record_path(tmp_path, "small", name), record)
    assert list(read_ledger(tmp_path, "small").items()) == [("a", records["a"]), ("b", records["b"])]
    assert read_ledger(tmp_path, "paper") == {}
    assert read_record(tmp_path / "none.json") is None


def test_a_file_is_json_with_a_line_a_key(tmp_path):
    path = tmp_path / "a.json"
    write_record(path, {"seed": 0, "results": {"single": {"loss": 1, "step": 2}}, "empty": {}})
    assert json.loads(path.read_text()) == {"seed": 0, "results": {"single": {"loss": 1, "step": 2}}, "empty": {}}
    assert len(path.read_text().splitlines()) == 7


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"results": 3}'])
def test_a_damaged_record_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json is damaged .*; remove it"):
        read_record(path)
