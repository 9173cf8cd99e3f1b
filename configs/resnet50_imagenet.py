"""ResNet-50 v1.5 on ImageNet: the recommended present-day baseline, 90 epochs.

Command:   python train.py --config configs/resnet50_imagenet.py --workdir runs/resnet50
           With --config.batch_size=B scale learning_rate, eval_every, steps and schedule.warmup_steps by hand.
Hardware:  meant for two to eight 80 GB GPUs or a TPU v3-8 (one GPU: --config.accumulate_steps=4); not run here yet
Published: about 23.5 % top-1 error, one crop: 23.3 to 23.6 for Flax's example of such a recipe in 100 epochs, 23.87 for
           torchvision's weights V1 in 90; the paper's own ResNet-50 has 24.7 (configs/resnet50_imagenet_paper.py)
"""

from resnet_jax import recipes


def get_config():
    return recipes.imagenet_baseline("resnet50")
