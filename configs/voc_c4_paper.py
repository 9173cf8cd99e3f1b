"""The paper's Faster R-CNN on PASCAL VOC (section 4.3, appendix A): voc_c4_paper.py:NETWORK-SETS.

Command:   python train.py --config configs/voc_c4_paper.py:resnet101-07+12 --workdir runs/voc \
               --config.data_dir=DIR --config.task.backbone_weights=WEIGHTS
           DIR has the folders VOC2007 and VOC2012; WEIGHTS is a file of PyTorch's or the workdir of a run on ImageNet
Hardware:  meant for one GPU; the recipe has not been run here
Networks:  vgg16, resnet50, resnet101; sets 07, 07+12 (scored on VOC 2007 test) and 07++12 (for VOC 2012 test)
Published mean average precision (Table 7): 07+12 VGG-16 73.2, ResNet-101 76.4; 07++12 VGG-16 70.4, ResNet-101 73.8.
           Runs of one recipe differ by about 0.4 (standard deviation of five, in Faster R-CNN's own code)

Values are those of Faster R-CNN and its released programs: shorter side 600, at most 1000; areas of 128², 256² and 512²
in three shapes; 256 anchors and 64 regions of each of 2 photographs; 2000 proposals in training and 300 in tests;
momentum 0.9, weight decay 5e-4, 0.001, a tenth of it from 50k of 70k steps on (07, the released joint training), 30k of
60k or 40k of 100k (07+12 and 07++12, the released Fast R-CNN's). Regions are pooled to 14 x 14 (the paper leaves it
out; detectron2's) and 7 x 7 for VGG. Frozen: the first two parts of the network, and all batch normalisation.

Unlike there: approximate joint training, not four steps in turn; pixels are divided by ImageNet's deviations; biases
learn no faster than weights. torchvision's weights stride elsewhere: --config.model.stride_placement=v1.5. VOC 2012
test's annotations are not public: 07++12 is scored on photographs that it has seen, VOC2012:val.
"""

from resnet_jax.config import Config, Model
from resnet_jax.data import DetectionData
from resnet_jax.data.normalization import Channel
from resnet_jax.tasks.detection import BoxHead, Detection, Metric, ProposalNetwork, RegionPooling
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
    network, _, sets = member.partition("-")
    train, test, metric, drop, steps = _SETS[sets or "07+12"]
    return Config(
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
            pooling=RegionPooling(op="pool", size=7 if network.startswith("vgg") else 14),
            rpn=ProposalNetwork(
                channels=512,
                straddle=0.0,
                train_pre_nms=12_000,
                train_post_nms=2_000,
                test_pre_nms=6_000,
                test_post_nms=300,
                min_size=16.0,
            ),
            box=BoxHead(samples=64, negative=(0.1, 0.5), beta=1.0, nms=0.3),
            metric=metric,
        ),
        optimizer=SGD(learning_rate=1e-3, momentum=0.9, weight_decay=5e-4, decay="kernels"),
        schedule=Step(boundaries=(drop,), factor=0.1),
    )
