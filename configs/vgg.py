"""VGG, which the paper compares with, on ImageNet with VGG's own recipe (arXiv 1409.1556, section 3.1): vgg.py:NETWORK.

Command:   python train.py --config configs/vgg.py:vgg16 --workdir runs/vgg16
Hardware:  meant for 8 GPUs, or the like; not yet trained with this code
Networks and published errors: vgg16 28.07 % top-1, 9.33 % top-5, ten crops (Table 3); vgg19

At most 370,000 steps of batch 256 (74 epochs there). Unlike there the scales are drawn from [256, 480], the residual
networks' range, and all layers start at random.
"""

from resnet_jax.config import Config, Model
from resnet_jax.data import Photographs
from resnet_jax.data.crops import ScaleJitter
from resnet_jax.data.transforms import Flip, PcaColor, Transforms
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Plateau


def get_config(network: str = "vgg16") -> Config:
    return Config(
        steps=370_000,
        batch_size=256,
        eval_batch_size=256,
        eval_every=5_000,
        checkpoint_every=1_000,
        model=Model(name=network),
        data=Photographs(name="imagenet2012", crop=ScaleJitter(shorter_side=(256, 480)), crop_size=224),
        transforms=Transforms(flip=Flip(probability=0.5), pca_color=PcaColor(std=0.1)),
        optimizer=SGD(learning_rate=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=Plateau(factor=0.1, patience=5),
    )
