"""Small detectors on drawn shapes, from nothing, to see everything work: detection_quickstart.py:fpn or :c4.

Command:   python train.py --config configs/detection_quickstart.py --workdir runs/shapes
Hardware:  two CPU cores, minutes, no download
Expected:  AP50 (--config.task.metric=coco) 98.9 to 100 % after 1,500 steps, fpn and c4, two seeds each
           (docs/detection.md)

Circles, squares and triangles of 128 x 128 pixels, one to five in a picture.
"""

from typing import Any

from resnet_jax.config import Config, Model, choose
from resnet_jax.data import DetectionData
from resnet_jax.data.normalization import Channel
from resnet_jax.tasks.detection import Detection
from resnet_jax.tasks.detection_stages import BoxHead, ProposalNetwork, RegionPooling
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Cosine


def get_config(kind: str = "fpn") -> Config:
    rpn = ProposalNetwork(
        channels=32,
        samples=64,
        train_pre_nms=256,
        train_post_nms=128,
        test_pre_nms=256,
        test_post_nms=100,
        min_size=2.0,
    )
    box = BoxHead(samples=32, candidates=300, detections=20)
    common: dict[str, Any] = {"rpn": rpn, "box": box, "metric": "voc"}
    tasks = {
        "fpn": Detection(kind="fpn", anchor_sizes=(16.0, 24.0, 40.0, 64.0), fpn_channels=32, fpn_hidden=64, **common),
        "c4": Detection(kind="c4", anchor_sizes=(20.0, 32.0, 48.0), pooling=RegionPooling(size=6), **common),
    }
    return Config(
        steps=1500,
        batch_size=8,
        eval_batch_size=20,
        log_every=50,
        eval_every=500,
        checkpoint_every=100,
        model=Model(name="resnet18", width=16, stage_sizes=(1, 1, 1)),
        data=DetectionData(
            name="shapes",
            train=("train",),
            validation=("validation",),
            test=(),
            short_sides=(128,),
            max_side=128,
            max_boxes=8,
        ),
        normalization=Channel(),
        task=choose(tasks, kind),
        optimizer=SGD(learning_rate=0.02, momentum=0.9, weight_decay=1e-4),
        schedule=Cosine(warmup_steps=100),
    )
