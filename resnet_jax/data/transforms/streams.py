"""Random keys for the transforms, one stream for each by name, so that a new one changes no other's draws."""

import zlib

import jax


def stream(key: jax.Array, name: str) -> jax.Array:
    """The key of the transform called ``name``. The first three have theirs from before there were names."""
    if name in ("random_crop", "flip"):
        crop_key, flip_key = jax.random.split(key)
        return crop_key if name == "random_crop" else flip_key
    return jax.random.fold_in(key, 2 if name == "pca_color" else zlib.crc32(name.encode()))
