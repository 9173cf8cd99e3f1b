"""ResNet-50 on ImageNet with the paper's recipe (section 3.4).

Command:   python train.py --config configs/resnet50_imagenet_paper.py --workdir runs/resnet50_paper
Hardware:  meant for 8 GPUs, as the paper's, or what stands for them; the recipe has not been run here
Published: 22.85 % top-1, 6.71 % top-5 error, ten crops (Table 3)
"""

from resnet_jax import recipes


def get_config():
    return recipes.imagenet_paper("resnet50")
