"""ResNet-50 v1.5 on ImageNet: the recommended present-day baseline, 90 epochs.

Command:   python train.py --config configs/resnet50_imagenet.py --workdir runs/resnet50
           With --config.batch_size=B the learning rate and all durations in epochs scale along.
Hardware:  meant for two to eight 80 GB GPUs or a TPU v3-8 (one GPU: --config.accumulate_steps=4); not yet trained
           with this code
Published: about 23.5 % top-1 error, one crop: 23.3 to 23.6 for Flax's example of such a recipe in 100 epochs, 23.87 for
           torchvision's weights V1 in 90; the authors' released ResNet-50 has 24.7 (configs/imagenet_paper.py:resnet50)

What came after the paper and is in common use: strides in the 3x3 convolution (v1.5), bfloat16, a learning rate that
scales with the batch and is warmed up over five epochs, zero-initialised last batch normalisation (Goyal et al., arXiv
1706.02677), cosine schedule, label smoothing and no weight decay on scales and biases (He et al., arXiv 1812.01187),
random resized crops.
"""

from resnet_jax.config import Config, Model
from resnet_jax.data import Photographs
from resnet_jax.data.crops import RandomResized
from resnet_jax.data.normalization import Channel
from resnet_jax.data.transforms import Flip, Transforms
from resnet_jax.tasks.classification import Classification
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Cosine


def get_config() -> Config:
    return Config(
        steps="90 epochs",
        batch_size=1024,
        eval_batch_size=256,
        eval_every="1 epoch",
        checkpoint_every=250,
        model=Model(
            name="resnet50",
            stride_placement="v1.5",
            dtype="bfloat16",
            bn_group_size=128,  # As on eight devices.
            zero_init_last_bn=True,
        ),
        data=Photographs(name="imagenet2012", crop=RandomResized(area=(0.08, 1.0)), crop_size=224),
        normalization=Channel(),
        transforms=Transforms(flip=Flip(probability=0.5)),
        task=Classification(label_smoothing=0.1),
        optimizer=SGD(learning_rate=0.1, learning_rate_batch=256, momentum=0.9, weight_decay=1e-4, decay="kernels"),
        schedule=Cosine(warmup_steps="5 epochs"),
    )
