"""The files of configs/: valid, the networks that they name, and the paper's numbers."""

from pathlib import Path

import pytest

from resnet_jax import build
from resnet_jax.analysis.complexity import count_parameters
from resnet_jax.config import Config, load_config, override
from resnet_jax.data.normalization import IMAGENET_STATISTICS
from resnet_jax.errors import UserError
from resnet_jax.experiment.training import train
from resnet_jax.train.schedules import Hold, Plateau, Step

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
IMAGENET_TRAIN_EXAMPLES = 1_281_167

# Option C projects where B does not: in all blocks of stage 1, and in those after the first of stages 2 to 4.
# A highway network has a 1x1 convolution with a bias for the gate of every block.
GATES = {
    n: n * (16 * 16 + 16) + (16 * 32 + 32) + (n - 1) * (32 * 32 + 32) + (32 * 64 + 64) + (n - 1) * (64 * 64 + 64)
    for n in (3, 5, 9)
}
PROJECTIONS_OF_34C = sum(n * (filters**2 + 2 * filters) for n, filters in [(3, 64), (3, 128), (5, 256), (2, 512)])
# Recipe -> parameters, and the errors that the paper has for the network.
NETWORKS = {
    "imagenet_paper.py:plain18": (11_515_688, ["27.94"]),
    "imagenet_paper.py:plain34": (21_623_848, ["28.54", "10.02"]),
    "imagenet_paper.py:resnet18": (11_689_512, []),
    "imagenet_paper.py:resnet18a": (11_515_688, ["27.88"]),
    "imagenet_paper.py:resnet34": (21_797_672, ["24.52", "7.46"]),
    "imagenet_paper.py:resnet34a": (21_623_848, ["25.03", "7.76"]),
    "imagenet_paper.py:resnet34c": (21_797_672 + PROJECTIONS_OF_34C, ["24.19", "7.40"]),
    "imagenet_paper.py:resnet50": (25_557_032, ["22.85", "6.71"]),
    "imagenet_paper.py:resnet101": (44_549_160, ["21.75", "6.05"]),
    "imagenet_paper.py:resnet152": (60_192_808, ["21.43", "5.71"]),
    "resnet50_imagenet.py": (25_557_032, []),
    "cifar10.py:plain20": (269_722, []),
    "cifar10.py:plain32": (464_154, []),
    "cifar10.py:plain44": (658_586, []),
    "cifar10.py:plain56": (853_018, []),
    "cifar10.py:plain110": (1_727_962, ["60"]),
    "cifar10.py:resnet20": (269_722, ["8.75"]),
    "cifar10.py:resnet32": (464_154, ["7.51"]),
    "cifar10.py:resnet44": (658_586, ["7.17"]),
    "cifar10.py:resnet56": (853_018, ["6.97"]),
    "cifar10.py:resnet110": (1_727_962, ["6.43"]),
    "cifar10.py:resnet1202": (19_421_274, ["7.93"]),
    "cifar10.py:highway20": (269_722 + GATES[3], ["7.54"]),
    "cifar10.py:highway32": (464_154 + GATES[5], []),
    "cifar10.py:highway56": (853_018 + GATES[9], []),
    # Three blocks of 8, 16 and 32 filters.
    "quickstart.py": (232 + 1_184 + 3_520 + 13_952 + 330, []),
    "resnet_strikes_back.py:a1": (25_557_032, ["19.6"]),
    "resnet_strikes_back.py:a2": (25_557_032, ["20.2"]),
    "resnet_strikes_back.py:a3": (25_557_032, ["21.9"]),
    "torchvision_v2.py": (25_557_032, ["80.858"]),
    "resnet_rs.py": (35_691_912, ["78.8", "2103.07579"]),
    "fast_imagenet.py:16": (25_557_032, ["26.2"]),
    "fast_imagenet.py:88": (25_557_032, ["21.6"]),
    **{f"mlperf.py:{batch_size}": (25_557_032, ["75.9"]) for batch_size in (4096, 8192, 32768, 65536)},
    # A stem of 27 * 64 parameters and not 147 * 64, and ten classes of 513 and not a thousand.
    "cifar10_recipes.py:resnet18": (11_689_512 - 120 * 64 - 990 * 513, ["4.72"]),
    "cifar10_recipes.py:resnet18_cutout": (11_689_512 - 120 * 64 - 990 * 513, ["3.99"]),
    "cifar10_recipes.py:resnet18_cosine": (11_689_512 - 120 * 64 - 990 * 513, []),
    "cifar10_recipes.py:resnet20_fast": (269_722, ["8.75"]),
    "cifar10_ingredients.py": (269_722, ["8.75"]),
    # On the data of one's own, here with the classes of the digits.
    "finetune.py": (25_557_032 - 990 * 2_049, []),
    "finetune.py:resnet20": (269_722, []),
    "finetune.py:resnet18": (11_689_512 - 990 * 513, []),
    "finetune.py:vgg16": (138_357_544 - 990 * 4_097, []),
    "vgg.py:vgg16": (138_357_544, ["28.07", "9.33"]),
    "vgg.py:vgg19": (143_667_240, []),
}
# These are in test_detection_configs.py.
OF_DETECTION = {
    "bccd.py",
    "coco_c4_paper.py",
    "coco_fpn.py",
    "detection_quickstart.py",
    "imagenet_det.py",
    "imagenet_localisation.py",
    "localisation_quickstart.py",
    "voc_c4_paper.py",
}
ON_IMAGENET = [name for name in NETWORKS if name.startswith("imagenet_paper")]


def load(name):
    return load_config(str(CONFIGS / name))


def docstring(name):
    return compile((CONFIGS / name.partition(":")[0]).read_text(), name, "exec").co_consts[0]


def test_every_file_is_tested():
    assert {path.name for path in CONFIGS.glob("*.py")} == {name.partition(":")[0] for name in NETWORKS} | OF_DETECTION


@pytest.mark.parametrize("member", ["nosuch", "resnet101-nosuch", "nosuch_cutout"])
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_a_member_that_no_file_has_is_refused_by_name(path, member):
    _, _, last = member.partition("-")
    said = rf"no member '?{member}|no SETS of NETWORK-SETS '{last}'|unknown model '{member}|no members; leave :{member}"
    with pytest.raises(UserError, match=said):
        build.check(load_config(f"{path}:{member}"), 1)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_recipe_is_valid(name, num_devices):
    config = load(name)
    if config.init.name == "weights":
        config = override(config, {"init.path": "weights.pth"})
    build.check(config, num_devices)
    sizes = {"imagenet2012": IMAGENET_TRAIN_EXAMPLES, "cifar10": 50_000, "digits": 1_437, "folder": 200}
    num_train = sizes[config.data.name]
    build.make_schedule(config, build.intervals(config, num_train))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.extensive
def test_every_recipe_makes_the_network_that_it_says(name):
    config = load(name)
    classes = 1000 if config.data.name == "imagenet2012" else 10
    # One block a stage to trace.
    scanned = override(config, {} if "vgg" in name else {"model.scan_blocks": True})
    assert count_parameters(build.make_model(scanned, classes)) == NETWORKS[name][0]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_file_tells_its_command_its_hardware_and_the_published_errors(name):
    text, file = docstring(name), name.partition(":")[0]
    assert f"Command:   python train.py --config configs/{file}" in text and "Hardware:  " in text
    assert "ublished" in text or "Expected:" in text
    for error in NETWORKS[name][1]:
        assert error in text


@pytest.mark.parametrize("name", ON_IMAGENET)
def test_the_paper_recipe_on_imagenet_holds_the_numbers_of_section_3_4(name):
    config = load(name)
    assert (config.data.name, config.batch_size, config.steps) == ("imagenet2012", 256, 600_000)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (0.1, 0.9, 1e-4)
    assert (optimizer.decay, optimizer.learning_rate_batch) == ("all", None)
    assert config.schedule == Plateau(factor=0.1, patience=5) and config.schedule.hold == Hold()
    fixed = load(f"{name}-fixed")
    assert fixed.schedule == Step(boundaries=(150_000, 300_000), factor=0.1)
    assert fixed.model_copy(update={"schedule": config.schedule}) == config
    data = config.data
    assert (data.crop.name, data.crop.shorter_side) == ("scale_jitter", (256, 480))
    assert (data.crop_size, data.eval_shorter_side, config.normalization.name) == (224, 256, "per_pixel_mean")
    transforms = config.transforms
    assert (transforms.flip.probability, transforms.pca_color.std, transforms.random_crop.pad) == (0.5, 0.1, 0)
    # The authors' released note: 32 images a GPU, and statistics over many images after training.
    assert config.model.bn_group_size == 32 == config.batch_size // 8
    assert config.bn_recompute_batches * config.batch_size > 50_000
    # What the paper does not have.
    assert (config.task.label_smoothing, config.ema_decay, config.accumulate_steps) == (0, 0, 1)
    assert (config.model.dtype, config.model.zero_init_last_bn) == (None, None)


def test_the_paper_recipe_on_one_gpu_may_take_a_batch_in_the_paper_s_parts():
    config = override(load("imagenet_paper.py:resnet50"), {"accumulate_steps": 8})
    build.check(config, num_devices=1)
    assert config.batch_size // config.accumulate_steps == config.model.bn_group_size


def test_plateaus_are_looked_for_about_once_an_epoch():
    config = load("imagenet_paper.py:resnet50")
    epoch = IMAGENET_TRAIN_EXAMPLES / config.batch_size
    assert 0.9 * epoch < config.eval_every < 1.1 * epoch


def test_the_baseline_on_imagenet_is_90_epochs_of_the_usual_recipe():
    config = load("resnet50_imagenet.py")
    intervals = build.intervals(config, IMAGENET_TRAIN_EXAMPLES)
    assert (intervals.steps, intervals.eval_every) == (90 * 1_251, 1_251)
    assert config.schedule.warmup_steps == "5 epochs"
    assert config.optimizer.rate(config.batch_size) == pytest.approx(0.4)
    assert config.schedule.name == "cosine"
    assert (config.task.label_smoothing, config.optimizer.decay) == (0.1, "kernels")
    assert (config.data.crop.name, config.data.crop_size, config.data.crop.area) == ("random_resized", 224, (0.08, 1.0))
    assert (config.normalization.name, config.transforms.flip.probability) == ("channel", 0.5)
    assert config.model.overrides == {
        "stride_placement": "v1.5",
        "dtype": "bfloat16",
        "bn_group_size": 128,
        "zero_init_last_bn": True,
    }


def test_fine_tuning_says_that_its_weights_are_missing_and_expects_imagenet_s_normalisation(tmp_path):
    config = load("finetune.py")
    build.check(config, 1)  # Enough to score weights.
    with pytest.raises(UserError, match=r"config.init.path is missing"):  # Before it looks for any data.
        train(config, tmp_path)
    assert not list(tmp_path.iterdir())
    assert (config.normalization.mean, config.normalization.std) == IMAGENET_STATISTICS
    assert (config.model.stride_placement, config.init.head, config.finetune.head_rate) == ("v1.5", "new", 10)
    assert (config.data.crop_size, config.data.eval_shorter_side) == (224, 256)
    assert (load("finetune.py:resnet20").data.crop_size, config.data.validation_fraction) == (32, 0.1)


@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_vgg_has_its_own_recipe(network):
    config = load(f"vgg.py:{network}")
    assert config.model.name == network
    optimizer = config.optimizer
    assert (config.batch_size, optimizer.learning_rate, optimizer.momentum) == (256, 0.01, 0.9)
    assert (optimizer.weight_decay, config.schedule.factor) == (5e-4, 0.1)
    assert abs(config.steps * config.batch_size / IMAGENET_TRAIN_EXAMPLES - 74) < 0.1


@pytest.mark.parametrize("network", ["resnet110", "plain110", "resnet1202"])
def test_the_paper_recipe_warms_the_deepest_networks_up(network):
    # Section 4.2: 0.01 until the training error is below 80 %.
    assert load(f"cifar10.py:{network}").schedule.hold == Hold(error=0.8, learning_rate=0.01)
    assert load("cifar10.py:resnet56").schedule.hold == Hold()


def test_the_paper_recipe_on_cifar10_holds_the_numbers_of_section_4_2():
    config = load("cifar10.py")
    assert (config.data.name, config.batch_size, config.steps) == ("cifar10", 128, 64_000)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (0.1, 0.9, 1e-4)
    assert config.schedule == Step(boundaries=(32_000, 48_000), factor=0.1)
    transforms = config.transforms
    assert (transforms.random_crop.pad, transforms.flip.probability) == (4, 0.5)
    assert config.normalization.name == "per_pixel_mean"
    assert config.model.bn_group_size == config.batch_size // 2  # Two GPUs.


def test_the_defaults_are_the_paper_s_numbers():
    assert Config().optimizer == load("cifar10.py").optimizer and Config().steps == 64_000
