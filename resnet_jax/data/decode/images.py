"""Photographs, as files or pixels, to uint8 crops of a fixed size."""

import io
import math
import warnings
from collections.abc import Callable
from functools import partial
from operator import index
from typing import Any

import cv2
import numpy as np
import PIL.Image

from resnet_jax.data.decode import turbojpeg
from resnet_jax.data.decode.boxes import Box, Interpolation, RealBox
from resnet_jax.errors import one_line

Image = bytes | np.ndarray  # An encoded file, or pixels (H, W, 3) uint8 RGB.

_ORIENTATION = 0x0112  # The Exif tag, and how its values are turned upright; 1 is upright.
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

# Pillow's filters, and how far each reaches: in pixels of the image, or of the result where that has fewer.
_FILTERS = {"bilinear": (PIL.Image.Resampling.BILINEAR, 1), "bicubic": (PIL.Image.Resampling.BICUBIC, 2)}

_EXIF_OR_XMP, _START_OF_SCAN = b"\xff\xe1", b"\xff\xda"  # Markers of a JPEG's segments.

cv2.setNumThreads(1)  # Many images are decoded at a time; more threads within one would compete with those.

# Pillow warns of large images and of damaged metadata, which do not matter here. Once for all, and not around each
# call, because warnings.catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnreadableImage(ValueError):
    """An encoded image that cannot be decoded; the message is a short reason in one line."""


def image_size(image: Image) -> tuple[int, int]:
    """(height, width) of an image seen upright, from its header. Raises UnreadableImage.

    Of a PNG file without an orientation in its header all is read: it may stand behind the pixels.
    """
    if isinstance(image, np.ndarray):
        return _checked_pixels(image).shape[:2]
    return _plain_jpeg_size(image) or _upright_size(_open(image))


def crop_and_resize(
    image: Image,
    choose_box: Callable[[int, int], RealBox],
    size: tuple[int, int] | Callable[[int, int], tuple[int, int]] | None = None,
    fast: bool = False,
    out: np.ndarray | None = None,
    interpolation: Interpolation = "area",
) -> np.ndarray:
    """The box that ``choose_box(height, width)`` gives for the upright image, resized to ``size``: (h, w, 3) uint8 RGB.

    Args:
        image: a file's bytes, or pixels. Transparency is dropped.
        choose_box: gives whole pixels; parts of them only for an ``interpolation`` other than "area", and not ``fast``.
        size: (height, width), or what gives it from those of the image (not with ``fast``); None leaves the box as it
            is.
        fast: for training. Decodes a JPEG at the smallest scale that is large enough, which rounds the box outwards to
            whole pixels of that scale.
        out: of the shape of ``size``: where the result goes.
        interpolation: "area" averages over the box's pixels where it shrinks; with ``fast`` it interpolates between
            neighbours where the smaller factor is at most two. "bilinear" and "bicubic" are Pillow's filters, which
            are wider the more they shrink, as torchvision and timm use them: they see beyond the box, as where the
            whole image is resized first; with ``fast`` they do not, as where the crop comes first.

    Raises UnreadableImage for a file that cannot be decoded and ValueError for a box that is not inside the image.
    """
    shape, read = _reader(image, size if fast and not callable(size) else None)
    size = size(*shape) if callable(size) else size
    chosen = choose_box(*shape)
    if interpolation == "area" or size is None:
        return _resize(read(_checked_box(chosen, *shape)), size, fast, out)
    if fast:
        return _filter(read(_checked_box(chosen, *shape)), None, size, interpolation, out)
    region, box = _surroundings(chosen, size, interpolation, *shape)
    return _filter(read(region), box, size, interpolation, out)


def _reader(image: Image, scaled_for: tuple[int, int] | None) -> tuple[tuple[int, int], Callable[[Box], np.ndarray]]:
    """(height, width) of an image, and what gives the pixels of a box of it; see ``turbojpeg.decode_region``."""
    if isinstance(image, np.ndarray):
        return _checked_pixels(image).shape[:2], partial(_cut, image)
    shape, turned, file = _plain_jpeg_size(image), False, None
    if shape is None:
        file = _open(image)
        shape, turned = _upright_size(file), _orientation(file) in _TURNS

    def read(box: Box) -> np.ndarray:
        crop = None if turned else turbojpeg.decode_region(image, box, scaled_for)
        return _cut(_decode(file or _open(image)), box) if crop is None else crop

    return shape, read


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that has no Exif or XMP segment, as most are; None for any other image.

    Pillow takes ten times as long for a header, and is not needed where no orientation can be told.
    """
    place = 2  # After the start of the image: segments of a marker (2 bytes), their length (2) and content.
    while (marker := data[place : place + 2]) not in (_EXIF_OR_XMP, _START_OF_SCAN):
        if marker[:1] != b"\xff":
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    size = None if marker == _EXIF_OR_XMP else turbojpeg.jpeg_size(data)
    too_large = size is not None and size[0] * size[1] > 2 * (PIL.Image.MAX_IMAGE_PIXELS or math.inf)
    return None if too_large else size  # Pillow says what is wrong with it.


def _checked_pixels(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"pixels are {image.dtype} of shape {image.shape}; they must be uint8 of shape (H, W, 3)")
    return image


def _checked_box(box: Any, height: int, width: int) -> Box:
    top, left, box_height, box_width = box = tuple(map(index, box))
    if min(top, left) < 0 or min(box_height, box_width) < 1 or top + box_height > height or left + box_width > width:
        raise _outside(box, height, width)
    return top, left, box_height, box_width


def _outside(box: tuple[float, ...], height: int, width: int) -> ValueError:
    return ValueError(f"box {box} (top, left, height, width) is not inside an image of {height} x {width} pixels")


def _cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


def _resize(crop: np.ndarray, size: tuple[int, int] | None, fast: bool, out: np.ndarray | None) -> np.ndarray:
    if size is None:
        return crop.copy()  # Never a view: the image it is cut from may be large, or the caller's own.
    shrinks = crop.shape[0] >= size[0] and crop.shape[1] >= size[1]
    near = fast and (crop.shape[0] <= 2 * size[0] or crop.shape[1] <= 2 * size[1])
    averages = shrinks and not near
    return cv2.resize(crop, size[::-1], out, interpolation=cv2.INTER_AREA if averages else cv2.INTER_LINEAR)


def _surroundings(
    box: RealBox, size: tuple[int, int], interpolation: Interpolation, height: int, width: int
) -> tuple[Box, RealBox]:
    """The whole pixels of an image that a filter sees, and (left, top, right, bottom) of the box among them."""
    _, reach = _FILTERS[interpolation]
    starts, stops, near, far = [], [], [], []
    for begin, length, new, whole in zip(box[:2], box[2:], size, (height, width), strict=True):
        end = begin + length
        if begin < 0 or length <= 0 or end > whole + 1e-6 * whole:  # Fractions need not add up to the last bit.
            raise _outside(box, height, width)
        margin = reach * max(1.0, length / new) + 1  # One for the rounding of the filter's own ends.
        start, stop = max(0, math.floor(begin - margin)), min(whole, math.ceil(end + margin))
        starts.append(start)
        stops.append(stop - start)
        near.append(begin - start)
        far.append(min(end, whole) - start)
    return (starts[0], starts[1], stops[0], stops[1]), (near[1], near[0], far[1], far[0])


def _filter(
    pixels: np.ndarray,
    box: RealBox | None,
    size: tuple[int, int],
    interpolation: Interpolation,
    out: np.ndarray | None,
) -> np.ndarray:
    resized = PIL.Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], _FILTERS[interpolation][0], box)
    if out is None:
        return np.array(resized)
    out[...] = resized
    return out


def _open(data: bytes) -> PIL.Image.Image:
    """The image with its header read, and not yet its pixels."""
    try:
        return PIL.Image.open(io.BytesIO(data))
    except PIL.UnidentifiedImageError as error:  # Its message names a Python object.
        raise UnreadableImage("it is not an image, or of an unknown format" if data else "it is empty") from error
    except Exception as error:  # Pillow's parsers raise whatever bad bytes lead them to.
        raise UnreadableImage(one_line(error)) from error


def _orientation(file: PIL.Image.Image) -> int:
    try:
        return file.getexif().get(_ORIENTATION, 1)
    except Exception:  # Damaged metadata do not make the pixels unreadable.
        return 1


def _upright_size(file: PIL.Image.Image) -> tuple[int, int]:
    # Pillow gives the upright size of TIFF files, and turns their pixels itself.
    sideways = _orientation(file) in (5, 6, 7, 8) and file.format != "TIFF"
    return file.size if sideways else file.size[::-1]


def _decode(file: PIL.Image.Image) -> np.ndarray:
    """The upright pixels, (H, W, 3) uint8 RGB."""
    size = _upright_size(file)
    try:
        file.load()
        turn = _TURNS.get(_orientation(file))
        upright = file if turn is None else file.transpose(turn)
        if file.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255 and not scale.
            grey = (np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8)
            pixels = np.repeat(grey[..., None], 3, axis=2)
        else:
            pixels = np.asarray(upright.convert("RGB"))
    except Exception as error:
        raise UnreadableImage(one_line(error)) from error
    if pixels.shape[:2] != size:
        raise UnreadableImage(f"its pixels are not {size[0]} x {size[1]}, as its header says")
    return pixels
