"""ResNet-18 on ImageNet with the paper's recipe (section 3.4).

Command:   python train.py --config configs/resnet18_imagenet.py --workdir runs/resnet18
Hardware:  meant for 8 GPUs, as the paper's, or what stands for them; the recipe has not been run here
Published: 30.24 % top-1 error, one crop, for torchvision's weights V1; the paper has one with option A shortcuts
           (Table 2; configs/resnet18a_imagenet.py)
"""

from resnet_jax import recipes


def get_config():
    return recipes.imagenet_paper("resnet18")
