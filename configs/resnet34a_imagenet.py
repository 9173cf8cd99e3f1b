"""ResNet-34 with option A shortcuts (34-A) on ImageNet with the paper's recipe (section 3.4).

Command:   python train.py --config configs/resnet34a_imagenet.py --workdir runs/resnet34a
Hardware:  meant for 8 GPUs, as the paper's, or what stands for them; the recipe has not been run here
Published: 25.03 % top-1, 7.76 % top-5 error, ten crops (Tables 2 and 3)
"""

from resnet_jax import recipes


def get_config():
    return recipes.imagenet_paper("resnet34", shortcut="A")
