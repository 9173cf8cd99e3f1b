"""The detectors that others have published, each as a ``FasterRCNN`` of a given network.

Stem, first stage and batch normalisation are frozen, and the first two stages of VGG, as there.

Any field, and any setting by ``_replace``, can be changed: ``model.clone(box=model.box._replace(nms=0.5))``.
"""

from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.backbones import FPN, ResNetC4, VGGBackbone
from resnet_jax.detection.faster_rcnn import FasterRCNN
from resnet_jax.detection.roi import Pooling
from resnet_jax.detection.rpn import RPNSettings
from resnet_jax.detection.second_stage import BoxSettings
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.vgg import VGG

_PYRAMID = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))

PAPER_ANCHORS = Anchors(((128.0, 256.0, 512.0),), style="legacy")
"""Three areas in three shapes. On COCO add 64: ``PAPER_ANCHORS._replace(sizes=((64.0, 128.0, 256.0, 512.0),))``."""

PAPER_RPN = RPNSettings(
    straddle=0.0, train_pre_nms=12000, train_post_nms=2000, test_pre_nms=6000, test_post_nms=300, min_size=16.0
)
"""Section 3.3 of Faster R-CNN; the boxes before suppression and the least size are those of the released programs.

There the size is in pixels of the photograph before it is resized.
"""

PAPER_BOX = BoxSettings(
    samples=64, negative=(0.1, 0.5), beta=1.0, nms=0.3, min_score=0.001, candidates=6000, detections=800
)
"""The released Fast R-CNN's: 128 regions out of 2 images, and background from an IoU of 0.1. On COCO (0.0, 0.5).

Its tests keep boxes of any score, 100 a class before suppression and 40 a class and image on average; here it is as
many of all classes of VOC together, of those with a score that can matter.
"""

DETECTRON2_RPN = RPNSettings(
    beta=0.0, train_pre_nms=12000, train_post_nms=2000, test_pre_nms=6000, test_post_nms=1000, min_size=0.0
)
"""Of detectron2's C4 models."""

DETECTRON2_FPN_RPN = RPNSettings(beta=0.0, train_pre_nms=2000, train_post_nms=1000, min_size=0.0)
DETECTRON2_BOX = BoxSettings(beta=0.0, min_size=0.0)

TORCHVISION_BOX = BoxSettings(beta=1 / 9)

FROZEN = ("stem", "stage1")
"""The stages of a ResNet that all of them leave as they are, with all batch normalisation (appendix A)."""

VGG_FROZEN = ("stage1", "stage2")
"""Those of VGG."""


def _frozen(network: ResNet) -> ResNet:
    return network.frozen(FROZEN, norms=True)


def paper_c4(network: ResNet, num_classes: int, context: bool = False) -> FasterRCNN:
    """The paper's (section 4.3, appendices A and B): RoIPool of conv4, conv5 on each region.

    The paper leaves out the size that regions are pooled to and the width of the proposal network; 14, which conv5
    halves, is detectron2's, and 512 VGG's.
    """
    return FasterRCNN(
        ResNetC4(_frozen(network)),
        num_classes,
        PAPER_ANCHORS,
        rpn_channels=512,
        rpn=PAPER_RPN,
        pooling=Pooling("pool", 14),
        box=PAPER_BOX,
        context=context,
    )


def paper_vgg(network: VGG, num_classes: int) -> FasterRCNN:
    """The baseline of Tables 7 and 8: Faster R-CNN with VGG-16 as it was published."""
    return FasterRCNN(
        VGGBackbone(network.frozen(VGG_FROZEN, norms=False)),
        num_classes,
        PAPER_ANCHORS,
        rpn_channels=512,
        rpn=PAPER_RPN,
        pooling=Pooling("pool", 7),
        box=PAPER_BOX,
    )


def detectron2_c4(network: ResNet, num_classes: int) -> FasterRCNN:
    """detectron2's R50-C4 and R101-C4: RoIAlign, five sizes of anchors. Its networks stride in the first 1x1 ("v1").

    There the number of samples of a bin depends on the region; here it is 2 x 2.
    """
    return FasterRCNN(
        ResNetC4(_frozen(network)),
        num_classes,
        Anchors(((32.0, 64.0, 128.0, 256.0, 512.0),)),
        rpn_channels=1024,
        rpn=DETECTRON2_RPN,
        pooling=Pooling("align", 14, aligned=True),
        box=DETECTRON2_BOX,
    )


def detectron2_fpn(network: ResNet, num_classes: int) -> FasterRCNN:
    """detectron2's R50-FPN and R101-FPN, with the same exception."""
    return FasterRCNN(
        FPN(_frozen(network)),
        num_classes,
        Anchors(_PYRAMID),
        rpn=DETECTRON2_FPN_RPN,
        pooling=Pooling("align", 7, aligned=True),
        box=DETECTRON2_BOX,
    )


def torchvision_fpn(network: ResNet, num_classes: int = 90) -> FasterRCNN:
    """torchvision's fasterrcnn_resnet50_fpn, whose ResNet-50 strides in the 3x3 ("v1.5"), and those of other ResNets.

    Its label l is class l - 1 here. Weights: ``interop.torch_detection``.
    """
    return FasterRCNN(
        FPN(_frozen(network)),
        num_classes,
        Anchors(_PYRAMID, style="rounded", fitted=True),
        box=TORCHVISION_BOX,
        background_boxes=True,
    )
