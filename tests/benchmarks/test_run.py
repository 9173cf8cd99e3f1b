import pytest

from benchmarks.run import Comparison, without

COMPARISON = Comparison("training", dict.fromkeys(("ours", "PyTorch", "PyTorch, compiled")), "PyTorch", 1)


def test_sides_are_left_out_by_name():
    assert list(without(COMPARISON, ["PyTorch, compiled"]).sides) == ["ours", "PyTorch"]
    assert without(COMPARISON, []) == COMPARISON


@pytest.mark.parametrize("name", ["pytorch, compiled", "PyTorch"])
def test_unknown_sides_and_the_reference_are_not_left_out(name):
    with pytest.raises(ValueError, match="can be left out are 'ours', 'PyTorch, compiled'"):
        without(COMPARISON, [name])
