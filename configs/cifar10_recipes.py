"""CIFAR-10 with recipes that came after the paper's: cifar10_recipes.py:MEMBER.

Command:   python train.py --config configs/cifar10_recipes.py:resnet18 --workdir runs/cifar-resnet18
Hardware:  meant for one GPU; not yet trained with this code
Members, sources and published test errors:
           resnet18         ResNet-18 with a 3x3 stem, 200 epochs of batch 128: SGD with Nesterov momentum 0.9, weight
                            decay 5e-4, learning rate 0.1, divided by 5 at epochs 60, 120 and 160; shifts by 4 pixels
                            and mirror images (DeVries and Taylor, arXiv 1708.04552, section 4.1): 4.72 % (Table 1)
           resnet18_cutout  the same with squares of 16 pixels cut out: 3.99 % (Table 1)
           resnet18_cosine  the first with a cosine and without Nesterov, as github.com/kuangliu/pytorch-cifar; no
                            published figure of this network with it is known
           resnet20_fast    the paper's ResNet-20 in 12,000 steps of batch 128, 3/16 of its 64,000: one cycle, Nesterov
                            momentum, weight decay 5e-4 (after Smith and Topin, arXiv 1708.07120). Meant to reach the
                            paper's 8.75 %; no published figure
"""

from resnet_jax.config import Config, Model, choose
from resnet_jax.data import Resident
from resnet_jax.data.normalization import Channel
from resnet_jax.data.transforms import Cutout, Flip, RandomCrop, Transforms
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import AnySchedule, Cosine, Step, Triangular


def get_config(member: str = "resnet18") -> Config:
    steps = Step(boundaries=("60 epochs", "120 epochs", "160 epochs"), factor=0.2)
    schedules: dict[str, AnySchedule] = {
        "resnet18": steps,
        "resnet18_cutout": steps,
        "resnet18_cosine": Cosine(),
        "resnet20_fast": Triangular(peak_at=3_000, start=0.1),
    }
    fast = member == "resnet20_fast"
    return Config(
        steps=12_000 if fast else "200 epochs",
        batch_size=128,
        log_every=100,
        eval_every=1_000,
        checkpoint_every=1_000,
        model=Model(name="resnet20") if fast else Model(name="resnet18", stem="cifar"),
        data=Resident(name="cifar10"),
        normalization=Channel(),
        transforms=Transforms(
            random_crop=RandomCrop(pad=4),
            flip=Flip(probability=0.5),
            cutout=Cutout(size=16 if member == "resnet18_cutout" else 0),
        ),
        optimizer=SGD(
            learning_rate=0.4 if fast else 0.1,
            momentum=0.9,
            nesterov=member != "resnet18_cosine",
            weight_decay=5e-4,
        ),
        schedule=choose(schedules, member),
    )
