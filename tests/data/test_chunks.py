import io
import pickle
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
from absl import flags

from resnet_jax.data.chunks import EvalChunks, Loading, PhotographView, TrainChunks, make_batches, photograph_sizes
from resnet_jax.data.crops import RandomResized, ScaleJitter
from resnet_jax.data.dataset import Share
from resnet_jax.data.decode.boxes import CentralCrop
from resnet_jax.data.decode.images import UnreadableImage, crop_and_resize
from resnet_jax.data.order import example_indices
from resnet_jax.data.sources.folder import open_folder
from resnet_jax.errors import UserError

SEED, CROP = 7, 10
ONE_THREAD = Loading(threads=1, workers=0)
JITTER = ScaleJitter(shorter_side=(12, 20))


def encoded(pixels, format="PNG"):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def photographs(count):
    """Of many sizes, and no pixel is 0; every third is pixels and not a file, and of the files half are JPEG."""
    records = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(60, 256, size=(11 + i % 7, 23 - i % 9, 3), dtype=np.uint8)
        image = pixels if i % 3 == 0 else encoded(pixels, ("PNG", "JPEG")[i % 2])
        records.append({"image": image, "label": 100 + i, "name": f"train/{i}.jpg"})
    return records


def spoil(records, *indices):
    """Half of them no image at all; the others have a sound header, so that a box is drawn before decoding fails."""
    for number, i in enumerate(indices):
        data = b"garbage" if number % 2 == 0 else encoded(np.full((20, 20, 3), 9, np.uint8), "JPEG")[:-40]
        records[i] = records[i] | {"image": data, "name": f"broken{i}.jpg"}
    return records


def write_folder(root, records, split):
    """The photographs as ROOT/SPLIT/CLASS/*.png, of two classes."""
    for i, record in enumerate(records):
        path = root / split / ("cat", "dog")[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = record["image"]
        path.write_bytes(image if isinstance(image, bytes) else encoded(image))


def train_chunks(source, batch_size, share=Share(), **fields):  # noqa: B008
    return TrainChunks(source, SEED, batch_size, fields.pop("crop", JITTER), CROP, share, **fields)


def train(source, batch_size, start, stop, share=Share(), loading=ONE_THREAD, limit=0, **fields):  # noqa: B008
    return list(make_batches(train_chunks(source, batch_size, share, **fields), start, stop, loading, limit))


def reference_example(source, position, crop=JITTER):
    """The crop and label at a place in the run, alone."""
    (index,) = example_indices(SEED, np.array([position]), len(source))
    rng = np.random.default_rng((SEED, position))
    box = partial(crop.box, rng, crop_size=CROP)
    while True:
        record = source[int(index)]
        try:
            return crop_and_resize(record["image"], box, (CROP, CROP), fast=True), record["label"]
        except UnreadableImage:
            index = (index + 1) % len(source)


def reference_batches(source, batch_size, start, stop, crop=JITTER):
    batches = []
    for step in range(start, stop):
        places = range(step * batch_size, (step + 1) * batch_size)
        images, labels = zip(*(reference_example(source, place, crop) for place in places), strict=True)
        batches.append({"image": np.stack(images), "label": np.array(labels, np.int32)})
    return batches


def assert_same(batches, expected):
    for batch, wanted in zip(batches, expected, strict=True):
        assert batch.keys() == wanted.keys()
        for key in wanted:
            np.testing.assert_array_equal(batch[key], wanted[key], strict=True)


def joined(parts_of_batches):
    """Batches out of the parts that each process made of them."""
    return [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*parts_of_batches, strict=True)
    ]


@pytest.mark.parametrize("crop", [ScaleJitter(shorter_side=(13, 17)), RandomResized(area=(0.2, 0.6))])
def test_training_batches_are_those_made_record_by_record(crop):
    source = photographs(13)
    # Seven batches of four: two passes and two examples over.
    batches = train(source, 4, 0, 7, crop=crop)
    assert_same(batches, reference_batches(source, 4, 0, 7, crop))
    assert batches[0]["image"].shape == (4, CROP, CROP, 3) and batches[0]["image"].dtype == np.uint8
    counts = Counter(int(label) for batch in batches for label in batch["label"])
    assert sorted(counts.values()) == [2] * 11 + [3] * 2


def test_each_pass_crops_a_photograph_anew():
    source = photographs(3)
    first, second = (
        dict(zip(batch["label"].tolist(), batch["image"], strict=True)) for batch in train(source, 3, 0, 2)
    )
    assert first.keys() == second.keys() == {100, 101, 102}
    assert not any(np.array_equal(first[label], second[label]) for label in first)


@pytest.mark.parametrize("chunk", [1, 5, 32])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_batches_do_not_depend_on_processes_threads_or_chunks(processes, threads, chunk):
    source = spoil(photographs(9), 3, 4)
    loading = Loading(threads, workers=0)
    parts = [train(source, 8, 0, 4, Share(i, processes), loading, limit=2, chunk=chunk) for i in range(processes)]
    assert_same(joined(parts), reference_batches(source, 8, 0, 4))


@pytest.mark.parametrize("batch_size", [1, 6, 37, 66])
def test_batches_of_any_size_are_made_of_chunks_in_order(batch_size):
    # 37 has no divisor, and 66 makes three chunks of 22.
    source = photographs(20)
    assert_same(train(source, batch_size, 0, 2), reference_batches(source, batch_size, 0, 2))


@pytest.mark.parametrize("start", [1, 3, 5])
@pytest.mark.parametrize("chunk", [2, 32])
def test_a_run_that_starts_at_a_step_sees_what_one_from_0_sees_from_there_on(start, chunk):
    source = spoil(photographs(9), 3, 4)
    whole = train(source, 4, 0, 5, limit=2)
    assert_same(train(source, 4, start, 5, loading=Loading(2, 0), limit=2, chunk=chunk), whole[start:])


def test_chunks_can_be_sent_to_another_process(tmp_path):
    write_folder(tmp_path, photographs(9), "train")
    for chunks in (
        train_chunks(open_folder(tmp_path, "train"), 8),
        EvalChunks(open_folder(tmp_path, "train"), square_view(np.arange(9), 6), 8, Share()),
    ):
        copy = pickle.loads(pickle.dumps(chunks))
        for number in (0, 1):
            assert_same([copy(number)], [chunks(number)])


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(tmp_path, capsys):
    write_folder(tmp_path, spoil(photographs(9), 5), "train")
    source = open_folder(tmp_path, "train")
    flags.FLAGS.unparse_flags()  # As in a program that has none.
    # Three batches of one chunk: one worker makes two of them, the other one.
    batches = train(source, 8, 2, 5, loading=Loading(2, workers=2), limit=1)
    # Both workers meet the broken photograph, and it is named once.
    assert capsys.readouterr().err.count("train/dog/005.png") == 1
    assert_same(batches, reference_batches(source, 8, 2, 5))


def test_leaving_a_run_early_ends_its_threads():
    before = set(threading.enumerate())
    batches = make_batches(train_chunks(photographs(5), 4), 0, 100_000, Loading(3, 0), limit=0)
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()


def test_undecodable_photographs_are_named_once_and_the_next_ones_take_their_place(capsys):
    # Two in a row, and the last one, after which comes the first.
    source = spoil(photographs(9), 3, 4, 8)
    batches = train(source, 9, 0, 4, loading=Loading(2, 0), limit=3)
    assert_same(batches, reference_batches(source, 9, 0, 4))
    counts = Counter(int(label) for batch in batches for label in batch["label"])
    # Five for its neighbours 3 and 4, and 0 for 8.
    assert counts == {100: 8, 101: 4, 102: 4, 105: 12, 106: 4, 107: 4}
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3
    for name in ("broken3.jpg", "broken4.jpg", "broken8.jpg"):
        (warning,) = (line for line in warnings if name in line)
        assert warning.startswith(f"warning: {name} (") and warning.endswith(") cannot be decoded and is skipped")


def test_a_run_stops_at_the_first_undecodable_photograph_beyond_the_limit(capsys):
    source = spoil(photographs(12), 1, 5, 9)
    # The step at which each of the three is met first; 9 is never drawn in another's place, nor they in its.
    order = example_indices(SEED, np.arange(12), 12).tolist()
    last = max(order.index(i) for i in (1, 5, 9)) // 2
    seen = []
    with pytest.raises(UserError) as caught:
        for batch in make_batches(train_chunks(source, 2), 0, 6, Loading(2, 0), limit=2):
            seen.append(batch)
    message = str(caught.value)
    assert message.startswith("3 photographs cannot be decoded, more than config.data.max_unreadable 2; fix them")
    assert "\n" not in message
    assert_same(seen, reference_batches(source, 2, 0, last))
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert len(train(source, 2, 0, 6, limit=3)) == 6


@pytest.mark.parametrize("limit", [2, 10])
def test_nothing_that_can_be_decoded_is_a_user_error(limit):
    source = spoil(photographs(3), 0, 1, 2)
    with pytest.raises(UserError, match=r"photographs can(not)? be decoded") as caught:
        train(source, 2, 0, 3, limit=limit)
    assert "none of 3 photographs can be decoded, first broken" in str(caught.value)
    assert "\n" not in str(caught.value)


class Fixed(NamedTuple):
    """The central square, resized to 6 x 6 whatever its side."""

    side: int
    interpolation: str = "area"

    def box(self, height, width):
        return CentralCrop(self.side, self.side).box(height, width)

    def resized(self, height, width):
        return 6, 6


def square_view(indices, side):
    return PhotographView(indices, (side, side), Fixed(side))


def evaluate(source, view, batch_size, share=Share(), loading=ONE_THREAD, limit=0):  # noqa: B008
    steps = -(-view.count // batch_size)
    return list(make_batches(EvalChunks(source, view, batch_size, share), 0, steps, loading, limit))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (10, 4), (1, 4), (3, 8), (70, 70), (80, 74)])
def test_evaluation_shows_every_photograph_once_and_pads_with_label_minus_1(count, batch_size, processes):
    source = photographs(90)
    indices = np.random.default_rng(count).permutation(90)[:count]  # Any of them, in any order.
    view = square_view(indices, 6)
    parts = [evaluate(source, view, batch_size, Share(i, processes), Loading(2, 0)) for i in range(processes)]
    batches = joined(parts)
    steps = -(-count // batch_size)
    assert len(batches) == steps
    images = np.zeros((steps * batch_size, 6, 6, 3), np.uint8)
    labels = np.full(steps * batch_size, -1, np.int32)
    sizes, places = np.ones((len(labels), 2), np.int32), np.zeros(len(labels), np.int32)
    for row, index in enumerate(indices):
        images[row] = crop_and_resize(source[index]["image"], CentralCrop(6, 6).box, (6, 6))
        labels[row], places[row], sizes[row] = 100 + index, index, 6
    expected = {"image": images, "size": sizes, "label": labels, "index": places}
    assert_same(
        batches,
        [
            {key: array[i : i + batch_size] for key, array in expected.items()}
            for i in range(0, len(labels), batch_size)
        ],
    )


def test_an_undecodable_photograph_has_label_minus_1_in_an_evaluation(capsys):
    source = spoil(photographs(6), 1, 4)
    view = square_view(np.arange(6), 6)
    (batch,) = evaluate(source, view, 6, loading=Loading(2, 0), limit=2)
    assert batch["label"].tolist() == [100, -1, 102, 103, -1, 105]
    sound = [0, 2, 3, 5]
    (expected,) = evaluate([source[i] for i in sound], square_view(np.arange(4), 6), 4)
    np.testing.assert_array_equal(batch["image"][sound], expected["image"])
    assert not batch["image"][[1, 4]].any()
    warnings = capsys.readouterr().err.splitlines()
    assert ["broken1.jpg" in line or "broken4.jpg" in line for line in warnings] == [True, True]
    with pytest.raises(UserError, match=r"^2 photographs cannot be decoded, more than config\.data\.max_unreadable 1;"):
        evaluate(source, view, 6, limit=1)


@pytest.mark.parametrize("threads", [1, 4])
def test_photograph_sizes_come_from_the_headers_and_are_0_for_undecodable_ones(threads, capsys):
    source = photographs(20)
    source[3] = source[3] | {"image": b"garbage", "name": "broken3.jpg"}
    source[7] = source[7] | {"image": b"", "name": "broken7.jpg"}
    expected = [(0, 0) if i in (3, 7) else (11 + i % 7, 23 - i % 9) for i in range(20)]
    sizes = photograph_sizes(source, Loading(threads, 0), limit=2)
    np.testing.assert_array_equal(sizes, np.array(expected, np.int32), strict=True)
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in warnings] == [["warning:", "broken3.jpg"], ["warning:", "broken7.jpg"]]
    with pytest.raises(UserError, match=r"^2 photographs cannot be decoded, more than config\.data\.max_unreadable 1;"):
        photograph_sizes(source, Loading(threads, 0), limit=1)


def test_the_modules_that_worker_processes_import_do_not_import_jax():
    # Grain imports JAX itself, so something empty stands in for it; it is used only when batches are made.
    code = (
        "import sys, types; sys.modules['grain'] = types.ModuleType('grain'); "
        "import resnet_jax.data.chunks, resnet_jax.data.streamed, resnet_jax.data.sources, resnet_jax.data.pack; "
        "print([name for name in ('jax', 'flax', 'tensorflow', 'torch') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-2000:]
