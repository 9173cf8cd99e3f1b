"""Tables 7 to 14: detection and localisation, from runs of detectors, scored as each row says.

Precisions and errors are in percent. A backbone is the network of Table 3, or VGG-16, of the same scale, whose workdir
must be there before (the error says how it is made); at smoke scale every row is a tiny detector on drawn shapes, from
nothing.
"""

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from reproduction.document import Block, Heading, Paragraph, Table
from reproduction.experiments import SCALES
from reproduction.ledger import Record, read_record, record_path, write_record
from reproduction.numerics import numerics_hash
from reproduction.running import (
    Call,
    Failed,
    Places,
    environment,
    has_values,
    note_code,
    noted_code,
    passing_on_signals,
    run_program,
    shown,
    values,
)
from resnet_jax.config import Config, flatten, load_config, override, read_config
from resnet_jax.errors import UserError
from resnet_jax.experiment.exported import is_exported


class Row(NamedTuple):
    """A line of a table. config: FILE:MEMBER of configs/; "": it cannot be run here, and only the paper's are shown.

    changes: keys of training and scoring besides it. protocol: of eval.py. published: the paper's by column; "" where
    it gives none. members: seeds that are scored together. start: the config whose run it starts from, unless from
    a classification network. smoke: the config that stands for it at smoke scale.
    """

    title: str
    config: str
    published: tuple[str, ...]
    protocol: str = "single"
    changes: Mapping[str, Any] = {}
    members: int = 1
    start: str = ""
    smoke: str = "detection_quickstart:c4"


class DetectionTable(NamedTuple):
    """columns: the paper's, each with the figure of eval.py that stands beside it, or "" where nothing does.

    views: what of each photograph is looked at. note: what else a reader has to know.
    """

    title: str
    columns: Mapping[str, str]
    rows: tuple[Row, ...]
    views: str = "Whole photographs"
    note: str = ""


_COCO, _CONTEXT = "coco_c4_paper:resnet101", {"task.context": True}
# The proposal network comes from COCO's detector, and with it its anchors.
_FROM_COCO = {**_CONTEXT, "task.anchor_sizes": (64.0, 128.0, 256.0, 512.0)}
_ALL = "refine+multi_scale"
_JOINT = "Detectors are trained jointly here; the paper's for VOC in four alternating steps (docs/detection.md)."
_VOC12 = (
    "The annotations of VOC 2012 test are not public: configs/voc_c4_paper.py:NETWORK-07++12 trains these detectors, "
    "and VOC's server scores them."
)
_LOCALISER, _SMALL_LOCALISER = "imagenet_localisation:resnet101", "localisation_quickstart:rpn"

TABLES = {
    "table7": DetectionTable(
        "Faster R-CNN on PASCAL VOC 2007 and 2012 test",
        {"mAP, 2007": "mAP", "mAP, 2012": ""},
        (
            Row("VGG-16, 07+12", "voc_c4_paper:vgg16-07+12", ("73.2", "")),
            Row("ResNet-101, 07+12", "voc_c4_paper:resnet101-07+12", ("76.4", "")),
            Row("VGG-16, 07++12", "", ("", "70.4")),
            Row("ResNet-101, 07++12", "", ("", "73.8")),
        ),
        note=f"{_JOINT} {_VOC12}",
    ),
    "table8": DetectionTable(
        "Faster R-CNN on COCO val",
        {"at 0.5": "AP50", "at 0.5 to 0.95": "mAP"},
        (
            Row("VGG-16", "coco_c4_paper:vgg16", ("41.5", "21.2")),
            Row("ResNet-101", _COCO, ("48.4", "27.2")),
        ),
    ),
    "table9": DetectionTable(
        "Improvements on COCO, ResNet-101",
        {"val, at 0.5": "AP50", "val, at 0.5 to 0.95": "mAP", "test-dev, at 0.5": "", "test-dev, at 0.5 to 0.95": ""},
        (
            Row("baseline", _COCO, ("48.4", "27.2", "", "")),
            Row("and box refinement", _COCO, ("49.9", "29.9", "", ""), "refine"),
            Row("and context", _COCO, ("51.1", "30.0", "53.3", "32.2"), "refine", _CONTEXT),
            Row("and multi-scale testing", _COCO, ("53.8", "32.5", "55.7", "34.9"), _ALL, _CONTEXT),
            Row("and an ensemble of three", _COCO, ("", "", "59.0", "37.4"), _ALL, _CONTEXT, members=3),
        ),
    ),
    "table10": DetectionTable(
        "Improvements on PASCAL VOC 2007 test",
        {"mAP": "mAP"},
        (
            Row("VGG-16", "voc_c4_paper:vgg16-07+12", ("73.2",)),
            Row("ResNet-101", "voc_c4_paper:resnet101-07+12", ("76.4",)),
            Row(
                "ResNet-101 from COCO, improved",
                "voc_c4_paper:resnet101-07+12",
                ("85.6",),
                _ALL,
                _FROM_COCO,
                start=_COCO,
            ),
        ),
        note=_JOINT,
    ),
    "table11": DetectionTable(
        "Improvements on PASCAL VOC 2012 test",
        {"mAP": ""},
        (
            Row("VGG-16", "", ("70.4",)),
            Row("ResNet-101", "", ("73.8",)),
            Row("ResNet-101 from COCO, improved", "", ("83.8",)),
        ),
        note=_VOC12,
    ),
    "table12": DetectionTable(
        "ImageNet DET",
        {"mAP, val2": "mAP", "mAP, test": ""},
        (
            Row("ResNet-101", "imagenet_det:resnet101", ("60.5", "58.8"), _ALL),
            Row("an ensemble of three", "imagenet_det:resnet101", ("63.6", "62.1"), _ALL, members=3),
        ),
        note="Scored by the challenge's rules, but for its list of photographs and classes that are left out.",
    ),
    "table13": DetectionTable(
        "ImageNet localisation, top-5 error on validation",
        {"given class": "given_class_error", "predicted class": ""},
        (
            Row("VGG, one crop", "", ("33.1", "")),
            Row("RPN, one crop", _LOCALISER, ("13.3", ""), smoke=_SMALL_LOCALISER),
            Row("RPN, dense", _LOCALISER, ("11.7", "14.4"), "multi_scale", smoke=_SMALL_LOCALISER),
            Row("RPN and R-CNN", "", ("", "10.6")),
            Row("RPN and R-CNN, ensemble", "", ("", "8.9")),
        ),
        "One central crop, or whole photographs at five scales",
    ),
    "table14": DetectionTable(
        "ImageNet localisation, ensembles, top-5 error",
        {"validation": "", "test": ""},
        (Row("ResNet, ensemble", "", ("8.9", "9.0")),),
        note="configs/imagenet_localisation.py trains the networks; docs/detection.md says how they are scored.",
    ),
}

_SHORT = {
    "steps": 4, "log_every": 2, "eval_every": 4, "checkpoint_every": 4, "schedule.warmup_steps": 1,
    "batch_size": 4, "model.width": 4, "model.stage_sizes": (1, 1), "task.rpn.channels": 8,
}  # fmt: skip
_SMOKE: dict[str, dict[str, Any]] = {
    "detection_quickstart:c4": _SHORT | {
        "data.short_sides": (48,), "data.max_side": 64, "task.pooling.size": 4,
        "task.rpn.train_pre_nms": 32, "task.rpn.train_post_nms": 16, "task.rpn.test_pre_nms": 32,
        "task.rpn.test_post_nms": 16, "task.box.samples": 8, "task.box.candidates": 30, "task.test_scales": (40, 48),
    },
    _SMALL_LOCALISER: _SHORT | {
        "data.eval_short_side": 64, "data.crop_size": 48, "data.training_crop.shorter_side": (56, 72),
        "task.test_scales": (56, 64),
    },
}  # fmt: skip


def row_name(table: str, row: Row) -> str:
    """What a row's record is called."""
    return f"{table}-{TABLES[table].rows.index(row) + 1}"


def _config(row: Row, scale: str) -> str:
    file, _, member = (row.smoke if scale == "smoke" else row.config).partition(":")
    return f"configs/{file}.py:{member}"


def _changes(root: Path, row: Row, scale: str) -> dict[str, Any]:
    own = load_config(str(root / _config(row, scale)))
    if scale == "smoke":
        recipe = flatten(load_config(str(root / _config(row, "paper"))))
        metric = {key: recipe[key] for key in ("task.metric",) if key in recipe}
        return {**_SMOKE[row.smoke], **metric, **row.changes}
    return {**SCALES[scale].overrides(own), **row.changes}


def is_current(root: Path, scale: str, record: Record) -> bool:
    """Whether a row's record is of the config that the row has at this scale today."""
    table, _, line = record["run"].partition("-")
    try:
        row = TABLES[table].rows[int(line) - 1]
        return bool(row.config) and has_values(record, _scaled(root, row, scale))
    except (UserError, KeyError, IndexError, ValueError):  # The row has gone, or its config.
        return False


def _scaled(root: Path, row: Row, scale: str) -> Config:
    """The config that a row has at this scale today."""
    return override(load_config(str(root / _config(row, scale))), _changes(root, row, scale))


def _folder(places: Places, scale: str, config: str, changes: Mapping[str, Any], seed: int, start: str = "") -> Path:
    name = config.partition(":")[2] + ("-context" if "task.context" in changes else "")
    return places.workdirs / scale / f"{config.partition(':')[0]}-{name}{'-from-coco' if start else ''}-seed{seed}"


def perform(table: str, scale: str, places: Places) -> dict[str, str]:
    """Trains and scores what a table lacks, one after the other; returns what failed, by the name of the record."""
    failures = {}
    with passing_on_signals() as (received, children):
        call = partial(run_program, places, scale, received, children)
        for row in TABLES[table].rows:
            name = row_name(table, row)
            if not row.config:
                print(f"{table}, {scale}: {row.title} is not run from here", file=sys.stderr)
                continue
            try:
                _one_row(call, name, row, scale, places, set(TABLES[table].columns.values()))
            except UserError as error:
                print(f"{name} failed: {error}; going on with the others", file=sys.stderr)
                failures[name] = str(error)
    return failures


def _one_row(call: Call, name: str, row: Row, scale: str, places: Places, figures: set[str]) -> None:
    path = record_path(places.results, scale, name)
    config, changes = _config(row, scale), _changes(places.root, row, scale)
    before = read_record(path)
    if before is not None:
        if not is_current(places.root, scale, before):
            raise UserError(f"{path} is of a run with other settings; move it away, or use another --results")
        print(f"{name}: done before", file=sys.stderr)
        return
    keys = [f"--config.{key}={str(value).replace(' ', '')}" for key, value in changes.items()]
    folders, commands, code = [], {}, []
    for seed in range(row.members):
        folder = _folder(places, scale, row.config, row.changes, seed, row.start)
        own = [*keys, f"--config.seed={seed}"] if seed else keys
        if scale != "smoke":
            own = [*own, f"--config.init.path={_start(row, scale, places, folder)}"]
        training = ["train.py", "--config", config, "--workdir", str(folder), *own]
        print(f"{name}: training in {folder}", file=sys.stderr)
        note_code(places.root, folder)
        call(training)  # What is finished ends at once.
        folders.append(folder)
        code += noted_code(folder)
        commands[f"training {seed}"] = shown(places, scale, training)
    workdirs = [part for folder in folders for part in ("--workdir", str(folder))]
    scoring = ["eval.py", "--config", config, *workdirs, *keys, f"--protocol={row.protocol}"]
    print(f"{name}: scoring", file=sys.stderr)
    result = json.loads(call(scoring).splitlines()[-1])
    if not figures & result.keys():
        raise Failed(f"eval.py gave none of {', '.join(sorted(figures - {''}))}")
    commands[row.protocol] = shown(places, scale, scoring)
    whole = _scaled(places.root, row, scale)
    record: Record = {"kind": "detection", "run": name, "scale": scale, "title": row.title, "values": values(whole)}
    record |= {"steps": whole.steps, "environment": environment(folders[0]), "commands": commands}
    kept = {key: value for key, value in result.items() if isinstance(value, (int, float)) and key != "seconds"}
    codes = list(dict.fromkeys([*code, numerics_hash(places.root)]))
    write_record(path, record | {"result": kept, "numerics": codes})


def _start(row: Row, scale: str, places: Places, folder: Path) -> Path:
    """The workdir that a run in ``folder`` starts from. Raises UserError if it is needed and is not finished."""
    network = row.config.partition(":")[2].partition("-")[0]
    start = places.workdirs / scale / f"{network}-seed0"
    made_by = f"python reproduce.py table3 --scale={scale} --networks={network} --seeds=1"
    if row.start:
        start, made_by = (
            _folder(places, scale, row.start, row.changes, 0),
            f"python reproduce.py table9 --scale={scale}",
        )
    elif network.startswith("vgg"):  # No table of the paper trains it.
        made_by = f"python train.py --config configs/vgg.py:{network} --workdir {start}"
    if not (folder / "checkpoints").exists():
        if not start.exists():
            raise UserError(f"{start} is not there, which it starts from; make it with {made_by}")
        steps = read_config(start / "config.json").steps
        if not is_exported(start) and not (start / "checkpoints" / str(steps)).is_dir():
            raise UserError(f"{start}, which it starts from, is not at step {steps} yet; finish it with {made_by}")
    return start


def section(table: str, scale: str, ledger: Mapping[str, Record]) -> list[Block]:
    """A table with what has been run of it; nothing if nothing has."""
    about, rows = TABLES[table], []
    found = [ledger.get(row_name(table, row)) for row in about.rows]
    if not any(found):
        return []
    for row, record in zip(about.rows, found, strict=True):
        cells = [row.title]
        for figure, published in zip(about.columns.values(), row.published, strict=True):
            ours = record["result"].get(figure) if record and figure else None
            cells += [*([f"{ours:.2f}" if ours is not None else ""] if figure else []), published]
        rows.append(cells)
    header = ["detector"]
    for column, figure in about.columns.items():
        header += [f"{column}, here", "the paper"] if figure else [f"{column}, the paper"]
    text = f"{about.views}; each row by its own command. Test sets without public labels are not scored here."
    text += f" {about.note}" if about.note else ""
    if scale == "smoke":
        text += " At smoke scale a tiny ResNet on drawn shapes stands for every detector."
    return [Heading(f"Table {table.removeprefix('table')}: {about.title}"), Paragraph(text), Table(header, rows)]


def published(table: str) -> list[Block]:
    """The paper's numbers alone."""
    about = TABLES[table]
    rows = [[row.title, *row.published] for row in about.rows]
    heading = Heading(f"Table {table.removeprefix('table')}: {about.title}")
    text = f"The paper's; nothing has been run here. {about.note}".rstrip()
    return [heading, Paragraph(text), Table(["network", *about.columns], rows)]
