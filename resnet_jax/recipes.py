"""Every recipe's values, once. The files in configs/ are one call into this module each."""

import ml_collections
from ml_collections.config_dict import placeholder


def base() -> ml_collections.ConfigDict:
    """Every key there is, with its default. Recipes change values and add none; ``config.validate`` enforces it."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data_dir = placeholder(str)  # Prepared data sets; default $TFDS_DATA_DIR, then TFDS's own.
    config.steps = 64_000
    config.batch_size = 128  # Over all devices.
    config.eval_batch_size = 500
    config.steps_per_dispatch = 1  # Steps in one call; more hide the host's latency on an accelerator.
    config.log_every = 100  # In steps, like the next two; steps_per_dispatch must divide all of them.
    config.eval_every = 1_000
    config.checkpoint_every = 1_000
    config.keep_checkpoints = 2  # The latest so many, besides the best.

    config.model = ml_collections.ConfigDict()
    config.model.name = "resnet20"
    # Fields of resnet_jax.models.ResNet; where None, the named model's own.
    config.model.shortcut = placeholder(str)
    config.model.stride_placement = placeholder(str)
    config.model.stem = placeholder(str)
    config.model.width = placeholder(int)
    config.model.stage_sizes = placeholder(tuple)
    config.model.dtype = placeholder(str)
    config.model.bn_group_size = placeholder(int)
    config.model.zero_init_last_bn = placeholder(bool)
    config.model.remat = placeholder(bool)
    config.model.scan_blocks = placeholder(bool)

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10"
    config.data.holdout = 0  # Training examples held out for validation; the evaluations in training then use those.
    config.data.normalization = "per_pixel_mean"  # Or "channel", with the two below, for RGB in [0, 1].
    config.data.mean = (0.4914, 0.4822, 0.4465)  # CIFAR-10's training set.
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.data.pad = 4  # Random crop out of this much padding; 0 for none.
    config.data.flip = True

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "all"  # Or "kernels".

    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = "step"  # Or "cosine" or "constant".
    config.schedule.boundaries = (32_000, 48_000)
    config.schedule.factor = 0.1
    config.schedule.warmup_steps = 0  # Linear, from 0.
    config.schedule.warmup_error = (
        0.0  # Hold warmup_learning_rate until the training error (a fraction) is below; 0: off.
    )
    config.schedule.warmup_learning_rate = 0.01
    return config


def cifar10_paper(model: str) -> ml_collections.ConfigDict:
    """Section 4.2 for a CIFAR network by name: 64k steps of batch 128, on all 50,000 training images.

    Batch statistics are over 64 images, as on the paper's two GPUs. The 110-layer and deeper networks start at 0.01
    until the training error is under 80 %. The paper chose the schedule on a 45k/5k split: config.data.holdout=5000.
    """
    config = base()
    config.model.name = model
    config.model.bn_group_size = 64
    if model in ("resnet110", "plain110", "resnet1202"):
        config.schedule.warmup_error = 0.8
    if model == "resnet1202":
        # The activations of a batch of 128 take 3 GiB with it and 18 GiB without (benchmarks/depth.py).
        config.model.remat = True
    return config


def digits_quickstart() -> ml_collections.ConfigDict:
    """A small residual network on scikit-learn's digits: half a minute on two CPU cores, no download."""
    config = base()
    config.model.width = 8
    config.model.stage_sizes = (1, 1, 1)
    config.data.name = "digits"
    config.data.flip = False  # A mirrored digit is another shape.
    config.steps = 800
    config.batch_size = 64
    config.schedule.name = "cosine"
    config.log_every = 50
    config.eval_every = 200
    config.checkpoint_every = 200
    return config
