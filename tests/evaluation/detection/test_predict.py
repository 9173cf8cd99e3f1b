"""Detections in files, whatever detector finds them."""

import io

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from resnet_jax.data.decode.boxes import Whole
from resnet_jax.detection.second_stage import Detections
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.predict import detections_in


def everything(variables, batch):
    """In place of a detector: one box around the photograph."""
    height, width = batch["image_hw"][0]
    boxes = jnp.stack([0, 0, width, height]).astype(jnp.float32)[None, None]
    one = jnp.ones((1, 1))
    return Detections(boxes, one, one.astype(int), one > 0, jnp.zeros(1, int))


def jpeg(height, width):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def test_files_without_pixels_are_named_and_refused_only_where_there_are_no_others(tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(jpeg(40, 60)[:-1000])  # Its header can be read.
    (tmp_path / "whole.jpg").write_bytes(jpeg(40, 60))
    paths = [tmp_path / "broken.jpg", tmp_path / "whole.jpg"]
    ((path, found),) = detections_in(everything, {}, 8, paths, Whole(20, 30))
    assert path == paths[1]
    np.testing.assert_allclose(found.boxes, [[0, 0, 60, 40]], atol=1e-4)
    assert capsys.readouterr().err.startswith(f"warning: {paths[0]} cannot be decoded")
    with pytest.raises(UserError, match="none of 1 files can be decoded; name photographs"):
        list(detections_in(everything, {}, 8, paths[:1], Whole(20, 30)))
