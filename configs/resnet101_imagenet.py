"""ResNet-101 on ImageNet with the paper's recipe (section 3.4).

Command:   python train.py --config configs/resnet101_imagenet.py --workdir runs/resnet101
Hardware:  meant for 8 GPUs, as the paper's, or what stands for them; the recipe has not been run here
Published: 21.75 % top-1, 6.05 % top-5 error, ten crops (Table 3)
"""

from resnet_jax import recipes


def get_config():
    return recipes.imagenet_paper("resnet101")
