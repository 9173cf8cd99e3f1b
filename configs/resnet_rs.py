"""ResNet-RS-50 on ImageNet at 160 pixels, by the recipe of "Revisiting ResNets".

Command:   python train.py --config configs/resnet_rs.py --workdir runs/resnet_rs
Hardware:  meant for a TPU slice or 8 GPUs; not yet trained with this code
Source:    Bello et al., arXiv 2103.07579, and its release: github.com/tensorflow/tpu, models/official/resnet,
           resnet_rs/configs/resnetrs50_i160.yaml
Published: 21.2 % top-1 error (78.8 % accuracy) at 160 pixels, one crop, as the release's table has it

109,475 steps of batch 4096, which are 350 epochs: SGD with Nesterov's momentum at 0.1 for each 256 images, cosine after
5 epochs of linear warm-up, weight decay 4e-5 but for normalisation, label smoothing 0.1, dropout 0.25 before the
classifier, two operations of RandAugment at magnitude 10 (the release's, but for its cutout and the constant grey that
its contrast is towards), and a moving average of 0.9999. The length of the warm-up, Nesterov's form and the
zero-initialised last batch normalisation are those of the release's training program, not of the file.
"""

from resnet_jax.config import Config, Model
from resnet_jax.data import Photographs
from resnet_jax.data.crops import RandomResized
from resnet_jax.data.normalization import Channel
from resnet_jax.data.transforms import Flip, RandAugment, Transforms
from resnet_jax.tasks.classification import Classification
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Cosine


def get_config() -> Config:
    batch_size = 4096
    return Config(
        steps=109_475,
        batch_size=batch_size,
        eval_batch_size=256,
        eval_every="1 epoch",
        checkpoint_every=100,
        ema_decay=0.9999,
        model=Model(name="resnetrs50", dtype="bfloat16", dropout=0.25, zero_init_last_bn=True),
        data=Photographs(
            name="imagenet2012",
            crop=RandomResized(area=(0.08, 1.0)),
            crop_size=160,
            eval_shorter_side=192,  # The release's central crop is 160 / (160 + 32) of the shorter side.
            interpolation="bicubic",
        ),
        normalization=Channel(),
        transforms=Transforms(
            flip=Flip(probability=0.5),
            rand_augment=RandAugment(layers=2, magnitude=10, bins=11, operations="tpu", fill=128),
        ),
        task=Classification(label_smoothing=0.1),
        optimizer=SGD(
            learning_rate=0.1 * batch_size / 256, momentum=0.9, nesterov=True, weight_decay=4e-5, decay="not_norm"
        ),
        schedule=Cosine(warmup_steps="5 epochs", warmup_from=0.0),
    )
