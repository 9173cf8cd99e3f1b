"""Names of ImageNet's classes that people can read."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path


def readable_names(names: Sequence[str]) -> list[str]:
    """WordNet ids ("n01440764") in words ("tench, Tinca tinca") if all are classes of ImageNet, else as they are.

    Two classes of ImageNet can bear the same words: there are two cranes.
    """
    words = _imagenet_words()
    return [words[name] for name in names] if all(name in words for name in names) else list(names)


def imagenet_names() -> list[str]:
    """ImageNet's 1,000 classes in words, in the order of their labels (that of their WordNet ids)."""
    return list(_imagenet_words().values())


@cache
def _imagenet_words() -> dict[str, str]:
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text("utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)
