"""Images in files of many kinds, and what Pillow decodes them to."""

import io

import cv2
import numpy as np
import PIL.Image
from PIL import ImageOps

HEIGHT, WIDTH = 90, 130


def gradient(height=HEIGHT, width=WIDTH):
    y, x = np.mgrid[:height, :width]
    return np.stack([20 + 200 * x / width, 20 + 200 * y / height, 220 - 200 * x / width], -1).astype(np.uint8)


def encoded(pixels, format="JPEG", mode="RGB", **options):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


def sampled(pixels, sampling):
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling])[1].tobytes()


def ycck(pixels):
    """A CMYK file that says, in its Adobe segment, that its colours are YCCK."""
    data = bytearray(encoded(pixels, mode="CMYK"))
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    data[place] = 2
    return bytes(data)


def oriented(pixels, orientation, format="JPEG", **options):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, format, exif=exif, **options)


PHOTOGRAPH = gradient()
NOISE = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
FILES = {
    "4:4:4": sampled(PHOTOGRAPH, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    "4:2:2": sampled(PHOTOGRAPH, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422),
    "4:2:0": sampled(PHOTOGRAPH, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
    "4:4:0": sampled(PHOTOGRAPH, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440),
    "4:1:1": sampled(PHOTOGRAPH, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411),
    "progressive": encoded(PHOTOGRAPH, progressive=True),
    "grey": encoded(PHOTOGRAPH, mode="L"),
    "rgb": encoded(PHOTOGRAPH, keep_rgb=True),
    "cmyk": encoded(PHOTOGRAPH, mode="CMYK"),
    "ycck": ycck(PHOTOGRAPH),
    "png": encoded(PHOTOGRAPH, "PNG"),
    "png, noise": encoded(NOISE, "PNG"),
    "png, grey and alpha": encoded(PHOTOGRAPH, "PNG", mode="LA"),
    "png, palette": encoded(PHOTOGRAPH, "PNG", mode="P"),
    "png, palette and transparency": encoded(PHOTOGRAPH, "PNG", mode="P", transparency=bytes(range(256))),
    "png, one bit": encoded(PHOTOGRAPH, "PNG", mode="1"),
    "gif": encoded(PHOTOGRAPH, "GIF", transparency=3),
    "tiff": encoded(PHOTOGRAPH, "TIFF"),
    "tiff, sideways": oriented(PHOTOGRAPH, 6, "TIFF"),
    "bmp": encoded(PHOTOGRAPH, "BMP"),
    "webp": encoded(PHOTOGRAPH, "WEBP"),
    **{f"orientation {value}": oriented(PHOTOGRAPH, value) for value in range(10)},
    "png, orientation 8": oriented(PHOTOGRAPH, 8, "PNG"),
    "one pixel": encoded(gradient(1, 1)),
    "tiny": encoded(gradient(20, 30)),
    "wide": encoded(gradient(300, 5000)),
    "damaged exif": encoded(PHOTOGRAPH, exif=b"Exif\0\0II*\0\x08\0\0\0\x40\0\x12\x01"),
    "no exif in the exif": encoded(PHOTOGRAPH, exif=b"Exif\0\0nonsense"),
}


def reference_pixels(data):
    """The upright image, decoded whole by Pillow."""
    with PIL.Image.open(io.BytesIO(data)) as file:
        file.load()
        return np.asarray(upright(file).convert("RGB")).astype(np.int16)


def upright(file):
    try:
        return ImageOps.exif_transpose(file)
    except SyntaxError:  # Damaged Exif data.
        return file


def assert_close(crop, expected, tolerance=2):
    assert crop.shape == expected.shape
    assert np.abs(crop - expected).max() <= tolerance
