"""VGG-19, which the paper compares with, on ImageNet with VGG's own recipe (arXiv 1409.1556, section 3.1).

Command:   python train.py --config configs/vgg19_imagenet.py --workdir runs/vgg19
Hardware:  meant for 8 GPUs, or what stands for them; the recipe has not been run here
Published: no number in the paper; 19.6 billion multiply-adds (section 3.3)
"""

from resnet_jax import recipes


def get_config():
    return recipes.imagenet_vgg("vgg19")
