import jax
import pytest

from resnet_jax.analysis.complexity import count_multiply_adds, count_parameters
from resnet_jax.models.resnet import ResNet

# On 8x8 images: a stem to 4 channels, a stage of three blocks on 8x8 maps, one of two blocks on 4x4 maps.
BASIC = ResNet(stage_sizes=(3, 2), num_classes=5, width=4, stem="cifar", shortcut="A")
BASIC_MULTIPLY_ADDS = (
    8 * 8 * (3 * 3 * 3 * 4)  # stem
    + 6 * 8 * 8 * (3 * 3 * 4 * 4)  # stage 1
    + 4 * 4 * (3 * 3 * 4 * 8)  # stage 2, first convolution
    + 3 * 4 * 4 * (3 * 3 * 8 * 8)  # stage 2, the others
    + 8 * 5  # classifier
)


@pytest.mark.parametrize(
    "fields", [{}, {"scan_blocks": True}, {"remat": True}, {"remat": True, "scan_blocks": True}], ids=str
)
def test_multiply_adds_of_basic_blocks_are_those_by_hand_in_every_layout(fields):
    assert count_multiply_adds(BASIC.clone(**fields), 8) == BASIC_MULTIPLY_ADDS


def test_parameters_are_those_by_hand_without_batch_statistics():
    kernels = 27 * 4 + 6 * (9 * 4 * 4) + 9 * 4 * 8 + 3 * (9 * 8 * 8)
    scales_and_biases = 2 * (7 * 4 + 4 * 8)
    assert count_parameters(BASIC) == kernels + scales_and_biases + 8 * 5 + 5
    assert count_parameters(BASIC.clone(scan_blocks=True)) == count_parameters(BASIC)


def test_projections_are_counted():
    with_projection = BASIC.clone(shortcut="B")
    assert count_multiply_adds(with_projection, 8) == BASIC_MULTIPLY_ADDS + 4 * 4 * (4 * 8)
    assert count_parameters(with_projection) == count_parameters(BASIC) + 4 * 8 + 2 * 8
    everywhere = BASIC.clone(shortcut="C")
    assert count_multiply_adds(everywhere, 8) == BASIC_MULTIPLY_ADDS + 3 * 8 * 8 * 16 + 4 * 4 * (32 + 64)


@pytest.mark.parametrize("placement, size_of_first", [("v1", 4), ("v1.5", 8)])
def test_stride_placement_moves_the_cost_of_the_first_convolution(placement, size_of_first):
    model = ResNet((1, 1), 5, width=4, bottleneck=True, stem="cifar", shortcut=None, stride_placement=placement)
    stem = 8 * 8 * (27 * 4)
    stage1 = 8 * 8 * (4 * 4 + 9 * 4 * 4 + 4 * 16)
    stage2 = size_of_first**2 * (16 * 8) + 4 * 4 * (9 * 8 * 8 + 8 * 32)
    assert count_multiply_adds(model, 8) == stem + stage1 + stage2 + 32 * 5


def test_imagenet_stem_is_counted_at_half_and_its_stages_at_a_quarter_of_the_size():
    model = ResNet((1,), 5, width=4)
    assert count_multiply_adds(model, 32) == 16 * 16 * (49 * 3 * 4) + 2 * 8 * 8 * (9 * 4 * 4) + 4 * 5


def test_large_convolutions_are_counted_on_one_device_too(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # Where oneDNN, if it is installed, takes float32 ones.
    model = ResNet((1,), 5, width=64, stem="cifar", shortcut="A")
    assert count_multiply_adds(model, 64) == 64 * 64 * (27 * 64 + 2 * 9 * 64 * 64) + 64 * 5


def test_cost_grows_with_the_image_and_parameters_do_not():
    classifier = 8 * 5
    assert count_multiply_adds(BASIC, 16) == 4 * (BASIC_MULTIPLY_ADDS - classifier) + classifier
    assert count_parameters(BASIC, 16) == count_parameters(BASIC, 32)
