"""ResNet-34 with option B shortcuts (34-B) on ImageNet with the paper's recipe (section 3.4).

Command:   python train.py --config configs/resnet34_imagenet.py --workdir runs/resnet34
Hardware:  meant for 8 GPUs, as the paper's, or what stands for them; the recipe has not been run here
Published: 24.52 % top-1, 7.46 % top-5 error, ten crops (Table 3)
"""

from resnet_jax import recipes


def get_config():
    return recipes.imagenet_paper("resnet34")
