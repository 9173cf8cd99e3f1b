import csv
import json
import sys

import pytest

from resnet_jax.errors import UserError
from tests.programs.program_calls import TINY


def test_eval_prints_the_errors_and_keeps_them_and_the_scores(run_here, load_main, weights, tmp_path, capsys):
    a, b = weights
    results, scores = tmp_path / "results.csv", tmp_path / "scores.csv"
    main = load_main("evaluate")
    run_here(main, *TINY, "--torch_weights", a, "--results_csv", str(results), "--scores_csv", str(scores))
    run_here(main, *TINY, f"--torch_weights={a}", f"--torch_weights=resnet20={b}", f"--results_csv={results}")
    text, record, _, ensemble = capsys.readouterr().out.splitlines()
    record, ensemble = json.loads(record), json.loads(ensemble)
    assert text == (
        f"resnet20 on digits test, single: top-1 error {record['top1_error']:.2f} %, "
        f"top-5 error {record['top5_error']:.2f} %, loss {record['loss']:.4f}, 360 examples"
    )
    assert (record["model"], record["data"], record["weights"]) == ("resnet20", "digits", a)
    assert (ensemble["model"], ensemble["weights"]) == ("resnet20 + resnet20", f"{a} + resnet20={b}")
    assert record["loss"] != ensemble["loss"]
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, result in zip(rows, (record, ensemble), strict=True):
        assert row == {key: "" if value is None else str(value) for key, value in result.items()}
    with scores.open(newline="") as file:
        ranks = [int(row["rank"]) for row in csv.DictReader(file)]
    assert len(ranks) == 360
    assert round(100 * sum(rank > 1 for rank in ranks) / 360, 4) == record["top1_error"]


def test_eval_measures_the_layer_responses_of_any_weights(run_here, load_main, weights, tmp_path):
    path = tmp_path / "responses.csv"
    run_here(load_main("evaluate"), *TINY, f"--torch_weights=resnet20={weights[0]}", f"--responses_csv={path}")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["layer"] for row in rows] == ["stem", "stage1_block1/conv1", "stage1_block1/conv2"]
    assert all(float(row["std"]) > 0 for row in rows) and path.with_suffix(".png").stat().st_size > 1000


def test_the_data_of_a_run_may_have_moved(run_here, load_main, tiny_run, monkeypatch):
    main, asked = load_main("evaluate"), []

    def score(config, *_):
        asked.append(config)
        raise UserError("far enough")

    monkeypatch.setattr(sys.modules["resnet_jax.programs.evaluate"], "score", score)
    for more in ([], ["--data_dir=elsewhere"]):
        with pytest.raises(SystemExit):
            run_here(main, "--workdir", tiny_run, *more)
    stayed, moved = asked
    assert moved == stayed.model_copy(update={"data_dir": "elsewhere"}) != stayed


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "give a --workdir or --torch_weights, or several for an ensemble"),
        (["--torch_weights=no_such.pth"], "there is no file no_such.pth"),
        (["--torch_weights=resnet18=no_such.pth"], "there is no file no_such.pth"),
        (["--workdir=no_such"], "there is no run in no_such"),
        (["--torch_weights={weights}", "--workdir=no_such"], "there is no run in no_such"),
        (["--torch_weights={weights}", "--split=validation"], "digits has no split 'validation'"),
        (["--torch_weights={weights}", "--protocol=ten_crop"], "ten_crop and multi_scale are for photographs"),
        (["--torch_weights={weights}", "--config.model.width=8"], "a.safetensors does not fit resnet20"),
        (["--torch_weights={weights}", "--config.eval_batch_size=0"], "config.eval_batch_size is 0"),
        (["--torch_weights={weights}", "--split=everything"], "split"),
        (["--torch_weights={weights}", "--protocol=eleven_crop"], "protocol"),
        (["--torch_weights={weights}", "--checkpoint=worst"], "--checkpoint=worst: value should be one of"),
        (
            ["--torch_weights={weights}", "--workdir=a", "--responses_csv=r.csv"],
            "give one --workdir or --torch_weights",
        ),
        (["--torch_weights={weights}", "--responses_csv=r.png"], "r.png would be a picture; name a table, FILE.csv"),
        (["--torch_weights={weights}", "--responses_csv=."], ". is a folder; name a file"),
        (["--torch_weights={weights}", "--results_csv=r", "--scores_csv=r"], "r, r are not different files"),
        (["--torch_weights={weights}", "stray.jpg"], "unexpected argument 'stray.jpg'"),
        (["--torch_weights={weights}", "--data_dir=elsewhere"], "use --config.data_dir"),
    ],
)
def test_eval_names_what_is_wrong(refuse, load_main, weights, arguments, fault):
    given = [argument.format(weights=weights[0]) for argument in arguments]
    assert fault in refuse(load_main("evaluate"), *TINY, *given)


def test_a_detector_s_curves_must_have_a_place_before_anything_is_scored(refuse, load_main, tmp_path):
    (tmp_path / "scores.png").mkdir()
    arguments = ["--config=configs/detection_quickstart.py", f"--scores_csv={tmp_path / 'scores.csv'}"]
    assert "scores.png is a folder; name a file" in refuse(load_main("evaluate"), *arguments, "--torch_weights=no.pth")


def test_a_table_of_other_columns_is_refused_before_anything_is_scored(refuse, load_main, weights, tmp_path):
    (tmp_path / "results.csv").write_text("keep,this\n1,2\n")
    outputs = [f"--{kind}_csv={tmp_path / kind}.csv" for kind in ("results", "scores", "responses")]
    error = refuse(load_main("evaluate"), *TINY, f"--torch_weights={weights[0]}", *outputs)
    assert "results.csv has the columns keep, this, not model, data, split, protocol, weights; use another" in error


def test_eval_takes_the_config_from_the_workdir_alone(run_here, load_main, tiny_run, capsys):
    run_here(load_main("evaluate"), "--workdir", tiny_run)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_examples"] == 360
