"""The recipes, and the files of configs/: valid, the network that they name, and the paper's numbers."""

import importlib.util
import re
from pathlib import Path

import pytest

from resnet_jax import recipes
from resnet_jax.analysis.complexity import count_parameters
from resnet_jax.config import make_model, validate

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.py"))

# Option C projects where B does not: in all blocks of stage 1, and in those after the first of stages 2 to 4.
# A highway network has a 1x1 convolution with a bias for the gate of every block.
GATES = {
    n: n * (16 * 16 + 16) + (16 * 32 + 32) + (n - 1) * (32 * 32 + 32) + (32 * 64 + 64) + (n - 1) * (64 * 64 + 64)
    for n in (3, 5, 9)
}
PROJECTIONS_OF_34C = sum(n * (filters**2 + 2 * filters) for n, filters in [(3, 64), (3, 128), (5, 256), (2, 512)])
# Config -> network, shortcut, parameters, and the errors that the paper has for it.
NETWORKS = {
    "plain18_imagenet": ("plain18", None, 11_515_688, ["27.94"]),
    "plain34_imagenet": ("plain34", None, 21_623_848, ["28.54", "10.02"]),
    "resnet18_imagenet": ("resnet18", "B", 11_689_512, []),
    "resnet18a_imagenet": ("resnet18", "A", 11_515_688, ["27.88"]),
    "resnet34_imagenet": ("resnet34", "B", 21_797_672, ["24.52", "7.46"]),
    "resnet34a_imagenet": ("resnet34", "A", 21_623_848, ["25.03", "7.76"]),
    "resnet34c_imagenet": ("resnet34", "C", 21_797_672 + PROJECTIONS_OF_34C, ["24.19", "7.40"]),
    "resnet50_imagenet": ("resnet50", "B", 25_557_032, []),
    "resnet50_imagenet_paper": ("resnet50", "B", 25_557_032, ["22.85", "6.71"]),
    "resnet101_imagenet": ("resnet101", "B", 44_549_160, ["21.75", "6.05"]),
    "resnet152_imagenet": ("resnet152", "B", 60_192_808, ["21.43", "5.71"]),
    "plain20_cifar10": ("plain20", None, 269_722, []),
    "plain32_cifar10": ("plain32", None, 464_154, []),
    "plain44_cifar10": ("plain44", None, 658_586, []),
    "plain56_cifar10": ("plain56", None, 853_018, []),
    "plain110_cifar10": ("plain110", None, 1_727_962, ["60"]),
    "resnet20_cifar10": ("resnet20", "A", 269_722, ["8.75"]),
    "resnet32_cifar10": ("resnet32", "A", 464_154, ["7.51"]),
    "resnet44_cifar10": ("resnet44", "A", 658_586, ["7.17"]),
    "resnet56_cifar10": ("resnet56", "A", 853_018, ["6.97"]),
    "resnet110_cifar10": ("resnet110", "A", 1_727_962, ["6.43"]),
    "resnet1202_cifar10": ("resnet1202", "A", 19_421_274, ["7.93"]),
    "highway20_cifar10": ("highway20", "gated", 269_722 + GATES[3], ["7.54"]),
    "highway32_cifar10": ("highway32", "gated", 464_154 + GATES[5], ["8.80"]),
    "highway56_cifar10": ("highway56", "gated", 853_018 + GATES[9], []),
    # Three blocks of 8, 16 and 32 filters.
    "quickstart": ("resnet20", "A", 232 + 1_184 + 3_520 + 13_952 + 330, []),
}
OF_VGG = {"vgg16_imagenet": ("28.07", "9.33"), "vgg19_imagenet": ()}
ON_IMAGENET = [path for path in CONFIGS if "imagenet" in path.stem and path.stem not in OF_VGG]
ON_IMAGENET_AS_IN_THE_PAPER = [path for path in ON_IMAGENET if path.stem != "resnet50_imagenet"]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stem(path):
    return path.stem


def test_there_is_a_config_for_each_network_and_no_other():
    assert {path.stem for path in CONFIGS} == {*NETWORKS, *OF_VGG}


@pytest.mark.parametrize("num_devices", [1, 2, 8])
@pytest.mark.parametrize("path", CONFIGS, ids=stem)
def test_every_config_file_is_valid(path, num_devices):
    validate(load(path).get_config(), num_devices)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in NETWORKS], ids=stem)
def test_every_config_file_makes_the_network_that_it_says(path):
    name, shortcut, parameters, _ = NETWORKS[path.stem]
    config = load(path).get_config()
    assert config.model.name == name
    data = {"imagenet2012": path in ON_IMAGENET, "cifar10": "cifar10" in path.stem, "digits": path.stem == "quickstart"}
    assert data[config.data.name]
    model = make_model(config, num_classes=1000 if path in ON_IMAGENET else 10)
    assert model.shortcut == shortcut
    assert model.stem == ("imagenet" if path in ON_IMAGENET else "cifar")
    assert model.stride_placement == ("v1.5" if path.stem == "resnet50_imagenet" else "v1")
    assert count_parameters(model.clone(scan_blocks=True)) == parameters  # One block a stage to trace.


@pytest.mark.parametrize("path", CONFIGS, ids=stem)
def test_every_config_file_tells_its_command_hardware_and_error(path):
    lines = load(path).__doc__.splitlines()
    parts = {line.split(":")[0]: line.split(":", 1)[1].strip() for line in lines if re.match(r"\w+: ", line)}
    assert len(parts) == 3 and list(parts)[:2] == ["Command", "Hardware"]
    assert re.fullmatch(rf"python train\.py --config configs/{path.name} --workdir runs/\w+", parts["Command"])
    published = parts.get("Published") or parts.get("Expected")
    assert parts["Hardware"] and published
    for error in OF_VGG[path.stem] if path.stem in OF_VGG else NETWORKS[path.stem][-1]:
        assert re.search(rf"\b{re.escape(error)} %", published)


def test_no_two_config_files_name_one_workdir():
    workdirs = [re.search(r"--workdir (\S+)", load(path).__doc__)[1] for path in CONFIGS]
    assert len(set(workdirs)) == len(workdirs)


@pytest.mark.parametrize("path", ON_IMAGENET_AS_IN_THE_PAPER, ids=stem)
def test_the_paper_recipe_on_imagenet_holds_the_numbers_of_section_3_4(path):
    config = load(path).get_config()
    assert (config.data.name, config.batch_size, config.steps) == ("imagenet2012", 256, 600_000)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (0.1, 0.9, 1e-4)
    assert optimizer.decay == "all"
    assert (config.schedule.name, config.schedule.factor) == ("plateau", 0.1)
    assert (config.schedule.warmup_steps, config.schedule.warmup_error) == (0, 0)
    data = config.data
    assert (data.crop, data.shorter_side) == ("scale_jitter", (256, 480))
    assert (data.crop_size, data.eval_shorter_side) == (224, 256)
    assert (data.normalization, data.flip, data.pca_std, data.pad) == ("per_pixel_mean", True, 0.1, 0)
    # The authors' released note: 32 images a GPU, and statistics over many images after training.
    assert config.model.bn_group_size == 32 == config.batch_size // 8
    assert config.bn_recompute_batches * config.batch_size > 50_000
    # What the paper does not have.
    assert (config.label_smoothing, config.ema_decay, config.accumulate_steps) == (0, 0, 1)
    model = make_model(config, 1000)
    assert (model.dtype, model.zero_init_last_bn) == ("float32", False)


def test_the_paper_recipe_on_one_gpu_may_take_a_batch_in_the_paper_s_parts():
    config = recipes.imagenet_paper("resnet50")
    config.accumulate_steps = 8
    validate(config, num_devices=1)
    assert config.batch_size // config.accumulate_steps == config.model.bn_group_size


def test_plateaus_are_looked_for_about_once_an_epoch():
    config = recipes.imagenet_paper("resnet50")
    epoch = 1_281_167 / config.batch_size
    assert 0.9 * epoch < config.eval_every < 1.1 * epoch


def test_the_baseline_on_imagenet_is_90_epochs_of_the_usual_recipe():
    config = recipes.imagenet_baseline("resnet50")
    epoch = 1_281_167 / config.batch_size
    assert abs(config.steps / epoch - 90) < 0.1
    assert abs(config.schedule.warmup_steps / epoch - 5) < 0.01
    assert config.optimizer.learning_rate == pytest.approx(0.1 * config.batch_size / 256)
    assert (config.schedule.name, config.label_smoothing, config.optimizer.decay) == ("cosine", 0.1, "kernels")
    assert (config.data.crop, config.data.crop_size, config.data.area) == ("random_resized", 224, (0.08, 1.0))
    assert (config.data.normalization, config.data.flip, config.data.pad) == ("channel", True, 0)
    model = make_model(config, 1000)
    assert (model.dtype, model.zero_init_last_bn, model.stride_placement) == ("bfloat16", True, "v1.5")


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in OF_VGG], ids=stem)
def test_vgg_has_its_own_recipe(path):
    config = load(path).get_config()
    assert config.model.name == path.stem.removesuffix("_imagenet")
    optimizer = config.optimizer
    assert (config.batch_size, optimizer.learning_rate, optimizer.momentum) == (256, 0.01, 0.9)
    assert (optimizer.weight_decay, config.schedule.factor) == (5e-4, 0.1)
    assert abs(config.steps * config.batch_size / recipes.IMAGENET_TRAIN_EXAMPLES - 74) < 0.1


@pytest.mark.parametrize("name", ["resnet110", "plain110", "resnet1202"])
def test_the_paper_recipe_warms_the_deepest_networks_up(name):
    # Section 4.2: 0.01 until the training error is below 80 %.
    config = recipes.cifar10_paper(name)
    assert (config.schedule.warmup_error, config.schedule.warmup_learning_rate) == (0.8, 0.01)
    assert recipes.cifar10_paper("resnet56").schedule.warmup_error == 0


def test_the_paper_recipe_on_cifar10_holds_the_numbers_of_section_4_2():
    config = recipes.cifar10_paper("resnet20")
    assert (config.data.name, config.batch_size, config.steps) == ("cifar10", 128, 64_000)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (0.1, 0.9, 1e-4)
    assert (config.schedule.name, config.schedule.boundaries, config.schedule.factor) == ("step", (32_000, 48_000), 0.1)
    assert (config.data.pad, config.data.flip, config.data.normalization) == (4, True, "per_pixel_mean")
    assert config.model.bn_group_size == config.batch_size // 2  # Two GPUs.
