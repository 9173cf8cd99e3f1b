"""Every recipe's values, once. The files in configs/ are one call into this module each."""

import ml_collections
from ml_collections.config_dict import placeholder

IMAGENET_TRAIN_EXAMPLES = 1_281_167


def base() -> ml_collections.ConfigDict:
    """Every key there is, with its default. Recipes change values and add none; ``config.validate`` enforces it."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data_dir = placeholder(str)  # Prepared data sets; default $TFDS_DATA_DIR, then TFDS's own.
    config.steps = 64_000
    config.batch_size = 128  # Over all devices.
    config.accumulate_steps = 1  # Gradients are averaged over so many parts of a batch, one after the other.
    config.eval_batch_size = 500
    config.steps_per_dispatch = 1  # Steps in one call; more hide the host's latency on an accelerator.
    config.log_every = 100  # In steps, like the next two; steps_per_dispatch must divide all of them.
    config.eval_every = 1_000
    config.checkpoint_every = 1_000
    config.keep_checkpoints = 2  # The latest so many, besides the best.
    config.label_smoothing = 0.0
    config.ema_decay = 0.0  # Of a moving average of the variables, which evaluations then use; 0: off.
    config.bn_recompute_batches = 0  # Batch statistics are computed anew over so many batches at the end; 0: off.

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
    config.model.bn_momentum = placeholder(float)
    config.model.zero_init_last_bn = placeholder(bool)
    config.model.remat = placeholder(bool)
    config.model.scan_blocks = placeholder(bool)

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10"  # Or another of data.resident.NAMES or data.streaming.NAMES.
    config.data.normalization = "per_pixel_mean"  # Or "channel": with the two below, for RGB in [0, 1].
    config.data.mean = placeholder(tuple)  # Of R, G and B; where None, those of the data set.
    config.data.std = placeholder(tuple)
    config.data.flip = True
    config.data.pad = 4  # Random crop out of this much padding; 0 for none.
    # Of data sets that live on the device.
    config.data.holdout = 0  # Training examples held out for validation; the evaluations in training then use those.
    # Of photographs, which are streamed.
    config.data.crop = "scale_jitter"  # Or "random_resized".
    config.data.crop_size = 224
    config.data.shorter_side = (256, 480)  # The range that "scale_jitter" draws from.
    config.data.area = (0.08, 1.0)  # The part of the photograph that "random_resized" takes, as a range.
    config.data.eval_shorter_side = 256  # What a centre crop or ten crops of crop_size are cut from.
    config.data.pca_std = 0.0  # Of the colour augmentation's weights; 0: off.
    config.data.max_unreadable = 10  # Photographs that cannot be decoded before the run stops.
    config.data.threads = 0  # That decode; 0: one for each core.
    config.data.workers = 0  # Processes that decode, with so many threads each; 0: threads of this process.

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "all"  # Or "kernels".

    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = "step"  # Or "plateau", "cosine" or "constant".
    config.schedule.boundaries = (32_000, 48_000)
    config.schedule.factor = 0.1  # At each boundary, or at each plateau.
    config.schedule.patience = 5  # Evaluations without a lower error that make a plateau.
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


def imagenet_paper(model: str, shortcut: str | None = None) -> ml_collections.ConfigDict:
    """Section 3.4 for an ImageNet network by name, with another shortcut than its own where one is given.

    At most 60e4 steps of batch 256; the learning rate is divided by 10 when the validation error plateaus. The paper
    does not say how it saw a plateau: here, five evaluations, each of about one epoch, without a lower error. From the
    authors' released note: batch statistics over 32 images, and computed anew over a large batch after training.
    """
    config = _imagenet(model, batch_size=256, steps=600_000)
    if shortcut:
        config.model.shortcut = shortcut
    config.model.bn_group_size = 32
    config.bn_recompute_batches = 200
    config.data.pca_std = 0.1
    config.schedule.name = "plateau"
    return config


def imagenet_vgg(model: str) -> ml_collections.ConfigDict:
    """VGG's own recipe (arXiv 1409.1556, section 3.1) on the paper's data pipeline, whose scale jitter was VGG's first.

    At most 370,000 steps of batch 256 (74 epochs there), learning rate 0.01 divided by 10 at plateaus, weight decay
    5e-4. Unlike there the scales are drawn from [256, 480], the paper's range, and all layers start at random.
    """
    config = imagenet_paper(model)
    config.steps = 370_000
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 5e-4
    config.model.bn_group_size = None  # There is no batch normalisation.
    config.bn_recompute_batches = 0
    return config


def imagenet_baseline(model: str) -> ml_collections.ConfigDict:
    """The present-day baseline, 90 epochs: what came after the paper and is in common use.

    Strides in the 3x3 convolution (v1.5), bfloat16, batch 1024 with the learning rate scaled with it and warmed up over
    five epochs (Goyal et al., arXiv 1706.02677), zero-initialised last batch normalisation (same), cosine schedule,
    label smoothing and no weight decay on scales and biases (He et al., arXiv 1812.01187), random resized crops.
    """
    batch_size = 1024
    epoch = IMAGENET_TRAIN_EXAMPLES // batch_size
    config = _imagenet(model, batch_size, steps=90 * epoch)
    config.eval_every = epoch
    config.checkpoint_every = 250
    config.model.bn_group_size = 128  # As on eight devices.
    config.model.stride_placement = "v1.5"
    config.model.dtype = "bfloat16"
    config.model.zero_init_last_bn = True
    config.data.normalization = "channel"
    config.data.crop = "random_resized"
    config.optimizer.learning_rate = 0.1 * batch_size / 256
    config.optimizer.decay = "kernels"
    config.schedule.name = "cosine"
    config.schedule.warmup_steps = 5 * epoch
    config.label_smoothing = 0.1
    return config


def _imagenet(model: str, batch_size: int, steps: int) -> ml_collections.ConfigDict:
    config = base()
    config.model.name = model
    config.batch_size = batch_size
    config.eval_batch_size = 256
    config.steps = steps
    config.eval_every = 5_000
    config.checkpoint_every = 1_000
    config.data.name = "imagenet2012"
    config.data.pad = 0
    return config


def digits_quickstart() -> ml_collections.ConfigDict:
    """A small residual network on scikit-learn's digits: half a minute on two CPU cores, no download."""
    config = base()
    config.model.width = 8
    config.model.stage_sizes = (1, 1, 1)
    config.data.name = "digits"
    config.data.flip = False  # A mirrored digit is another shape.
    config.data.pad = 2  # Shifted by more, digits are cut off.
    config.steps = 800
    config.batch_size = 64
    config.schedule.name = "cosine"
    config.log_every = 50
    config.eval_every = 200
    config.checkpoint_every = 200
    return config
