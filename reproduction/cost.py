"""What a plan costs: multiply-adds, and hours at the rate that this machine reaches."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reproduction.document import Heading, Paragraph, Table, to_markdown
from reproduction.experiments import EXPERIMENTS, SCALES, Run, recipe_steps, scaled
from reproduction.ledger import record_path
from reproduction.running import Places, ensemble_name, lacking, workdir
from resnet_jax.analysis.complexity import count_multiply_adds
from resnet_jax.build import make_model
from resnet_jax.config import Config, flatten
from resnet_jax.evaluation.protocols.multi_scale import SCALES as IMAGE_SCALES
from resnet_jax.kernels import fast_kernels
from resnet_jax.models import create_model, variant

# Examples of the split that is scored.
_EVALUATED = {"imagenet2012": 50_000, "cifar10": 10_000, "digits": 360, "folder": 40}
_TRAINING_PASSES = 3  # Forward, and two gradients that cost about as much each.
_ASPECT = 4 / 3  # Of the photographs that are tested whole.


def plan(name: str, scale: str, runs: list[Run], places: Places) -> str:
    """The runs of an experiment in order, what each costs, and what is to be done; Markdown."""
    experiment, rate = EXPERIMENTS[name], measured_rate()
    rows, total, scoring = [], 0.0, 0.0
    for run in runs:
        state, _ = lacking(experiment, scale, run, places)
        config = scaled(places.root, run, scale)
        estimate, steps = cost(config, experiment.protocol), recipe_steps(config)
        done = _steps_done(workdir(places, scale, run))
        to_do = {"nothing": 0.0, "score": estimate.scoring}.get(
            state, estimate.training * (1 - done / steps) + estimate.scoring
        )
        if state == "train and score" and done:
            state = f"resume from step {done:,}, and score"
        total, scoring = total + to_do, scoring + estimate.scoring
        rows.append([run.name, f"{steps:,}", f"{estimate.training:.2g}", f"{to_do / rate / 3600:.2f}", state])
    if experiment.ensemble and not record_path(places.results, scale, ensemble_name(name)).exists():
        total += scoring
        rows.append([ensemble_name(name), "", "", f"{scoring / rate / 3600:.2f}", "score"])
    header = ["run", "steps", "multiply-adds to train", "hours to do", "to do"]
    text = (
        f"About {total / rate / 3600:.2f} hours, at {rate / 1e9:.0f} billion multiply-adds a second, which is what "
        f"gradients of ResNet-20 just reached on one {jax.devices()[0].device_kind} in float32; other networks and "
        "other types reach another rate. Starting up and compiling, which is most of a smoke run, and reading "
        "photographs are left out."
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


def cost(config: Config, protocol: str) -> Cost:
    """An estimate: convolutions and classifiers only. Durations of ``config`` are in steps."""
    forward, size = _forward(config)
    evaluated, steps = _EVALUATED[config.data.name], recipe_steps(config)
    gradients = 2 if flatten(config).get("optimizer.sam_radius") else 1
    a_step = gradients * (_TRAINING_PASSES + bool(config.model.remat))  # Rematerialisation: forward once more.
    passes = (steps * a_step + config.bn_recompute_batches) * config.batch_size
    passes += evaluated * (steps // int(config.eval_every))
    views = {
        "single": 1.0,
        "ten_crop": 10.0,
        "multi_scale": 2 * _ASPECT * sum((side / size) ** 2 for side in IMAGE_SCALES),
    }
    return Cost(float(forward * passes), forward * evaluated * views[protocol])


def _forward(config: Config) -> tuple[int, int]:
    """Multiply-adds of one image, and its size."""
    known = variant(config.model.name)
    size = flatten(config).get("data.crop_size", known.image_size)
    return count_multiply_adds(make_model(config, known.fields["num_classes"]), size), size


def measured_rate(model: str = "resnet20", batch_size: int = 128, rounds: int = 3) -> float:
    """Multiply-adds a second of a CIFAR network's gradients on one device of this machine, compilation left out."""
    network = create_model(model, kernels=fast_kernels(jax.default_backend(), 1))
    images, labels = jnp.zeros((batch_size, 32, 32, 3)), jnp.zeros(batch_size, jnp.int32)
    variables = jax.jit(network.init)(jax.random.key(0), images)

    def loss(params: Any) -> jax.Array:
        logits, _ = network.apply({**variables, "params": params}, images, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient = jax.jit(jax.grad(loss))
    jax.block_until_ready(gradient(variables["params"]))
    start = time.perf_counter()
    for _ in range(rounds):
        found = gradient(variables["params"])
    jax.block_until_ready(found)
    return count_multiply_adds(network, 32) * batch_size * _TRAINING_PASSES * rounds / (time.perf_counter() - start)
