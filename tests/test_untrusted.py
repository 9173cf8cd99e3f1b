"""Readers of files that others made, on bytes that nobody would think of: a UserError, or a result, within a time."""

import io
import json
from datetime import timedelta

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reproduction.ledger import read_record
from resnet_jax.config import read_config
from resnet_jax.data.decode.images import UnreadableImage, crop_and_resize, image_size
from resnet_jax.errors import UserError
from resnet_jax.interop.torch_files import read_torch_file, write_torch_file
from resnet_jax.train.workdir import read_class_names, read_image_shape
from resnet_jax.train.writers import read_metrics

BOUNDED = settings(
    max_examples=60,
    deadline=timedelta(seconds=5),
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = st.text(max_size=60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def _encoded(kind):
    file = io.BytesIO()
    PIL.Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(file, kind)
    return file.getvalue()


IMAGES = {kind: _encoded(kind) for kind in ("jpeg", "png", "gif", "webp", "bmp")}


@st.composite
def damaged(draw, whole):
    """A file of which some bytes are others, and maybe its end is missing."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on what it can read of a damaged file.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@BOUNDED
@given(damaged(list(IMAGES.values())) | st.binary(max_size=200))
@pytest.mark.extensive
def test_images(data):
    try:
        height, width = image_size(data)
        pixels = crop_and_resize(data, lambda height, width: (0, 0, height, width), (8, 8))
    except UnreadableImage:
        return
    assert height > 0 and width > 0 and pixels.shape == (8, 8, 3)


READERS = {
    "config.json": read_config,
    "metrics.jsonl": read_metrics,
    "class_names.json": lambda path: read_class_names(path.parent),
    "image_shape.json": lambda path: read_image_shape(path.parent),
    "record.json": read_record,
}


@pytest.mark.parametrize("name", list(READERS))
@BOUNDED
@given(JSON.map(lambda value: json.dumps(value).encode() + b"\n") | st.binary(max_size=200))
@pytest.mark.extensive
def test_files_of_a_workdir(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    try:
        READERS[name](tmp_path / name)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    write_torch_file(path, {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(2, np.float32)})
    return path.read_bytes()


@BOUNDED
@given(st.data())
def test_weights(tmp_path, weights, data):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data.draw(damaged([weights]) | st.binary(max_size=200)))
    try:
        for value in read_torch_file(path).values():
            np.asarray(value)
    except UserError as error:
        assert "\n" not in str(error)
