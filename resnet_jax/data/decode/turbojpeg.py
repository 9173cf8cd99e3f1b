"""libjpeg-turbo 3 through ctypes: decodes only a box of a JPEG, at a reduced scale where that is enough."""

import ctypes
import ctypes.util
import functools
import importlib.util
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Constants of turbojpeg.h, version 3.
_TJINIT_DECOMPRESS = 1
_TJPARAM_SUBSAMP, _TJPARAM_JPEGWIDTH, _TJPARAM_JPEGHEIGHT, _TJPARAM_COLORSPACE = 4, 5, 6, 8
_TJCS_RGB, _TJCS_YCBCR, _TJCS_GRAY = 0, 1, 2
_TJPF_RGB = 0
_IMCU_WIDTHS = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}  # By TJSAMP: 444, 422, 420, GRAY, 440, 411, 441.

_END_OF_IMAGE = b"\xff\xd9"
_MARGIN = 2  # Chroma is interpolated: the outermost columns of a region need those beside them.

_local = threading.local()


class _Region(ctypes.Structure):
    _fields_ = [("left", ctypes.c_int), ("top", ctypes.c_int), ("width", ctypes.c_int), ("height", ctypes.c_int)]


class _Scale(ctypes.Structure):
    _fields_ = [("numerator", ctypes.c_int), ("denominator", ctypes.c_int)]


_JPEG = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)  # Handle, bytes and their number.
_ARGUMENTS = {
    "tj3Init": (ctypes.c_int,),
    "tj3Destroy": (ctypes.c_void_p,),
    "tj3Get": (ctypes.c_void_p, ctypes.c_int),
    "tj3DecompressHeader": _JPEG,
    "tj3SetScalingFactor": (ctypes.c_void_p, _Scale),
    "tj3SetCroppingRegion": (ctypes.c_void_p, _Region),
    "tj3Decompress8": (*_JPEG, ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The TurboJPEG 3 library: the one in the ``turbojpeg`` package, else the system's; None if there is neither."""
    for path in _candidates():
        try:
            lib = ctypes.CDLL(path)
            lib.tj3Init.restype = ctypes.c_void_p
            for name, arguments in _ARGUMENTS.items():
                getattr(lib, name).argtypes = arguments
        except (OSError, AttributeError):  # Built for another system, or version 2, which has other functions.
            continue
        return lib
    return None


def _candidates() -> Iterator[str]:
    spec = importlib.util.find_spec("turbojpeg")
    if spec is not None and spec.origin is not None:
        yield from map(str, sorted((Path(spec.origin).parent / "turbojpeg.libs").glob("libturbojpeg*")))
    system = ctypes.util.find_library("turbojpeg")
    if system is not None:
        yield system


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a whole JPEG, Exif orientation not applied; None where another decoder has to look."""
    lib = library()
    if lib is None or _END_OF_IMAGE not in data[-1024:]:
        return None
    handle = _handle(lib)
    if lib.tj3DecompressHeader(handle, data, len(data)):
        del _local.handle
        return None
    return lib.tj3Get(handle, _TJPARAM_JPEGHEIGHT), lib.tj3Get(handle, _TJPARAM_JPEGWIDTH)


def decode_region(
    data: bytes, box: tuple[int, int, int, int], size: tuple[int, int] | None = None
) -> np.ndarray | None:
    """A box (top, left, height, width) inside a JPEG, as (h, w, 3) uint8 RGB; None where another decoder has to do it.

    The box comes scaled by the smallest of 1/8, 1/4, 1/2 and 1 that leaves it no smaller than ``size``, (height,
    width); by 1 if that is None. It is None without the library, and for files that are not whole, ordinary JPEGs or
    that the library complains about. Exif orientation is not applied.
    """
    if min(box[:2]) < 0 or min(box[2:]) < 1:  # A height of 0 would mean all rows, for which there is no room.
        raise ValueError(f"box {box} (top, left, height, width) is not inside an image")
    lib = library()
    # The rows below the box are not decoded, so the end is looked for: a truncated file lacks it.
    if lib is None or _END_OF_IMAGE not in data[-1024:]:
        return None
    pixels = _decode(lib, _handle(lib), data, box, size)
    if pixels is None:
        del _local.handle  # What the library had read of a file when it failed would be taken for part of the next.
    return pixels


def _decode(
    lib: ctypes.CDLL, handle: ctypes.c_void_p, data: bytes, box: tuple[int, int, int, int], size: tuple[int, int] | None
) -> np.ndarray | None:
    if lib.tj3DecompressHeader(handle, data, len(data)):
        return None
    imcu_width = _IMCU_WIDTHS.get(lib.tj3Get(handle, _TJPARAM_SUBSAMP))
    if imcu_width is None or lib.tj3Get(handle, _TJPARAM_COLORSPACE) not in (_TJCS_RGB, _TJCS_YCBCR, _TJCS_GRAY):
        return None

    top, left, height, width = box
    shrink = _shrink((height, width), size)
    # The scaled box, outwards to whole pixels.
    y0, y1 = top // shrink, -(-(top + height) // shrink)
    x0, x1 = left // shrink, -(-(left + width) // shrink)
    # A region has to start at a multiple of the scaled iMCU width.
    align = imcu_width // shrink
    start = max(0, x0 - _MARGIN) // align * align
    end = min(x1 + _MARGIN, -(-lib.tj3Get(handle, _TJPARAM_JPEGWIDTH) // shrink))
    pixels = np.empty((y1 - y0, end - start, 3), np.uint8)
    if (
        lib.tj3SetScalingFactor(handle, _Scale(1, shrink))
        or lib.tj3SetCroppingRegion(handle, _Region(start, y0, end - start, y1 - y0))
        or lib.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, pixels.strides[0], _TJPF_RGB)
    ):
        return None
    return pixels[:, x0 - start : x1 - start]


def _shrink(box: tuple[int, int], size: tuple[int, int] | None) -> int:
    """The largest of 8, 4, 2 and 1 that divides a box (height, width) into no less than ``size``."""
    if size is None:
        return 1
    return next((n for n in (8, 4, 2) if box[0] >= n * size[0] and box[1] >= n * size[1]), 1)


def _handle(lib: ctypes.CDLL) -> ctypes.c_void_p:
    """This thread's decompressor."""
    if not hasattr(_local, "handle"):
        _local.handle = ctypes.c_void_p(lib.tj3Init(_TJINIT_DECOMPRESS))
        # With the thread or its handle, and not at exit, when other threads may still decode.
        weakref.finalize(_local.handle, lib.tj3Destroy, _local.handle.value).atexit = False
    return _local.handle
