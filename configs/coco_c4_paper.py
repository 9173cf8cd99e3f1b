"""The paper's Faster R-CNN on COCO (section 4.3, appendix A): coco_c4_paper.py:NETWORK.

Command:   python train.py --config configs/coco_c4_paper.py:resnet101 --workdir runs/coco \
               --config.data_dir=DIR --config.init.path=WEIGHTS
           DIR has annotations, train2014 and val2014; WEIGHTS is PyTorch's, or the workdir of a run on ImageNet
Hardware:  meant for 8 GPUs, as the paper's; not yet trained with this code
Networks:  vgg16, resnet50, resnet101
Published on val (Table 8): VGG-16 41.5 at an IoU of 0.5 and 21.2 from 0.5 to 0.95; ResNet-101 48.4 and 27.2. Table 9,
           ResNet-101: with refinement 49.9 and 29.9 (eval.py --protocol=refine), and context 51.1 and 30.0
           (--config.task.context=True), and multi-scale testing 53.8 and 32.5 (--protocol=refine+multi_scale)

As on VOC (configs/voc_c4_paper.py), with areas of 64² beside the others and background from an IoU of 0; batches of 16,
240k steps at 0.001 and 80k at 0.0001. The journal version of Faster R-CNN has 0.003: --config.optimizer.learning_rate.
There the proposal network saw 8 photographs a step and Fast R-CNN 16, each in training of its own.
"""

from resnet_jax.config import Config, Model
from resnet_jax.data import DetectionData
from resnet_jax.data.normalization import Channel
from resnet_jax.detection.named import FROZEN, PAPER_BOX, PAPER_RPN, VGG_FROZEN
from resnet_jax.tasks.detection import Detection
from resnet_jax.tasks.detection_stages import BoxHead, ProposalNetwork, RegionPooling
from resnet_jax.train.finetune import FineTune
from resnet_jax.train.initial import Weights
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Step


def get_config(network: str = "resnet101") -> Config:
    vgg = network.startswith("vgg")
    return Config(
        steps=320_000,
        batch_size=16,
        eval_batch_size=16,
        eval_every=20_000,
        checkpoint_every=1_000,
        model=Model(name=network),
        data=DetectionData(
            name="coco",
            train=("train2014",),
            validation=("val2014",),
            test=(),
            short_sides=(600,),
            max_side=1000,
            canvas_stride=16,
        ),
        normalization=Channel(),
        task=Detection(
            kind="c4",
            anchor_sizes=(64.0, 128.0, 256.0, 512.0),
            anchor_style="legacy",
            pooling=RegionPooling(op="pool", size=7 if vgg else 14),
            rpn=ProposalNetwork(channels=512, **PAPER_RPN._asdict()),
            box=BoxHead(**PAPER_BOX._replace(negative=(0.0, 0.5), detections=100)._asdict()),
            metric="coco",
        ),
        finetune=FineTune(freeze=VGG_FROZEN if vgg else FROZEN, freeze_bn=not vgg),
        init=Weights(),
        optimizer=SGD(learning_rate=1e-3, momentum=0.9, weight_decay=5e-4, decay="kernels"),
        schedule=Step(boundaries=(240_000,), factor=0.1),
    )
