"""VGG-16, which the paper compares with, on ImageNet with VGG's own recipe (arXiv 1409.1556, section 3.1).

Command:   python train.py --config configs/vgg16_imagenet.py --workdir runs/vgg16
Hardware:  meant for 8 GPUs, or what stands for them; the recipe has not been run here
Published: 28.07 % top-1, 9.33 % top-5 error, ten crops (Table 3)
"""

from resnet_jax import recipes


def get_config():
    return recipes.imagenet_vgg("vgg16")
