"""The numbers of the paper against a second list of them, by table: He et al., arXiv 1512.03385."""

from reproduction import paper


def errors(table):
    return {name: tuple(each) for name, each in paper.TABLES[table].errors.items()}


def cited(table):
    return {name: (each.top1, each.top5) for name, each in paper.TABLES[table].cited.items()}


def test_the_errors_of_the_papers_own_networks():
    assert {name: top1 for name, (top1, _) in errors("table2").items()} == {
        "plain18": 27.94,
        "plain34": 28.54,
        "resnet18a": 27.88,
        "resnet34a": 25.03,
    }
    assert errors("table3") == {
        "plain34": (28.54, 10.02),
        "resnet34a": (25.03, 7.76),
        "resnet34": (24.52, 7.46),
        "resnet34c": (24.19, 7.40),
        "resnet50": (22.85, 6.71),
        "resnet101": (21.75, 6.05),
        "resnet152": (21.43, 5.71),
    }
    assert errors("table4") == {
        "resnet34": (21.84, 5.71),
        "resnet34c": (21.53, 5.60),
        "resnet50": (20.74, 5.25),
        "resnet101": (19.87, 4.60),
        "resnet152": (19.38, 4.49),
    }
    assert list(errors("table5").values()) == [(None, 3.57)]
    assert {name: top1 for name, (top1, _) in errors("table6").items()} == {
        "resnet20": 8.75,
        "resnet32": 7.51,
        "resnet44": 7.17,
        "resnet56": 6.97,
        "resnet110": 6.43,
        "resnet1202": 7.93,
    }


def test_what_the_paper_cites_is_complete():
    assert cited("table2") == {}
    assert cited("table3") == {
        "VGG-16": ("28.07", "9.33"),
        "GoogLeNet": ("", "9.15"),
        "PReLU-net": ("24.27", "7.38"),
    }
    assert cited("table4") == {
        "VGG (ILSVRC'14)": ("", "8.43 (test)"),
        "GoogLeNet (ILSVRC'14)": ("", "7.89"),
        "VGG (v5)": ("24.4", "7.1"),
        "PReLU-net": ("21.59", "5.71"),
        "BN-inception": ("21.99", "5.81"),
    }
    assert {name: top5 for name, (_, top5) in cited("table5").items()} == {
        "VGG (ILSVRC'14)": "7.32",
        "GoogLeNet (ILSVRC'14)": "6.66",
        "VGG (v5)": "6.8",
        "PReLU-net": "4.94",
        "BN-inception": "4.82",
    }
    assert {name: top1 for name, (top1, _) in cited("table6").items()} == {
        "Maxout": "9.38",
        "NIN": "8.81",
        "DSN": "8.22",
        "FitNet (19 layers)": "8.39",
        "Highway (19 layers)": "7.54 (7.72 ± 0.16)",
        "Highway (32 layers)": "8.80",
    }
    parameters = {name: each.parameters for name, each in paper.TABLES["table6"].cited.items() if each.parameters}
    assert parameters == {
        "FitNet (19 layers)": "2.5 M",
        "Highway (19 layers)": "2.3 M",
        "Highway (32 layers)": "1.25 M",
    }


def test_the_errors_of_each_protocol():
    assert paper.top1("single")["resnet20"] == 8.75
    assert paper.top1("ten_crop") | {"resnet34a": 25.03, "plain18": 27.94, "resnet34": 24.52} == paper.top1("ten_crop")
    assert paper.top1("multi_scale")["resnet34"] == 21.84
