"""ResNet-20 on CIFAR-10 with the paper's recipe (section 4.2).

Command:   python train.py --config configs/resnet20_cifar10.py --workdir runs/resnet20
Hardware:  meant for one GPU; the whole recipe has not been run here yet
Published: 8.75 % test error (Table 6)
"""

from resnet_jax import recipes


def get_config():
    return recipes.cifar10_paper("resnet20")
