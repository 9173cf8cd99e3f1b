"""The paper's networks on CIFAR-10, with its recipe (section 4.2): cifar10.py:NETWORK.

Command:   python train.py --config configs/cifar10.py:resnet20 --workdir runs/resnet20
Hardware:  meant for one GPU; the recipe is 164 passes over the 50,000 training images
Networks and published test errors (Table 6; section 4.2):
           resnet20 8.75 %, resnet32 7.51 %, resnet44 7.17 %, resnet56 6.97 %, resnet110 6.43 % (five runs: 6.61 +-
           0.16), resnet1202 7.93 %; plain20, plain32, plain44, plain56 (Figure 6), plain110 above 60 %;
           highway20, highway32, highway56: residual networks with gated shortcuts (Table 6 cites 7.54 % of 19 layers
           that are built otherwise)

The paper chose the schedule on a 45k/5k split: --config.data.holdout=5000.
"""

from resnet_jax.config import Config, Model
from resnet_jax.data import Resident
from resnet_jax.data.transforms import Flip, RandomCrop, Transforms
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Hold, Step


def get_config(network: str = "resnet20") -> Config:
    deep = network in ("resnet110", "plain110", "resnet1202")
    return Config(
        steps=64_000,
        batch_size=128,
        log_every=100,
        eval_every=1_000,
        checkpoint_every=1_000,
        model=Model(
            name=network,
            bn_group_size=64,  # As on the paper's two GPUs.
            # The activations of a batch take 3 GiB with it and 18 GiB without (benchmarks/depth.py).
            remat=True if network == "resnet1202" else None,
        ),
        data=Resident(name="cifar10"),
        transforms=Transforms(random_crop=RandomCrop(pad=4), flip=Flip(probability=0.5)),
        optimizer=SGD(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Step(
            boundaries=(32_000, 48_000),
            factor=0.1,
            # The deepest networks start at 0.01, until the training error is below 80 %.
            hold=Hold(error=0.8, learning_rate=0.01) if deep else Hold(),
        ),
    )
