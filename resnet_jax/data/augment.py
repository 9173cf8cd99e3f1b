"""Device code between the normalised images and the network in training: colour, random crop and flip."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

# Principal components of ImageNet's RGB values in [0, 1], in the figures that Torch's ResNet recipe made common:
# eigenvalues, and eigenvectors as columns.
_PCA_VALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
_PCA_VECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)


def augment(config: ConfigDict, key: jax.Array, images: jax.Array, std: np.ndarray) -> jax.Array:
    """The training view of normalised images (N, H, W, 3), as config.data says; ``std`` is what divided them.

    On CIFAR-10 the paper pads, crops and flips (section 4.2). Padding comes after the mean is subtracted, so that the
    border is the mean and not black. On photographs, which come cropped, it shifts colours and flips (section 3.4).
    """
    crop_key, flip_key = jax.random.split(key)
    data = config.data
    if data.pca_std:
        images = images + pca_color(jax.random.fold_in(key, 2), len(images), data.pca_std) / std
    images = random_crop(crop_key, images, data.pad)
    return random_flip(flip_key, images) if data.flip else images


def pca_color(key: jax.Array, count: int, std: float) -> jax.Array:
    """The colour shift of each image, (N, 1, 1, 3), for RGB in [0, 1] (AlexNet, section 4.1; the paper's section 3.4).

    The sum of the principal components of ImageNet's colours, each times its eigenvalue and a normal draw of standard
    deviation ``std`` (0.1 there).
    """
    weights = std * jax.random.normal(key, (count, 3))
    return ((weights * _PCA_VALUES) @ _PCA_VECTORS.T)[:, None, None, :]


def random_crop(key: jax.Array, images: jax.Array, pad: int) -> jax.Array:
    """Pads each normalised image (H, W, C) of a batch by ``pad`` zeros a side and takes a random H x W crop."""
    if pad == 0:
        return images
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * pad + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image (N, H, W, C) left to right with probability 1/2."""
    flip = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1, :], images)
