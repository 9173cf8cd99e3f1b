"""Every protocol against its words: plain loops over photographs, each read and scored alone."""

import re

import cv2
import jax
import numpy as np
import PIL.Image
import pytest

from resnet_jax import parallel
from resnet_jax.data import Photographs
from resnet_jax.data.decode.boxes import Whole, whole_box
from resnet_jax.data.decode.images import crop_and_resize
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.sources.protocol import Opened
from resnet_jax.data.streamed import StreamedDataset
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import error_rates, make_evaluator
from resnet_jax.evaluation.protocols import PROTOCOLS, multi_scale
from resnet_jax.evaluation.protocols.multi_scale import SCALES
from resnet_jax.evaluation.protocols.protocol import log_mean
from resnet_jax.models import create_model

MEAN = np.array([0.5, 0.4, 0.3], np.float32)
STD = np.array([0.2, 0.25, 0.3], np.float32)
NORMALIZATION = Normalization(MEAN, STD)


def softmax(logits):
    odds = np.exp(np.float64(logits) - np.max(logits))
    return odds / odds.sum()


def normalize(image):
    return ((np.float32(image) / 255 - MEAN) / STD)[None]


def files(dataset):
    source = dataset.source("validation")
    return [source[i]["image"] for i in range(len(source))]


def make(random_variables, num_classes=3, name="resnet18", **fields):
    """(network, variables)."""
    model = create_model(name, num_classes, **{"stage_sizes": (1,), "width": 4} | fields)
    return model, random_variables(model)


@pytest.fixture(scope="module")
def network(random_variables):
    """(network, variables, function of a normalised image to its logits)."""
    model, variables = make(random_variables)
    return model, variables, jax.jit(lambda image: model.apply(variables, image)[0])


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


def test_ten_crops_are_the_corners_the_centre_and_their_mirror_images(mesh, photograph_folder, open_folder, network):
    side, dataset = 41, open_folder(photograph_folder.root, eval_shorter_side=41)
    model, variables, logits = network
    expected = []
    for file in files(dataset):
        views = crops(central_square(file, side), crop=32)
        assert len(views) == 10
        expected.append(np.log(np.mean([softmax(logits(normalize(view))) for view in views], axis=0)))
    found = make_evaluator(model, NORMALIZATION, dataset, "validation", mesh, 20, "ten_crop")(variables)
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)
    assert found.labels.tolist() == photograph_folder.labels
    # A tenth of the batch size, because each photograph is ten images on the device.
    assert found.shapes == {(max(2, mesh.size), side, side, 3)}


def test_one_crop_is_the_middle_of_the_resized_photograph(mesh, photograph_folder, open_folder, network):
    dataset = open_folder(photograph_folder.root)
    model, variables, logits = network
    expected = []
    for file, (height, width) in zip(files(dataset), photograph_folder.sizes, strict=True):
        side = round(min(height, width) * 32 / 41)
        box = (height - side) // 2, (width - side) // 2, side, side
        view = crop_and_resize(file, lambda *size, box=box: box, (32, 32))
        expected.append(np.log(softmax(logits(normalize(view)))))
    found = make_evaluator(model, NORMALIZATION, dataset, "validation", mesh, 3)(variables)
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)


def test_ten_crops_of_whole_photographs_reach_their_corners(mesh, photograph_folder, open_folder, network):
    dataset = open_folder(photograph_folder.root, eval_shorter_side=41)
    model, variables, logits = network
    expected = []
    for file, size in zip(files(dataset), photograph_folder.sizes, strict=True):
        image = crop_and_resize(file, whole_box, Whole(41).resized(*size))
        (height, width), views = image.shape[:2], []
        for y, x in [(0, 0), (0, width - 32), (height - 32, 0), (height - 32, width - 32)]:
            views += [image[y : y + 32, x : x + 32], np.fliplr(image[y : y + 32, x : x + 32])]
        y, x = (height - 32) // 2, (width - 32) // 2
        views += [image[y : y + 32, x : x + 32], np.fliplr(image[y : y + 32, x : x + 32])]
        expected.append(np.log(np.mean([softmax(logits(normalize(view))) for view in views], axis=0)))
    found = make_evaluator(model, NORMALIZATION, dataset, "validation", mesh, 20, "ten_crop_whole")(variables)
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)
    assert found.labels.tolist() == photograph_folder.labels


def plain_mean(last):
    positions = [last[i, j] for i in range(last.shape[0]) for j in range(last.shape[1])]
    return sum(positions) / len(positions)


def mean_of_windows(last):
    """The mean over all windows of 7x7 positions, or of as many as there are, of each window's mean."""
    height, width = (min(7, length) for length in last.shape[:2])
    means = [
        last[i : i + height, j : j + width].mean(axis=(0, 1))
        for i in range(last.shape[0] - height + 1)
        for j in range(last.shape[1] - width + 1)
    ]
    return sum(means) / len(means)


def multi_scale_alone(model, variables, file, size, scales, pooled=plain_mean):
    """Log-probabilities of one photograph at each scale, whole, without a canvas, in plain Python."""
    head = variables["params"]["head"]
    last_stage = f"C{len(model.stage_sizes) + 1}"
    network = jax.jit(lambda image: model.apply(variables, image, train=False, features=True)[last_stage])
    probabilities = []
    for scale in scales:
        image = crop_and_resize(file, whole_box, Whole(scale).resized(*size))
        assert min(image.shape[:2]) == scale
        of_scale = []
        for view in (image, np.fliplr(image)):
            last = np.asarray(network(normalize(view)))[0]
            of_scale.append(softmax(pooled(last) @ head["kernel"] + head["bias"]))
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
        (1, {}, {40: [(64, 64)], 96: [(96, 96), (96, 160), (160, 96)]}),
        (8, {}, {40: [(64, 64)]}),
        (1, {"name": "resnet50", "stride_placement": "v1.5"}, {40: [(64, 64)]}),
    ],
    ids=["basic-1-device", "basic-8-devices", "bottleneck-1-device"],
)
@pytest.mark.extensive
def test_several_scales_are_the_mean_of_each_photograph_alone_and_whole(
    num_devices, settings, canvases, photograph_folder, open_folder, random_variables, monkeypatch, caplog
):
    mesh = parallel.data_mesh(jax.devices()[:num_devices])
    monkeypatch.setattr(multi_scale, "SCALES", tuple(canvases))
    dataset = open_folder(photograph_folder.root)
    model, variables = make(random_variables, **settings)
    expected = [
        multi_scale_alone(model, variables, file, size, canvases)
        for file, size in zip(files(dataset), photograph_folder.sizes, strict=True)
    ]
    evaluate = make_evaluator(model, NORMALIZATION, dataset, "validation", mesh, 20, "multi_scale")
    found, compilations = count_compilations(caplog, lambda: evaluate(variables))
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)
    assert found.labels.tolist() == photograph_folder.labels
    # Four photographs in one small batch; the pixels of a batch hold one of the larger canvases.
    rows = {40: max(4, num_devices), 96: num_devices}
    assert found.shapes == {(rows[scale], *canvas, 3) for scale in canvases for canvas in canvases[scale]}
    assert compilations == len(found.shapes)
    again, compilations = count_compilations(caplog, lambda: evaluate(variables))
    np.testing.assert_array_equal(again.log_probs, found.log_probs)
    assert compilations == 0


def test_windows_of_the_last_map_are_averaged_as_the_authors_did(
    one_device, photograph_folder, open_folder, random_variables, monkeypatch
):
    monkeypatch.setattr(multi_scale, "SCALES", (20, 40))  # Maps of 5 positions, fewer than a window has, and of 10.
    dataset = open_folder(photograph_folder.root)
    model, variables = make(random_variables)
    expected, plain = (
        [
            multi_scale_alone(model, variables, file, size, (20, 40), pooled)
            for file, size in zip(files(dataset), photograph_folder.sizes, strict=True)
        ]
        for pooled in (mean_of_windows, plain_mean)
    )
    evaluate = make_evaluator(model, NORMALIZATION, dataset, "validation", one_device, 20, "multi_scale_windows")
    np.testing.assert_allclose(evaluate(variables).log_probs, expected, atol=1e-5)
    assert np.abs(np.subtract(plain, expected)).max() > 1e-3


def test_a_mean_image_is_subtracted_from_crops_and_its_mean_from_whole_photographs(
    one_device, photograph_folder, open_folder, network, monkeypatch
):
    monkeypatch.setattr(multi_scale, "SCALES", (40,))
    dataset, (model, variables, _) = open_folder(photograph_folder.root), network
    image = np.random.default_rng(3).uniform(0.2, 0.8, (32, 32, 3)).astype(np.float32)
    found = {}
    for name, mean in (("image", image), ("mean", image.mean(axis=(0, 1)))):
        for protocol in ("single", "multi_scale"):
            evaluate = make_evaluator(model, Normalization(mean, STD), dataset, "validation", one_device, 20, protocol)
            found[name, protocol] = evaluate(variables).log_probs
    np.testing.assert_allclose(found["image", "multi_scale"], found["mean", "multi_scale"], atol=1e-5)
    assert np.abs(found["image", "single"] - found["mean", "single"]).max() > 0.01


@pytest.fixture
def damaged(tmp_path):
    """A folder of four photographs of which the second is none and the third is cut short after its header."""
    rng = np.random.default_rng(0)
    for name in ("train/cat/a", "train/dog/b", "val/cat/a", "val/cat/b", "val/dog/c", "val/dog/d"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(256, size=(50, 50, 3), dtype=np.uint8)).save(path)
    (tmp_path / "val/cat/b.png").write_bytes(b"no photograph")
    cut = tmp_path / "val/dog/c.png"
    cut.write_bytes(cut.read_bytes()[:3000])
    return tmp_path


def test_a_photograph_that_cannot_be_decoded_is_named_and_has_no_score_at_any_scale(
    damaged, open_folder, random_variables, monkeypatch, mesh, capsys
):
    monkeypatch.setattr(multi_scale, "SCALES", (40, 64))
    model, variables = make(random_variables, 2)
    found = make_evaluator(model, NORMALIZATION, open_folder(damaged), "validation", mesh, 40, "multi_scale")(variables)
    assert found.labels.tolist() == [0, -1, -1, 1]
    assert np.isneginf(found.log_probs[1:3]).all() and np.isfinite(found.log_probs[[0, 3]]).all()
    assert error_rates(found)["num_examples"] == 2
    named = re.findall(r"warning: (\S+) \(.*\) cannot be decoded", capsys.readouterr().err)
    assert set(named) == {"val/cat/b.png", "val/dog/c.png"}


@pytest.mark.parametrize("name", ["val/cat/b.png", "val/dog/c.png"])
def test_too_many_photographs_that_cannot_be_decoded_are_a_user_error_at_any_scale(
    damaged, open_folder, random_variables, one_device, name
):
    for photograph in damaged.glob("val/*/*.png"):
        photograph.write_bytes((damaged / name).read_bytes())
    dataset = open_folder(damaged, max_unreadable=3)
    model, variables = make(random_variables, 2)
    with pytest.raises(UserError, match=r"4 photographs cannot be decoded, more than config\.data\.max_unreadable 3"):
        make_evaluator(model, NORMALIZATION, dataset, "validation", one_device, 40, "multi_scale")(variables)


def test_log_mean_is_the_mean_of_probabilities_also_of_very_small_ones():
    log_probs = np.log(np.random.default_rng(0).uniform(size=(3, 5, 7)))
    expected = np.log(np.exp(log_probs).mean(axis=0))
    np.testing.assert_allclose(log_mean(log_probs), expected, atol=1e-6)
    np.testing.assert_allclose(log_mean(log_probs - 1000), expected - 1000, rtol=1e-6)


class Pixels:
    """Photographs of given sizes."""

    shorter_side = None

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        return {"image": np.zeros((*self.sizes[i], 3), np.uint8), "label": 0, "name": str(i)}


def photographs(train, validation, **settings):
    opened = Opened(("train", "validation"), {"train": Pixels(train), "validation": Pixels(validation)}.get, ["a"])
    return StreamedDataset(opened, Photographs(name="folder", threads=2, **settings))


def test_every_photograph_is_in_one_pass_of_each_scale_in_batches_of_as_many_pixels_as_of_crops():
    sizes = [tuple(size) for size in np.random.default_rng(0).integers(20, 500, (100, 2)).tolist()]
    scales = PROTOCOLS["multi_scale"].passes(photographs([(9, 9)], sizes), "validation", 50)
    assert len(scales) == len(SCALES)
    for scale, passes in zip(SCALES, scales, strict=True):
        assert sorted(np.concatenate([view.indices for view, _ in passes])) == list(range(100))
        for view, batch_size in passes:
            assert min(view.canvas) < scale + 32
            # A power of two with up to as many pixels as a batch of crops, or else one photograph.
            pixels = view.canvas[0] * view.canvas[1]
            assert batch_size in (1, 2, 4, 8, 16, 32)
            assert batch_size == 1 or batch_size * pixels <= 50 * 224**2 < 2 * batch_size * pixels


@pytest.mark.parametrize("protocol", ["single", "ten_crop"])
def test_protocols_of_one_size_have_one_view_of_the_split_they_are_asked_for(protocol):
    dataset = photographs([(9, 9)] * 3, [(9, 9)] * 7)
    for split, count in (("train", 3), ("validation", 7)):
        (((view, batch_size),),) = PROTOCOLS[protocol].passes(dataset, split, 50)
        assert view.indices.tolist() == list(range(count))
        assert batch_size == (50 if protocol == "single" else 5)
    assert PROTOCOLS[protocol].passes(dataset, "train", 1)[0][0][1] == 1


@pytest.mark.parametrize("protocol", ["ten_crops", "", "dense"])
def test_an_unknown_protocol_is_a_user_error_that_names_the_known_ones(digits, network, one_device, protocol):
    with pytest.raises(UserError, match=f"no protocol '{protocol}'; use single, ten_crop, ten_crop_whole, multi_scale"):
        make_evaluator(network[0], NORMALIZATION, digits, "test", one_device, 500, protocol)


@pytest.mark.parametrize("protocol", [protocol for protocol in PROTOCOLS if protocol != "single"])
def test_protocols_of_photographs_are_refused_for_small_images(digits, network, one_device, protocol):
    with pytest.raises(UserError, match=r"for photographs; score digits with --protocol=single"):
        make_evaluator(network[0], NORMALIZATION, digits, "test", one_device, 500, protocol)


def test_several_scales_are_refused_for_networks_that_take_one_size_before_a_photograph_is_read(one_device):
    with pytest.raises(UserError, match=r"multi_scale is not for networks with a \S+VGG, .* use ten_crop"):
        make_evaluator(create_model("vgg16", 7), NORMALIZATION, None, "validation", one_device, 500, "multi_scale")


def test_photographs_of_imagenet_are_scored_as_plain_loops_do(prepared_tfds, random_variables, monkeypatch):
    if not (prepared_tfds / "imagenet2012").is_dir():
        pytest.skip(f"needs a sample of imagenet2012 prepared in {prepared_tfds}")
    monkeypatch.setattr(multi_scale, "SCALES", (33,))
    dataset = Photographs(name="imagenet2012", crop_size=32, eval_shorter_side=41).load(str(prepared_tfds))
    model, variables = make(random_variables, 1000)
    evaluate = make_evaluator(model, NORMALIZATION, dataset, "validation", parallel.data_mesh(), 64, "multi_scale")
    found = evaluate(variables)
    source = dataset.source("validation")
    records = [source[i] for i in range(len(source))]
    assert found.labels.tolist() == [record["label"] for record in records]
    some = list(range(0, len(records), len(records) // 3))
    expected = []
    for i in some:
        size = cv2.imdecode(np.frombuffer(records[i]["image"], np.uint8), cv2.IMREAD_COLOR).shape[:2]
        expected.append(multi_scale_alone(model, variables, records[i]["image"], size, (33,)))
    np.testing.assert_allclose(found.log_probs[some], expected, atol=2e-5)
