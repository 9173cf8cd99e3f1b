"""Small detectors on photographs of blood cells, from nothing: bccd.py:fpn or :c4.

Command:   python train.py --config configs/bccd.py:fpn --workdir runs/bccd --config.data_dir=DIR
           DIR has Annotations, ImageSets and JPEGImages (github.com/Shenggan/BCCD_Dataset, MIT licence: the
           292 photographs of 640 x 480 pixels that are listed in train.txt and val.txt)
Hardware:  one or two CPU cores
Expected:  fpn: about 86 % mean average precision at an IoU of 0.5 (docs/detection.md); c4: about 73 %

205 photographs to train on, three classes: red blood cells (densely packed), white cells and platelets. Photographs are
halved to 320 x 240.
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
        samples=128,
        train_pre_nms=512,
        train_post_nms=256,
        test_pre_nms=512,
        test_post_nms=200,
        min_size=4.0,
    )
    box = BoxHead(samples=64, fraction=0.5, candidates=600, nms=0.4, detections=50)
    common: dict[str, Any] = {
        "rpn": rpn,
        "box": box,
        "metric": "voc",
        "test_scales": (200, 240, 280),
        "test_canonical": 50.0,
    }
    tasks = {
        "fpn": Detection(
            kind="fpn", anchor_sizes=(20.0, 32.0, 50.0, 80.0, 120.0), fpn_channels=32, fpn_hidden=128, **common
        ),
        "c4": Detection(kind="c4", anchor_sizes=(20.0, 50.0, 100.0), pooling=RegionPooling(size=8), **common),
    }
    return Config(
        steps=1000,
        batch_size=8,
        eval_batch_size=8,
        log_every=25,
        eval_every=250,
        checkpoint_every=50,
        model=Model(name="resnet18", width=16),
        data=DetectionData(
            name="voc",
            train=("train",),
            validation=("val",),
            test=(),
            short_sides=(240,),
            max_side=320,
            canvas_stride=16 if kind == "c4" else 32,
            max_boxes=32,
        ),
        normalization=Channel(),
        task=choose(tasks, kind),
        optimizer=SGD(learning_rate=0.02, momentum=0.9, weight_decay=1e-4),
        schedule=Cosine(warmup_steps=100),
    )
