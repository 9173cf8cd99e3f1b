"""What each ingredient is worth: ResNet-20 on CIFAR-10 in a fortieth of the paper's steps, one ingredient at a time.

Command:   python train.py --config configs/cifar10_ingredients.py:resnet20_mixup --workdir runs/mixup
           All, two seeds each, and their table: python reproduce.py ingredients --scale paper
Hardware:  meant for two CPU cores: 1,600 steps (4 epochs) a run; docs/recipes.md has the results
Published: nothing; the paper's ResNet-20 has 8.75 % in forty times the steps (arXiv 1512.03385, Table 6)

resnet20_baseline is the paper's recipe with the learning rate divided by 10 after 800 and 1,200 steps. Every other
member differs from it only in the ingredient that it is named after, but one_cycle peaks at 0.4, four times the
baseline's rate, and adamw has a rate and a decay of its own. sam takes two gradients a step.
"""

from typing import Any

from resnet_jax.config import Config, Model, choose, override
from resnet_jax.data import Resident
from resnet_jax.data.transforms import Flip, RandomCrop, Transforms
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Step

INGREDIENTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "nesterov": {"optimizer.nesterov": True},
    "weight_decay": {"optimizer.weight_decay": 5e-4},
    "sam": {"optimizer.sam_radius": 0.05},
    "adamw": {"optimizer.name": "adamw", "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.05},
    "cosine": {"schedule.name": "cosine"},
    "one_cycle": {
        "schedule.name": "triangular",
        "schedule.peak_at": 400,
        "schedule.start": 0.1,
        "optimizer.learning_rate": 0.4,
    },
    "ema": {"ema_decay": 0.995},
    "label_smoothing": {"task.label_smoothing": 0.1},
    "bce": {"task.loss": "bce", "task.sum_classes": True},
    "mixup": {"transforms.mixing.mixup_alpha": 0.2},
    "cutmix": {"transforms.mixing.cutmix_alpha": 1.0},
    "cutout": {"transforms.cutout.size": 16},
    "random_erasing": {"transforms.random_erasing.probability": 0.25},
    "rand_augment": {"transforms.rand_augment.layers": 1},
    "trivial_augment": {"transforms.trivial_augment.probability": 1.0},
    "color_jitter": {
        "transforms.color_jitter.brightness": 0.2,
        "transforms.color_jitter.contrast": 0.2,
        "transforms.color_jitter.saturation": 0.2,
    },
    "repeats": {"data.repeats": 2},
}


def get_config(member: str = "resnet20_baseline") -> Config:
    baseline = Config(
        steps=1_600,
        batch_size=128,
        log_every=100,
        eval_every=400,
        checkpoint_every=400,
        model=Model(name="resnet20", bn_group_size=64),
        data=Resident(name="cifar10"),
        transforms=Transforms(random_crop=RandomCrop(pad=4), flip=Flip(probability=0.5)),
        optimizer=SGD(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Step(boundaries=(800, 1_200), factor=0.1),
    )
    return override(baseline, choose({f"resnet20_{name}": keys for name, keys in INGREDIENTS.items()}, member))
