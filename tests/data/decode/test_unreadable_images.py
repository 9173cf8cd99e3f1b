"""Files that are broken, have damaged metadata, or are far too large."""

import io
import runpy
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest

from resnet_jax.data.decode import images, turbojpeg
from resnet_jax.data.decode.boxes import whole_box
from resnet_jax.data.decode.images import UnreadableImage, crop_and_resize, image_size
from tests.data.decode.encoded_images import FILES, HEIGHT, PHOTOGRAPH, WIDTH, assert_close

# pytest forgets between tests the filter that the module sets.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def png_with_rows_missing():
    data = FILES["png"]
    start = data.index(b"IDAT")
    rows = zlib.compress(bytes(HEIGHT))
    chunk = b"IDAT" + rows
    length, check = len(rows).to_bytes(4, "big"), zlib.crc32(chunk).to_bytes(4, "big")
    return data[: start - 4] + length + chunk + check + data[data.index(b"IEND") - 4 :]


BROKEN = {
    "empty": b"",
    "text": b"this is not an image\n",
    "zeros": bytes(5000),
    "jpeg, start": FILES["4:2:0"][:2],
    "jpeg, part of the header": FILES["4:2:0"][:100],
    "jpeg, half": FILES["4:2:0"][: len(FILES["4:2:0"]) // 2],
    "jpeg, without its end": FILES["4:2:0"][:-20],
    "progressive, half": FILES["progressive"][: len(FILES["progressive"]) // 2],
    "png, half": FILES["png"][: len(FILES["png"]) // 2],
    "png, rows missing": png_with_rows_missing(),
    "gif, half": FILES["gif"][:400],
    "tiff, half": FILES["tiff"][: len(FILES["tiff"]) // 2],
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_cannot_be_decoded_are_named_so_in_a_line(decoder, name):
    # Even where the broken part is not in the box.
    with pytest.raises(UnreadableImage) as caught:
        crop_and_resize(BROKEN[name], lambda *_: (0, 0, 1, 1), (8, 8))
    reason = str(caught.value)
    assert 0 < len(reason) < 100 and "\n" not in reason and "object at" not in reason


@pytest.mark.parametrize("name", ["empty", "text", "zeros", "jpeg, start", "jpeg, part of the header"])
def test_a_file_without_a_header_has_no_size(name):
    with pytest.raises(UnreadableImage):
        image_size(BROKEN[name])


@pytest.mark.parametrize("name", ["jpeg, half", "progressive, half", "png, half", "tiff, half"])
def test_the_size_needs_the_header_only(name):
    assert image_size(BROKEN[name]) == (HEIGHT, WIDTH)


def test_pixels_of_another_size_than_the_header_says_are_refused(monkeypatch):
    monkeypatch.setattr(images, "_upright_size", lambda file: (HEIGHT + 1, WIDTH))
    with pytest.raises(UnreadableImage, match=f"not {HEIGHT + 1} x {WIDTH}, as its header says"):
        crop_and_resize(FILES["png"], whole_box)


def test_damage_gives_pixels_or_an_error_and_both_decoders_the_same(monkeypatch):
    library = turbojpeg.library
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        data = bytearray(FILES["4:2:0"])
        for place in rng.integers(len(data), size=3):
            data[place] = rng.integers(256)
        found = []
        for lib in (library, lambda: None):
            monkeypatch.setattr(turbojpeg, "library", lib)
            try:
                found.append(crop_and_resize(bytes(data), whole_box))
            except UnreadableImage:
                found.append(None)
        outcomes.add(found[0] is None)
        assert (found[0] is None) == (found[1] is None)
        if found[0] is not None:
            assert_close(found[0].astype(int), found[1])
    assert outcomes == {False, True}


@pytest.fixture
def freshly_imported():
    """The module's names, imported where every warning is an error."""
    warnings.simplefilter("error")
    with pytest.raises(UserWarning, match="EXIF"):
        PIL.Image.open(io.BytesIO(FILES["damaged exif"])).getexif()
    return runpy.run_path(images.__file__)


@pytest.mark.parametrize("name", ["damaged exif", "png, palette and transparency"])
def test_pillow_does_not_warn_of_metadata(freshly_imported, name):
    crop = freshly_imported["crop_and_resize"](FILES[name], whole_box)
    np.testing.assert_array_equal(crop, crop_and_resize(FILES[name], whole_box))


def test_large_images_are_read_without_a_warning(freshly_imported, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    np.testing.assert_array_equal(freshly_imported["crop_and_resize"](FILES["png"], whole_box), PHOTOGRAPH)
    assert freshly_imported["image_size"](FILES["png"]) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("name", ["png", "4:2:0"])
def test_far_too_large_images_are_refused(decoder, monkeypatch, name):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2 - 1)
    for use in (image_size, lambda data: crop_and_resize(data, whole_box)):
        with pytest.raises(UnreadableImage, match="exceeds limit"):
            use(FILES[name])
