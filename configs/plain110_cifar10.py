"""plain-110 on CIFAR-10 with the paper's recipe (section 4.2).

Command:   python train.py --config configs/plain110_cifar10.py --workdir runs/plain110
Hardware:  meant for one GPU; the whole recipe has not been run here yet
Published: above 60 % test error (section 4.2: it does not train)
"""

from resnet_jax import recipes


def get_config():
    return recipes.cifar10_paper("plain110")
