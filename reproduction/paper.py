"""What the paper reports (He et al., arXiv 1512.03385). Errors are in percent; FLOPs are multiply-adds, in billions."""

from collections.abc import Mapping
from typing import NamedTuple


class Error(NamedTuple):
    """Top-1 and top-5 error; None where the paper gives none."""

    top1: float | None
    top5: float | None = None


class Cited(NamedTuple):
    """A row of a table that the paper took from others, as it shows it; empty where it gives nothing."""

    top1: str = ""
    top5: str = ""
    parameters: str = ""


class Published(NamedTuple):
    """A table: the errors of the paper's own networks by member of our configs, on which split, and what it cites."""

    errors: Mapping[str, Error]
    split: str
    cited: Mapping[str, Cited]


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
TABLES = {
    # Ten crops.
    "table2": Published(
        {"plain18": Error(27.94), "plain34": Error(28.54), "resnet18a": Error(27.88), "resnet34a": Error(25.03)},
        "validation",
        {},
    ),
    # Ten crops.
    "table3": Published(
        {
            "plain34": Error(28.54, 10.02),
            "resnet34a": Error(25.03, 7.76),
            "resnet34": Error(24.52, 7.46),
            "resnet34c": Error(24.19, 7.40),
            "resnet50": Error(22.85, 6.71),
            "resnet101": Error(21.75, 6.05),
            "resnet152": Error(21.43, 5.71),
        },
        "validation",
        {
            "VGG-16": Cited("28.07", "9.33"),
            "GoogLeNet": Cited("", "9.15"),
            "PReLU-net": Cited("24.27", "7.38"),
        },
    ),
    # One model, fully convolutional at several scales.
    "table4": Published(
        {
            "resnet34": Error(21.84, 5.71),
            "resnet34c": Error(21.53, 5.60),
            "resnet50": Error(20.74, 5.25),
            "resnet101": Error(19.87, 4.60),
            "resnet152": Error(19.38, 4.49),
        },
        "validation",
        {
            "VGG (ILSVRC'14)": Cited("", "8.43 (test)"),
            "GoogLeNet (ILSVRC'14)": Cited("", "7.89"),
            "VGG (v5)": Cited("24.4", "7.1"),
            "PReLU-net": Cited("21.59", "5.71"),
            "BN-inception": Cited("21.99", "5.81"),
        },
    ),
    # Ensembles, on the test set, whose labels are not public.
    "table5": Published(
        {"table5-ensemble": Error(None, 3.57)},
        "test",
        {
            "VGG (ILSVRC'14)": Cited("", "7.32"),
            "GoogLeNet (ILSVRC'14)": Cited("", "6.66"),
            "VGG (v5)": Cited("", "6.8"),
            "PReLU-net": Cited("", "4.94"),
            "BN-inception": Cited("", "4.82"),
        },
    ),
    # CIFAR-10, single view.
    "table6": Published(
        {
            "resnet20": Error(8.75),
            "resnet32": Error(7.51),
            "resnet44": Error(7.17),
            "resnet56": Error(6.97),
            "resnet110": Error(6.43),
            "resnet1202": Error(7.93),
        },
        "test",
        {
            "Maxout": Cited("9.38"),
            "NIN": Cited("8.81"),
            "DSN": Cited("8.22"),
            "FitNet (19 layers)": Cited("8.39", parameters="2.5 M"),
            "Highway (19 layers)": Cited("7.54 (7.72 ± 0.16)", parameters="2.3 M"),
            "Highway (32 layers)": Cited("8.80", parameters="1.25 M"),
        },
    ),
}


_PROTOCOLS = {"single": ("table6",), "ten_crop": ("table2", "table3"), "multi_scale": ("table4",)}


def top1(protocol: str) -> dict[str, float]:
    """The published top-1 errors of the paper's own networks under a protocol of ours, by member of our configs."""
    found: dict[str, float] = {}
    for table in _PROTOCOLS[protocol]:
        found |= {member: error.top1 for member, error in TABLES[table].errors.items() if error.top1 is not None}
    return found


class Repeated(NamedTuple):
    """Mean and standard deviation of several runs' top-1 errors."""

    mean: float
    deviation: float


def compared(protocol: str) -> dict[str, tuple[float, str]]:
    """What runs under a protocol of ours are compared with, and its split: ``top1``, or the mean of repeated runs."""
    splits = {member: TABLES[table].split for table in _PROTOCOLS[protocol] for member in TABLES[table].errors}
    means = {member: repeated.mean for member, repeated in REPEATED.items()}
    return {member: (means.get(member, error), splits[member]) for member, error in top1(protocol).items()}


# Table 6: five runs, of which 6.43 is the best.
REPEATED = {"resnet110": Repeated(6.61, 0.16)}
# Section 4.2, in the text. No table or text has an error of the other plain networks on CIFAR-10.
TRAINING_ERRORS = {"resnet1202": "below 0.1"}
TEST_ERRORS = {"plain110": "above 60"}
