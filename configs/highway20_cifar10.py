"""A highway network, ResNet-20 with gated shortcuts, on CIFAR-10 with the paper's recipe (section 4.2).

Command:   python train.py --config configs/highway20_cifar10.py --workdir runs/highway20
Hardware:  meant for one GPU; the whole recipe has not been run here yet
Published: 7.54 % test error for the highway network of 19 layers, which is built otherwise (Table 6)
"""

from resnet_jax import recipes


def get_config():
    return recipes.cifar10_paper("highway20")
