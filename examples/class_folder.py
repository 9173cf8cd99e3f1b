"""Writes some pictures of each class of a prepared TensorFlow Datasets data set as a folder of class folders.

python examples/class_folder.py --name=cifar10 --split=test --train=20 --validation=100 --output=runs/pictures

OUTPUT/train/CLASS/NUMBER.png and OUTPUT/val/CLASS/NUMBER.png: the first pictures of each class in the order of the
split, as they are stored. It stands for a small collection of one's own.
"""

import argparse
import signal
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from resnet_jax.data.sources.tfds import class_names, open_builder, open_split
from resnet_jax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", required=True, help="the data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--data_dir", help="where it is prepared; default $TFDS_DATA_DIR")
    parser.add_argument("--train", type=int, default=20, help="pictures of each class")
    parser.add_argument("--validation", type=int, default=100, help="pictures of each class")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    try:
        builder = open_builder(arguments.name, arguments.data_dir)
        source, names = open_split(builder, arguments.split, encoded=True), class_names(builder)
    except UserError as error:
        sys.exit(f"error: {error}")
    # ImageNet has two classes called "crane".
    folders = [f"{name} {label}" if names.count(name) > 1 else name for label, name in enumerate(names)]
    counts: Counter[int] = Counter()
    for index in range(len(source)):
        record = source[index]
        label, number = record["label"], counts[record["label"]]
        if number >= arguments.train + arguments.validation:
            continue
        split = "train" if number < arguments.train else "val"
        suffix = ".png" if record["image"].startswith(b"\x89PNG") else ".jpg"
        path = arguments.output / split / folders[label].replace("/", "_") / f"{number:04}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record["image"])
        counts[label] += 1
    written = {split: len(list((arguments.output / split).glob("*/*"))) for split in ("train", "val")}
    print(f"{arguments.output}: {written['train']} pictures to train on, {written['val']} to validate on")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, without a traceback.
    main()
