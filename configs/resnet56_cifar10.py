"""ResNet-56 on CIFAR-10 with the paper's recipe (section 4.2).

Command:   python train.py --config configs/resnet56_cifar10.py --workdir runs/resnet56
Hardware:  meant for one GPU; the whole recipe has not been run here yet
Published: 6.97 % test error (Table 6)
"""

from resnet_jax import recipes


def get_config():
    return recipes.cifar10_paper("resnet56")
