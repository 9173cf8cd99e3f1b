"""ResNet-44 on CIFAR-10 with the paper's recipe (section 4.2).

Command:   python train.py --config configs/resnet44_cifar10.py --workdir runs/resnet44
Hardware:  meant for one GPU; the whole recipe has not been run here yet
Published: 7.17 % test error (Table 6)
"""

from resnet_jax import recipes


def get_config():
    return recipes.cifar10_paper("resnet44")
