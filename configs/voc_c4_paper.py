"""The paper's Faster R-CNN on PASCAL VOC (section 4.3, appendix A): voc_c4_paper.py:NETWORK-SETS.

Command:   python train.py --config configs/voc_c4_paper.py:resnet101-07+12 --workdir runs/voc \
               --config.data_dir=DIR --config.init.path=WEIGHTS
           DIR has the folders VOC2007 and VOC2012; WEIGHTS is a file of PyTorch's or the workdir of a run on ImageNet
Hardware:  meant for one GPU; not yet trained with this code
Networks:  vgg16, resnet50, resnet101; sets 07, 07+12 (scored on VOC 2007 test) and 07++12 (for VOC 2012 test)
Steps:     joint training; or 1 to 4 of alternating training, NETWORK-SETS-STEP, each from the one before:
           ...:resnet101-07-1 --workdir runs/1 --config.init.path=WEIGHTS
           ...:resnet101-07-2 --workdir runs/2 --config.init.path=runs/1      (and so on to runs/4)
Published mean average precision (Table 7): 07+12 VGG-16 73.2, ResNet-101 76.4; 07++12 VGG-16 70.4, ResNet-101 73.8.
           Runs of one recipe differ by about 0.4 (standard deviation of five, in Faster R-CNN's own code)

Values are those of Faster R-CNN and its released programs: shorter side 600, at most 1000; areas of 128², 256² and 512²
in three shapes; 256 anchors and 64 regions of each of 2 photographs; 2000 proposals in training and 300 in tests;
momentum 0.9, weight decay 5e-4, 0.001, a tenth of it from 50k of 70k steps on (07, the released joint training), 30k of
60k or 40k of 100k (07+12 and 07++12, the released Fast R-CNN's). Regions are pooled to 14 x 14 (the paper leaves it
out; detectron2's) and 7 x 7 for VGG. Frozen: the first two parts of the network, and all batch normalisation.

The steps (Faster R-CNN, section 3.2): 1, the proposal network; 2, the detector on its proposals, each with a backbone
of its own from WEIGHTS; 3, the proposal network anew on the detector's backbone, which is kept; 4, what of the detector
is its own. Proposal networks take 60k steps at 0.001 and 20k at 0.0001, one photograph a step; the detector those of
above, and of 07 30k of 40k (Fast R-CNN's). Proposals are made with each step, and not stored.

Unlike there: joint training is approximate, and takes 64 regions of each photograph, as Fast R-CNN does, where the
released joint program takes 128; pixels are divided by ImageNet's deviations; biases learn no faster than
weights; proposals have at least 16 pixels a side of the photograph as it is resized, not as it was. torchvision's
weights stride elsewhere: --config.model.stride_placement=v1.5. VOC 2012 test's annotations are not public: 07++12 is
scored on photographs that it has seen, VOC2012:val.
"""

from typing import Any

from resnet_jax.config import Config, Model, choose, override
from resnet_jax.data import DetectionData
from resnet_jax.data.normalization import Channel
from resnet_jax.detection.named import FROZEN, PAPER_BOX, PAPER_RPN, VGG_FROZEN
from resnet_jax.evaluation.detection.scores import Metric
from resnet_jax.tasks.detection import Detection
from resnet_jax.tasks.detection_stages import BoxHead, ProposalNetwork, RegionPooling
from resnet_jax.train.finetune import FineTune
from resnet_jax.train.initial import Weights
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Step

# Trained on, scored on, metric, where the rate drops, and steps.
_SETS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Metric, int, int]] = {
    "07": (("VOC2007:trainval",), ("VOC2007:test",), "voc07", 50_000, 70_000),
    "07+12": (("VOC2007:trainval", "VOC2012:trainval"), ("VOC2007:test",), "voc07", 30_000, 60_000),
    "07++12": (
        ("VOC2007:trainval", "VOC2007:test", "VOC2012:trainval"),
        ("VOC2012:val",),
        "voc",
        40_000,
        100_000,
    ),
}


def get_config(member: str = "resnet101-07+12") -> Config:
    network, _, rest = member.partition("-")
    sets, _, step = (rest or "07+12").partition("-")
    train, test, metric, drop, steps = choose(_SETS, sets, "SETS of NETWORK-SETS")
    vgg = network.startswith("vgg")
    joint = Config(
        steps=steps,
        batch_size=2,
        eval_batch_size=4,
        eval_every=10_000,
        checkpoint_every=1_000,
        model=Model(name=network),
        data=DetectionData(name="voc", train=train, test=test, short_sides=(600,), max_side=1000, canvas_stride=16),
        normalization=Channel(),
        task=Detection(
            kind="c4",
            anchor_sizes=(128.0, 256.0, 512.0),
            anchor_style="legacy",
            pooling=RegionPooling(op="pool", size=7 if vgg else 14),
            rpn=ProposalNetwork(channels=512, **PAPER_RPN._asdict()),
            box=BoxHead(**PAPER_BOX._asdict()),
            metric=metric,
        ),
        finetune=FineTune(freeze=VGG_FROZEN if vgg else FROZEN, freeze_bn=not vgg),
        init=Weights(),
        optimizer=SGD(learning_rate=1e-3, momentum=0.9, weight_decay=5e-4, decay="kernels"),
        schedule=Step(boundaries=(drop,), factor=0.1),
    )
    return override(joint, _step(step, network, sets)) if step else joint


def _step(step: str, network: str, sets: str) -> dict[str, Any]:
    """What one of the four steps changes."""
    rpn: dict[str, Any] = {"task.trains": "rpn", "batch_size": 1, "steps": 80_000, "schedule.boundaries": (60_000,)}
    detector: dict[str, Any] = {"task.trains": "detector", "init.head": "keep"}
    if sets == "07":
        detector |= {"steps": 40_000, "schedule.boundaries": (30_000,)}
    # All that both stages read: the convolutions of VGG, and the stem and three stages.
    stages: tuple[str, ...] = ("stem", "stage1", "stage2", "stage3")
    if network.startswith("vgg"):
        stages = ("stage1", "stage2", "stage3", "stage4", "stage5")
    shared: dict[str, Any] = {"finetune.freeze": stages}
    steps = {
        "1": rpn | {"task.shared": False},
        "2": detector | {"task.shared": False},
        "3": rpn | shared | {"init.head": "keep"},
        "4": detector | shared,
    }
    return choose(steps, step, "STEP of NETWORK-SETS-STEP")
