"""The numbers of the paper against a second list of them, by table: He et al., arXiv 1512.03385."""

from reproduction import paper


def test_what_the_paper_cites_is_complete():
    cited = {table: {name: each.top5 for name, each in paper.TABLES[table].cited.items()} for table in paper.TABLES}
    assert cited["table4"] == {
        "VGG (ILSVRC'14)": "8.43 (test)",
        "GoogLeNet (ILSVRC'14)": "7.89",
        "VGG (v5)": "7.1",
        "PReLU-net": "5.71",
        "BN-inception": "5.81",
    }
    assert cited["table5"] == {
        "VGG (ILSVRC'14)": "7.32",
        "GoogLeNet (ILSVRC'14)": "6.66",
        "VGG (v5)": "6.8",
        "PReLU-net": "4.94",
        "BN-inception": "4.82",
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
