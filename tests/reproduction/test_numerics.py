from pathlib import Path

import pytest

import resnet_jax
from reproduction.numerics import PACKAGES, numerics_hash

CODE = '''"""Doc."""

# A comment.
def f(x):
    """What it does."""
    return x + 1
'''


def hashed(root, text=CODE, package="models"):
    numerics_hash.cache_clear()
    path = root / "resnet_jax" / package / "net.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return numerics_hash(root)


def test_comments_docstrings_and_layout_do_not_count(tmp_path):
    before = hashed(tmp_path)
    for text in (
        CODE.replace("# A comment.", "# Another."),
        CODE.replace('"""Doc."""', ""),
        CODE.replace('    """What it does."""\n', ""),
        CODE.replace("x + 1", "(x  +\n        1)"),
    ):
        assert hashed(tmp_path, text) == before
    assert len(before) == 12


@pytest.mark.parametrize("package", PACKAGES)
def test_every_statement_of_the_modules_that_compute_counts(tmp_path, package):
    before = hashed(tmp_path, package=package)
    assert hashed(tmp_path, CODE.replace("x + 1", "x + 2"), package) != before


def test_every_package_counts_or_computes_no_number():
    found = {path.parent.name for path in Path(resnet_jax.__file__).parent.glob("*/__init__.py")}
    assert found - set(PACKAGES) == {"experiment", "programs"}  # What only joins the others.
    assert set(PACKAGES) <= found


def test_other_modules_do_not_count(tmp_path):
    before = hashed(tmp_path)
    (tmp_path / "resnet_jax" / "programs").mkdir()
    (tmp_path / "resnet_jax" / "programs" / "train.py").write_text("x = 1\n")
    assert hashed(tmp_path) == before


def test_a_module_that_moves_counts(tmp_path):
    before = hashed(tmp_path)
    (tmp_path / "resnet_jax" / "models" / "net.py").rename(tmp_path / "resnet_jax" / "models" / "nets.py")
    numerics_hash.cache_clear()
    assert numerics_hash(tmp_path) != before
