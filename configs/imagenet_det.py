"""The paper's Faster R-CNN on ImageNet DET, 200 classes (appendix A, Table 12): imagenet_det.py:NETWORK.

Command:   python train.py --config configs/imagenet_det.py:resnet101 --workdir runs/det \
               --config.data_dir=DIR --config.init.path=WEIGHTS
           DIR is ILSVRC with Annotations, Data and ImageSets; DET/val1.txt and DET/val2.txt are R-CNN's halves of val
Hardware:  meant for 8 GPUs; not yet trained with this code
Published mean average precision (Table 12): ResNet-101 with refinement, context and multi-scale testing 60.5 on val2,
           58.8 on the test set; three networks together 63.6 and 62.1

Trained on DET's training photographs and val1, scored on val2 by the challenge's rules, but for its list of photographs
and classes that are left out. The paper says that the algorithm is COCO's and gives no
schedule: steps, batch and learning rate here are those of configs/coco_c4_paper.py.
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
            name="imagenet",
            train=("DET:train", "DET:val1"),
            validation=("DET:val2",),
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
            box=BoxHead(**PAPER_BOX._replace(negative=(0.0, 0.5))._asdict()),
            context=True,
            metric="imagenet",
        ),
        finetune=FineTune(freeze=VGG_FROZEN if vgg else FROZEN, freeze_bn=not vgg),
        init=Weights(),
        optimizer=SGD(learning_rate=1e-3, momentum=0.9, weight_decay=5e-4, decay="kernels"),
        schedule=Step(boundaries=(240_000,), factor=0.1),
    )
