"""Boxes are decoded, averaged or interpolated linearly to their sizes."""

import io
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from resnet_jax.data.crops import RandomResized
from resnet_jax.data.decode import images, turbojpeg
from resnet_jax.data.decode.boxes import whole_box
from resnet_jax.data.decode.images import UnreadableImage, crop_and_resize, image_size
from tests.data.decode.encoded_images import (
    FILES,
    HEIGHT,
    PHOTOGRAPH,
    WIDTH,
    assert_close,
    encoded,
    gradient,
    reference_pixels,
)

# pytest forgets between tests the filter that the module sets.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def transparent(pixels, format="PNG"):
    alpha = np.arange(pixels[..., 0].size, dtype=np.uint8).reshape(pixels.shape[:2])
    file = io.BytesIO()
    PIL.Image.fromarray(np.dstack([pixels, alpha])).save(file, format, lossless=True, exact=True)
    return file.getvalue()


def weights(size, new_size, average):
    """(new_size, size): how much of each old pixel is in each new one, of a row of pixels."""
    edges = np.arange(new_size + 1) * size / new_size
    if average:
        overlap = np.minimum(edges[1:, None], np.arange(size) + 1) - np.maximum(edges[:-1, None], np.arange(size))
        return overlap.clip(0) * new_size / size
    middles = ((edges[1:] + edges[:-1]) / 2 - 0.5).clip(0, size - 1)
    return (1 - np.abs(middles[:, None] - np.arange(size))).clip(0)


def reference_resize(pixels, size):
    """The slow, obvious way: means over areas where the image shrinks, and bilinear otherwise."""
    average = size[0] <= pixels.shape[0] and size[1] <= pixels.shape[1]
    rows, columns = (weights(old, new, average) for old, new in zip(pixels.shape[:2], size, strict=True))
    return np.einsum("yh,hwc,xw->yxc", rows, pixels, columns, optimize=True)


def cut(pixels, box):
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


def inner_box(height, width):
    """Off every block's corner, where there is room."""
    return height // 7, width // 5, -(-height // 2), -(-width // 2)


def refuse(*_):
    raise AssertionError("not to be called")


@pytest.mark.parametrize("choose_box", [whole_box, inner_box])
@pytest.mark.parametrize("name", FILES)
def test_a_box_without_a_size_is_cut_out_of_the_upright_image(decoder, name, choose_box):
    data, seen = FILES[name], []
    expected = reference_pixels(data)

    def choose(*size):
        seen.append(size)
        return choose_box(*size)

    crop = crop_and_resize(data, choose)
    assert seen == [expected.shape[:2]] == [image_size(data)]
    assert crop.dtype == np.uint8
    assert_close(crop, cut(expected, choose_box(*expected.shape[:2])))


@pytest.mark.parametrize("size", [(28, 44), (45, 65), (90, 130), (60, 40), (20, 200)])
@pytest.mark.parametrize("name", ["4:4:4", "4:2:0", "png, noise", "orientation 6", "tiny", "one pixel"])
def test_crops_are_averaged_or_interpolated_to_their_size(decoder, name, size):
    expected = reference_pixels(FILES[name])
    box = inner_box(*expected.shape[:2])
    crop = crop_and_resize(FILES[name], inner_box, size)
    assert crop.shape == (*size, 3) and crop.dtype == np.uint8
    assert_close(crop, reference_resize(cut(expected, box), size))


@pytest.mark.parametrize("size", [(224, 224), (100, 120), (50, 60), (24, 31), (3, 5)])
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_fast_crops_of_large_boxes_are_about_their_averages(decoder, size, progressive):
    data = encoded(gradient(500, 700), progressive=progressive)
    expected = reference_resize(cut(reference_pixels(data), (31, 77, 320, 403)), size)
    crop = crop_and_resize(data, lambda *_: (31, 77, 320, 403), size, fast=True)
    assert crop.shape == (*size, 3)
    assert_close(crop_and_resize(data, lambda *_: (31, 77, 320, 403), size), expected)
    # A reduced decode ends at whole scaled pixels, which are at most those of the result.
    pixel = 200 * np.array([403 / 700 / size[1], 320 / 500 / size[0], 403 / 700 / size[1]])
    assert (np.abs(crop - expected).mean((0, 1)) < 1 + pixel).all()


def test_fast_crops_are_decoded_at_a_reduced_scale_and_interpolated(monkeypatch):
    sizes = []
    monkeypatch.setattr(turbojpeg, "decode_region", lambda data, box, size=None: sizes.append(size))
    for fast in (False, True):
        crop_and_resize(FILES["4:2:0"], inner_box, (20, 30), fast=fast)
    assert sizes == [None, (20, 30)]
    stripes = np.zeros((60, 60, 3), np.uint8)
    stripes[:, 1::3] = 240  # A third of the pixels.
    exact, fast = (crop_and_resize(stripes, whole_box, (40, 40), fast=fast) for fast in (False, True))
    assert np.abs(fast - cv2.resize(stripes, (40, 40), interpolation=cv2.INTER_LINEAR).astype(int)).max() == 0
    assert np.abs(exact - cv2.resize(stripes, (40, 40), interpolation=cv2.INTER_AREA).astype(int)).max() == 0
    assert (exact != fast).any()
    assert (crop_and_resize(stripes, whole_box, (20, 20), fast=True) == 80).all()  # Beyond a factor of two.


def test_ordinary_jpegs_are_not_decoded_whole(monkeypatch):
    if turbojpeg.library() is None:
        pytest.skip("needs the turbojpeg package or a system libturbojpeg 3")
    monkeypatch.setattr(images, "_decode", refuse)
    for name in ("4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1", "progressive", "grey", "rgb", "orientation 1", "wide"):
        assert crop_and_resize(FILES[name], inner_box, (20, 20)).shape == (20, 20, 3)
    with pytest.raises(AssertionError, match="not to be called"):
        crop_and_resize(FILES["orientation 2"], inner_box, (20, 20))


@pytest.mark.parametrize("fast", [False, True])
def test_a_png_file_is_decoded_once(monkeypatch, fast):
    decoded = []
    load_end = PIL.PngImagePlugin.PngImageFile.load_end
    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load_end", lambda self: (decoded.append(1), load_end(self)))
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)).save(buffer, "PNG")
    crop_and_resize(buffer.getvalue(), inner_box, (8, 8), fast)
    assert len(decoded) == 1


def test_the_size_may_depend_on_that_of_the_image():
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(buffer, "PNG")
    assert crop_and_resize(buffer.getvalue(), whole_box, lambda height, width: (height // 2, width)).shape == (
        15,
        40,
        3,
    )


def test_a_box_is_drawn_once_even_if_the_first_decoder_gives_up(monkeypatch):
    draws = []

    def choose(height, width):
        draws.append((height, width))
        return len(draws), 0, 5, 5

    monkeypatch.setattr(turbojpeg, "decode_region", lambda *_: None)
    crop = crop_and_resize(FILES["4:4:4"], choose)
    assert draws == [(HEIGHT, WIDTH)]
    assert_close(crop, reference_pixels(FILES["4:4:4"])[1:6, :5])


def test_transparent_pixels_keep_the_colours_they_are_stored_with():
    for format in ("PNG", "WEBP", "TIFF"):
        np.testing.assert_array_equal(crop_and_resize(transparent(PHOTOGRAPH, format), whole_box), PHOTOGRAPH)


def test_sixteen_bits_are_reduced_to_eight():
    deep = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 32
    for format in ("PNG", "TIFF"):
        file = io.BytesIO()
        PIL.Image.fromarray(deep).save(file, format)
        crop = crop_and_resize(file.getvalue(), whole_box)
        np.testing.assert_array_equal(crop, np.repeat((deep // 256)[..., None], 3, axis=2))
    ok, colour = cv2.imencode(".png", np.stack([deep, deep // 2, deep // 4], -1))
    assert ok
    crop = crop_and_resize(colour.tobytes(), whole_box)
    np.testing.assert_array_equal(crop, np.stack([deep // 4, deep // 2, deep], -1) // 256)


@pytest.mark.parametrize("size", [None, (20, 30), (200, 300), (200, 30)])
def test_pixels_are_treated_as_a_file_that_holds_them(size):
    assert image_size(PHOTOGRAPH) == (HEIGHT, WIDTH)
    for pixels in (PHOTOGRAPH, PHOTOGRAPH[:, ::-1], PHOTOGRAPH[::2, ::3], PHOTOGRAPH.transpose(1, 0, 2)):
        crop = crop_and_resize(pixels, inner_box, size)
        np.testing.assert_array_equal(
            crop, crop_and_resize(encoded(np.ascontiguousarray(pixels), "PNG"), inner_box, size)
        )
        np.testing.assert_allclose(
            crop, reference_resize(cut(pixels, inner_box(*pixels.shape[:2])), size or crop.shape[:2]), atol=1
        )


def test_a_crop_does_not_share_memory_with_the_pixels():
    pixels = gradient()
    for size in (None, (HEIGHT, WIDTH)):
        crop_and_resize(pixels, whole_box, size)[:] = 0
    np.testing.assert_array_equal(pixels, PHOTOGRAPH)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5, 3), np.float32), np.zeros((4, 5, 1))],
)
def test_other_arrays_are_refused(pixels):
    for use in (image_size, lambda image: crop_and_resize(image, whole_box)):
        with pytest.raises(ValueError, match=r"must be uint8 of shape \(H, W, 3\)"):
            use(pixels)


@pytest.mark.parametrize(
    "box",
    [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0), (0, 0, HEIGHT + 1, 5), (0, WIDTH - 4, 5, 5)],
)
@pytest.mark.parametrize("image", [FILES["4:2:0"], FILES["png"], PHOTOGRAPH], ids=["jpeg", "png", "pixels"])
def test_a_box_outside_of_the_image_is_the_callers_mistake(image, box):
    with pytest.raises(ValueError, match=f"not inside an image of {HEIGHT} x {WIDTH} pixels") as caught:
        crop_and_resize(image, lambda *_: box, (8, 8))
    assert not isinstance(caught.value, UnreadableImage)


@pytest.mark.parametrize("image", [FILES["4:2:0"], FILES["png"], PHOTOGRAPH], ids=["jpeg", "png", "pixels"])
def test_boxes_are_integers_of_any_kind(image):
    crop = crop_and_resize(image, lambda *_: np.array([2, 3, 4, 5]))
    np.testing.assert_array_equal(crop, crop_and_resize(image, lambda *_: (2, 3, 4, 5)))
    with pytest.raises(TypeError):
        crop_and_resize(image, lambda *_: (2.0, 3, 4, 5))


def test_errors_of_the_callers_own_are_left_as_they_are():
    def choose(height, width):
        raise OSError("mine")

    with pytest.raises(OSError, match="mine"):
        crop_and_resize(FILES["4:2:0"], choose)


def test_eight_threads_give_what_one_gives(decoder):
    jobs = [(data, size) for data in FILES.values() for size in (None, (24, 24), (7, 9))]
    expected = [crop_and_resize(data, inner_box, size) for data, size in jobs]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda job: crop_and_resize(job[0], inner_box, job[1]), jobs * 2))
    for crop, alone in zip(found, expected * 2, strict=True):
        np.testing.assert_array_equal(crop, alone)


@pytest.fixture
def photographs(prepared_tfds):
    """Encoded photographs of ImageNet's validation images."""
    if not (prepared_tfds / "imagenet2012").is_dir():
        pytest.skip(f"needs imagenet2012 prepared in {prepared_tfds}; set TFDS_DATA_DIR")
    import tensorflow_datasets as tfds

    builder = tfds.builder("imagenet2012", data_dir=prepared_tfds, file_format="array_record")
    source = builder.as_data_source("validation", decoders={"image": tfds.decode.SkipDecoding()})
    return [source[i]["image"] for i in range(min(100, len(source)))]


def test_photographs_are_what_pillow_decodes(photographs):
    errors = []
    for number, data in enumerate(photographs):
        expected = reference_pixels(data)
        height, width = expected.shape[:2]
        assert image_size(data) == (height, width)
        box = RandomResized().box(np.random.default_rng(number), height, width, 224)
        crop = crop_and_resize(data, lambda *_, box=box: box)
        assert_close(crop, cut(expected, box))
        # Whole blocks, because a reduced decode ends at whole scaled pixels. Pillow's is the mean over areas too.
        top, left, box_height, box_width = blocks = tuple(side // 8 * 8 for side in box)
        small = crop_and_resize(data, lambda *_, blocks=blocks: blocks, (32, 24))
        area = (left, top, left + box_width, top + box_height)
        mean = PIL.Image.fromarray(expected.astype(np.uint8)).resize((24, 32), PIL.Image.Resampling.BOX, area)
        errors.append(np.abs(small - np.asarray(mean, np.int16)).mean())
    # A reduced decode keeps more of the finest detail; a shift by one of its pixels would be seen in the mean.
    assert np.mean(errors) < 4 and max(errors) < 12


@pytest.mark.parametrize("name", ["4:2:0", "orientation 6", "png", "cmyk"])
@pytest.mark.parametrize("fast", [False, True])
def test_the_result_goes_where_it_is_wanted(decoder, name, fast):
    images = np.zeros((3, 12, 9, 3), np.uint8)
    crop_and_resize(FILES[name], inner_box, (12, 9), fast, out=images[1])
    np.testing.assert_array_equal(images[1], crop_and_resize(FILES[name], inner_box, (12, 9), fast))
    assert images[1].any() and not images[[0, 2]].any()


def test_ordinary_jpegs_need_no_pillow(monkeypatch):
    if turbojpeg.library() is None:
        pytest.skip("needs libjpeg-turbo 3")
    expected = {name: crop_and_resize(FILES[name], inner_box) for name in ("4:2:0", "grey", "progressive")}
    monkeypatch.setattr(PIL.Image, "open", None)
    for name, pixels in expected.items():
        assert image_size(FILES[name]) == (HEIGHT, WIDTH)
        np.testing.assert_array_equal(crop_and_resize(FILES[name], inner_box), pixels)
