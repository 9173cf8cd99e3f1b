import gc
import importlib.machinery
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.decode import turbojpeg

SAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}


needs_library = pytest.mark.skipif(
    turbojpeg.library() is None, reason="needs the turbojpeg package or a system libturbojpeg 3"
)


def blotches(height, width, cell=6):
    """Colours that change every few pixels, so that a shift by one pixel or a missing neighbour shows."""
    coarse = np.random.default_rng(0).integers(256, size=(-(-height // cell), -(-width // cell), 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def gradient(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([20 + 200 * x / width, 20 + 200 * y / height, 220 - 200 * x / width], -1).astype(np.uint8)


def jpeg(pixels, sampling="4:2:0", progressive=False):
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling], cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    return cv2.imencode(".jpg", pixels[..., ::-1], options)[1].tobytes()


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def pillow_pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def random_boxes(height, width, count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        box_height, box_width = rng.integers(1, height + 1), rng.integers(1, width + 1)
        top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
        yield tuple(map(int, (top, left, box_height, box_width)))


def cut(pixels, box):
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


@needs_library
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_region_is_that_part_of_the_whole_image(sampling, progressive):
    data = jpeg(blotches(83, 147), sampling, progressive)
    whole = pillow_pixels(data)
    boxes = [(0, 0, 83, 147), (82, 146, 1, 1), (0, 0, 1, 1), *random_boxes(83, 147, count=40)]
    for box in boxes:
        region = turbojpeg.decode_region(data, box)
        assert region.dtype == np.uint8
        # Two libraries may round the inverse DCT differently.
        np.testing.assert_allclose(region, cut(whole, box), atol=2, err_msg=str(box))


@needs_library
def test_grey_and_rgb_jpegs_are_decoded():
    image = Image.fromarray(blotches(40, 50))
    for data in (saved(image.convert("L")), saved(image, keep_rgb=True)):
        region = turbojpeg.decode_region(data, (3, 7, 30, 40))
        np.testing.assert_allclose(region, cut(pillow_pixels(data), (3, 7, 30, 40)), atol=2)


@needs_library
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    ("size", "shrink"),
    [
        ((240, 320), 1),
        ((121, 161), 1),
        ((120, 161), 1),  # Both directions count.
        ((121, 160), 1),
        ((120, 160), 2),
        ((61, 80), 2),
        ((60, 80), 4),
        ((30, 40), 8),
        ((1, 1), 8),
        ((500, 500), 1),
    ],
)
def test_the_smallest_scale_that_is_large_enough_is_used(sampling, size, shrink):
    whole = gradient(333, 444)
    box = (16, 48, 240, 320)  # Of whole blocks at every scale.
    region = turbojpeg.decode_region(jpeg(whole, sampling), box, size)
    assert region.shape == (240 // shrink, 320 // shrink, 3)
    averages = cut(whole, box).reshape(240 // shrink, shrink, 320 // shrink, shrink, 3).mean((1, 3))
    # Coarse chroma leaves steps in the gradient; a shift by a pixel would move its mean.
    assert np.abs(region - averages).mean() < 3
    assert np.abs((region - averages).mean((0, 1))).max() < 0.8


@needs_library
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_scaled_regions_are_in_their_place(sampling):
    data = jpeg(blotches(161, 243, cell=20), sampling)
    for shrink in (2, 4, 8):
        whole = turbojpeg.decode_region(data, (0, 0, 161, 243), (161 // shrink, 243 // shrink))
        assert whole.shape == (-(-161 // shrink), -(-243 // shrink), 3)
        for top, left, height, width in random_boxes(161, 243, count=30, seed=shrink):
            if min(height, width) < shrink:
                continue
            size = (height // shrink, width // shrink)
            region = turbojpeg.decode_region(data, (top, left, height, width), size)
            # Every scaled pixel that the box touches.
            expected = whole[
                top // shrink : -(-(top + height) // shrink), left // shrink : -(-(left + width) // shrink)
            ]
            np.testing.assert_allclose(region.astype(int), expected, atol=1)


def ycck(pixels):
    """A CMYK file that says, in its Adobe segment, that its colours are YCCK."""
    data = bytearray(saved(Image.fromarray(pixels).convert("CMYK")))
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    data[place] = 2
    return bytes(data)


WHOLE = saved(Image.fromarray(blotches(64, 64)))


@needs_library
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff\xd9",
        b"not an image\xff\xd9",
        saved(Image.fromarray(blotches(64, 64)).convert("CMYK")),
        ycck(blotches(64, 64)),
        WHOLE[: len(WHOLE) // 2],
        WHOLE[: len(WHOLE) // 2] + b"\xff\xd9",
        WHOLE[:-2],
        WHOLE[:200] + WHOLE[-2:],
    ],
    ids=["empty", "no header", "text", "CMYK", "YCCK", "half", "half and an end", "no end", "part of the header"],
)
def test_anything_else_is_left_to_another_decoder(data):
    assert turbojpeg.decode_region(data, (0, 0, 64, 64)) is None
    # The decompressor is none the worse for it.
    region = turbojpeg.decode_region(WHOLE, (5, 6, 7, 8))
    np.testing.assert_allclose(region, cut(pillow_pixels(WHOLE), (5, 6, 7, 8)), atol=2)


@needs_library
def test_a_truncated_file_is_left_alone_wherever_the_box_is():
    assert turbojpeg.decode_region(WHOLE[:-200], (0, 0, 1, 1)) is None


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0)])
def test_a_box_without_pixels_or_before_the_image_is_refused(box):
    with pytest.raises(ValueError, match="not inside"):
        turbojpeg.decode_region(WHOLE, box)


@needs_library
@pytest.mark.parametrize("size", [None, (8, 8)])
def test_a_box_that_ends_below_the_image_is_not_decoded(size):
    assert turbojpeg.decode_region(WHOLE, (0, 0, 80, 64), size) is None


@needs_library
def test_padding_after_the_end_does_no_harm():
    assert turbojpeg.decode_region(WHOLE + bytes(500), (0, 0, 64, 64)) is not None


@needs_library
def test_eight_threads_decode_what_one_does():
    boxes = list(random_boxes(90, 120, count=8, seed=3))
    jobs = [(jpeg(blotches(90, 120, cell)), box, box[2:]) for cell in (5, 6, 7, 8) for box in boxes] * 4
    expected = [turbojpeg.decode_region(*job) for job in jobs]
    with ThreadPoolExecutor(8) as threads:
        for region, alone in zip(threads.map(lambda job: turbojpeg.decode_region(*job), jobs), expected, strict=True):
            np.testing.assert_array_equal(region, alone)


def test_the_decompressor_of_a_thread_ends_with_it():
    made, destroyed = [], []
    fake = SimpleNamespace(tj3Init=lambda kind: made.append(kind) or 1234, tj3Destroy=destroyed.append)
    handles = []

    def use():
        handles.extend(turbojpeg._handle(fake).value for _ in range(3))
        assert destroyed == []

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    gc.collect()
    assert handles == [1234] * 3 and len(made) == 1
    assert destroyed == [1234]


def test_the_package_is_looked_for_before_the_system(monkeypatch, tmp_path):
    bundled = tmp_path / "turbojpeg.libs" / "libturbojpeg-1234.so.0"
    bundled.parent.mkdir()
    bundled.touch()
    spec = importlib.machinery.ModuleSpec("turbojpeg", None, origin=str(tmp_path / "turbojpeg.so"))
    monkeypatch.setattr(turbojpeg.importlib.util, "find_spec", {"turbojpeg": spec}.get)
    monkeypatch.setattr(turbojpeg.ctypes.util, "find_library", {"turbojpeg": "libturbojpeg.so.0"}.get)
    assert list(turbojpeg._candidates()) == [str(bundled), "libturbojpeg.so.0"]
    monkeypatch.setattr(turbojpeg.importlib.util, "find_spec", lambda name: None)
    assert list(turbojpeg._candidates()) == ["libturbojpeg.so.0"]
    monkeypatch.setattr(turbojpeg.ctypes.util, "find_library", lambda name: None)
    assert list(turbojpeg._candidates()) == []


def test_without_a_library_of_version_3_nothing_is_decoded(monkeypatch, tmp_path):
    other = turbojpeg.ctypes.util.find_library("c")  # A library without TurboJPEG's functions, as version 2 is.
    monkeypatch.setattr(turbojpeg, "_candidates", lambda: iter([str(tmp_path / "missing.so"), other]))
    assert turbojpeg.library.__wrapped__() is None
    monkeypatch.setattr(turbojpeg, "library", lambda: None)
    assert turbojpeg.decode_region(WHOLE, (0, 0, 64, 64)) is None
