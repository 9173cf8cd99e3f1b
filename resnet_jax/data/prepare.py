"""Downloads a data set and prepares it as array_record: ``python -m resnet_jax.data.prepare cifar10 --data_dir DIR``.

The only program here that needs TensorFlow (``pip install tensorflow``); it shows TFDS's progress bars. Reading what
it wrote does not need it.
"""

import argparse
import sys

from resnet_jax.data.sources.tfds import resolve_data_dir
from resnet_jax.errors import one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="a data set of TensorFlow Datasets: cifar10, cifar100, ...")
    parser.add_argument("--data_dir", help="where to put it; default TFDS_DATA_DIR or ~/tensorflow_datasets")
    arguments = parser.parse_args()
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(
            arguments.name, data_dir=resolve_data_dir(arguments.data_dir), file_format="array_record"
        )
        builder.download_and_prepare()
    except KeyboardInterrupt:  # TFDS has removed what it had begun.
        sys.exit("\nerror: stopped; run the same command again")
    except Exception as error:  # A download can fail in any of many libraries' ways.
        sys.exit(f"error: could not prepare {arguments.name!r}: {type(error).__name__}: {one_line(error)}")
    print(f"{arguments.name} is ready in {builder.data_path}")


if __name__ == "__main__":
    main()
