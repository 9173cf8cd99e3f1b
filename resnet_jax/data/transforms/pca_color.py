"""Colour shifts along the principal components of natural images' colours."""

import jax
import numpy as np

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms.transform import Batch, Transform, check_rgb
from resnet_jax.parts import NonNegativeFloat

# Principal components of ImageNet's RGB values in [0, 1], in the figures that Torch's ResNet recipe made common:
# eigenvalues, and eigenvectors as columns.
_VALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32)


class PcaColor(Transform):
    """Shifts the colour of each image as a whole (AlexNet, section 4.1; arXiv 1512.03385, section 3.4).

    The shift of RGB in [0, 1] is the sum of the principal components of ImageNet's colours, each times its eigenvalue
    and a normal draw.
    """

    std: NonNegativeFloat = 0.0
    """Standard deviation of the draws, 0.1 in both papers; 0: off."""

    @property
    def on(self) -> bool:
        return self.std > 0

    def __call__(self, key: jax.Array, batch: Batch, normalization: Normalization, num_classes: int) -> Batch:
        """Raises UserError for images that are not RGB."""
        images = batch["image"]
        check_rgb("pca_color", images)
        return batch | {"image": images + self.shifts(key, len(images)) / normalization.std}

    def shifts(self, key: jax.Array, count: int) -> jax.Array:
        """The shift of each image, (count, 1, 1, 3), of RGB in [0, 1]."""
        weights = self.std * jax.random.normal(key, (count, 3))
        return ((weights * _VALUES) @ _VECTORS.T)[:, None, None, :]
