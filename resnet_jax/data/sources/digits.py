"""The handwritten digits inside scikit-learn: 1,797 real images that need no download."""

from pathlib import Path

import numpy as np

from resnet_jax.data.sources.protocol import Images, Split

NUM_TEST = 360


def load_images(name: str, data_dir: str | None) -> Images:
    """Both splits. ``data_dir`` is not read."""
    return Images({split: Split(*load(split)) for split in ("train", "test")}, [str(digit) for digit in range(10)])


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) uint8 and labels (N,) int32 of "train" (1,437) or "test" (360), always the same split.

    The 8x8 images with 17 grey levels are repeated to 32x32 and spread over 0..255.
    """
    from sklearn.datasets import load_digits  # Slow to import.

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(np.repeat(grey, 4, axis=1), 4, axis=2)
    images = np.repeat(images[..., None], 3, axis=3)
    order = np.random.default_rng(0).permutation(len(images))
    chosen = order[:NUM_TEST] if split == "test" else order[NUM_TEST:]
    return images[chosen], digits.target[chosen].astype(np.int32)


def write_photographs(root: Path, train: int = 12, validation: int = 4) -> None:
    """Writes some digits of each class as PNG files of 40 x 52 pixels, ROOT/{train,val}/CLASS/NUMBER.png.

    They stand for photographs where there are none. Files that are there already are left alone.
    """
    import PIL.Image

    for split, folder, count in (("train", "train", train), ("test", "val", validation)):
        images, labels = load(split)
        for digit in range(10):
            for number, image in enumerate(images[labels == digit][:count]):
                path = root / folder / str(digit) / f"{number:02}.png"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    PIL.Image.fromarray(image).resize((52, 40)).save(path)
