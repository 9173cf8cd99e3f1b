"""What the processes of a job must have in common, compared before the first step or evaluation."""

import hashlib
import importlib.metadata
import os
import time
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import resnet_jax
from resnet_jax import distributed, parallel
from resnet_jax.config import Config, flatten
from resnet_jax.data.dataset import Dataset, Share
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError

_NAMES = 256  # Examples whose names are compared.
_CONTENTS = 32  # Examples of streamed data whose pixels are compared: those that a seed of 0 shows first.
_NFS_DELAY = 10  # Seconds after which a file made on another host must be seen.


def agree(config: Config, dataset: Dataset) -> None:
    """Raises UserError, on every process, where two of a job have different configs, code, libraries or data.

    It names the host and what is different. Does nothing in a job of one process.
    """
    if distributed.active():
        distributed.agree(program_facts(config) | data_facts(dataset))


def agree_on_weights(name: str, variables: Any, normalization: Normalization) -> None:
    """Raises UserError, on every process, where two of a job have other weights or another normalisation of ``name``.

    ``variables`` are replicated. Each process reads them for itself, and nothing else would notice.
    """
    if distributed.active():
        leaves = [np.asarray(leaf) for leaf in [*jax.tree.leaves(variables), *normalization]]
        distributed.agree({f"the weights and normalisation of {name}": _content(leaves)})


def program_facts(config: Config) -> dict[str, str]:
    """What tells one program from another: the config but for ``data_dir``, the code, and the libraries."""
    facts = {f"config.{key}": repr(value) for key, value in flatten(config).items() if key != "data_dir"}
    facts["the code of resnet_jax"] = code_version()
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        facts[f"the version of {package}"] = importlib.metadata.version(package)
    return facts


def code_version() -> str:
    """A hash of the package's Python files."""
    root, digest = Path(resnet_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def data_facts(dataset: Dataset) -> dict[str, str]:
    """What tells one data set from another without reading all of one that is streamed."""
    count = dataset.num_train
    leaves = jax.tree.leaves(dataset.resident("train"))
    leaves += jax.tree.leaves(next(iter(dataset.training_batches(0, min(count, _CONTENTS), 0, 1, Share()))))
    return {
        "training examples": str(count),
        f"{dataset.evaluation_split} examples": str(dataset.count(dataset.evaluation_split)),
        "classes": _hash("\n".join(dataset.class_names)),
        "the names of examples": _names(dataset, "train", count),
        "the content of examples": _content(leaves),
    }


def split_facts(dataset: Dataset, split: str) -> dict[str, str]:
    """What tells a split from another. Of one that is streamed no pixels are compared."""
    count = dataset.count(split)
    return {
        f"{split} examples": str(count),
        "classes": _hash("\n".join(dataset.class_names)),
        "the names of examples": _names(dataset, split, count),
        "the content of examples": _content(jax.tree.leaves(dataset.resident(split))),
    }


def _names(dataset: Dataset, split: str, count: int) -> str:
    evenly = np.unique(np.linspace(0, count - 1, min(count, _NAMES)).astype(int))
    return _hash("\n".join(dataset.example_name(split, int(index)) for index in evenly))


def _content(leaves: Sequence[np.ndarray]) -> str:
    content = 0
    for leaf in leaves:
        content = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, content)
    return f"{content:08x}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


def refuse_separate_workdirs(workdir: Path) -> None:
    """Makes the workdir of a job. Raises UserError, on every process, where one does not see it."""
    if not distributed.active():
        return
    mark = workdir / f".seen-by-all-{uuid.uuid4().hex}"
    if parallel.is_main_process():
        workdir.mkdir(parents=True, exist_ok=True)
        mark.touch()
    mark = workdir / distributed.exchange("workdir", mark.name)[0]
    try:
        seen = [said == "yes" for said in distributed.exchange("seen", "yes" if _appears(mark) else "no")]
    finally:
        if parallel.is_main_process():
            mark.unlink(missing_ok=True)
    if not all(seen):
        raise UserError(
            f"{distributed.who(seen.index(False))} does not see the --workdir {workdir} of {distributed.who(0)}; "
            f"put it on a file system that all hosts share"
        )


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _NFS_DELAY
    while True:
        if path.parent.is_dir() and path.name in os.listdir(path.parent):  # Which asks a network file system anew.
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
