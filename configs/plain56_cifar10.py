"""plain-56 on CIFAR-10 with the paper's recipe (section 4.2).

Command:   python train.py --config configs/plain56_cifar10.py --workdir runs/plain56
Hardware:  meant for one GPU; the whole recipe has not been run here yet
Published: a curve in Figure 6, no number
"""

from resnet_jax import recipes


def get_config():
    return recipes.cifar10_paper("plain56")
