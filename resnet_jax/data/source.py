"""What every place that photographs come from looks like."""

from typing import Any, Protocol


class Source(Protocol):
    """Random access to photographs, from many threads at a time. A source can be pickled.

    Each is {"image": an encoded file's bytes or (H, W, 3) uint8 pixels, "label": int, "name": str for people}.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...
