"""The plain 34-layer network on ImageNet with the paper's recipe (section 3.4).

Command:   python train.py --config configs/plain34_imagenet.py --workdir runs/plain34
Hardware:  meant for 8 GPUs, as the paper's, or what stands for them; the recipe has not been run here
Published: 28.54 % top-1, 10.02 % top-5 error, ten crops (Tables 2 and 3)
"""

from resnet_jax import recipes


def get_config():
    return recipes.imagenet_paper("plain34")
