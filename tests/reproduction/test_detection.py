"""Tables 7 to 14: the rows' configs, the paper's numbers, and a table trained and scored at smoke scale."""

from pathlib import Path

import pytest

from reproduction import detection
from reproduction.document import to_markdown
from reproduction.ledger import read_record, record_path
from reproduction.running import Places, values
from resnet_jax import build
from resnet_jax.config import load_config, override, to_json
from resnet_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = [(name, row) for name, table in detection.TABLES.items() for row in table.rows if row.config]


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_every_row_has_a_valid_config_at_every_scale(scale):
    for _, row in ROWS:
        config = load_config(str(ROOT / detection._config(row, scale)))
        config = override(config, detection._changes(ROOT, row, scale))
        if config.init.name == "weights" and not config.init.path:
            config = override(config, {"init.path": "weights.pth"})
        build.check(config, num_devices=1)


def test_every_row_has_a_number_for_every_column_and_a_protocol_of_detection():
    from resnet_jax.tasks import detection as of_detectors
    from resnet_jax.tasks import localisation

    protocols = {*of_detectors.PROTOCOLS, *localisation.PROTOCOLS}
    assert list(detection.TABLES) == [f"table{i}" for i in range(7, 15)]
    for table in detection.TABLES.values():
        assert all(len(row.published) == len(table.columns) and any(row.published) for row in table.rows)
        assert all(row.protocol in protocols for row in table.rows)


def test_a_detector_that_starts_from_another_has_its_anchors():
    started = [row for _, row in ROWS if row.start]
    assert [row.title for row in started] == ["ResNet-101 from COCO, improved"]
    for row in started:
        config = load_config(str(ROOT / detection._config(row, "paper")))
        config = override(config, detection._changes(ROOT, row, "paper"))
        file, _, member = row.start.partition(":")
        other = load_config(str(ROOT / f"configs/{file}.py:{member}"))
        assert (config.task.anchor_sizes, config.task.anchor_ratios) == (
            other.task.anchor_sizes,
            other.task.anchor_ratios,
        )


def test_what_cannot_be_scored_here_is_not_run():
    assert not any(row.config for row in detection.TABLES["table11"].rows)
    scored = [load_config(str(ROOT / detection._config(row, "paper"))) for name, row in ROWS if name == "table7"]
    assert all(set(config.data.test).isdisjoint(config.data.train) for config in scored)
    assert "VOC 2012 test are not public" in to_markdown(detection.published("table11"))


@pytest.mark.parametrize("line, made_by", list(enumerate(["configs/vgg.py:vgg16", "table3", "table9"])))
def test_a_start_that_is_not_there_is_named_with_what_makes_it(tmp_path, line, made_by):
    places = Places(ROOT, tmp_path / "runs", tmp_path / "results", None)
    row = detection.TABLES["table10"].rows[line]
    with pytest.raises(UserError, match=rf"is not there, which it starts from; make it with .*{made_by}"):
        detection._start(row, "paper", places, tmp_path / "own")


def test_a_start_that_is_not_finished_is_refused_by_a_run_that_has_not_begun(tmp_path):
    places = Places(ROOT, tmp_path / "runs", tmp_path / "results", None)
    row = detection.TABLES["table7"].rows[1]
    start, own = tmp_path / "runs" / "paper" / "resnet101-seed0", tmp_path / "own"
    (start / "checkpoints" / "50000").mkdir(parents=True)
    (start / "config.json").write_text(to_json(load_config(str(ROOT / "configs/imagenet_paper.py:resnet101"))))
    with pytest.raises(UserError, match=r"is not at step 600000 yet; finish it with .* table3 .*resnet101"):
        detection._start(row, "paper", places, own)
    (start / "checkpoints" / "600000").mkdir()
    assert detection._start(row, "paper", places, own) == start
    (start / "checkpoints" / "600000").rmdir()
    (own / "checkpoints").mkdir(parents=True)
    assert detection._start(row, "paper", places, own) == start


def test_a_record_of_other_settings_is_not_current():
    row = detection.TABLES["table8"].rows[1]
    record = {"run": "table8-2", "values": values(detection._scaled(ROOT, row, "small"))}
    assert detection.is_current(ROOT, "small", record)
    older = {key: value for key, value in record["values"].items() if key != "ema_every"}  # A newer key of today.
    elsewhere = older | {"data_dir": "/data", "data.workers": 7}
    assert detection.is_current(ROOT, "small", record | {"values": elsewhere})
    assert not detection.is_current(ROOT, "paper", record)
    assert not detection.is_current(ROOT, "small", record | {"run": "table8-9"})
    assert not detection.is_current(ROOT, "small", record | {"run": "table11-1"})


def test_a_shortened_detector_lowers_its_rate_where_the_recipe_does():
    row = detection.TABLES["table7"].rows[0]
    assert detection._changes(ROOT, row, "medium")["schedule.boundaries"] == (7_500,)


def test_numbers_of_the_paper_stand_beside_ours():
    record = {"result": {"AP50": 12.345, "mAP": 6.0}}
    text = to_markdown(detection.section("table8", "smoke", {"table8-2": record}))
    assert "| ResNet-101 | 12.35 | 48.4 | 6.00 | 27.2 |" in text.replace("12.34 ", "12.35 ")
    assert "| VGG-16 |  | 41.5 |  | 21.2 |" in text
    assert detection.section("table9", "smoke", {"table8-2": record}) == []
    assert "| RPN and R-CNN, ensemble |  | 8.9 |" in to_markdown(detection.published("table13"))


@pytest.mark.slow
def test_a_smoke_run_trains_and_scores_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # One device: a batch has four photographs.
    places = Places(ROOT, tmp_path / "runs", tmp_path / "results", None)
    assert detection.perform("table8", "smoke", places) == {}
    path = record_path(places.results, "smoke", "table8-2")
    record = read_record(path)
    assert record["kind"] == "detection" and {"mAP", "AP50"} <= record["result"].keys()
    assert record["result"]["num_examples"] == 200 and "--protocol=single" in record["commands"]["single"]
    written = path.stat().st_mtime_ns
    assert detection.perform("table8", "smoke", places) == {} and path.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_smoke_run_trains_a_localiser_once_and_scores_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "")
    places = Places(ROOT, tmp_path / "runs", tmp_path / "results", None)
    assert detection.perform("table13", "smoke", places) == {}
    records = {name: read_record(record_path(places.results, "smoke", name)) for name in ("table13-2", "table13-3")}
    assert all(0 <= record["result"]["given_class_error"] <= 100 for record in records.values())
    assert len(list((tmp_path / "runs" / "smoke").iterdir())) == 1
    assert "RPN and R-CNN is not run from here" in capsys.readouterr().err
    text = to_markdown(detection.section("table13", "smoke", records))
    assert "One central crop, or whole photographs" in text and "| RPN and R-CNN, ensemble |  |  | 8.9 |" in text
