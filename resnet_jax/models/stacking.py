"""Converts variables between the unrolled and the scanned layout of ``ResNet.scan_blocks``."""

import re
from typing import Any

import jax
import jax.numpy as jnp

Variables = dict[str, Any]


def stack_blocks(variables: Variables) -> Variables:
    """From one entry a block to ``stage{i}_blocks``: blocks 2, 3, ... of each stage stacked on a new first axis."""
    return {name: _stack(collection) for name, collection in variables.items()}


def unstack_blocks(variables: Variables) -> Variables:
    """The inverse of ``stack_blocks``. Variables without stacked blocks come back as they are."""
    return {name: _unstack(collection) for name, collection in variables.items()}


def _stack(collection: Variables) -> Variables:
    stages: dict[str, dict[int, Any]] = {}
    result = {}
    for name, value in collection.items():
        match = re.fullmatch(r"(stage\d+)_block(\d+)", name)
        if match and int(match[2]) > 1:
            stages.setdefault(match[1], {})[int(match[2])] = value
        else:
            result[name] = value
    for stage, blocks in stages.items():
        ordered = [blocks[i] for i in sorted(blocks)]
        result[f"{stage}_blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)
    return result


def _unstack(collection: Variables) -> Variables:
    result = {}
    for name, value in collection.items():
        match = re.fullmatch(r"(stage\d+)_blocks", name)
        if not match:
            result[name] = value
            continue
        for i in range(jax.tree.leaves(value)[0].shape[0]):
            result[f"{match[1]}_block{i + 2}"] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
    return result
