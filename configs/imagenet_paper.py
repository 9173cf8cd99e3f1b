"""The paper's networks on ImageNet, with its recipe (section 3.4): imagenet_paper.py:NETWORK.

Command:   python train.py --config configs/imagenet_paper.py:resnet50 --workdir runs/resnet50
Hardware:  meant for 8 GPUs, as the paper's, or the like; not yet trained with this code
Networks and published errors (ten crops, top-1 / top-5; Tables 2 and 3):
           plain18 27.94 %, plain34 28.54 / 10.02 %, resnet18a 27.88 %, resnet34a 25.03 / 7.76 %,
           resnet34 (option B) 24.52 / 7.46 %, resnet34c 24.19 / 7.40 %, resnet50 22.85 / 6.71 %,
           resnet101 21.75 / 6.05 %, resnet152 21.43 / 5.71 %; resnet18 (option B) is torchvision's: 30.24 %, one crop

At most 60e4 steps of batch 256; the learning rate is divided by 10 when the validation error plateaus. The paper does
not say how it saw a plateau: here, five evaluations, each of about one epoch, without a lower error. NETWORK-fixed, as
in resnet50-fixed, divides it at 15e4 and 30e4 steps instead, about the 30 and 60 epochs that later programs use; the
paper gives no numbers, and these were not measured in its Figure 4. From the authors' released note: batch statistics
over 32 images, and recomputed over a large batch after training.
"""

from typing import Literal

from resnet_jax.config import Config, Model
from resnet_jax.data import Photographs
from resnet_jax.data.crops import ScaleJitter
from resnet_jax.data.transforms import Flip, PcaColor, Transforms
from resnet_jax.errors import UserError
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Plateau, Step

# The options of Table 3; without a letter they are those of the named network, B for 18 and 34 layers.
_SHORTCUTS: dict[str, tuple[str, Literal["A", "C"]]] = {
    "resnet18a": ("resnet18", "A"),
    "resnet34a": ("resnet34", "A"),
    "resnet34c": ("resnet34", "C"),
}


def get_config(network: str = "resnet50") -> Config:
    member, _, fixed = network.partition("-")
    if fixed not in ("", "fixed"):
        raise UserError(f"there is no member {network}; name NETWORK or NETWORK-fixed")
    name, shortcut = _SHORTCUTS.get(member, (member, None))
    return Config(
        steps=600_000,
        batch_size=256,
        eval_batch_size=256,
        eval_every=5_000,
        checkpoint_every=1_000,
        bn_recompute_batches=200,
        model=Model(name=name, shortcut=shortcut, bn_group_size=32),
        data=Photographs(name="imagenet2012", crop=ScaleJitter(shorter_side=(256, 480)), crop_size=224),
        transforms=Transforms(flip=Flip(probability=0.5), pca_color=PcaColor(std=0.1)),
        optimizer=SGD(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Step(boundaries=(150_000, 300_000)) if fixed else Plateau(factor=0.1, patience=5),
    )
