from pathlib import Path

import pytest

from reproduction import numbers, report, sections
from reproduction.claims import whole_recipes
from reproduction.document import Paragraph, Table, to_markdown
from reproduction.ledger import record_path, write_record

ROOT = Path(__file__).resolve().parent.parent.parent
# Network, image, maps, parameters, multiply-adds: exact counts of the layers in Table 1 and section 4.2.
TABLE_1 = {
    "VGG-16": (224, "224 112 56 28 14", 138_357_544, 15_470_264_320),
    "VGG-19": (224, "224 112 56 28 14", 143_667_240, 19_632_062_464),
    "plain-18": (224, "112 56 28 14 7", 11_515_688, 1_794_805_760),
    "plain-34": (224, "112 56 28 14 7", 21_623_848, 3_644_493_824),
    "ResNet-18 A": (224, "112 56 28 14 7", 11_515_688, 1_794_805_760),
    "ResNet-34 A": (224, "112 56 28 14 7", 21_623_848, 3_644_493_824),
    "ResNet-18 B": (224, "112 56 28 14 7", 11_689_512, 1_814_073_344),
    "ResNet-34 B": (224, "112 56 28 14 7", 21_797_672, 3_663_761_408),
    "ResNet-50": (224, "112 56 28 14 7", 25_557_032, 3_857_973_248),
    "ResNet-101": (224, "112 56 28 14 7", 44_549_160, 7_570_194_432),
    "ResNet-152": (224, "112 56 28 14 7", 60_192_808, 11_282_415_616),
    "ResNet-50 v1.5": (224, "112 56 28 14 7", 25_557_032, 4_089_184_256),
    "ResNet-101 v1.5": (224, "112 56 28 14 7", 44_549_160, 7_801_405_440),
    "ResNet-152 v1.5": (224, "112 56 28 14 7", 60_192_808, 11_513_626_624),
    "ResNet-20": (32, "32 32 16 8", 269_722, 40_551_040),
    "ResNet-32": (32, "32 32 16 8", 464_154, None),
    "ResNet-44": (32, "32 32 16 8", 658_586, None),
    "ResNet-56": (32, "32 32 16 8", 853_018, 125_485_696),
    "ResNet-110": (32, "32 32 16 8", 1_727_962, 252_887_680),
    "ResNet-1202": (32, "32 32 16 8", 19_421_274, None),
}


@pytest.fixture(scope="module")
def rows_of_table1():
    (table,) = [block for block in sections.table1() if isinstance(block, Table)]
    return {row[0]: row for row in table.rows}


@pytest.mark.extensive  # Twenty-three networks are traced.
@pytest.mark.parametrize("network", TABLE_1)
def test_table_1_holds_the_exact_counts(rows_of_table1, network):
    size, maps, parameters, multiply_adds = TABLE_1[network]
    _, images, _, found_maps, found_parameters, _, found_adds, _ = rows_of_table1[network]
    assert (images, found_maps, found_parameters) == (f"{size} x {size}", maps, f"{parameters:,}")
    assert multiply_adds is None or found_adds == f"{multiply_adds:,}"


@pytest.mark.extensive
def test_table_1_agrees_with_the_paper_s_rounded_figures(rows_of_table1):
    compared = 0
    for name, (_, _, _, _, parameters, of_paper, adds, flops) in rows_of_table1.items():
        for count, published, unit in ((parameters, of_paper, 1e6), (adds, flops, 1e9)):
            if published:
                compared += 1
                # The paper cuts 3.86 billion to 3.8, has no projections in its 34 layers, and 15.3 for VGG-16's 15.47.
                tolerance = {"VGG-16": 0.18, "ResNet-50": 0.06, "ResNet-34 B": 0.07}.get(name, 0.051)
                assert float(published.split()[0]) == pytest.approx(int(count.replace(",", "")) / unit, abs=tolerance)
    assert compared == 17


def write(tmp_path, *records):
    for record in records:
        write_record(record_path(tmp_path, record["scale"], record["run"]), record)


def table_of(tmp_path, name, scale="medium"):
    blocks = report.one_section(ROOT, tmp_path, scale, name)
    return next(block for block in blocks if isinstance(block, Table))


def strong(tmp_path, name, scale="medium"):
    blocks = report.one_section(ROOT, tmp_path, scale, name)
    return [block.text for block in blocks if isinstance(block, Paragraph) and block.strong]


def test_errors_stand_beside_the_paper_s_with_their_difference_and_spread(tmp_path, make_record):
    write(tmp_path, make_record("resnet20", 0, 9.0), make_record("resnet20", 1, 10.0), make_record("resnet110", 0, 6.0))
    rows = table_of(tmp_path, "table6").rows
    assert rows[0] == ["ResNet-20", "1,234,567", "2", "9.50 ± 0.71", "8.75", "+0.75"]
    assert rows[1] == ["ResNet-110", "1,234,567", "1", "6.00", "6.43 (6.61 ± 0.16)", "-0.61"]
    assert ["Highway (19 layers), cited", "2.3 M", "", "", "7.54 (7.72 ± 0.16)", ""] in rows


def test_several_runs_of_resnet_110_are_compared_with_the_paper_s_mean(tmp_path, make_record):
    write(tmp_path, make_record("resnet110", 0, 6.5), make_record("resnet110", 1, 6.7))
    assert table_of(tmp_path, "table6").rows[0][-1] == "-0.01"


@pytest.mark.parametrize("scale", ["small", "smoke"])
def test_scales_that_show_nothing_have_no_verdict_and_no_difference(tmp_path, make_record, scale):
    for network in ("plain20", "plain56", "resnet20", "resnet56"):
        write(tmp_path, make_record(network, scale=scale, top1=9.0, responses={"stem": 1.0}))
    assert "difference" not in table_of(tmp_path, "table6", scale).header
    assert [strong(tmp_path, name, scale) for name in ("table6", "fig6", "fig7")] == [[], [], []]


@pytest.mark.parametrize(
    "name, network, expected",
    [
        ("table2", "resnet34a", ["10.00", "25.03", "-15.03", "1.00", "", ""]),
        ("table3", "resnet50", ["10.00", "22.85", "-12.85", "1.00", "6.71", "-5.71"]),
        ("table4", "resnet152", ["10.00", "19.38", "-9.38", "1.00", "4.49", "-3.49"]),
    ],
)
def test_tables_of_imagenet_have_both_errors(tmp_path, make_record, name, network, expected):
    write(tmp_path, make_record(network))
    table = table_of(tmp_path, name)
    assert table.rows[0][3:] == expected
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_an_error_of_one_split_is_not_subtracted_from_that_of_another(tmp_path, make_record):
    record = make_record("resnet20", top1=9.0)
    record["results"]["single"] = record["results"]["single"] | {"split": "validation"}
    write(tmp_path, record)
    assert table_of(tmp_path, "table6").rows[0][3:] == ["9.00", "8.75", ""]


def test_the_ensemble_stands_beside_the_paper_s_and_is_not_subtracted(tmp_path, make_record, capsys):
    write(tmp_path, make_record("resnet50"), make_record("resnet101"))
    # The members alone are no ensemble.
    assert "Table 5" not in to_markdown(report.one_section(ROOT, tmp_path, "medium", "table5"))
    errors = {"multi_scale": {"split": "validation", "top1_error": 20.0, "top5_error": 4.57}}
    ensemble = {
        "kind": "ensemble",
        "run": "table5-ensemble",
        "scale": "medium",
        "members": {"resnet50-seed0": 0.5, "resnet101-seed0": 0.5},
    }
    write(tmp_path, ensemble | {"results": errors, "commands": {"multi_scale": "x"}})
    table = table_of(tmp_path, "table5")
    assert table.header[2:] == ["top-1 error, validation", "top-5 error, validation", "top-5 error, test"]
    assert table.rows[:2] == [["this ensemble", "2", "20.00", "4.57", ""], ["the paper's", "6", "", "", "3.57"]]
    assert ["PReLU-net, cited", "", "", "", "4.94"] in table.rows
    again = make_record("resnet50")
    again["results"] = {"multi_scale": again["results"]["multi_scale"] | {"loss": 0.4}}
    write(tmp_path, again)
    assert "Table 5" not in to_markdown(report.one_section(ROOT, tmp_path, "medium", "table5"))
    assert "table5-ensemble has members that are missing or were trained anew" in capsys.readouterr().err


def write_all(tmp_path, make_record, errors):
    """Training and test error of plain and residual networks of 20 and 56 layers."""
    for network, (train, top1) in errors.items():
        write(tmp_path, make_record(network, train=train, top1=top1))


def test_degradation_is_said_as_it_was_measured(tmp_path, make_record):
    write(
        tmp_path,
        *(make_record("plain20", seed, train=10.0, top1=10.0) for seed in (0, 1)),
        *(make_record("plain56", seed, train=30.0, top1=29.0) for seed in (0, 1)),
        make_record("resnet20", 0, train=8.0, top1=10.5),
        make_record("resnet56", 0, train=7.0, top1=11.5),
    )
    plain, residual, both = strong(tmp_path, "fig6")
    assert plain == (
        "Deeper plain networks are worse: reproduced. From 20 to 56 layers the training error changes by +20.00, "
        "+20.00 and the test error by +19.00, +19.00 points (seeds 0, 1)."
    )
    assert residual == (
        "Deeper residual networks are better: not reproduced. From 20 to 56 layers the training error changes by -1.00 "
        "and the test error by +1.00 points (one run each, seed 0)."
    )
    assert both == "With shortcuts depth costs less than without."


def test_a_whole_recipe_is_said_to_agree_with_the_paper_or_not(make_record):
    errors = [("resnet20", 0, 9.1), ("resnet20", 1, 8.9), ("resnet56", 0, 7.5), ("plain20", 0, 9.5)]
    errors += [("resnet110", 0, 6.8), ("resnet110", 1, 6.9)]
    records = [make_record(network, seed, top1=top1, steps=1200) for network, seed, top1 in errors]
    records.append(make_record("resnet32", top1=7.51))  # A part of its recipe.
    by_chance = (
        "that are put down to chance (two standard deviations of such a difference, by the paper's five runs of "
        "ResNet-110)"
    )
    assert whole_recipes({record["run"]: record for record in records}) == [
        "ResNet-20 has 9.00 ± 0.14 % test error after the whole recipe (seeds 0, 1), 0.25 points more than the "
        f"paper's 8.75 %: within the 0.39 {by_chance}.",
        "ResNet-56 has 7.50 % test error after the whole recipe (seed 0), 0.53 points more than the paper's 6.97 %: "
        f"beyond the 0.45 {by_chance}.",
        "ResNet-110 has 6.85 ± 0.07 % test error after the whole recipe (seeds 0, 1), 0.24 points more than the "
        f"paper's 6.61 %: within the 0.39 {by_chance}.",
    ]


def test_whole_recipes_on_imagenet_are_compared_view_by_view_and_on_the_published_split(make_record):
    record = make_record("resnet50", top1=22.0, steps=1200)
    found = whole_recipes({"resnet50-seed0": record})
    assert (
        len(found) == 2 and "validation error under ten_crop after" in found[0] and "the paper's 22.85 %." in found[0]
    )
    assert "under multi_scale" in found[1] and "the paper's 20.74 %." in found[1]
    of_test = {protocol: errors | {"split": "test"} for protocol, errors in record["results"].items()}
    assert whole_recipes({"resnet50-seed0": record | {"results": of_test}}) == []


def elsewhere(make_record):
    return make_record("resnet56")["environment"] | {"devices": ["gpu: Y"]}


def test_a_deep_network_that_begins_to_learn_later_is_said_to(tmp_path, make_record):
    write_all(tmp_path, make_record, {"plain20": (9, 10), "plain56": (30, 29), "resnet20": (8, 9)})
    late = {"train": [[10, 80.0], [20, 50.0], [30, 49.9], [40, 30.0]], "test": [[40, 28.0]]}
    write(tmp_path, make_record("resnet56", top1=28, curves=late))
    assert strong(tmp_path, "fig6")[1].endswith(
        "(one run each, seed 0). The training error was below 50 % by step 10 of 60 with 20 layers and by step 30 "
        "with 56."
    )
    write(tmp_path, make_record("resnet56", top1=28, curves=late, environment=elsewhere(make_record)))
    assert "(one run each, seed 0, on different hardware). The" in strong(tmp_path, "fig6")[1]
    never = {"train": [[40, 60.0]], "test": [[40, 58.0]]}
    write(tmp_path, make_record("resnet56", top1=58, curves=never))
    assert strong(tmp_path, "fig6")[1].endswith("(one run each, seed 0).")


def test_networks_far_from_their_published_error_show_nothing(tmp_path, make_record):
    errors = {"plain20": (9, 10), "plain56": (30, 29), "resnet20": (8, 10.76), "resnet56": (7, 9)}
    write_all(tmp_path, make_record, errors)
    assert strong(tmp_path, "fig6") == [
        "Too short to tell what depth does: ResNet-20, the shallow network, is at 10.76 % and not within 2 points of "
        "its published 8.75 %."
    ]
    write_all(tmp_path, make_record, {"resnet20": (8, 10.75)})
    assert len(strong(tmp_path, "fig6")) == 3


def test_plain_networks_alone_have_nothing_to_be_judged_by(tmp_path, make_record):
    write_all(tmp_path, make_record, {"plain20": (9, 10), "plain56": (30, 29)})
    (sentence,) = strong(tmp_path, "fig6")
    assert sentence.startswith("Too short to tell") and "no published error" in sentence


def test_on_imagenet_both_shallow_networks_are_judged_by_their_published_errors(tmp_path, make_record):
    errors = {"plain18": (30, 31.0), "plain34": (33, 32), "resnet18a": (29, 28.0), "resnet34a": (25, 26)}
    write_all(tmp_path, make_record, errors)
    assert strong(tmp_path, "fig4")[0].startswith("Too short to tell what depth does: plain-18, the shallow network")
    write_all(tmp_path, make_record, {"plain18": (30, 28.0)})
    assert strong(tmp_path, "fig4")[0].startswith("Deeper plain networks are worse: reproduced.")


def test_deeper_networks_of_one_kind_alone_change_nothing_in_what_is_said(tmp_path, make_record):
    errors = {"plain20": (9, 10), "plain56": (30, 29), "resnet20": (8, 9), "resnet56": (7, 8)}
    write_all(tmp_path, make_record, errors)
    before = strong(tmp_path, "fig6")
    write(tmp_path, make_record("resnet1202", train=90.0))
    assert strong(tmp_path, "fig6") == before and "to 56 layers" in before[1]


def test_shortcuts_that_do_not_help_are_said_not_to(tmp_path, make_record):
    errors = {"plain20": (9, 10), "plain56": (9, 10), "resnet20": (8, 9), "resnet56": (30, 26)}
    write_all(tmp_path, make_record, errors)
    assert strong(tmp_path, "fig6")[-1] == "With shortcuts depth costs no less than without."


def test_seeds_that_only_one_of_two_networks_has_are_not_compared(tmp_path, make_record):
    write(tmp_path, make_record("plain20", 0, 10.0), make_record("plain56", 1), make_record("resnet20", 0, 9.0))
    write(tmp_path, make_record("resnet56", 1, 8.0))
    assert strong(tmp_path, "fig6") == ["No seed has been run of both the shallow and the deep network of a pair."]


def test_differences_within_the_spread_of_runs_are_not_seen(tmp_path, make_record):
    errors = {"plain20": (9, 10), "plain56": (9.4, 10.4), "resnet20": (8, 9), "resnet56": (7, 8.6)}
    write_all(tmp_path, make_record, errors)
    plain, residual, both = strong(tmp_path, "fig6")
    assert plain.startswith("Deeper plain networks are worse: not reproduced.")
    assert residual.startswith("Deeper residual networks are better: not reproduced.")
    assert both == "With shortcuts depth costs less than without."


def test_what_depth_costs_is_compared_in_the_same_seeds(tmp_path, make_record):
    for seed, (plain, residual) in enumerate(
        [(15, 20), (40, 5)]
    ):  # Were seed 1's plain run counted, depth would cost less.
        write(tmp_path, make_record("plain20", seed, 10, 10), make_record("plain56", seed, plain, plain))
        if seed == 0:
            write(tmp_path, make_record("resnet20", 0, 9, 9), make_record("resnet56", 0, residual, residual))
    assert strong(tmp_path, "fig6")[-1] == "With shortcuts depth costs no less than without."


def test_the_paper_s_words_on_the_deepest_networks_stand_beside_ours(tmp_path, make_record):
    write(tmp_path, make_record("plain110", top1=70.0), make_record("resnet1202"), make_record("resnet20"))
    table = table_of(tmp_path, "fig6")
    assert table.header == ["network", "seeds", "training error", "paper", "test error", "paper"]
    rows = {row[0]: row for row in table.rows}
    assert rows["plain-110"][-1] == "above 60" and rows["ResNet-1202"][3] == "below 0.1"
    assert rows["ResNet-20"][3:] == ["", "10.00", "8.75"]


def test_the_final_training_error_is_the_mean_of_the_last_logs(make_record):
    assert numbers.final_training_error(make_record("plain20", train=20.0)) == 22.0


@pytest.mark.parametrize(
    "residual, words", [(0.5, "By the mean, all residual"), (3.0, "By the mean, not all residual")]
)
def test_responses_are_compared_by_their_means(tmp_path, make_record, residual, words):
    write(
        tmp_path,
        make_record("plain20", responses={"stem": 1.0, "stage1_block1/conv1": 2.0}),
        make_record("resnet20", responses={"stem": residual, "stage1_block1/conv1": residual}),
        make_record("plain56"),  # Without responses.
        make_record("resnet56"),
    )
    assert strong(tmp_path, "fig7")[0].startswith(words)
    assert [row[0] for row in table_of(tmp_path, "fig7").rows] == ["plain-20", "ResNet-20"]


def test_the_steps_at_which_plateaus_lowered_the_rate_stand_beside_the_errors(tmp_path, make_record):
    rates = [[10, 0.1], [30, 0.01], [50, 0.001]]
    write(tmp_path, make_record("plain18", scale="paper", learning_rates=rates))
    table = table_of(tmp_path, "fig4", "paper")
    assert table.header[-1] == "rate fell at" and table.rows[0][-1] == "30, 50"
    write(tmp_path, make_record("resnet20", learning_rates=rates))  # Of a schedule of fixed steps.
    assert "rate fell at" not in table_of(tmp_path, "fig6").header
