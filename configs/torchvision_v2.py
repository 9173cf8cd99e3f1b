"""ResNet-50 with torchvision's recipe of its weights "IMAGENET1K_V2", on ImageNet.

Command:   python train.py --config configs/torchvision_v2.py --workdir runs/torchvision_v2
Hardware:  meant for 8 GPUs, as torchvision's; not yet trained with this code
Source:    "How to train state-of-the-art models using TorchVision's latest primitives" (PyTorch's blog, 2021) and the
           command in torchvision's issue 3995
Published: 19.14 % top-1 error of the released weights (80.858 % accuracy), one crop

600 epochs of batch 1024: SGD at 0.5, cosine after 5 epochs of linear warm-up from 1 %, weight decay 2e-5 but for
normalisation, label smoothing 0.1, TrivialAugment, random erasing 0.1, mixup 0.2 or CutMix 1, training crops of 176 and
test crops of 224 out of 232, four repetitions of each image in a batch, and a moving average updated every 32 steps.
Unlike there the rate changes by the step, not the epoch, and is folded into the velocity, v <- 0.9 v + rate * gradient.
"""

from resnet_jax.config import Config, Model
from resnet_jax.data import Photographs
from resnet_jax.data.crops import RandomResized
from resnet_jax.data.normalization import Channel
from resnet_jax.data.transforms import Flip, Mixing, RandomErasing, Transforms, TrivialAugment
from resnet_jax.tasks.classification import Classification
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Cosine


def get_config() -> Config:
    epochs, batch_size, ema_every = 600, 1024, 32
    return Config(
        steps=f"{epochs} epochs",
        batch_size=batch_size,
        eval_batch_size=256,
        eval_every="1 epoch",
        checkpoint_every=250,
        # The script's --model-ema-decay of 0.99998, which it scales by batch and interval over epochs.
        ema_decay=1 - (1 - 0.99998) * batch_size * ema_every / epochs,
        ema_every=ema_every,
        ema_start="5 epochs",
        model=Model(
            name="resnet50",
            stride_placement="v1.5",
            dtype="bfloat16",
            bn_group_size=128,  # As on eight GPUs.
        ),
        data=Photographs(
            name="imagenet2012",
            crop=RandomResized(area=(0.08, 1.0)),
            crop_size=224,
            train_crop_size=176,
            eval_shorter_side=232,
            interpolation="bilinear",
            repeats=4,
        ),
        normalization=Channel(),
        transforms=Transforms(
            flip=Flip(probability=0.5),
            trivial_augment=TrivialAugment(probability=1.0, interpolation="bilinear"),
            random_erasing=RandomErasing(probability=0.1, area=(0.02, 0.33), aspect=(0.3, 3.3)),
            mixing=Mixing(mixup_alpha=0.2, cutmix_alpha=1.0, draw=128),
        ),
        task=Classification(label_smoothing=0.1),
        optimizer=SGD(learning_rate=0.5, momentum=0.9, weight_decay=2e-5, decay="not_norm"),
        schedule=Cosine(warmup_steps="5 epochs", warmup_from=0.01),
    )
