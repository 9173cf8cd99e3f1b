import jax
import numpy as np

from resnet_jax.models import create_model
from resnet_jax.models.stacking import stack_blocks, unstack_blocks


def blocks(count, stage=1):
    """One entry a block, each holding its own number."""
    return {f"stage{stage}_block{i}": {"conv1": {"kernel": np.full((2, 3), i)}} for i in range(1, count + 1)}


def test_blocks_after_the_first_are_stacked_in_order():
    # More than nine: sorted as text, block 10 would come before block 2.
    variables = {"params": {"stem_conv": {"kernel": np.ones(4)}, **blocks(12)}}
    stacked = stack_blocks(variables)["params"]
    assert set(stacked) == {"stem_conv", "stage1_block1", "stage1_blocks"}
    kernels = stacked["stage1_blocks"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernels, np.arange(2, 13)[:, None, None] * np.ones((2, 3)))


def test_stages_are_stacked_apart_and_a_stage_of_one_block_not_at_all():
    stacked = stack_blocks({"params": blocks(3, stage=1) | blocks(1, stage=2) | blocks(2, stage=3)})["params"]
    assert set(stacked) == {"stage1_block1", "stage1_blocks", "stage2_block1", "stage3_block1", "stage3_blocks"}
    assert stacked["stage1_blocks"]["conv1"]["kernel"].shape == (2, 2, 3)
    assert stacked["stage3_blocks"]["conv1"]["kernel"].shape == (1, 2, 3)


def test_unstacking_undoes_stacking_in_every_collection():
    variables = {"params": blocks(11) | blocks(2, stage=2), "batch_stats": blocks(3)}
    restored = unstack_blocks(stack_blocks(variables))
    assert jax.tree.structure(restored) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, restored, variables)


def test_variables_without_stacked_blocks_come_back_from_unstacking_as_they_are():
    variables = {"params": blocks(3)}
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks(variables), variables)


def test_layouts_are_those_of_the_networks():
    def shapes(scan_blocks):
        model = create_model("resnet20", stage_sizes=(3, 1, 2), width=4, scan_blocks=scan_blocks)
        return jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))

    unrolled, scanned = shapes(False), shapes(True)
    assert jax.eval_shape(stack_blocks, unrolled) == scanned
    assert jax.eval_shape(unstack_blocks, scanned) == unrolled
