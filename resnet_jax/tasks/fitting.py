"""Whether weights from elsewhere are those of a network."""

from typing import Any

import flax.traverse_util
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.interop.torch_keys import misfits


def check_fit(given: Any, expected: Any) -> None:
    """Raises UserError, naming what is missing, left over or of another shape, unless both trees have the same."""
    problems = misfits(_shapes(given), _shapes(expected), "config.model")
    if problems:
        raise UserError("; ".join(problems))


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    return {"/".join(path): np.shape(leaf) for path, leaf in flax.traverse_util.flatten_dict(variables).items()}
