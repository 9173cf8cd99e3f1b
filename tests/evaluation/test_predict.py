import os
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest

from resnet_jax.data.decode.boxes import CentralCrop
from resnet_jax.data.decode.images import crop_and_resize
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.evaluation import predict as module
from resnet_jax.evaluation.predict import Prediction, draw, find_images, picture_names, predict
from resnet_jax.models import create_model

NORMALIZATION = Normalization(np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.25, 0.3], np.float32))


def class_names(count):
    return [f"class {i}, also known as {i}" for i in range(count)]


@pytest.fixture(scope="module")
def network(random_variables):
    """Of seven classes: what ``predict`` takes of it."""
    return make_network(random_variables, 7)


def make_network(random_variables, num_classes):
    model = create_model("resnet18", num_classes, stage_sizes=(1, 1), width=4)
    return model, random_variables(model), NORMALIZATION, class_names(num_classes)


def write(folder, *names):
    paths = [folder / name for name in names]
    rng = np.random.default_rng(0)
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(256, size=(41 + 3 * i, 60 - 2 * i, 3), dtype=np.uint8)).save(path)
    return paths


def test_files_are_taken_as_they_are_and_folders_are_searched_at_any_depth(tmp_path):
    one, deep, last, other = write(tmp_path, "a/z.png", "a/deep/er/b.JPG", "a/c.webp", "other.png")
    (tmp_path / "a" / "notes.txt").write_text("no photograph")
    (tmp_path / "a" / "folder.jpg").mkdir()
    no_suffix = tmp_path / "photograph"
    no_suffix.write_bytes(other.read_bytes())
    assert find_images([no_suffix, tmp_path / "a", other]) == [no_suffix, last, deep, one, other]
    assert find_images([other, one, other]) == [other, one, other]


def test_what_is_not_there_is_a_user_error_that_names_it(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(UserError, match=f"there is no file or folder {tmp_path / 'cat.jpg'}"):
        find_images([*write(tmp_path, "dog.jpg"), tmp_path / "cat.jpg"])
    with pytest.raises(UserError, match=f"there are no photographs in {tmp_path / 'empty'}"):
        find_images([tmp_path / "empty"])
    with pytest.raises(UserError, match="no photographs"):
        find_images([])


def expected_predictions(network, paths, view, top=5):
    """Of the middle of each photograph, cut out, resized and scored alone."""
    model, variables, _, names = network
    shorter_side, crop, _ = view
    apply = jax.jit(model.apply)
    found = []
    for path in paths:
        with PIL.Image.open(path) as image:
            width, height = image.size
        side = round(min(height, width) * crop / shorter_side)
        box = (height - side) // 2, (width - side) // 2, side, side
        pixels = crop_and_resize(path.read_bytes(), lambda *size, box=box: box, (crop, crop))
        normalized = (np.float32(pixels) / 255 - NORMALIZATION.mean) / NORMALIZATION.std
        odds = np.exp(np.float64(apply(variables, normalized[None])[0]))
        probabilities = odds / odds.sum()
        best = sorted(range(len(odds)), key=lambda i, odds=odds: -odds[i])[:top]
        found.append((path, [names[i] for i in best], [pytest.approx(probabilities[i], rel=1e-4) for i in best]))
    return found


@pytest.mark.parametrize("batch_size", [2, 16])
@pytest.mark.parametrize(("shorter_side", "crop"), [(41, 32), (32, 32)])
def test_predictions_are_the_best_classes_of_the_central_crop(
    tmp_path, network, monkeypatch, batch_size, shorter_side, crop
):
    monkeypatch.setattr(module, "BATCH_SIZE", batch_size)
    paths = write(tmp_path, "lying.png", "a.jpg", "b.png", "c.webp", "upright.bmp")
    view = CentralCrop(shorter_side, crop)
    found = list(predict(*network, paths, view))
    assert [tuple(prediction) for prediction in found] == expected_predictions(network, paths, view)
    for prediction in found:
        assert prediction.probabilities == sorted(prediction.probabilities, reverse=True)
        assert {type(probability) for probability in prediction.probabilities} == {float}


@pytest.mark.parametrize(("num_classes", "top", "count"), [(3, 5, 3), (7, 6, 6)])
def test_there_are_as_many_classes_as_asked_for_or_as_there_are(tmp_path, random_variables, num_classes, top, count):
    network, paths = make_network(random_variables, num_classes), write(tmp_path, "a.png")
    (found,) = predict(*network, paths, CentralCrop(41, 32), top)
    assert len(found.classes) == len(found.probabilities) == count
    assert tuple(found) == expected_predictions(network, paths, CentralCrop(41, 32), top)[0]


def test_a_network_of_one_channel_sees_photographs_in_grey(tmp_path, random_variables):
    model = create_model("resnet20", 7, stage_sizes=(1,), width=4)
    variables = random_variables(model, image_shape=(32, 32, 1))
    normalize = Normalization(np.full(1, 0.4, np.float32), np.full(1, 0.3, np.float32))
    paths = write(tmp_path, "a.png", "b.png")
    found = list(predict(model, variables, normalize, class_names(7), paths, CentralCrop(32, 32), top=1))
    pixels = [crop_and_resize(path.read_bytes(), CentralCrop(32, 32).box, (32, 32)) for path in paths]
    grey = np.round(np.float64(pixels) @ [0.299, 0.587, 0.114])[..., None]
    probabilities = jax.nn.softmax(jax.jit(model.apply)(variables, np.float32((grey / 255 - 0.4) / 0.3)))
    assert [prediction.probabilities for prediction in found] == [
        [pytest.approx(float(row.max()), abs=0.01)] for row in probabilities
    ]


def test_a_network_of_other_channels_is_refused(network):
    four = Normalization(np.zeros(4, np.float32), np.ones(4, np.float32))
    with pytest.raises(UserError, match="the network's images have 4 channels; photographs have 3, or 1 in grey"):
        next(predict(*network[:2], four, ["a"], [Path("a.png")], CentralCrop(8, 8)))


def test_files_that_cannot_be_decoded_are_named_and_skipped(tmp_path, network, monkeypatch, capsys):
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    paths = write(tmp_path, "a.png", "cut.png", "empty.jpg", "text.png", "e.png")
    paths[1].write_bytes(paths[1].read_bytes()[:2000])
    paths[2].write_bytes(b"")
    paths[3].write_text("no photograph\nin two lines")
    gone = tmp_path / "gone.png"
    found = [tuple(prediction) for prediction in predict(*network, [*paths[:4], gone, paths[4]], CentralCrop(41, 32))]
    assert found == expected_predictions(network, [paths[0], paths[4]], CentralCrop(41, 32))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        f"warning: {path} cannot be decoded" for path in (*paths[1:4], gone)
    ]


def test_no_file_that_can_be_decoded_is_a_user_error(tmp_path, network):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(b"no photograph")
    with pytest.raises(UserError, match="none of 2 files can be decoded"):
        list(predict(*network, paths, CentralCrop(41, 32)))


def test_predictions_come_one_by_one(tmp_path, network, monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 1)
    first, second = write(tmp_path, "a.png", "b.png")
    predictions = predict(*network, [first, second], CentralCrop(41, 32))
    assert next(predictions).path == first
    second.unlink()  # It was not read yet.
    assert list(predictions) == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("cat.jpg", "cat.jpg.png"),
        ("/cat.jpg", "cat.jpg.png"),
        ("pets/big/cat.jpg", "pets_big_cat.jpg.png"),
        ("/data/pets/cat.jpg", "data_pets_cat.jpg.png"),
        ("../pets/cat.png", "pets_cat.png.png"),
    ],
)
def test_pictures_are_named_after_the_whole_path_and_stay_in_one_folder(path, name):
    assert picture_names([Path(path)]) == {Path(path): name}


def test_pictures_of_other_photographs_have_other_names():
    paths = [Path(path) for path in ("a/b.jpg", "a_b.jpg", "../a/b.jpg", "c.jpg")]
    assert list(picture_names(paths).values()) == ["a_b.jpg.png", "a_b.jpg-2.png", "a_b.jpg-3.png", "c.jpg.png"]


def test_long_names_are_cut_to_what_file_systems_take_and_stay_apart():
    paths = [Path("/photographs") / f"{first}{'é' * 120}.jpg" for first in "abc"] + [Path("x" * 300) / "d.jpg"]
    names = list(picture_names(paths).values())
    assert len(set(names)) == 4
    for path, name in zip(paths, names, strict=True):
        assert name.endswith(f"{path.name[-8:]}.png") or name.endswith("_d.jpg.png")
        assert len(os.fsencode(name)) <= 220


def pixels(path):
    with PIL.Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", ["plain.png", "upright.jpg", "costs $5 or $6_.png", "a^{b}$x_$.png", "caf\udce9.png"])
def test_a_picture_shows_the_photograph_and_a_bar_for_each_class(tmp_path, name):
    (path,) = write(tmp_path, name)
    PIL.Image.fromarray(np.full((50, 30, 3), (255, 0, 255), np.uint8)).save(path, quality=100)
    destination = tmp_path / "new" / "folder" / "picture.png"
    draw(Prediction(path, ["tench, Tinca tinca", "$100", "c"], [0.9, 0.09, 1e-9]), destination)
    drawn = pixels(destination)
    assert drawn.shape[1] > drawn.shape[0] > 200
    # The photograph is the one thing in its colour, upright as it is.
    magenta = (abs(drawn.astype(int) - (255, 0, 255)) < 12).all(axis=2)
    rows, columns = np.flatnonzero(magenta.any(axis=1)), np.flatnonzero(magenta.any(axis=0))
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(50 / 30, rel=0.03)
    # Bars as long as the probabilities, right of it.
    bars = (abs(drawn.astype(int) - (0x4C, 0x72, 0xB0)) < 12).all(axis=2)
    lengths = sorted(set(bars.sum(axis=1)[bars.any(axis=1)]))
    assert columns.max() < np.flatnonzero(bars.any(axis=0)).min()
    assert lengths[-1] / lengths[0] == pytest.approx(10, rel=0.05)
    assert [file.name for file in destination.parent.iterdir()] == ["picture.png"]


def test_a_picture_is_replaced(tmp_path):
    (path,) = write(tmp_path, "a.png")
    destination = tmp_path / "picture.png"
    draw(Prediction(path, ["a", "b"], [0.9, 0.1]), destination)
    first = pixels(destination)
    draw(Prediction(path, ["a", "b"], [0.1, 0.9]), Path(destination))
    assert (pixels(destination) != first).any()
