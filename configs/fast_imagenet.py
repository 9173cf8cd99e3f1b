"""ResNet-50 on ImageNet in few epochs, as FFCV's recipes: fast_imagenet.py:16 or :88, the number of epochs.

Command:   python train.py --config configs/fast_imagenet.py:16 --workdir runs/fast16
           With another --config.batch_size, also give --config.optimizer.learning_rate.
Hardware:  meant for 8 GPUs of 40 GB, as FFCV's; not yet trained with this code
Source:    github.com/libffcv/ffcv-imagenet, rn50_configs/rn50_16_epochs.yaml, rn50_88_epochs.yaml; train_imagenet.py
Published: top-1 error in that repository's README, mirror images averaged: 26.2 % in 16 epochs, 21.6 % in 88

A batch of 512 on each of 8 GPUs, SGD at 1.7 with momentum 0.9 and weight decay 1e-4 but for batch normalisation, label
smoothing 0.1; the rate climbs for two epochs and falls to 0 in a straight line. Images grow from 160 to 192 pixels from
epoch 11 to 13 of 16 and from 65 to 76 of 88; evaluation is at 256, of the central 7/8.
Left out are the blur before strided convolutions and the average over the mirror image; so expect a higher error.
Unlike there, the batch normalisation of the projections is spared weight decay, too (FFCV spares names with "bn"), and
the rate is folded into the velocity, v <- 0.9 v + rate * gradient.
"""

from resnet_jax.config import Config, Model, choose
from resnet_jax.data import Photographs
from resnet_jax.data.crops import Progressive, RandomResized
from resnet_jax.data.normalization import Channel
from resnet_jax.data.transforms import Flip, Transforms
from resnet_jax.tasks.classification import Classification
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Triangular

_RAMPS = {"16": ("11 epochs", "13 epochs"), "88": ("65 epochs", "76 epochs")}


def get_config(epochs: str = "16") -> Config:
    begin, end = choose(_RAMPS, epochs)
    return Config(
        steps=f"{epochs} epochs",
        batch_size=4096,
        eval_batch_size=256,
        eval_every="1 epoch",
        checkpoint_every=100,
        model=Model(
            name="resnet50",
            stride_placement="v1.5",
            dtype="bfloat16",
            bn_group_size=512,  # As on eight GPUs.
        ),
        data=Photographs(
            name="imagenet2012",
            crop=RandomResized(area=(0.08, 1.0)),
            crop_size=256,
            train_crop_size=192,
            eval_shorter_side=293,  # 256 * 256 / 224.
            progressive=Progressive(start_size=160, begin=begin, end=end, multiple=32),
        ),
        normalization=Channel(),
        transforms=Transforms(flip=Flip(probability=0.5)),
        task=Classification(label_smoothing=0.1),
        optimizer=SGD(learning_rate=1.7, momentum=0.9, weight_decay=1e-4, decay="not_norm"),
        schedule=Triangular(peak_at="2 epochs", start=1e-4),
    )
