"""Whether small detectors learn what they should, on drawn shapes of 128 x 128 pixels: minutes to hours on a CPU.

python -m benchmarks.detection_learning --folder runs/learning

For the detector on one map and the one on a pyramid (``configs/detection_quickstart.py``), from nothing: an untrained
one, one that learns eight pictures by heart, two seeds of the recipe, one with global context, and what box refinement,
several scales and an ensemble change. Prints each figure with its bound; the status is 1 where one misses it. Runs that
were finished before are not trained again. ``--smoke`` is the same at toy size, where no bound means anything.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from resnet_jax import build, parallel
from resnet_jax.config import Config, load_config, override
from resnet_jax.data.detection.dataset import DetectionDataset
from resnet_jax.data.sources.detection.protocol import OpenedDetection
from resnet_jax.data.sources.detection.shapes import CLASSES, ShapesSource
from resnet_jax.experiment.scoring import score
from resnet_jax.experiment.training import train
from resnet_jax.host_memory import keep_freed_memory
from resnet_jax.programs import cli
from resnet_jax.tasks.task import Member

_RECIPES = Path(__file__).resolve().parent.parent / "configs" / "detection_quickstart.py"
KINDS = ("c4", "fpn")
SEEDS = (0, 1)
OVERFIT = {"steps": 500, "log_every": 50, "eval_every": 500, "data.flip": 0.0}
TEST = {"task.metric": "coco", "task.test_scales": (96, 128, 160), "task.test_canonical": 36.0}  # Shapes are 16 to 56.
_SMOKE = {
    "steps": 2, "log_every": 1, "eval_every": 2, "checkpoint_every": 2, "schedule.warmup_steps": 1, "batch_size": 4,
    "eval_batch_size": 4, "model.width": 4, "task.fpn_channels": 8, "task.fpn_hidden": 8, "task.rpn.channels": 8,
    "task.rpn.train_pre_nms": 32, "task.rpn.train_post_nms": 16, "task.rpn.test_pre_nms": 32,
    "task.rpn.test_post_nms": 16, "task.box.samples": 8, "task.box.candidates": 30,
}  # fmt: skip


class Figure(NamedTuple):
    """What was measured, in percent or minutes, and what it has to be; ``value`` is None where it is not known."""

    name: str
    value: float | None
    at_least: float | None = None
    below: float | None = None

    @property
    def missed(self) -> bool:
        if self.value is None:
            return False
        too_small = self.at_least is not None and not self.value >= self.at_least
        return too_small or (self.below is not None and not self.value < self.below)

    def __str__(self) -> str:
        value = "not known" if self.value is None else f"{self.value:.2f}"
        bound = f"at least {self.at_least:.2f}" if self.at_least is not None else f"below {self.below:.2f}"
        return f"| {self.name} | {value} | {bound} | {'MISSED' if self.missed else ''} |"


class Few(ShapesSource):
    """The first eight training pictures."""

    def __len__(self) -> int:
        return 8


def few_shapes(config: Config) -> DetectionDataset:
    """Eight pictures that are trained and scored on."""
    opened = OpenedDetection(lambda _: Few("train"), list(CLASSES), list(range(len(CLASSES))))
    settings: Any = config.data
    return DetectionDataset(opened, settings)


def figures(kind: str, folder: Path, smoke: bool) -> Iterator[Figure]:
    """All figures of one kind of detector, each as soon as it is there."""
    config = override(load_config(f"{_RECIPES}:{kind}"), TEST)
    if smoke:
        own = {key: value for key, value in _SMOKE.items() if kind == "fpn" or ".fpn_" not in key}
        config = override(config, own)
    data = few_shapes(config) if smoke else build.make_dataset(config)
    passed = data if smoke else None  # Or else runs are of the data of their config, and eval.py can score them.

    def scored(names: list[str], protocol: str = "single", config: Config = config) -> dict[str, float]:
        workdirs = [folder / name for name in names]
        return score(config, workdirs, split="validation", protocol=protocol, data=passed).record

    yield Figure(f"{kind}, untrained: AP50", untrained(config, data)["AP50"], below=2)

    by_heart = config if smoke else override(config, OVERFIT)
    few = few_shapes(by_heart)
    train(by_heart, folder / f"{kind}-eight", data=few)
    found = score(by_heart, [folder / f"{kind}-eight"], split="validation", data=few).record
    yield Figure(f"{kind}, eight pictures by heart: AP50", found["AP50"], at_least=95)

    seeds, alone = [f"{kind}-seed{seed}" for seed in SEEDS], []
    for seed, name in zip(SEEDS, seeds, strict=True):
        minutes = minutes_of_training(override(config, {"seed": seed}), folder / name, passed)
        yield Figure(f"{name}, training: minutes", minutes, below=20)
        alone.append(scored([name]))
        yield Figure(f"{name}: AP50", alone[-1]["AP50"], at_least=85)
        yield Figure(f"{name}: AP", alone[-1]["mAP"], at_least=50)
        recall = scored([name], "proposals")["recall"]
        yield Figure(f"{name}, 100 proposals: recall", recall, at_least=95)

    first, baseline = [seeds[0]], alone[0]
    refined = scored(first, "refine")
    yield Figure(f"{kind}, box refinement: AP", refined["mAP"], at_least=baseline["mAP"] - 1)
    yield Figure(f"{kind}, box refinement: AP75", refined["AP75"], at_least=baseline["AP75"] - 2)
    yield Figure(f"{kind}, several scales: AP", scored(first, "multi_scale")["mAP"], at_least=baseline["mAP"] - 1)
    with_context = override(config, {"task.context": True})
    train(with_context, folder / f"{kind}-context", data=passed)
    context = scored([f"{kind}-context"], config=with_context)["mAP"]
    yield Figure(f"{kind}, global context: AP", context, at_least=baseline["mAP"] - 1)
    best = max(each["mAP"] for each in alone)
    yield Figure(f"{kind}, both seeds together: AP", scored(seeds)["mAP"], at_least=best - 1)


def untrained(config: Config, data: Any) -> dict[str, float]:
    """The figures of a detector as it is initialised."""
    mesh = parallel.data_mesh()
    model = build.make_model(config, len(data.class_names), mesh)
    task = config.task.without_data(model)
    variables = jax.jit(lambda: task.init(jax.random.key(config.seed), data.image_shape))()
    member = Member(model, build.make_normalization(config, data), variables)
    return config.task.score([member], data, "validation", mesh, config.eval_batch_size).figures


def minutes_of_training(config: Config, workdir: Path, data: Any) -> float | None:
    """Trains; returns how long it took, or None where it had begun before without a note of the time."""
    note = workdir / "minutes.txt"
    before = float(note.read_text()) if note.exists() else None if workdir.exists() else 0.0
    start = time.monotonic()
    train(config, workdir, data=data)
    if before is None or note.exists():  # Finished before, and not trained again.
        return before
    minutes = (time.monotonic() - start) / 60
    note.write_text(f"{minutes}\n")
    return minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the workdirs, made if need be")
    parser.add_argument("--kind", choices=KINDS, help="only this one; default both")
    parser.add_argument("--smoke", action="store_true", help="toy size: proves that it runs")
    arguments = parser.parse_args()
    keep_freed_memory()  # Before JAX's threads start.
    cli.use_compilation_cache()
    missed = []
    print("| figure | here | bound | |\n|---|---|---|---|", flush=True)
    for kind in [arguments.kind] if arguments.kind else KINDS:
        for figure in figures(kind, arguments.folder, arguments.smoke):
            print(figure, flush=True)
            missed += [figure.name] if figure.missed else []
    if arguments.smoke:
        print("a smoke run at toy size: these figures mean nothing")
    elif missed:
        sys.exit(f"{len(missed)} figures miss their bounds: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
