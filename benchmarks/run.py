"""The comparisons of speed: ``python -m benchmarks.run --suite SUITE [--out FILE] [--smoke]``.

SUITE is cpu, gpu, input, compile, augmentation or detection.

Prints a table and, with --out, writes the figures as JSON with versions and hardware. The sides of a comparison are
timed in turn, round after round, so that a drift of the machine's speed cancels in the ratios, which are medians over
the rounds. ``--smoke`` is the same at toy size: it proves that the suite runs, and its figures mean nothing. The input
suite runs ``benchmarks.input_pipeline`` and ``benchmarks.streaming_train``; it needs ``--data_dir`` unless it is a
smoke run. The cpu and gpu suites need PyTorch, and the detection suite torchvision beside it
(``pip install --no-deps torchvision==0.28.0``): without it a smoke run, or one on a GPU, times our side alone.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import augmentation, detector, shares, steps
from benchmarks.detector import DetectorWorkload
from benchmarks.timing import Run, end_processes, in_own_process
from benchmarks.workload import Workload
from resnet_jax.data.sources.digits import write_photographs
from resnet_jax.host_memory import keep_freed_memory
from resnet_jax.kernels import PLAIN, Kernels, fast_kernels, onednn
from resnet_jax.models import list_models, variant
from resnet_jax.train.workdir import processor_name


class Comparison(NamedTuple):
    """Sides that do the same work. Ratios are to the one called ``reference``.

    parts: sides that do a part of what the side "ours" does, and are shown as shares of its time.
    """

    title: str
    sides: Mapping[str, Callable[[], Run]]
    reference: str
    num_steps: int  # In a measurement.
    parts: Mapping[str, Callable[[], Run]] = {}


def torch_sides(mode: str, workload: Workload, smoke: bool) -> dict[str, Callable[[], Run]]:
    """PyTorch in processes of its own: eager and compiled; on a CPU, each with either memory setting.

    Which setting is faster depends on the network.
    """
    from benchmarks import torch_steps  # This module is read where PyTorch is not installed, too.

    make = {"training": torch_steps.training, "inference": torch_steps.inference}[mode]
    sides: dict[str, Callable[[], Run]] = {}
    for compiled in (False,) if smoke else (False, True):  # Compiling takes PyTorch a minute at any size.
        for kept in (False, True) if jax.default_backend() == "cpu" else (False,):
            name = "PyTorch" + (", compiled" if compiled else "") + (", memory kept" if kept else "")
            sides[name] = partial(in_own_process, partial(make, workload, compiled), kept)
    return sides


def cpu_suite(smoke: bool) -> list[Comparison]:
    """Steps beside PyTorch's and naive Flax's, then what loops cost."""
    small = _toy("resnet20") if smoke else Workload("resnet20", 128, 32)
    large = Workload("resnet50", 16, 224)
    # By the kernels that they compute with; without oneDNN they are those of a program on several devices.
    ours = {"ours": fast(), "ours, XLA's convolutions": fast_kernels("cpu", 2), "ours, plain kernels": PLAIN}
    found = []
    for workload, num_steps in ((small, 10),) if smoke else ((small, 10), (large, 2)):
        title = f"{workload.model}, batch {workload.batch_size}, {workload.size} x {workload.size}, float32"
        training: dict[str, Callable[[], Run]] = {
            **{side: partial(steps.ours_training, workload, kernels) for side, kernels in ours.items()},
            "naive Flax": partial(steps.naive_training, workload),
        } | torch_sides("training", workload, smoke)
        inference: dict[str, Callable[[], Run]] = {
            **{side: partial(steps.ours_inference, workload, kernels) for side, kernels in ours.items()},
            "naive Flax": partial(steps.naive_inference, workload),
        } | torch_sides("inference", workload, smoke)
        if not (workload.imagenet or smoke):
            training["ours, whole trainer"] = partial(steps.ours_trainer, workload)
        found.append(Comparison(f"training, {title}", training, "PyTorch", num_steps))
        found.append(Comparison(f"inference, {title}", inference, "PyTorch", 2 * num_steps))
    loops = {
        "blocks unrolled": partial(steps.ours_training, small._replace(scan_blocks=False), fast()),
        "blocks scanned": partial(steps.ours_training, small._replace(scan_blocks=True), fast()),
        "5 steps in one call": partial(steps.ours_training, small, fast(), steps_per_call=5),
    }
    found.append(Comparison("loops, resnet20", loops, "blocks unrolled", 10))
    return found


def _toy(model: str) -> Workload:
    """The same kind of network in small, which compiles in seconds."""
    return Workload(model, 8, 32, width=4, stages=(1,) * len(variant(model).fields["stage_sizes"]))


def fast() -> Kernels:
    """What the programs compute with here."""
    return fast_kernels(jax.default_backend(), jax.device_count())


def gpu_suite(smoke: bool) -> list[Comparison]:
    """bfloat16 ResNet-50 beside PyTorch, and ResNet-20 with ever more steps in a call."""
    found = []
    for batch_size in (8,) if smoke else (256, 512):
        workload = _toy("resnet50") if smoke else Workload("resnet50", batch_size, 224)
        workload = workload._replace(dtype="bfloat16")
        sides: dict[str, Callable[[], Run]] = {
            "ours": partial(steps.ours_training, workload, fast()),
        } | torch_sides("training", workload, smoke)
        title = f"training, resnet50, batch {batch_size}, {workload.size} x {workload.size}, bfloat16"
        found.append(Comparison(title, sides, "PyTorch", 2 if smoke else 20))
    workload = _toy("resnet20") if smoke else Workload("resnet20", 128, 32)
    sides = {
        f"{k} steps in one call": partial(steps.ours_training, workload, fast(), steps_per_call=k)
        for k in ((1, 2) if smoke else (1, 10, 100, 390))
    }
    sides |= torch_sides("training", workload, smoke)  # On a GPU the compiled one is made of CUDA graphs.
    title = f"training, resnet20, batch {workload.batch_size}, float32"
    found.append(Comparison(title, sides, "PyTorch", 2 if smoke else 390))
    return found


def augmentation_suite(smoke: bool) -> Comparison:
    """The transforms beside a training step of ResNet-50, as it is trained on this kind of device."""
    on_cpu = jax.default_backend() == "cpu"
    workload = Workload("resnet50", 16, 224) if on_cpu else Workload("resnet50", 256, 224, "bfloat16")
    workload = _toy("resnet50") if smoke else workload
    title = f"resnet50, batch {workload.batch_size}, {workload.size} x {workload.size}, {workload.dtype}"
    sides = augmentation.sides(workload, partial(steps.ours_training, workload, fast()))
    return Comparison(title, sides, augmentation.STEP, 2 if on_cpu else 20)


def detection_suite(smoke: bool) -> list[Comparison]:
    """torchvision's fasterrcnn_resnet50_fpn and ours: whole, with the parts of ours, and the layers with weights alone.

    Where torchvision has no compiled operations the whole is slower than it would be with them, and the layers, which
    need none, tell how both compare (``torch_detector``).
    """
    if smoke:
        workloads = [DetectorWorkload(2, (60, 64), (64, 64), 16, 8, 3, channels=8, hidden=16, stages=(1, 1, 1, 1))]
    elif jax.default_backend() == "cpu":
        workloads = [DetectorWorkload(2, (320, 320), (320, 320), 200, 128, 20)]
    else:
        workloads = [DetectorWorkload(batch, (800, 1333), (800, 1344), 1000, 512, 90, "bfloat16") for batch in (2, 16)]
    num_steps = 1 if smoke else 2 if jax.default_backend() == "cpu" else 20
    found = []
    for workload in workloads:
        for title, side, parts in (
            ("training step", "training", detector.training_parts(workload, fast())),
            ("inference", "inference", detector.inference_parts(workload, fast())),
            ("training, layers alone", "layers_training", {}),
            ("inference, layers alone", "layers_inference", {}),
        ):
            sides: dict[str, Callable[[], Run]] = {"ours": partial(getattr(detector, side), workload, fast())}
            sides |= torchvision_sides(side, workload, smoke)
            title = f"detector, {title}, {workload.title}"
            found.append(Comparison(title, sides, "PyTorch", num_steps, parts))
    return found


def torchvision_sides(side: str, workload: DetectorWorkload, smoke: bool) -> dict[str, Callable[[], Run]]:
    """torchvision in processes of its own; none where it is not installed."""
    if not has_torchvision():
        return {}
    from benchmarks import torch_detector

    make = partial(getattr(torch_detector, side), workload, not smoke)  # Compiling RoIAlign takes a minute at any size.
    kept = {"PyTorch": False, "PyTorch, memory kept": True}
    if smoke or jax.default_backend() != "cpu":
        del kept["PyTorch, memory kept"]
    return {name: partial(in_own_process, make, memory_kept) for name, memory_kept in kept.items()}


def has_torchvision() -> bool:
    """Whether it and PyTorch are installed; importing it here would hold its threads and memory."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "torchvision"))


def largest_batches(smoke: bool) -> dict[str, int]:
    """The largest power of two that the device has memory for as a batch, by model, without and with remat."""
    # A CPU does not say how much it has; a toy run pretends.
    limit = 2**24 if smoke else (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    found: dict[str, int] = {}
    if not limit:
        return found
    print(f"| largest batch in {limit / 2**30:.2g} GiB | activations kept | recomputed (remat) |\n|---|---|---|")
    for model in ["resnet20"] if smoke else _models():
        size = variant(model).image_size
        for remat in (False, True) if "remat" in variant(model).own_fields else (False,):
            dtype = "bfloat16" if size == 224 else "float32"
            batch = 1
            workload = _toy(model) if smoke else Workload(model, 1, size, dtype)
            workload = workload._replace(remat=remat or None)
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # Some compilers refuse what cannot fit.
                while steps.planned_memory(workload._replace(batch_size=2 * batch), fast()) <= limit:
                    batch *= 2
            found[f"{model}, remat {remat}"] = batch
        print(f"| {model} | {found[f'{model}, remat False']} | {found.get(f'{model}, remat True', '')} |", flush=True)
    return found


def _models() -> list[str]:
    """The networks of the paper. Those of all names would take days."""
    return [name for name in list_models() if variant(name).in_paper]


def without(comparison: Comparison, sides: list[str]) -> Comparison:
    """The comparison without the sides of these names. Raises ValueError for those that it does not have, or needs."""
    for name in sides:
        if name not in comparison.sides or name == comparison.reference:
            others = ", ".join(repr(side) for side in comparison.sides if side != comparison.reference)
            raise ValueError(f"--without {name!r}: sides of {comparison.title!r} that can be left out are {others}")
    return comparison._replace(sides={name: make for name, make in comparison.sides.items() if name not in sides})


def measure(comparison: Comparison, rounds: int, smoke: bool) -> dict[str, list[float]]:
    """Images/s of each side in each round; without those that cannot run here, which are named on stderr.

    At toy size every side has to run.
    """
    runs: dict[str, Run] = {}
    for name, make in {**comparison.sides, **comparison.parts}.items():
        try:
            runs[name] = make()
        except Exception as error:  # Compilers are missing, or memory is; the other sides still tell something.
            if smoke:
                raise
            lines = str(error).strip().splitlines() or [""]
            print(f"{comparison.title}: {name} is left out: {type(error).__name__}: {lines[0][:200]}", file=sys.stderr)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            speeds[name].append(run(comparison.num_steps))
    end_processes()
    return speeds


def table(comparison: Comparison, speeds: dict[str, list[float]]) -> str:
    """The comparison in Markdown: medians, ranges and ratios."""
    lines = [f"| {comparison.title} | images/s (min-max) | ratio to {comparison.reference} |", "|---|---|---|"]
    reference = speeds.get(comparison.reference)
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(values, reference, strict=True)) if reference else float("nan")
        spread = f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"
        lines.append(f"| {name} | {spread} | {ratio:.2f} |")
    return "\n".join(lines)


def compile_suite(smoke: bool) -> dict[str, dict[str, float]]:
    """Seconds from the start of a program to its first training step, of the paper's networks, cache cold and warm."""
    found: dict[str, dict[str, float]] = {}
    print("| model | start, cold cache (s) | of it to compile (s) | start, warm cache (s) | to load (s) |")
    print("|---|---|---|---|---|")
    for model in ["resnet20"] if smoke else _models():
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (_first_step(model, cache) for _ in range(2))
        found[model] = {f"cold_{key}": value for key, value in cold.items()}
        found[model] |= {f"warm_{key}": value for key, value in warm.items()}
        print(
            f"| {model} | {cold['start']:.1f} | {cold['compile']:.1f} | {warm['start']:.1f} | {warm['compile']:.1f} |",
            flush=True,
        )
    return found


def _first_step(model: str, cache: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.first_step", model]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def input_suite(data_dir: str, smoke: bool) -> dict[str, Any]:
    """What the input pipeline's own benchmarks print, and the figures in their last lines."""
    toy = {
        "input_pipeline": ["--seconds", "0.1", "--rounds", "1"],
        "streaming_train": ["--width", "1", "--batch_size", "4", "--steps", "2", "--rounds", "1"],
    }
    found = {}
    for name in ("input_pipeline", "streaming_train"):
        command = [sys.executable, "-m", f"benchmarks.{name}", "--data_dir", data_dir]
        command += ["--name", "folder", *toy[name]] if smoke else []
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if result.returncode:
            sys.exit(f"error: {' '.join(command)} failed; see above")
        *lines, figures = result.stdout.splitlines()
        print("\n".join(lines), flush=True)
        found[name] = json.loads(figures)
    return found


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for name in ("jax", "jaxlib", "flax", "optax", "torch", "torchvision", "onednn-cpu-gomp"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "processor": processor_name(),
        "python": platform.python_version(),
        "versions": versions,
        "onednn": onednn.library() is not None,
    }


def say_without_torchvision(smoke: bool) -> None:
    """Ends the program, or says that only our side is timed, where that tells something."""
    fix = "pip install --no-deps torchvision==0.28.0"
    if not smoke and jax.default_backend() == "cpu":
        sys.exit(f"error: the detection suite compares with torchvision, which is not installed; {fix}")
    print(f"torchvision is not installed, so only our side is timed ({fix})\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--suite", required=True, choices=["cpu", "gpu", "input", "compile", "augmentation", "detection"]
    )
    parser.add_argument("--data_dir", help="of the input suite: ImageNet, or a sample of it, as TFDS prepares it")
    parser.add_argument("--only", default="", help="comparisons with this in their title")
    parser.add_argument("--without", default=[], action="append", help="a side that is left out; may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="toy size: proves that it runs")
    parser.add_argument("--default_allocator", action="store_true", help="without host_memory.keep_freed_memory")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.without and arguments.suite not in ("cpu", "gpu", "detection"):
        parser.error(f"the {arguments.suite} suite takes no --without")
    memory_kept = not arguments.default_allocator and keep_freed_memory()  # Before JAX's threads start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some of the GPU's memory.
    record: dict[str, Any] = {"suite": arguments.suite, "smoke": arguments.smoke, "environment": environment()}
    record["environment"]["memory_kept"] = memory_kept
    print(json.dumps(record["environment"]) + "\n")
    if arguments.suite == "compile":
        record["seconds"] = compile_suite(arguments.smoke)
    elif arguments.suite == "input":
        if not (arguments.data_dir or arguments.smoke):
            parser.error("the input suite needs --data_dir")
        with tempfile.TemporaryDirectory() as toys:
            if arguments.smoke:
                write_photographs(Path(toys))
            record["images_per_second"] = input_suite(toys if arguments.smoke else arguments.data_dir, arguments.smoke)
    elif arguments.suite == "augmentation":
        comparison = augmentation_suite(arguments.smoke)
        speeds = measure(comparison, 1 if arguments.smoke else arguments.rounds, arguments.smoke)
        record["images_per_second"] = {comparison.title: speeds}
        record["share_of_step"] = shares.shares(speeds, augmentation.STEP)
        print(shares.table(comparison.title, speeds, augmentation.STEP) + "\n", flush=True)
    else:
        if arguments.suite == "detection" and not has_torchvision():
            say_without_torchvision(arguments.smoke)
        record["images_per_second"] = {}
        suite = {"cpu": cpu_suite, "gpu": gpu_suite, "detection": detection_suite}[arguments.suite]
        for comparison in suite(arguments.smoke):
            if arguments.only in comparison.title:
                try:
                    comparison = without(comparison, arguments.without)
                except ValueError as error:
                    parser.error(str(error))
                speeds = measure(comparison, 1 if arguments.smoke else arguments.rounds, arguments.smoke)
                parts = {name: speeds.pop(name) for name in comparison.parts if name in speeds}
                record["images_per_second"][comparison.title] = speeds
                print(table(comparison, speeds) + "\n", flush=True)
                if parts and "ours" in speeds:
                    title, whole = f"parts of ours: {comparison.title}", {"ours": speeds["ours"], **parts}
                    record["images_per_second"][title] = whole
                    record.setdefault("shares", {})[comparison.title] = shares.shares(whole, "ours")
                    print(shares.table(title, whole, "ours") + "\n", flush=True)
        if arguments.suite == "gpu" and arguments.only in "largest batch":
            record["largest_batch"] = largest_batches(arguments.smoke)
    if arguments.smoke:
        print("a smoke run at toy size: these figures mean nothing")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
