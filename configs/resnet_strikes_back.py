"""ResNet-50 with the procedures of "ResNet strikes back" on ImageNet: resnet_strikes_back.py:a1, :a2 or :a3.

Command:   python train.py --config configs/resnet_strikes_back.py:a2 --workdir runs/a2
Hardware:  meant for 4 GPUs of 32 GB, as the paper's; not yet trained with this code
Source:    Wightman, Touvron and Jégou, arXiv 2110.00476, Table 2
Published: top-1 error at 224 pixels, Table 1: a1 (600 epochs) 19.6 %, a2 (300) 20.2 %, a3 (100, trained at 160) 21.9 %

Settings of Table 2 for a1 / a2 / a3: batch 2048, LAMB, learning rate 5e-3 / 5e-3 / 8e-3, weight decay 0.01 / 0.02 /
0.02, cosine after 5 epochs of warm-up, binary cross-entropy, mixup 0.2 / 0.1 / 0.1, CutMix 1, RandAugment 7 / 7 / 6 of
timm with a spread of 0.5, stochastic depth 0.05 / 0.05 / 0, three repetitions of an image in a batch / three / none,
label smoothing 0.1 / 0 / 0, test crops of 0.95.
From timm, which the paper's code is in: targets are 1 above 0.2; gradients are clipped to norm 1 within LAMB; warped
images are seen bilinearly (timm draws bilinear or bicubic). The rate changes by the step, not the epoch, and stochastic
depth rises from the first block on (timm's first is always there).
"""

from typing import NamedTuple

from resnet_jax.config import Config, Model, choose
from resnet_jax.data import Photographs
from resnet_jax.data.crops import RandomResized
from resnet_jax.data.normalization import Channel
from resnet_jax.data.transforms import Flip, Mixing, RandAugment, Transforms
from resnet_jax.tasks.classification import Classification
from resnet_jax.train.optimizers import LAMB
from resnet_jax.train.schedules import Cosine


class _Procedure(NamedTuple):
    epochs: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    drop_path: float | None
    repeats: int
    magnitude: float  # Of RandAugment.
    mixup: float
    train_size: int | None  # Where it is not 224.


_PROCEDURES = {
    "a1": _Procedure(600, 5e-3, 0.01, 0.1, 0.05, 3, 7.0, 0.2, None),
    "a2": _Procedure(300, 5e-3, 0.02, 0.0, 0.05, 3, 7.0, 0.1, None),
    "a3": _Procedure(100, 8e-3, 0.02, 0.0, None, 1, 6.0, 0.1, 160),
}


def get_config(procedure: str = "a2") -> Config:
    chosen = choose(_PROCEDURES, procedure)
    return Config(
        steps=f"{chosen.epochs} epochs",
        batch_size=2048,
        eval_batch_size=256,
        eval_every="1 epoch",
        checkpoint_every=250,
        model=Model(
            name="resnet50",
            stride_placement="v1.5",
            dtype="bfloat16",
            bn_group_size=512,  # As on four GPUs.
            zero_init_last_bn=True,
            drop_path=chosen.drop_path,
        ),
        data=Photographs(
            name="imagenet2012",
            crop=RandomResized(area=(0.08, 1.0)),
            crop_size=224,
            train_crop_size=chosen.train_size,
            eval_shorter_side=235,  # 224 / 0.95, cut off as timm does.
            interpolation="bicubic",
            repeats=chosen.repeats,
        ),
        normalization=Channel(),
        transforms=Transforms(
            flip=Flip(probability=0.5),
            rand_augment=RandAugment(
                layers=2,
                magnitude=chosen.magnitude,
                magnitude_std=0.5,
                bins=11,
                probability=0.5,
                operations="timm",
                interpolation="bilinear",
                fill=128,
            ),
            mixing=Mixing(mixup_alpha=chosen.mixup, cutmix_alpha=1.0, draw=512),
        ),
        task=Classification(loss="bce", target_threshold=0.2, label_smoothing=chosen.label_smoothing),
        optimizer=LAMB(learning_rate=chosen.learning_rate, weight_decay=chosen.weight_decay, clip_norm=1.0),
        schedule=Cosine(warmup_steps="5 epochs", warmup_from=0.0),
    )
