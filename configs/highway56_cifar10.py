"""A highway network, ResNet-56 with gated shortcuts, on CIFAR-10 with the paper's recipe (section 4.2).

Command:   python train.py --config configs/highway56_cifar10.py --workdir runs/highway56
Hardware:  meant for one GPU; the whole recipe has not been run here yet
Published: no number
"""

from resnet_jax import recipes


def get_config():
    return recipes.cifar10_paper("highway56")
