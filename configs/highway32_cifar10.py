"""A highway network, ResNet-32 with gated shortcuts, on CIFAR-10 with the paper's recipe (section 4.2).

Command:   python train.py --config configs/highway32_cifar10.py --workdir runs/highway32
Hardware:  meant for one GPU; the whole recipe has not been run here yet
Published: 8.80 % test error for the highway network of 32 layers, which is built otherwise (Table 6)
"""

from resnet_jax import recipes


def get_config():
    return recipes.cifar10_paper("highway32")
