"""ResNet-50 with FPN on COCO: the present-day baseline, detectron2's "1x": coco_fpn.py:NETWORK.

Command:   python train.py --config configs/coco_fpn.py --workdir runs/coco_fpn \
               --config.data_dir=DIR --config.init.path=resnet50.pth
           DIR has annotations, train2017 and val2017; the weights are torchvision's, or another file or workdir
Hardware:  meant for 8 GPUs; not yet trained with this code
Published on val2017: detectron2's R50-FPN 37.9 AP with this schedule and 40.2 with three times as many steps, R101-FPN
           42.0 with the latter; torchvision's ResNet-50 37.0 in 26 epochs

16 photographs, 0.02 after 1,000 steps of warm-up, a tenth of it from 60k and again from 80k steps of 90k, weight decay
1e-4; shorter sides of 640 to 800 pixels, longer ones of at most 1333; RoIAlign to 7 x 7; box losses are plain L1.
Unlike there all photographs of a shape lie on one canvas, from whose padding background anchors may come, too.
detectron2's own backbone weights stride in the first 1x1 (config.model.stride_placement=v1), torchvision's in the 3x3.
"""

from resnet_jax.config import Config, Model
from resnet_jax.data import DetectionData
from resnet_jax.data.normalization import Channel
from resnet_jax.detection.named import FROZEN
from resnet_jax.models.zoo import variant
from resnet_jax.tasks.detection import Detection
from resnet_jax.tasks.detection_stages import BoxHead, ProposalNetwork, RegionPooling
from resnet_jax.train.finetune import FineTune
from resnet_jax.train.initial import Weights
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Step


def get_config(network: str = "resnet50") -> Config:
    return Config(
        steps=90_000,
        batch_size=16,
        eval_batch_size=16,
        eval_every=10_000,
        checkpoint_every=1_000,
        model=Model(
            name=network, stride_placement="v1.5" if "stride_placement" in variant(network).own_fields else None
        ),
        data=DetectionData(
            name="coco",
            train=("train2017",),
            validation=("val2017",),
            test=(),
            short_sides=(640, 672, 704, 736, 768, 800),
            max_side=1333,
            canvas_stride=32,
        ),
        normalization=Channel(),
        task=Detection(
            kind="fpn",
            anchor_sizes=(32.0, 64.0, 128.0, 256.0, 512.0),
            pooling=RegionPooling(op="align", size=7, aligned=True),
            rpn=ProposalNetwork(beta=0.0, train_pre_nms=2_000, train_post_nms=1_000, min_size=0.0),
            box=BoxHead(samples=512, beta=0.0, nms=0.5, min_size=0.0),
            metric="coco",
        ),
        finetune=FineTune(freeze=FROZEN, freeze_bn=True),
        init=Weights(),
        optimizer=SGD(learning_rate=0.02, learning_rate_batch=16, momentum=0.9, weight_decay=1e-4),
        schedule=Step(boundaries=(60_000, 80_000), factor=0.1, warmup_steps=1_000),
    )
