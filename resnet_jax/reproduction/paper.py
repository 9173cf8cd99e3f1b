"""What the paper reports (He et al., arXiv 1512.03385). Errors are in percent; FLOPs are multiply-adds, in billions."""

from typing import NamedTuple


class Error(NamedTuple):
    """Top-1 and top-5 error; None where the paper gives none."""

    top1: float | None
    top5: float | None = None


class Repeated(NamedTuple):
    """Mean and standard deviation of several runs' top-1 errors."""

    mean: float
    deviation: float


# Table 1's last row, with plain networks as in section 3.3; section 4.1 for VGG.
FLOPS = {
    "VGG-16": 15.3,
    "VGG-19": 19.6,
    "plain-18": 1.8,
    "plain-34": 3.6,
    "ResNet-18": 1.8,
    "ResNet-34": 3.6,
    "ResNet-50": 3.8,
    "ResNet-101": 7.6,
    "ResNet-152": 11.3,
}
# Table 6, column "# params", in millions; plain networks have those of their residual twins.
PARAMETERS = {
    "ResNet-20": 0.27,
    "ResNet-32": 0.46,
    "ResNet-44": 0.66,
    "ResNet-56": 0.85,
    "ResNet-110": 1.7,
    "ResNet-1202": 19.4,
}
# By run (see experiments.Run.network). Ten crops on the validation set.
TABLE_2 = {
    "plain18": Error(27.94),
    "plain34": Error(28.54),
    "resnet18a": Error(27.88),
    "resnet34a": Error(25.03),
}
TABLE_3 = {
    "plain34": Error(28.54, 10.02),
    "resnet34a": Error(25.03, 7.76),
    "resnet34": Error(24.52, 7.46),
    "resnet34c": Error(24.19, 7.40),
    "resnet50": Error(22.85, 6.71),
    "resnet101": Error(21.75, 6.05),
    "resnet152": Error(21.43, 5.71),
}
TABLE_3_CITED = {
    "VGG-16": Error(28.07, 9.33),
    "GoogLeNet": Error(None, 9.15),
    "PReLU-net": Error(24.27, 7.38),
}
# One model, fully convolutional at several scales, on the validation set.
TABLE_4 = {
    "resnet34": Error(21.84, 5.71),
    "resnet34c": Error(21.53, 5.60),
    "resnet50": Error(20.74, 5.25),
    "resnet101": Error(19.87, 4.60),
    "resnet152": Error(19.38, 4.49),
}
TABLE_4_CITED = {
    "VGG (v5)": Error(24.4, 7.1),
    "PReLU-net": Error(21.59, 5.71),
    "BN-inception": Error(21.99, 5.81),
}
# The ensemble, on the test set, whose labels are not public.
TABLE_5_TOP5 = 3.57
# CIFAR-10, test set, single view.
TABLE_6 = {
    "resnet20": Error(8.75),
    "resnet32": Error(7.51),
    "resnet44": Error(7.17),
    "resnet56": Error(6.97),
    "resnet110": Error(6.43),
    "resnet1202": Error(7.93),
}
TABLE_6_REPEATED = {"resnet110": Repeated(6.61, 0.16)}  # Five runs, of which 6.43 is the best.
TABLE_6_CITED = {
    "Maxout": "9.38",
    "NIN": "8.81",
    "DSN": "8.22",
    "FitNet (19 layers)": "8.39",
    "Highway (19 layers)": "7.54 (7.72 ± 0.16)",
    "Highway (32 layers)": "8.80",
}
