"""Small localisers of drawn shapes, from nothing, to see everything work: localisation_quickstart.py:MEMBER.

Command:   python train.py --config configs/localisation_quickstart.py --workdir runs/located
Hardware:  two CPU cores, minutes, no download
Members:   rpn, the proposal network alone; 1 and 2, the proposal network with an R-CNN beside it, in two steps:
           ...:1 --workdir runs/located-1
           ...:2 --workdir runs/located-2 --config.init.path=runs/located-1
Expected:  rpn: an error under the given class of 15.5 % of one crop, which objects may leave, and of 0 % of whole
           pictures (two CPU cores, about a minute); 1 and 2, of --config.steps=200 each, of whole
           pictures 8 % and 1.5 %

Pictures of 128 x 128 pixels with one to five circles, squares or triangles, each picture of one class only; the
proposal network sees crops of 96 pixels.
"""

from resnet_jax.config import Config, Model, choose, override
from resnet_jax.data import DetectionData
from resnet_jax.data.crops import ScaleJitter
from resnet_jax.data.normalization import Channel
from resnet_jax.detection.localiser import LOCALISATION_RPN
from resnet_jax.tasks.detection_stages import ProposalNetwork
from resnet_jax.tasks.localisation import Localisation, Regions
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Cosine

_DATA = DetectionData(
    name="shapes_of_one_class",
    train=("train",),
    validation=("validation",),
    test=(),
    short_sides=(128,),
    max_side=128,
    max_boxes=8,
)


def get_config(member: str = "rpn") -> Config:
    rpn = LOCALISATION_RPN._replace(test_pre_nms=64, test_post_nms=8, min_size=2.0)
    config = Config(
        steps=600,
        batch_size=32,
        eval_batch_size=40,
        log_every=50,
        eval_every=200,
        checkpoint_every=100,
        model=Model(name="resnet18", width=16, stage_sizes=(1, 1, 1)),
        data=_DATA.model_copy(update={"training_crop": ScaleJitter(shorter_side=(112, 144)), "crop_size": 96}),
        normalization=Channel(),
        task=Localisation(
            anchor_sizes=(20.0, 32.0, 48.0),
            anchor_ratios=(1.0,),
            rpn=ProposalNetwork(channels=32, **rpn._asdict()),
            rcnn=choose({"rpn": False, "1": True, "2": True}, member),
            regions=Regions(size=32, samples=2),
            test_scales=(112, 128, 160),
        ),
        optimizer=SGD(learning_rate=0.05, momentum=0.9, weight_decay=1e-4),
        schedule=Cosine(warmup_steps=50),
    )
    if member != "2":
        return config
    # Regions are cut out of whole pictures.
    second = config.model_copy(update={"data": _DATA})
    return override(second, {"task.trains": "rcnn", "init.name": "weights", "init.head": "keep"})
