"""The paper's localisation on ImageNet (appendix C, Table 13): imagenet_localisation.py:NETWORK or :NETWORK-STEP.

Command:   python train.py --config configs/imagenet_localisation.py:resnet101 --workdir runs/loc \
               --config.data_dir=DIR --config.init.path=WEIGHTS
           DIR is ILSVRC with Annotations/CLS-LOC, Data/CLS-LOC and, if there, ImageSets/CLS-LOC/train_loc.txt; WEIGHTS
           is a file of PyTorch's or the workdir of a run on ImageNet
Hardware:  meant for 8 GPUs; not yet trained with this code
Networks:  vgg16, resnet50, resnet101, resnet152
Steps:     without: the per-class proposal network alone. With the R-CNN beside it, 1, the proposal network, and 2, the
           R-CNN on its proposals, each network from WEIGHTS:
           ...:resnet101-1 --workdir runs/1 --config.init.path=WEIGHTS
           ...:resnet101-2 --workdir runs/2 --config.init.path=runs/1
Published top-5 errors on the validation set (Table 13): under the given class VGG 33.1 (one crop), ResNet-101's
           proposal network 13.3 (one crop) and 11.7 (dense, several scales); under the classes that ResNet-101 predicts
           14.4, with the R-CNN 10.6, an ensemble 8.9

From appendix C: a score and a box of each of 1000 classes at each anchor; random crops of 224 pixels as for
classification; 256 images a step; 8 anchors of each, at most half of them positive; the R-CNN on regions of the 200
best proposals, warped to 224 pixels, 256 a step.

Not in the paper and chosen here: the anchors, Faster R-CNN's nine; batch normalisation frozen as in appendix A, and
nothing else; the learning rate, its drops and the number of steps; one of the 200 proposals of each image and step,
without a quota of positives, which have an IoU of 0.5 as in R-CNN, and whole photographs of these sides to cut them out
of; no pixels around a region. Proposals are made with each step, and not stored. Pixels are divided by ImageNet's
deviations. torchvision's weights stride elsewhere: --config.model.stride_placement=v1.5.
"""

from resnet_jax.config import Config, Model, override
from resnet_jax.data import DetectionData
from resnet_jax.data.crops import ScaleJitter
from resnet_jax.data.normalization import Channel
from resnet_jax.errors import UserError
from resnet_jax.tasks.localisation import Localisation
from resnet_jax.train.finetune import FineTune
from resnet_jax.train.initial import Weights
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Step

_DATA = DetectionData(
    name="imagenet",
    train=("CLS-LOC:train_loc",),
    validation=("CLS-LOC:val",),
    test=(),
    short_sides=(256, 368, 480),
    max_side=960,
    eval_short_side=368,
    max_boxes=50,
)
_CROPS = {
    "training_crop": ScaleJitter(shorter_side=(256, 480)),
    "crop_size": 224,
    "short_sides": (256,),
    "max_side": 512,
    "eval_short_side": 256,
}


def get_config(member: str = "resnet101") -> Config:
    network, _, step = member.partition("-")
    if step not in ("", "1", "2"):
        raise UserError(f"there is no member {member}; name NETWORK, NETWORK-1 or NETWORK-2")
    config = Config(
        steps=60_000,
        batch_size=256,
        eval_batch_size=64,
        eval_every=5_000,
        checkpoint_every=1_000,
        model=Model(name=network),
        data=_DATA.model_copy(update=_CROPS),
        normalization=Channel(),
        task=Localisation(anchor_sizes=(128.0, 256.0, 512.0), anchor_style="legacy", rcnn=bool(step)),
        finetune=FineTune(freeze_bn=not network.startswith("vgg")),
        init=Weights(),
        optimizer=SGD(learning_rate=0.01, momentum=0.9, weight_decay=1e-4, decay="kernels"),
        schedule=Step(boundaries=(30_000, 45_000), factor=0.1),
    )
    if step != "2":
        return config
    second = config.model_copy(update={"data": _DATA})
    return override(second, {"task.trains": "rcnn", "init.head": "keep", "eval_batch_size": 8})
