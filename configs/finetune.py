"""Fine-tunes a trained network on a folder of class folders: finetune.py:NETWORK, by default resnet50.

Command:   python train.py --config configs/finetune.py --workdir runs/pets --config.data_dir=DIR \
               --config.init.path=resnet50.pth
Hardware:  meant for one GPU; on two CPU cores resnet20 takes minutes
Expected:  docs/finetuning.md has the figures of a run

DIR holds CLASS/*.jpg, or train/CLASS/*.jpg and val/CLASS/*.jpg. config.init.path is a file of PyTorch weights of the
network, such as torchvision's, or the workdir of a run. The network gets a new head, which learns ten times as fast as
the rest. The images are normalised as ImageNet's, as torchvision's weights and timm's ResNets expect it; those of a
workdir as that run's. The other keys of config.finetune freeze stages, or batch normalisation, or slow down the layers
far from the head.
"""

from resnet_jax.config import Config, Model
from resnet_jax.data import Photographs
from resnet_jax.data.crops import RandomResized
from resnet_jax.data.normalization import IMAGENET_STATISTICS, Channel
from resnet_jax.data.transforms import Flip, Transforms
from resnet_jax.models.zoo import variant
from resnet_jax.train.finetune import FineTune
from resnet_jax.train.initial import Weights
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Cosine


def get_config(network: str = "resnet50") -> Config:
    known = variant(network)
    side, (mean, std) = known.image_size, IMAGENET_STATISTICS
    return Config(
        steps="20 epochs",
        batch_size=32,
        eval_batch_size=100,
        log_every="1 epoch",
        eval_every="1 epoch",
        checkpoint_every="1 epoch",
        # Public weights stride in the 3x3 convolution of bottlenecks.
        model=Model(name=network, stride_placement="v1.5" if "stride_placement" in known.own_fields else None),
        data=Photographs(
            name="folder",
            crop=RandomResized(area=(0.25, 1.0)),
            crop_size=side,
            eval_shorter_side=side if side < 64 else round(side * 8 / 7),
        ),
        normalization=Channel(mean=tuple(mean), std=tuple(std)),
        transforms=Transforms(flip=Flip(probability=0.5)),
        init=Weights(head="new"),
        finetune=FineTune(head_rate=10.0),
        optimizer=SGD(learning_rate=0.01, momentum=0.9, weight_decay=1e-4, decay="kernels"),
        schedule=Cosine(warmup_steps="1 epoch"),
    )
