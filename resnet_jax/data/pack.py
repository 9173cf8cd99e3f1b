"""Decodes photographs once: ``python -m resnet_jax.data.pack imagenet2012 --data_dir DIR --out DIR``.

Training then reads raw pixels, with --config.data.name=packed and --config.data_dir=OUT.
"""

import argparse
import sys
from pathlib import Path

from resnet_jax import recipes
from resnet_jax.data.packed import write_pack
from resnet_jax.data.streaming import load_photographs
from resnet_jax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["imagenet2012", "folder"], help="what holds the photographs")
    parser.add_argument("--data_dir", help="where; default for imagenet2012 TFDS_DATA_DIR or ~/tensorflow_datasets")
    parser.add_argument("--out", required=True, type=Path, help="the folder of the pack")
    parser.add_argument(
        "--shorter_side", type=int, default=480, help="pixels to which it is reduced; 480 is all the paper's crops use"
    )
    parser.add_argument("--splits", nargs="+", default=["train", "validation"], choices=["train", "validation"])
    arguments = parser.parse_args()
    config = recipes.base()
    config.data.name, config.data_dir = arguments.name, arguments.data_dir
    try:
        if arguments.shorter_side < 1:
            raise UserError(f"--shorter_side is {arguments.shorter_side}; it must be at least 1")
        photographs = load_photographs(config)
        for split in arguments.splits:
            write_pack(photographs.split(split), arguments.out, split, arguments.shorter_side, photographs.class_names)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
