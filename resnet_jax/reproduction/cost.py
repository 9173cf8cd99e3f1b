"""What a plan costs: multiply-adds, and hours at the rate that this machine reaches."""

import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax import parallel, recipes
from resnet_jax.analysis.complexity import count_multiply_adds
from resnet_jax.config import make_model
from resnet_jax.evaluation.protocols import SCALES as IMAGE_SCALES
from resnet_jax.reproduction.document import Heading, Paragraph, Table, to_markdown
from resnet_jax.reproduction.experiments import EXPERIMENTS, SCALES, Run, scaled
from resnet_jax.reproduction.ledger import record_path
from resnet_jax.reproduction.running import Places, ensemble_name, lacking, workdir
from resnet_jax.train.schedules import make_schedule
from resnet_jax.train.state import init_state
from resnet_jax.train.step import train_step

# Examples of the split that is scored.
_EVALUATED = {"imagenet2012": 50_000, "cifar10": 10_000, "digits": 360, "folder": 40}
_TRAINING_PASSES = 3  # Forward, and two gradients that cost about as much each.


def plan(name: str, scale: str, runs: list[Run], places: Places) -> str:
    """The runs of an experiment in order, what each costs, and what is to be done; Markdown."""
    experiment, rate = EXPERIMENTS[name], measured_rate()
    rows, total, scoring = [], 0.0, 0.0
    for run in runs:
        state, _ = lacking(experiment, scale, run, places)
        estimate = cost(places.root, run, scale, experiment.protocol)
        steps = scaled(places.root, run, scale).steps
        done = _steps_done(workdir(places, scale, run))
        to_do = {"nothing": 0.0, "score": estimate.scoring}.get(
            state, estimate.training * (1 - done / steps) + estimate.scoring
        )
        if state == "train and score" and done:
            state = f"go on from step {done:,}, and score"
        total, scoring = total + to_do, scoring + estimate.scoring
        rows.append([run.name, f"{steps:,}", f"{estimate.training:.2g}", f"{to_do / rate / 3600:.2f}", state])
    if experiment.ensemble and not record_path(places.results, scale, ensemble_name(name)).exists():
        total += scoring
        rows.append([ensemble_name(name), "", "", f"{scoring / rate / 3600:.2f}", "score"])
    header = ["run", "steps", "multiply-adds to train", "hours to do", "to do"]
    text = (
        f"About {total / rate / 3600:.2f} hours, at {rate / 1e9:.0f} billion multiply-adds a second, which is what "
        f"training steps of ResNet-20 just reached on {jax.devices()[0].device_kind}. Starting up and compiling, which "
        "is most of a smoke run, and reading photographs are left out."
    )
    heading = Heading(f"{name}, {scale}: {len(runs)} runs")
    return to_markdown([heading, Paragraph(SCALES[scale].statement), Table(header, rows), Paragraph(text)])


def _steps_done(folder: Path) -> int:
    """The step of the latest checkpoint."""
    return max((int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()), default=0)


class Cost(NamedTuple):
    """Multiply-adds of a run's training, with the evaluations on the way, and of scoring it once."""

    training: float
    scoring: float


def cost(root: Path, run: Run, scale: str, protocol: str) -> Cost:
    """An estimate: convolutions and classifiers only."""
    config = scaled(root, run, scale)
    forward, size = _forward(config)
    evaluated = _EVALUATED[config.data.name]
    passes = config.steps * config.batch_size * _TRAINING_PASSES
    passes += config.bn_recompute_batches * config.batch_size
    passes += evaluated * config.steps // config.eval_every
    views = {"single": 1.0, "ten_crop": 10.0, "multi_scale": 2 * sum((side / size) ** 2 for side in IMAGE_SCALES)}
    return Cost(float(forward * passes), forward * evaluated * views[protocol])


def _forward(config: ConfigDict) -> tuple[int, int]:
    """Multiply-adds of one image, and its size."""
    resident = config.data.name in ("cifar10", "digits")
    size = 32 if resident else config.data.crop_size
    return count_multiply_adds(make_model(config, 10 if resident else 1000), size), size


def measured_rate(model: str = "resnet20", batch_size: int = 128, steps: int = 3) -> float:
    """Multiply-adds a second of training steps of a CIFAR network on this machine's devices, compilation left out."""
    config, mesh = recipes.cifar10_paper(model), parallel.data_mesh()
    batch_size = -(-batch_size // mesh.size) * mesh.size
    config.model.bn_group_size = None
    network, schedule = make_model(config, 10), make_schedule(config)
    arrays = {"image": jnp.zeros((batch_size, 32, 32, 3)), "label": jnp.zeros(batch_size, jnp.int32)}
    batch = jax.device_put(arrays, parallel.sharded_batch(mesh))
    state = init_state(config, network, (32, 32, 3), mesh)
    step = jax.jit(lambda state, batch: train_step(config, network, schedule, state, batch))
    jax.block_until_ready(step(state, batch))
    start = time.perf_counter()
    for _ in range(steps):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return count_multiply_adds(network, 32) * batch_size * _TRAINING_PASSES * steps / (time.perf_counter() - start)
