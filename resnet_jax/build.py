"""From a config to the parts of a run: the one module that reads configs and knows what they are made of.

Parts take values and other parts. A part of a new kind is assembled here, and nothing below this module changes for it.
"""

from functools import partial
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh

from resnet_jax.config import Config, flatten
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.kernels import PLAIN, divided, fast_kernels
from resnet_jax.models import create_model
from resnet_jax.parts import in_steps
from resnet_jax.tasks.task import Task
from resnet_jax.train.loop import LoopSettings
from resnet_jax.train.optimizers.masked import only
from resnet_jax.train.schedules import Schedule
from resnet_jax.train.step import StepSettings


class Intervals(NamedTuple):
    """The durations of a config in steps, for a training set of a known size."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    epoch: int


def make_model(config: Config, num_classes: int, mesh: Mesh | None = None) -> Any:
    """What config.task makes of the network of config.model, on the fastest kernels for ``mesh``.

    Without a mesh on JAX's plain operations.

    Raises UserError as ``create_model`` does.
    """
    kernels = PLAIN if mesh is None else fast_kernels(mesh.devices.flat[0].platform, mesh.size)
    if mesh is not None and mesh.size > 1:
        kernels = divided(kernels, mesh)
    create = partial(create_model, config.model.name, kernels=kernels, **config.model.overrides)
    return config.task.network(create, num_classes)


def make_dataset(config: Config) -> Dataset:
    """Loads or opens config.data. Raises UserError where it is not found."""
    return config.data.load(config.data_dir)


def make_normalization(config: Config, dataset: Dataset) -> Normalization:
    """What config.normalization makes of the training images."""
    return config.normalization.make(dataset)


def make_task(config: Config, model: Any, dataset: Dataset, normalization: Normalization, mesh: Mesh) -> Task:
    """What is learned: config.task with the data and the model, of which config.finetune may freeze a part."""
    title = f"{config.model.name} on {dataset.name}"
    model = config.finetune.model(model)
    return config.task.make(model, dataset, normalization, config.transforms, mesh, config.eval_batch_size, title)


def make_optimizer(config: Config, model: Any, trained: Any = None) -> optax.GradientTransformationExtraArgs:
    """config.optimizer, whose learning rate the training step sets, for the parameters of ``Task.trained``.

    With the rates of config.finetune for ``model``.
    """
    return only(config.finetune.optimizer(config.optimizer.make(), config.task.networks(model)), trained)


def make_schedule(config: Config, intervals: Intervals) -> Schedule:
    """The learning rate by step."""
    return config.schedule.make(config.optimizer.rate(config.batch_size), intervals.steps, intervals.epoch)


def step_settings(config: Config, intervals: Intervals) -> StepSettings:
    """The plain values that the training step reads."""
    hold = config.schedule.hold
    return StepSettings(
        seed=config.seed,
        accumulate_steps=config.accumulate_steps,
        ema_decay=config.ema_decay,
        ema_every=config.ema_every,
        ema_start=None if config.ema_start is None else in_steps(config.ema_start, intervals.epoch),
        sam_radius=config.optimizer.sam_radius,
        log_every=intervals.log_every,
        hold_error=hold.error,
        hold_rate=hold.learning_rate,
        skip_nonfinite=config.on_nonfinite == "skip",
    )


def loop_settings(config: Config, intervals: Intervals) -> LoopSettings:
    """The plain values that the training loop reads."""
    return LoopSettings(
        steps=intervals.steps,
        batch_size=config.batch_size,
        steps_per_dispatch=config.steps_per_dispatch,
        log_every=intervals.log_every,
        eval_every=intervals.eval_every,
        checkpoint_every=intervals.checkpoint_every,
        keep_checkpoints=config.keep_checkpoints,
        bn_recompute_batches=config.bn_recompute_batches,
    )


def intervals(config: Config, num_train: int) -> Intervals:
    """The config's durations in steps; an epoch is ``num_train`` // batch_size of them.

    Durations in epochs are rounded to multiples of config.steps_per_dispatch. Raises UserError where a duration in
    steps is not one, or where the training set is smaller than a batch.
    """
    if config.batch_size > num_train:
        raise UserError(
            f"config.batch_size {config.batch_size} is more than the {num_train} training images; "
            f"use --config.batch_size={_power_of_two(num_train)}"
        )
    epoch, unit = num_train // config.batch_size, config.steps_per_dispatch
    found = {}
    for key in ("steps", "log_every", "eval_every", "checkpoint_every"):
        duration = getattr(config, key)
        steps = in_steps(duration, epoch)
        if isinstance(duration, str):
            steps = max(1, round(steps / unit)) * unit
        if steps % unit:
            raise UserError(
                f"config.{key} {steps} is not a multiple of config.steps_per_dispatch {unit}; change one of the two"
            )
        found[key] = steps
    return Intervals(**found, epoch=epoch)


def check(config: Config, num_devices: int) -> None:
    """Raises UserError for what a config's keys together, or with the devices, make impossible.

    Nothing is loaded or computed. What depends on the data, ``intervals`` finds.
    """
    model = make_model(config, num_classes=2)
    unit = num_devices * config.accumulate_steps
    if config.batch_size % unit:
        parts = f" times {config.accumulate_steps} accumulate_steps" if config.accumulate_steps > 1 else ""
        raise UserError(
            f"config.batch_size {config.batch_size} is not divisible by the {num_devices} devices{parts}; "
            f"use {max(1, config.batch_size // unit) * unit}"
        )
    group = config.model.bn_group_size
    if group and config.accumulate_steps == 1 and config.batch_size > group and config.batch_size % group:
        raise UserError(
            f"config.batch_size {config.batch_size} is not a multiple of config.model.bn_group_size {group}; "
            f"change one of the two"
        )
    values = flatten(config)
    of_regions = (values.get("task.kind") == "c4" or values.get("task.rcnn")) and values["task.trains"] != "rpn"
    if group and of_regions and not config.finetune.freeze_bn:
        raise UserError(
            "config.model.bn_group_size would divide the regions of each photograph, objects from background, where "
            "batch normalisation sees pooled regions; leave it out, or set config.finetune.freeze_bn"
        )
    config.transforms.mixing.examples_a_draw(config.batch_size)
    part = config.batch_size // config.accumulate_steps  # Batch statistics are over groups of it.
    if group and config.accumulate_steps > 1 and part % group:
        raise UserError(
            f"a part of a batch, config.batch_size / config.accumulate_steps = {part}, is not a multiple of "
            f"config.model.bn_group_size {group}; change one of the three"
        )
    if config.data.sizes_differ and config.steps_per_dispatch > 1:
        raise UserError(
            f"config.steps_per_dispatch is {config.steps_per_dispatch}, but the images of config.data have different "
            f"sizes from step to step; use 1"
        )
    if not config.ema_decay and (config.ema_every > 1 or config.ema_start is not None):
        raise UserError(
            "config.ema_every or config.ema_start is set but not read, because config.ema_decay is 0; set it too"
        )
    if config.bn_recompute_batches and not config.task.updates_statistics(model):
        raise UserError(
            f"config.bn_recompute_batches is set, but {config.model.name} has no batch normalisation that is trained; "
            f"remove it"
        )
    if config.data.kind not in config.task.data_kinds:
        raise UserError(
            f"config.task.name is {config.task.name!r} and config.data.kind {config.data.kind!r}; this task needs "
            f"{' or '.join(map(repr, config.task.data_kinds))}"
        )
    config.finetune.check(config.task.networks(model))
    if config.bn_recompute_batches and config.finetune.freeze_bn:
        raise UserError("config.bn_recompute_batches is set, but config.finetune.freeze_bn keeps them all; remove one")
    if config.data_dir is not None and config.data.name == "digits":
        raise UserError("config.data_dir is set, but the digits are inside scikit-learn; remove it")


def _power_of_two(limit: int) -> int:
    """The largest that is at most ``limit``."""
    return 1 << (limit.bit_length() - 1)
