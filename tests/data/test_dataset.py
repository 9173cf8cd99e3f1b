import subprocess
import sys
from pathlib import Path

import pytest

from resnet_jax.data import Photographs, Resident

ROOT = Path(__file__).resolve().parent.parent.parent


def imported(code, names):
    """Which of the modules are imported once the code has run, in a process of its own."""
    program = f"{code}\nimport sys; print(sorted(set({names!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


HEAVY = ["jax", "flax", "cv2", "PIL", "grain", "sklearn", "tensorflow_datasets", "array_record", "tensorflow"]


def test_the_schema_of_the_data_is_imported_without_what_reads_them():
    assert imported("import resnet_jax.data, resnet_jax.data.normalization", HEAVY) == "[]"


def test_the_digits_are_loaded_without_what_reads_other_data_sets():
    code = "from resnet_jax.data import Resident; Resident(name='digits').load()"
    assert imported(code, [name for name in HEAVY if name != "sklearn"]) == "[]"


@pytest.mark.parametrize("name", ["cifar10", "imagenet2012"])
def test_tensorflow_datasets_are_opened_without_scikit_learn(prepared_tfds, name):
    if not (prepared_tfds / name).is_dir():
        pytest.skip(f"needs {name} prepared in {prepared_tfds}")
    code = (
        f"from resnet_jax.data.sources.tfds import open_photographs; open_photographs({name!r}, {str(prepared_tfds)!r})"
    )
    assert imported(code, ["sklearn", "tensorflow"]) == "[]"


@pytest.mark.parametrize("part", [Resident(), Photographs()])
def test_a_part_has_a_kind_and_a_name(part):
    assert part.kind in ("resident", "photographs") and part.name
