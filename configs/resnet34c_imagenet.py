"""ResNet-34 with option C shortcuts (34-C) on ImageNet with the paper's recipe (section 3.4).

Command:   python train.py --config configs/resnet34c_imagenet.py --workdir runs/resnet34c
Hardware:  meant for 8 GPUs, as the paper's, or what stands for them; the recipe has not been run here
Published: 24.19 % top-1, 7.40 % top-5 error, ten crops (Table 3)
"""

from resnet_jax import recipes


def get_config():
    return recipes.imagenet_paper("resnet34", shortcut="C")
