"""ResNet-50 v1.5 on ImageNet in large batches with LARS, as MLPerf's reference runs: mlperf.py:BATCH_SIZE.

Command:   python train.py --config configs/mlperf.py:4096 --workdir runs/mlperf4096
Hardware:  meant for 8 accelerators and more; not yet trained with this code
Source:    MLPerf Training 4.0's reference convergence points: github.com/mlcommons/logging, rcps_resnet.json
Published: 24.1 % top-1 error (75.9 % accuracy), one crop, is reached in 39 to 42 epochs at 4096, 41 to 44 at 8192, 55
           to 57 at 32768 and 83 to 86 at 65536

Rate 10 / 17 / 21.2 / 24.699, momentum 0.9 / 0.9 / 0.94 / 0.951807, weight decay 2e-4 / 2e-4 / 2.5e-5 / 1e-4 and batch
statistics over 64 / 64 / 128 / 128 images, for the four batches; linear warm-up over 5 / 5 / 16 / 31 epochs, then the
square of the remaining time down to 1e-4 over 13137 / 6095 / 2267 / 1133 steps. Batch normalisation and biases
are excluded from weight decay and from LARS's scaling. Training crops have from 5 % of the area on, as the reference's
(which draws the aspect uniformly, and 100 times at most). The convergence points do not state the label smoothing
(0.1), LARS's trust (0.001) and the zero-initialised last batch normalisation: these are the usual ones.
"""

from typing import NamedTuple

from resnet_jax.config import Config, Model, choose
from resnet_jax.data import Photographs
from resnet_jax.data.crops import RandomResized
from resnet_jax.data.normalization import Channel
from resnet_jax.data.transforms import Flip, Transforms
from resnet_jax.tasks.classification import Classification
from resnet_jax.train.optimizers import LARS
from resnet_jax.train.schedules import Polynomial


class _Point(NamedTuple):
    rate: float
    warmup_epochs: int
    momentum: float
    weight_decay: float
    decay_steps: int
    bn_group_size: int


_POINTS = {
    "4096": _Point(10.0, 5, 0.9, 2e-4, 13_137, 64),
    "8192": _Point(17.0, 5, 0.9, 2e-4, 6_095, 64),
    "32768": _Point(21.2, 16, 0.94, 2.5e-5, 2_267, 128),
    "65536": _Point(24.699, 31, 0.951807, 1e-4, 1_133, 128),
}
_TRAINING_IMAGES = 1_281_167


def get_config(batch_size: str = "4096") -> Config:
    point = choose(_POINTS, batch_size)
    warmup = point.warmup_epochs * (_TRAINING_IMAGES // int(batch_size))
    return Config(
        steps=warmup + point.decay_steps,
        batch_size=int(batch_size),
        eval_batch_size=256,
        eval_every="1 epoch",
        checkpoint_every=100,
        model=Model(
            name="resnet50",
            stride_placement="v1.5",
            dtype="bfloat16",
            bn_group_size=point.bn_group_size,
            zero_init_last_bn=True,
        ),
        data=Photographs(name="imagenet2012", crop=RandomResized(area=(0.05, 1.0)), crop_size=224),
        normalization=Channel(),
        transforms=Transforms(flip=Flip(probability=0.5)),
        task=Classification(label_smoothing=0.1),
        optimizer=LARS(learning_rate=point.rate, momentum=point.momentum, weight_decay=point.weight_decay),
        schedule=Polynomial(power=2.0, floor=1e-4, warmup_steps=warmup),
    )
