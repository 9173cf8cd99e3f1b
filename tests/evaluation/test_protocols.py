"""Every protocol against its words: plain loops over photographs, each read and scored alone."""

import math
import re
from pathlib import Path

import cv2
import jax
import numpy as np
import PIL.Image
import pytest

from resnet_jax import parallel
from resnet_jax.config import make_model
from resnet_jax.data.crops import whole_box
from resnet_jax.data.dataset import load_data
from resnet_jax.data.images import crop_and_resize
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.packed import write_pack
from resnet_jax.data.streaming import Photographs, resized_size
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.evaluation.classify import error_rates, make_evaluator
from resnet_jax.evaluation.protocols import ASPECTS, SCALES, canvas_for, log_mean, views

MEAN = np.array([0.5, 0.4, 0.3], np.float32)
STD = np.array([0.2, 0.25, 0.3], np.float32)
NORMALIZATION = Normalization(MEAN, STD)


def softmax(logits):
    odds = np.exp(np.float64(logits) - np.max(logits))
    return odds / odds.sum()


def normalize(image):
    return ((np.float32(image) / 255 - MEAN) / STD)[None]


def files(data):
    return [data.validation[i]["image"] for i in range(len(data.validation))]


def central_square(file, side):
    def box(height, width):
        short = min(height, width)
        return (height - short) // 2, (width - short) // 2, short, short

    return crop_and_resize(file, box, (side, side))


def crops(square, crop):
    """The four corners, the centre, and the mirror images of all five."""
    side = len(square)
    found = []
    for top, left in [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)]:
        y, x = int(top * (side - crop)), int(left * (side - crop))
        found += [square[y : y + crop, x : x + crop], np.fliplr(square[y : y + crop, x : x + crop])]
    return found


def test_ten_crops_are_the_corners_the_centre_and_their_mirror_images(
    mesh, photographs, folder_config, random_variables
):
    side = 41
    config = folder_config(photographs.root, eval_batch_size=20, **{"data.eval_shorter_side": side})
    data, model = load_data(config), make_model(config, 3)
    variables, network = random_variables(model), jax.jit(lambda *args: model.apply(*args)[0])
    expected = []
    for file in files(data):
        views = crops(central_square(file, side), crop=32)
        assert len(views) == 10
        expected.append(np.log(np.mean([softmax(network(variables, normalize(view))) for view in views], axis=0)))
    found = make_evaluator(config, model, NORMALIZATION, data, "validation", mesh, "ten_crop")(variables)
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)
    assert found.labels.tolist() == photographs.labels
    # A tenth of the batch size, because each photograph is ten images on the device.
    assert found.shapes == {(max(2, mesh.size), side, side, 3)}


def test_one_crop_is_the_middle_of_the_resized_photograph(mesh, photographs, folder_config, random_variables):
    config = folder_config(photographs.root, eval_batch_size=3)
    data, model = load_data(config), make_model(config, 3)
    variables, network = random_variables(model), jax.jit(lambda *args: model.apply(*args)[0])
    expected = []
    for file, (height, width) in zip(files(data), photographs.sizes, strict=True):
        side = round(min(height, width) * 32 / 41)
        box = (height - side) // 2, (width - side) // 2, side, side
        view = crop_and_resize(file, lambda *size, box=box: box, (32, 32))
        expected.append(np.log(softmax(network(variables, normalize(view)))))
    found = make_evaluator(config, model, NORMALIZATION, data, "validation", mesh)(variables)
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)


def multi_scale_alone(model, variables, file, size, scales):
    """Log-probabilities of one photograph at each scale, whole, without a canvas, in plain Python."""
    head = variables["params"]["head"]
    last_stage = f"C{len(model.stage_sizes) + 1}"
    network = jax.jit(lambda image: model.apply(variables, image, train=False, features=True)[last_stage])
    probabilities = []
    for scale in scales:
        image = crop_and_resize(file, whole_box, resized_size(*size, scale))
        assert min(image.shape[:2]) == scale
        of_scale = []
        for view in (image, np.fliplr(image)):
            last = np.asarray(network(normalize(view)))[0]
            positions = [last[i, j] for i in range(last.shape[0]) for j in range(last.shape[1])]
            of_scale.append(softmax(sum(positions) / len(positions) @ head["kernel"] + head["bias"]))
        probabilities.append(np.mean(of_scale, axis=0))
    return np.log(np.mean(probabilities, axis=0))


def count_compilations(caplog, run):
    caplog.clear()
    with jax.log_compiles():
        result = run()
    return result, sum(bool(re.match(r"Compiling jit\(eval_step\)", record.message)) for record in caplog.records)


@pytest.mark.parametrize(
    ("num_devices", "settings", "canvases"),
    [
        # At scale 40 all photographs fit one canvas, at 96 each aspect has its own.
        (1, {"model.name": "resnet18"}, {40: [(64, 64)], 96: [(96, 96), (96, 160), (160, 96)]}),
        (8, {"model.name": "resnet18"}, {40: [(64, 64)]}),
        (1, {"model.name": "resnet50", "model.stride_placement": "v1.5"}, {40: [(64, 64)]}),
    ],
    ids=["basic-1-device", "basic-8-devices", "bottleneck-1-device"],
)
def test_several_scales_are_the_mean_of_each_photograph_alone_and_whole(
    num_devices, settings, canvases, photographs, folder_config, random_variables, monkeypatch, caplog
):
    mesh = parallel.data_mesh(jax.devices()[:num_devices])
    monkeypatch.setattr(protocols, "SCALES", tuple(canvases))
    config = folder_config(photographs.root, eval_batch_size=20, **settings)
    data, model = load_data(config), make_model(config, 3)
    variables = random_variables(model)
    expected = [
        multi_scale_alone(model, variables, file, size, canvases)
        for file, size in zip(files(data), photographs.sizes, strict=True)
    ]
    evaluate = make_evaluator(config, model, NORMALIZATION, data, "validation", mesh, "multi_scale")
    found, compilations = count_compilations(caplog, lambda: evaluate(variables))
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)
    assert found.labels.tolist() == photographs.labels
    # Four photographs in one small batch; the pixels of a batch hold one of the larger canvases.
    rows = {40: max(4, num_devices), 96: num_devices}
    assert found.shapes == {(rows[scale], *canvas, 3) for scale in canvases for canvas in canvases[scale]}
    assert compilations == len(found.shapes)
    again, compilations = count_compilations(caplog, lambda: evaluate(variables))
    np.testing.assert_array_equal(again.log_probs, found.log_probs)
    assert compilations == 0


@pytest.fixture
def damaged(tmp_path, folder_config):
    """A folder of four photographs of which the second is none and the third is cut short after its header."""
    rng = np.random.default_rng(0)
    for name in ("train/cat/a", "train/dog/b", "val/cat/a", "val/cat/b", "val/dog/c", "val/dog/d"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(256, size=(50, 50, 3), dtype=np.uint8)).save(path)
    (tmp_path / "val/cat/b.png").write_bytes(b"no photograph")
    cut = tmp_path / "val/dog/c.png"
    cut.write_bytes(cut.read_bytes()[:3000])
    return folder_config(tmp_path, eval_batch_size=40)


def test_a_photograph_that_cannot_be_decoded_is_named_and_has_no_score_at_any_scale(
    damaged, random_variables, monkeypatch, mesh, capsys
):
    monkeypatch.setattr(protocols, "SCALES", (40, 64))
    model = make_model(damaged, 2)
    evaluate = make_evaluator(damaged, model, NORMALIZATION, load_data(damaged), "validation", mesh, "multi_scale")
    found = evaluate(random_variables(model))
    assert found.labels.tolist() == [0, -1, -1, 1]
    assert np.isneginf(found.log_probs[1:3]).all() and np.isfinite(found.log_probs[[0, 3]]).all()
    assert error_rates(found)["num_examples"] == 2
    named = re.findall(r"warning: (\S+) \(.*\) cannot be decoded", capsys.readouterr().err)
    assert set(named) == {"val/cat/b.png", "val/dog/c.png"}


@pytest.mark.parametrize("name", ["val/cat/b.png", "val/dog/c.png"])
def test_too_many_photographs_that_cannot_be_decoded_are_a_user_error_at_any_scale(damaged, random_variables, name):
    root = Path(damaged.data_dir)
    for photograph in root.glob("val/*/*.png"):
        photograph.write_bytes((root / name).read_bytes())
    damaged.data.max_unreadable = 3
    model, data, mesh = make_model(damaged, 2), load_data(damaged), parallel.data_mesh()
    with pytest.raises(UserError, match=r"4 photographs cannot be decoded, more than config\.data\.max_unreadable 3"):
        make_evaluator(damaged, model, NORMALIZATION, data, "validation", mesh, "multi_scale")(random_variables(model))


def test_log_mean_is_the_mean_of_probabilities_also_of_very_small_ones():
    log_probs = np.log(np.random.default_rng(0).uniform(size=(3, 5, 7)))
    expected = np.log(np.exp(log_probs).mean(axis=0))
    np.testing.assert_allclose(log_mean(log_probs), expected, atol=1e-6)
    np.testing.assert_allclose(log_mean(log_probs - 1000), expected - 1000, rtol=1e-6)


def many_sizes():
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 1000), (375, 500), (500, 375), (333, 500), (2000, 3000), (224, 224), (225, 224), (7, 6000)]
    return sizes + [tuple(map(int, size)) for size in np.exp(rng.uniform(np.log(20), np.log(3000), (2000, 2)))]


def most_canvases(sizes):
    """Upright and lying: one for each of ASPECTS, and for each double of the last that the longest needs."""
    longest = max(max(size) / min(size) for size in sizes if min(size))
    doubles = max(0, math.ceil(math.log2(longest / ASPECTS[-1])))
    return 2 * (len(ASPECTS) + doubles) - 1


@pytest.mark.parametrize("scale", [*SCALES, 40, 97])
def test_a_canvas_holds_the_photograph_and_there_are_few(scale):
    canvases = set()
    sizes = many_sizes()
    for height, width in sizes:
        canvas = canvas_for(height, width, scale)
        resized = resized_size(height, width, scale)
        assert canvas[0] >= resized[0] and canvas[1] >= resized[1]
        assert canvas[0] % 32 == canvas[1] % 32 == 0
        assert canvas_for(width, height, scale) == canvas[::-1]
        assert min(canvas) < scale + 32
        canvases.add(canvas)
    assert len(canvases) <= most_canvases(sizes)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(500, 500), (375, 500), (500, 333), (480, 640), (1200, 800)])
def test_usual_photographs_leave_little_of_their_canvas_empty(size, scale):
    canvas, resized = canvas_for(*size, scale), resized_size(*size, scale)
    assert np.prod(resized) > 0.89 * np.prod(canvas)


class Pixels:
    """Photographs of given sizes; one without pixels is a file that cannot be read."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        height, width = self.sizes[i]
        image = np.zeros((height, width, 3), np.uint8) if height else b"no photograph"
        return {"image": image, "label": 0, "name": str(i)}


def test_every_photograph_is_in_one_view_of_each_scale(folder_config):
    sizes = [size for size in many_sizes() if max(size) < 500][:200]
    sizes[17] = (0, 0)
    data = Photographs(
        {"train": Pixels([(9, 9)]), "validation": Pixels(sizes)}.__getitem__, ["a"], (32, 32, 3), lambda: []
    )
    config = folder_config("", eval_batch_size=50, **{"data.crop_size": 224})
    scales = views("multi_scale", config, data, "validation")
    assert len(scales) == len(SCALES)
    for scale, passes in zip(SCALES, scales, strict=True):
        indices = np.concatenate([view.indices for view, _ in passes])
        assert sorted(indices) == [i for i in range(200) if i != 17]
        canvases = [view.canvas for view, _ in passes]
        assert len(set(canvases)) == len(canvases) <= most_canvases(sizes)
        for view, batch_size in passes:
            # A power of two with up to as many pixels as a batch of crops, or else one photograph.
            pixels = view.canvas[0] * view.canvas[1]
            assert batch_size in (1, 2, 4, 8, 16, 32)
            assert batch_size == 1 or batch_size * pixels <= 50 * 224**2 < 2 * batch_size * pixels
            for i in view.indices:
                assert view.choose_box(*sizes[i]) == (0, 0, *sizes[i])
                assert view.choose_size(*sizes[i]) == resized_size(*sizes[i], scale)
                assert (np.array(view.choose_size(*sizes[i])) <= view.canvas).all()


@pytest.mark.parametrize("protocol", ["single", "ten_crop"])
def test_protocols_of_one_size_have_one_view_of_the_split_they_are_asked_for(folder_config, protocol):
    data = Photographs(
        {"train": Pixels([(9, 9)] * 3), "validation": Pixels([(9, 9)] * 7)}.__getitem__, ["a"], (32, 32, 3), lambda: []
    )
    for split, count in (("train", 3), ("validation", 7)):
        (((view, batch_size),),) = views(protocol, folder_config("", eval_batch_size=50), data, split)
        assert view.indices.tolist() == list(range(count))
        assert batch_size == (50 if protocol == "single" else 5)


def test_a_pack_of_photographs_smaller_than_the_scales_is_refused(tmp_path, folder_config, monkeypatch):
    for split in ("train", "validation"):
        write_pack(Pixels([(50, 60), (60, 50)]), tmp_path, split, 40, ["a"])
    config = folder_config(tmp_path, **{"data.name": "packed"})
    data = load_data(config)
    with pytest.raises(UserError, match=r"at most 40 pixels, and multi_scale needs 640; .* --shorter_side=640"):
        views("multi_scale", config, data, "validation")
    monkeypatch.setattr(protocols, "SCALES", (32, 40))
    small, large = views("multi_scale", config, data, "validation")
    assert [view.canvas for view, _ in small] == [(32, 64), (64, 32)]
    assert [view.canvas for view, _ in large] == [(64, 64)]


@pytest.mark.parametrize("protocol", ["ten_crops", "", "dense"])
def test_an_unknown_protocol_is_a_user_error_that_names_the_known_ones(digits_config, protocol):
    config = digits_config()
    with pytest.raises(UserError, match=f"no protocol '{protocol}'; use single, ten_crop, multi_scale"):
        views(protocol, config, load_data(config), "test")


@pytest.mark.parametrize("protocol", ["ten_crop", "multi_scale"])
def test_protocols_of_photographs_are_refused_for_small_images(digits_config, protocol):
    config = digits_config()
    with pytest.raises(UserError, match=f"protocol {protocol} is for photographs; score digits with --protocol=single"):
        make_evaluator(config, make_model(config, 10), NORMALIZATION, load_data(config), "test", None, protocol)


def test_photographs_of_imagenet_are_scored_as_plain_loops_do(
    prepared_tfds, folder_config, random_variables, monkeypatch
):
    if not (prepared_tfds / "imagenet2012").is_dir():
        pytest.skip(f"needs a sample of imagenet2012 prepared in {prepared_tfds}")
    monkeypatch.setattr(protocols, "SCALES", (33,))
    config = folder_config(
        prepared_tfds, eval_batch_size=64, **{"data.name": "imagenet2012", "model.stage_sizes": (1,)}
    )
    data = load_data(config)
    model = make_model(config, 1000)
    variables = random_variables(model)
    mesh = parallel.data_mesh()
    found = make_evaluator(config, model, NORMALIZATION, data, "validation", mesh, "multi_scale")(variables)
    records = [data.validation[i] for i in range(len(data.validation))]
    assert found.labels.tolist() == [record["label"] for record in records]
    some = list(range(0, len(records), 60))
    expected = []
    for i in some:
        size = cv2.imdecode(np.frombuffer(records[i]["image"], np.uint8), cv2.IMREAD_COLOR).shape[:2]
        expected.append(multi_scale_alone(model, variables, records[i]["image"], size, (33,)))
    np.testing.assert_allclose(found.log_probs[some], expected, atol=2e-5)
