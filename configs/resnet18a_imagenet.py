"""ResNet-18 with option A shortcuts on ImageNet with the paper's recipe (section 3.4).

Command:   python train.py --config configs/resnet18a_imagenet.py --workdir runs/resnet18a
Hardware:  meant for 8 GPUs, as the paper's, or what stands for them; the recipe has not been run here
Published: 27.88 % top-1 error, ten crops (Table 2)
"""

from resnet_jax import recipes


def get_config():
    return recipes.imagenet_paper("resnet18", shortcut="A")
