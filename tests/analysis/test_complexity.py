import flax.linen as nn
import pytest

from resnet_jax.analysis.complexity import count_multiply_adds, count_parameters
from resnet_jax.kernels import fast_kernels
from resnet_jax.models import create_model
from resnet_jax.models.blocks import BasicBlock

# On 8x8 images: a stem to 4 channels, a stage of three blocks on 8x8 maps, one of two blocks on 4x4 maps.
FIELDS = {"stage_sizes": (3, 2), "width": 4}
BASIC = create_model("resnet20", 5, **FIELDS)
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
    with_projection = create_model("resnet20", 5, **FIELDS, shortcut="B")
    assert count_multiply_adds(with_projection, 8) == BASIC_MULTIPLY_ADDS + 4 * 4 * (4 * 8)
    assert count_parameters(with_projection) == count_parameters(BASIC) + 4 * 8 + 2 * 8
    everywhere = create_model("resnet20", 5, **FIELDS, shortcut="C")
    assert count_multiply_adds(everywhere, 8) == BASIC_MULTIPLY_ADDS + 3 * 8 * 8 * 16 + 4 * 4 * (32 + 64)


@pytest.mark.parametrize("placement, size_of_first", [("v1", 4), ("v1.5", 8)])
def test_stride_placement_moves_the_cost_of_the_first_convolution(placement, size_of_first):
    model = create_model(
        "resnet50", 5, stage_sizes=(1, 1), width=4, stem="cifar", shortcut="none", stride_placement=placement
    )
    stem = 8 * 8 * (27 * 4)
    stage1 = 8 * 8 * (4 * 4 + 9 * 4 * 4 + 4 * 16)
    stage2 = size_of_first**2 * (16 * 8) + 4 * 4 * (9 * 8 * 8 + 8 * 32)
    assert count_multiply_adds(model, 8) == stem + stage1 + stage2 + 32 * 5


def test_imagenet_stem_is_counted_at_half_and_its_stages_at_a_quarter_of_the_size():
    model = create_model("resnet18", 5, stage_sizes=(1,), width=4)
    assert count_multiply_adds(model, 32) == 16 * 16 * (49 * 3 * 4) + 2 * 8 * 8 * (9 * 4 * 4) + 4 * 5


def test_convolutions_of_any_kernels_are_counted():
    # Where oneDNN, if it is installed, takes large ones.
    model = create_model("resnet20", 5, kernels=fast_kernels("cpu", 1), stage_sizes=(1,), width=64)
    assert count_multiply_adds(model, 64) == 64 * 64 * (27 * 64 + 2 * 9 * 64 * 64) + 64 * 5


def test_cost_grows_with_the_image_and_parameters_do_not():
    classifier = 8 * 5
    assert count_multiply_adds(BASIC, 16) == 4 * (BASIC_MULTIPLY_ADDS - classifier) + classifier
    assert count_parameters(BASIC, 16) == count_parameters(BASIC, 32)


def test_grouped_convolutions_cost_a_group_s_channels_for_each_output():
    class Grouped(BasicBlock):
        @nn.compact
        def __call__(self, x, drop_path=None):
            return self.join(x, self.conv(self.filters, 3, self.strides, groups=2, name="conv1")(x), drop_path)

    model = create_model("resnet20", 5, block=Grouped, stage_sizes=(1,), width=4)
    assert count_multiply_adds(model, 8) == 8 * 8 * (27 * 4 + 9 * 2 * 4) + 4 * 5
    assert count_parameters(model) == 27 * 4 + 2 * 4 + 9 * 2 * 4 + 4 * 5 + 5
