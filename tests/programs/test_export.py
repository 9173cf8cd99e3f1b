import json
from pathlib import Path

import pytest

from resnet_jax.config import override, read_config
from resnet_jax.experiment.scoring import score
from resnet_jax.experiment.training import train


def test_an_exported_run_is_scored_as_the_run_and_fine_tuned_from(run_here, load_main, tiny_run, tmp_path):
    folder = str(tmp_path / "exported")
    run_here(load_main("export"), "--workdir", tiny_run, folder)
    small, start = read_config(Path(folder) / "config.json"), {"name": "weights", "path": folder, "head": "keep"}
    scores = [score(small, [Path(workdir)]).record for workdir in (tiny_run, folder)]
    for record in scores:
        del record["weights"], record["seconds"]
    assert scores[0] == scores[1]
    train(override(small, {f"init.{key}": value for key, value in start.items()}), tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned" / "init.json").read_text())["kind"] == "workdir"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "FOLDER is missing"),
        (["{out}"], "--workdir is missing"),
        (["--workdir={run}", "{out}", "more"], "unexpected argument 'more'"),
        (["--workdir=no_such", "{out}"], "there is no run in no_such"),
    ],
)
def test_export_names_what_is_wrong(refuse, load_main, tmp_path, arguments, fault):
    places = {"run": tmp_path, "out": tmp_path / "out"}
    assert fault in refuse(load_main("export"), *(argument.format(**places) for argument in arguments))
