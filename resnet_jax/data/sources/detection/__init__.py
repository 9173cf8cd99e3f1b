"""Where photographs with boxes come from, by data set name. A new source is a file here and a line in the table.

Whatever is not in the table is looked for in TensorFlow Datasets. Imports no jax.
"""

from collections.abc import Callable, Sequence

from resnet_jax.data.sources.detection import coco, shapes, tfds, voc
from resnet_jax.data.sources.detection.protocol import OpenedDetection

# Each takes the name, config.data_dir, the names of all splits, those to learn the classes from first, and the classes.
DETECTION_SOURCES: dict[str, Callable[[str, str | None, Sequence[str], Sequence[str]], OpenedDetection]] = {
    "voc": voc.open_voc,
    "imagenet": voc.open_imagenet,
    "coco": coco.open_coco,
    "shapes": shapes.open_shapes,
    "shapes_of_one_class": shapes.open_shapes,
}


def open_detection(
    name: str, data_dir: str | None, splits: Sequence[str], classes: Sequence[str] = ()
) -> OpenedDetection:
    """Opens photographs with boxes: a name of ``DETECTION_SOURCES``, or a detection data set of TensorFlow Datasets.

    splits: the names of the splits that the classes are learned from, where the data set does not name them.
    classes: the names of the classes in label order, where the data set does not give them.

    Raises UserError where it is not found.
    """
    return DETECTION_SOURCES.get(name, tfds.open_tfds)(name, data_dir, splits, classes)
