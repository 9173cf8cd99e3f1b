"""Trains a small network to match a larger one (Hinton et al., arXiv 1503.02531), in a loop of its own.

python train.py --config configs/quickstart.py --workdir runs/quickstart
python examples/distillation.py --teacher=runs/quickstart

Nothing here is a change of the package: the loss is a task of its own, and the loop is made of the package's data,
optimizer, schedule, compiled step and exact evaluation. It runs on all devices that there are.
"""

import argparse
import dataclasses
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax

from resnet_jax import create_model, load_run, parallel
from resnet_jax.data import Resident
from resnet_jax.data.feed import training_inputs
from resnet_jax.data.transforms import RandomCrop, Transforms
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import error_rates, make_evaluator
from resnet_jax.tasks import ClassificationTask
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Cosine
from resnet_jax.train.state import init_state
from resnet_jax.train.step import StepSettings, make_train_step

BATCH_SIZE, LEARNING_RATE, SEED = 64, 0.1, 0


@dataclasses.dataclass(frozen=True, eq=False)
class Distillation(ClassificationTask):
    """Classification whose targets are partly what another network says of the same, normalised images.

    teacher: the network and its variables, which the compiled step holds as constants.
    share: of the teacher in the targets, 0 to 1.
    """

    teacher: Any = None
    share: float = 0.5

    def prepare(self, key: jax.Array, batch: Any) -> Any:
        batch = super().prepare(key, batch)
        model, variables = self.teacher
        theirs = jax.nn.softmax(model.apply(variables, batch["image"], train=False))
        own = batch["target"] if "target" in batch else jax.nn.one_hot(batch["label"], self.model.num_classes)
        return batch | {"target": (1 - self.share) * own + self.share * theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--teacher", required=True, help="a workdir of a run on the digits")
    parser.add_argument("--width", type=int, default=4, help="filters of the student's first stage")
    parser.add_argument("--share", type=float, default=0.5, help="of the teacher in the targets; 0: none")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    try:
        teacher, data = load_run(arguments.teacher), Resident(name="digits").load()
        if (teacher.image_shape, teacher.class_names) != (data.image_shape, data.class_names):
            raise UserError(f"{arguments.teacher} was not trained on the digits; name a run that was")
        model = create_model("resnet20", num_classes=10, width=arguments.width, stage_sizes=(1, 1, 1))
    except UserError as error:
        sys.exit(f"error: {error}")

    mesh = parallel.data_mesh()
    evaluate = make_evaluator(model, teacher.normalize, data, data.evaluation_split, mesh, batch_size=360)
    transforms = Transforms(random_crop=RandomCrop(pad=2))
    task = Distillation(
        model,
        teacher.normalize,
        transforms,
        evaluate,
        teacher=(teacher.model, jax.device_get(teacher.variables)),
        share=arguments.share,
    )
    optimizer = SGD().make()
    schedule = Cosine().make(LEARNING_RATE, arguments.steps, data.num_train // BATCH_SIZE)
    settings = StepSettings(seed=SEED, log_every=50)
    state = init_state(task, optimizer, SEED, settings.ema_decay, settings.hold_error, data.image_shape, mesh)
    train_step = make_train_step(task, data, optimizer, schedule, settings, steps_per_dispatch=1, mesh=mesh)
    resident, batches = training_inputs(data, SEED, BATCH_SIZE, 1, 0, arguments.steps, mesh)
    for step, batch in enumerate(batches, start=1):
        state, metrics = train_step(state, resident, batch)
        if step % settings.log_every == 0 or step == arguments.steps:
            print(f"step {step}/{arguments.steps}: loss {float(metrics['train_loss']):.3f}", file=sys.stderr)
    print(f"test error {error_rates(evaluate(state.variables))['top1_error']:.2f} %")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, without a traceback.
    main()
