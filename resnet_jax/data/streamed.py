"""Photographs of any size as a data set: what of each is seen, and on what canvas. Imports no jax."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from resnet_jax.data.cache import cached_arrays
from resnet_jax.data.chunks import (
    CHUNK,
    EvalChunks,
    PhotographView,
    TrainChunks,
    evaluation_loading,
    make_batches,
    photograph_sizes,
    training_loading,
)
from resnet_jax.data.dataset import Batch, Share
from resnet_jax.data.decode.boxes import CentralCrop, Whole
from resnet_jax.data.normalization import IMAGENET_STATISTICS, Statistics
from resnet_jax.data.photographs import Photographs
from resnet_jax.data.sources.protocol import Opened, Source
from resnet_jax.errors import UserError

if TYPE_CHECKING:
    import jax

# Aspect ratios (longer / shorter side) of the canvases for whole photographs; beyond the last, it is doubled.
# Each scale compiles at most once for every canvas that occurs, upright and lying; the usual 4:3 and 3:2 fit closely.
ASPECTS = (1.0, 1.36, 1.52, 2.0)
_STRIDE = 32


@dataclass(frozen=True, eq=False)
class StreamedDataset:
    """Photographs, opened, and how they are cropped and loaded; see ``dataset.Dataset``.

    A split is opened when it is first needed: one may be missing.
    """

    opened: Opened
    settings: Photographs
    _sources: dict[str, Source] = field(default_factory=dict, init=False, repr=False)
    _sizes: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def class_names(self) -> list[str]:
        return self.opened.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.crop_size, self.crop_size, 3

    @property
    def crop_size(self) -> int:
        return self.settings.crop_size

    @property
    def num_train(self) -> int:
        return self.count("train")

    @property
    def evaluation_split(self) -> str:
        return "test" if "test" in self.opened.splits and "validation" not in self.opened.splits else "validation"

    @property
    def test_split(self) -> str:
        return self.evaluation_split

    def source(self, split: str) -> Source:
        """The photographs themselves. Raises UserError for a split that does not exist, or that is not found."""
        if split not in self._sources:
            if split not in ("train", "validation", "test"):
                raise UserError(f"{self.name} has no split {split!r}; use {' or '.join(self.opened.splits)}")
            self._sources[split] = self.opened.open_split(split)
        return self._sources[split]

    def count(self, split: str) -> int:
        return len(self.source(split))

    def example_name(self, split: str, index: int) -> str:
        return self.source(split)[index]["name"]

    def resident(self, split: str) -> None:
        return None

    def gather(self, resident: None, batch: dict[str, "jax.Array"]) -> dict[str, "jax.Array"]:
        return batch

    def training_batches(self, seed: int, batch_size: int, start: int, stop: int, share: Share) -> Iterator[Batch]:
        """{"image", "label"}. Names each photograph that cannot be decoded on stderr, and another takes its place.

        Raises UserError when there are more of those than max_unreadable.
        """
        settings = self.settings
        chunks = TrainChunks(
            self.source("train"),
            seed,
            batch_size,
            settings.crop,
            settings.largest_crop,
            share,
            settings.repeats,
            settings.progressive,
            settings.interpolation,
        )
        loading = training_loading(settings.threads, settings.workers)
        return make_batches(chunks, start, stop, loading, settings.max_unreadable)

    def evaluation_batches(self, split: str, view: PhotographView, batch_size: int, share: Share) -> Iterator[Batch]:
        """{"image", "size", "label", "index"}. Photographs that cannot be decoded as in ``training_batches``."""
        return self._evaluation_batches(EvalChunks(self.source(split), view, batch_size, share))

    def _evaluation_batches(self, chunks: EvalChunks) -> Iterator[Batch]:
        steps = math.ceil(chunks.view.count / chunks.batch_size)
        loading = evaluation_loading(self.settings.threads)
        return make_batches(chunks, 0, steps, loading, self.settings.max_unreadable)

    def single_view(self, split: str) -> PhotographView:
        """The central crop_size x crop_size pixels, the shorter side resized to eval_shorter_side."""
        return self._central(split, self.settings.look(self.image_shape))

    def square_view(self, split: str) -> PhotographView:
        """The central square, resized to eval_shorter_side."""
        side = self.settings.eval_shorter_side
        return self._central(split, CentralCrop(side, side, self.settings.interpolation))

    def _central(self, split: str, crop: CentralCrop) -> PhotographView:
        return PhotographView(np.arange(self.count(split)), (crop.size, crop.size), crop)

    def whole_views(self, split: str, shorter_side: int | None = None) -> list[PhotographView]:
        """Photographs that cannot be decoded are in none, and are named on stderr.

        Raises UserError for a pack of photographs that are smaller than that.
        """
        source, shorter_side = self.source(split), shorter_side or self.settings.eval_shorter_side
        if source.shorter_side is not None and source.shorter_side < shorter_side:
            raise UserError(
                f"the pack's photographs have shorter sides of at most {source.shorter_side} pixels, fewer than the "
                f"{shorter_side} of this scale; score the photographs themselves, or pack them with a larger "
                f"--shorter_side (640 for multi_scale)"
            )
        if split not in self._sizes:
            loading = evaluation_loading(self.settings.threads)
            self._sizes[split] = photograph_sizes(source, loading, self.settings.max_unreadable)
        groups: dict[tuple[int, int], list[int]] = {}
        for index, (height, width) in enumerate(self._sizes[split]):
            if height and width:
                groups.setdefault(canvas_for(int(height), int(width), shorter_side), []).append(index)
        look = Whole(shorter_side, interpolation=self.settings.interpolation)
        return [PhotographView(np.array(group), canvas, look) for canvas, group in sorted(groups.items())]

    def mean_image(self) -> np.ndarray:
        """That of the central crops, the paper's per-pixel mean (section 3.4); computed once and kept in the cache.

        Summed in integers, so that it does not depend on the number of threads or hosts.
        """
        crop = self.settings.look(self.image_shape)
        how = "" if crop.interpolation == "area" else f"-{crop.interpolation}"
        name = f"{self.name}{self.opened.part}-mean-{crop.shorter_side}-{crop.size}{how}"
        (mean,) = cached_arrays(name, self.source("train").files(), lambda: (self._mean_image(),), keys=("mean",))
        return mean

    def _mean_image(self) -> np.ndarray:
        source = self.source("train")
        total, seen = np.zeros(self.image_shape, np.uint64), 0
        chunks = EvalChunks(source, self.single_view("train"), CHUNK * 8, Share())
        with tqdm(total=len(source), desc="mean image (once)", unit=" images", delay=1, mininterval=1) as bar:
            for batch in self._evaluation_batches(chunks):
                found = batch["label"] >= 0
                total += batch["image"][found].sum(axis=0, dtype=np.uint64)
                seen += int(found.sum())
                bar.update(int(found.sum()))
        if not seen:
            raise UserError(f"none of {len(source)} photographs can be decoded; correct config.data_dir")
        return total / (255 * seen)

    def channel_statistics(self) -> Statistics:
        """ImageNet's."""
        return IMAGENET_STATISTICS


def canvas_for(height: int, width: int, scale: int) -> tuple[int, int]:
    """The smallest canvas that holds a photograph of (height, width) once its shorter side is ``scale``."""
    resized = Whole(scale).resized(height, width)
    short = -(-scale // _STRIDE) * _STRIDE
    aspects = chain(ASPECTS, (ASPECTS[-1] * 2**power for power in count(1)))
    longs = (-(-math.ceil(scale * aspect) // _STRIDE) * _STRIDE for aspect in aspects)
    long = next(length for length in longs if length >= max(resized))
    return (long, short) if resized[0] > resized[1] else (short, long)
