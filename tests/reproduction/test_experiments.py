from pathlib import Path

import pytest

from reproduction import paper
from reproduction.experiments import (
    EXPERIMENTS,
    SCALES,
    Run,
    command,
    network,
    overrides,
    recipe,
    runs,
    scaled,
    title,
)
from resnet_jax import build
from resnet_jax.config import flatten
from resnet_jax.errors import UserError
from resnet_jax.models import list_models, variant

ROOT = Path(__file__).resolve().parent.parent.parent
RUNS = sorted({run._replace(seed=0) for name in EXPERIMENTS for run in runs(name, "paper", None)})
NAMES = [run.network for run in RUNS]


def networks(experiment):
    return {run.network for run in runs(experiment, "paper")}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("run", RUNS, ids=NAMES)
def test_every_run_has_a_valid_config_at_every_scale(run, scale):
    build.check(scaled(ROOT, run._replace(seed=3), scale), num_devices=1)


@pytest.mark.parametrize("run", RUNS, ids=NAMES)
def test_the_paper_s_scale_is_the_recipe_itself(run):
    assert overrides(ROOT, run._replace(seed=2), "paper") == {"seed": 2}
    assert overrides(ROOT, run, "paper") == {}
    assert scaled(ROOT, run, "paper") == recipe(ROOT, run)


@pytest.mark.parametrize(("scale", "part"), [("small", 20), ("medium", 4)])
def test_a_shortened_run_is_a_part_of_the_recipe_and_else_the_same(scale, part):
    run = Run("cifar10", "resnet56")
    config, whole = scaled(ROOT, run, scale), recipe(ROOT, run)
    assert config.steps * part == whole.steps
    assert [part * step for step in config.schedule.boundaries] == list(whole.schedule.boundaries)
    changed = {key for key, value in flatten(config).items() if flatten(whole)[key] != value}
    assert changed - {"eval_every", "checkpoint_every"} == {"steps", "schedule.boundaries", "log_every"}


def test_a_shortened_cycle_peaks_at_the_same_part_of_the_run():
    run = Run("cifar10_ingredients", "resnet20_one_cycle")
    config, whole = scaled(ROOT, run, "medium"), recipe(ROOT, run)
    assert (config.steps, config.schedule.peak_at) == (whole.steps // 4, whole.schedule.peak_at // 4)


def test_each_ingredient_is_one_change_of_the_baseline_in_two_seeds():
    found = runs("ingredients", "paper")
    assert {run.seed for run in found} == {0, 1} and found[0].network == "resnet20_baseline"
    baseline = flatten(recipe(ROOT, found[0]))
    assert (baseline["steps"], baseline["schedule.boundaries"]) == (1_600, (800, 1_200))
    for run in found[1:18]:
        values = flatten(recipe(ROOT, run))
        sections = {key.rpartition(".")[0] for key in {*values, *baseline} if values.get(key) != baseline.get(key)}
        kinds = {section.split(".")[0] for section in sections}
        assert kinds <= ({"schedule", "optimizer"} if "cycle" in run.network else kinds) and len(sections) <= 2
        assert sections and (len(kinds) == 1 or "cycle" in run.network), run.network


def test_a_small_run_on_imagenet_takes_steps_for_plateaus():
    config = scaled(ROOT, Run("imagenet_paper", "resnet50"), "small")
    assert (config.steps, config.schedule.name, config.schedule.boundaries) == (30_000, "step", (15_000, 22_500))


@pytest.mark.parametrize("run", RUNS, ids=NAMES)
def test_a_smoke_run_is_small_and_of_the_same_kind_of_network(run):
    smoke, whole = (scaled(ROOT, run, scale) for scale in ("smoke", "paper"))
    assert smoke.data.name in ("digits", "folder") and smoke.steps <= 50
    assert smoke.model.name == whole.model.name and smoke.model.shortcut == whole.model.shortcut


def test_each_experiment_trains_the_networks_that_the_paper_names():
    for table in ("table2", "table3", "table4"):
        assert networks(table) == set(paper.TABLES[table].errors)
    assert networks("table6") == {*paper.TABLES["table6"].errors, "highway20", "highway32"}
    assert networks("fig1") == {"plain20", "plain56"}
    assert networks("fig4") == networks("table2")
    assert networks("fig7") == {"plain20", "plain56", "resnet20", "resnet56", "resnet110"}
    assert {"plain20", "plain56", "plain110", "resnet20", "resnet110"} < networks("fig6")


def test_the_ensemble_has_six_networks_two_of_them_of_152_layers():
    names = [run.name for run in runs("table5", "paper")]
    assert len(names) == len(set(names)) == 6
    assert [name for name in names if name.startswith("resnet152")] == ["resnet152-seed0", "resnet152-seed1"]


def test_table_6_runs_five_seeds_and_every_network_once_before_the_next_seed():
    found = runs("table6", "paper")
    assert [run.seed for run in found] == [seed for seed in range(5) for _ in range(8)]
    assert len(runs("table6", "smoke")) == 8
    assert {run.seed for run in runs("table6", "smoke", seeds=2)} == {0, 1}


@pytest.mark.parametrize("choice", [{"seeds": 2}, {"networks": ["resnet50"]}], ids=str)
def test_an_ensemble_is_of_all_its_networks(choice):
    with pytest.raises(UserError, match="table5 is one ensemble of all its networks"):
        runs("table5", "small", **choice)


def test_networks_can_be_chosen_and_unknown_ones_are_named():
    assert [run.name for run in runs("fig1", "small", 2, ["plain56"])] == ["plain56-seed0", "plain56-seed1"]
    with pytest.raises(UserError, match="fig1 has no network 'resnet20'; it has plain20, plain56"):
        runs("fig1", "small", networks=["resnet20"])
    with pytest.raises(UserError, match="fig1 has no network ''"):
        runs("fig1", "small", networks=[])


@pytest.mark.parametrize(
    "run, expected",
    [
        (Run("cifar10", "plain20"), "plain-20"),
        (Run("cifar10", "resnet1202"), "ResNet-1202"),
        (Run("cifar10", "highway32"), "Highway-32"),
        (Run("imagenet_paper", "resnet34"), "ResNet-34 B"),
        (Run("imagenet_paper", "resnet34a"), "ResNet-34 A"),
        (Run("imagenet_paper", "resnet34c"), "ResNet-34 C"),
        (Run("imagenet_paper", "resnet50"), "ResNet-50"),
        (Run("imagenet_paper", "plain18"), "plain-18"),
        (Run("vgg", "vgg16"), "VGG-16"),
    ],
    ids=lambda value: value.network if isinstance(value, Run) else "",
)
def test_networks_are_called_as_in_the_paper(run, expected):
    assert title(ROOT, run) == expected


def test_every_network_of_the_paper_has_a_title_and_those_differ():
    titles = [network({"model.name": name}).title for name in list_models() if variant(name).in_paper]
    assert len(set(titles)) == len(titles)


def test_a_command_can_be_typed():
    run = Run("cifar10", "plain20")
    found = command("train.py", run, [Path("runs/a")], {"steps": 3, "schedule.boundaries": (1, 2)})
    assert found == [
        *("train.py", "--config", "configs/cifar10.py:plain20", "--workdir", "runs/a"),
        *("--config.steps=3", "--config.schedule.boundaries=(1,2)"),
    ]
