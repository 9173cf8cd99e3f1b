"""Networks of the Hugging Face Hub: its own client against a server of this test's."""

import contextlib
import hashlib
import http.server
import importlib
import json
import re
import sys
import threading

import jax
import numpy as np
import PIL.Image
import pytest

import resnet_jax
from resnet_jax import build, parallel
from resnet_jax.config import load_config, override
from resnet_jax.errors import UserError
from resnet_jax.experiment.initial import read_start
from resnet_jax.experiment.networks import load_network
from resnet_jax.experiment.scoring import score
from resnet_jax.interop.pretrained import Preprocessing, read_repository

pytest.importorskip("huggingface_hub")
import huggingface_hub.constants

CLASSES = ["ant", "bee", "cat"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MEAN, STD = [0.5, 0.25, 0.125], [0.5, 0.4, 0.3]
# As timm 1.0.31 writes it, with the arguments that it would assume without them in model_args.
CONFIG = {
    "architecture": "resnet10t",
    "num_classes": 3,
    "num_features": 512,
    "global_pool": "avg",
    "model_args": {"num_classes": 3, "in_chans": 3, "global_pool": "avg"},
    "pretrained_cfg": {
        "tag": "test", "input_size": [3, 176, 176], "test_input_size": [3, 224, 224], "interpolation": "bicubic",
        "crop_pct": 0.95, "crop_mode": "center", "mean": MEAN, "std": STD, "first_conv": "conv1.0", "classifier": "fc",
    },
}  # fmt: skip


def handler(repositories, requests):
    """Answers /OWNER/NAME/resolve/REVISION/FILE as the Hub does, with its headers and its kinds of 404."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            body = self.answer()
            if body is not None:
                self.wfile.write(body)

        def answer(self):
            repository, _, rest = self.path[1:].partition("/resolve/")
            revision, _, file = rest.partition("/")
            requests.append((self.command, repository, file))
            files, fault = repositories.get(repository), None
            if files is None:
                fault = "RepoNotFound"
            elif revision not in ("main", COMMIT):
                fault = "RevisionNotFound"
            elif file not in files:
                fault = "EntryNotFound"
            self.send_response(404 if fault else 200)
            body = None if fault else files[file]
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("X-Repo-Commit", COMMIT)
            if fault:
                self.send_header("X-Error-Code", fault)
            else:
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.end_headers()
            return body

        def log_message(self, *arguments):
            pass

    return Hub


@contextlib.contextmanager
def serving(repositories, requests):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(repositories, requests)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Sets the environment of huggingface_hub, which reads it when it is imported: ``(**variables)``."""

    def set_environment(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        importlib.reload(huggingface_hub.constants)

    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Between its attempts.
    set_environment(
        HF_HOME=str(tmp_path / "hf"), NO_PROXY="127.0.0.1", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1"
    )
    yield set_environment
    monkeypatch.undo()
    importlib.reload(huggingface_hub.constants)


@pytest.fixture(scope="module")
def trained(random_variables, tmp_path_factory):
    """(variables, the file of them) of resnet10t for three classes."""
    model = resnet_jax.create_model("resnet10t", 3)
    variables, path = random_variables(model), tmp_path_factory.mktemp("weights") / "model.safetensors"
    resnet_jax.save_torch(variables, path, model=model)
    return variables, path.read_bytes()


TINY = {"stage_sizes": (1, 1, 1, 1), "width": 4, "stride_placement": "v1.5"}


@pytest.fixture(scope="module")
def small(random_variables, tmp_path_factory):
    """Files of a resnet20 for grey images, with its variables, and of a tiny resnet50."""
    grey, tiny = resnet_jax.create_model("resnet20", 3), resnet_jax.create_model("resnet50", 3, **TINY)
    grey_variables, folder = random_variables(grey, image_shape=(32, 32, 1)), tmp_path_factory.mktemp("small")
    resnet_jax.save_torch(grey_variables, folder / "grey.safetensors", model=grey)
    resnet_jax.save_torch(random_variables(tiny), folder / "tiny.safetensors", model=tiny)
    return grey_variables, (folder / "grey.safetensors").read_bytes(), (folder / "tiny.safetensors").read_bytes()


def config_json(**changes):
    return json.dumps(CONFIG | changes).encode()


@pytest.fixture
def repositories(trained, small):
    of_grey = {"mean": [0.5], "std": [0.25], "crop_pct": 0.875, "input_size": [1, 32, 32], "interpolation": "bilinear"}
    no_images = {key: value for key, value in CONFIG["pretrained_cfg"].items() if key != "mean"}
    return {
        "timm/resnet10t.test": {"config.json": config_json(), "model.safetensors": trained[1]},
        "timm/resnet50.test": {"config.json": config_json(architecture="resnet50"), "model.safetensors": small[2]},
        "timm/resnet60d.test": {"config.json": config_json(architecture="resnet60d")},
        "timm/wider.test": {"config.json": config_json(model_args=CONFIG["model_args"] | {"base_width": 128})},
        "timm/maximum.test": {"config.json": config_json(model_args={"global_pool": "max"})},
        "timm/pickled.test": {"config.json": config_json(), "pytorch_model.bin": b""},
        "timm/damaged.test": {"config.json": config_json(), "model.safetensors": b"damaged"},
        "timm/more.test": {"config.json": config_json(num_classes=4, model_args=None), "model.safetensors": trained[1]},
        "timm/blind.test": {"config.json": config_json(pretrained_cfg=no_images)},
        "other/grey": {
            "config.json": config_json(architecture="resnet20", pretrained_cfg=of_grey, model_args={"in_chans": 1}),
            "model.safetensors": small[1],
        },
        "other/resnet": {"config.json": b'{"architectures": ["ResNetForImageClassification"]}'},
        "other/list": {"config.json": b"[]"},
        "other/infinite": {"config.json": config_json(num_classes=float("inf"))},
    }


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


@pytest.mark.extensive
def test_a_repository_is_read_and_then_needs_no_network(client, repositories, trained):
    requests = []
    with serving(repositories, requests) as port:
        client(HF_ENDPOINT=f"http://127.0.0.1:{port}")
        loaded = resnet_jax.load_pretrained("timm/resnet10t.test", dtype="bfloat16")
        resnet_jax.load_pretrained("timm/resnet10t.test", revision=COMMIT)
    assert [request[2] for request in requests if request[0] == "GET"] == ["config.json", "model.safetensors"]
    assert_equal(loaded.variables, trained[0])
    assert loaded.model == resnet_jax.create_model("resnet10t", 3, dtype="bfloat16")
    assert loaded.preprocessing == Preprocessing(tuple(MEAN), tuple(STD), "bicubic", 0.95, (3, 224, 224))
    assert (loaded.preprocessing.shorter_side, loaded.preprocessing.crop_size) == (235, 224)

    again = resnet_jax.load_pretrained("timm/resnet10t.test")  # The server is gone.
    assert_equal(again.variables, trained[0])
    client(HF_HUB_OFFLINE="1")
    assert read_repository("timm/resnet10t.test").revision == COMMIT


def test_bottlenecks_stride_as_in_timm_and_stems_may_be_grey(client, repositories, small):
    with serving(repositories, []) as port:
        client(HF_ENDPOINT=f"http://127.0.0.1:{port}")
        tiny = resnet_jax.load_pretrained("timm/resnet50.test", stage_sizes=(1, 1, 1, 1), width=4)
        grey = resnet_jax.load_pretrained("other/grey")
    assert tiny.model == resnet_jax.create_model("resnet50", 3, **TINY)
    assert_equal(grey.variables, small[0])
    assert grey.preprocessing.mean == (0.5,) and grey.preprocessing.shorter_side == 36


def test_a_network_is_read_without_its_classifier_or_with_a_new_one(client, repositories):
    tiny = {"stage_sizes": (1, 1, 1, 1), "width": 4}
    with serving(repositories, []) as port:
        client(HF_ENDPOINT=f"http://127.0.0.1:{port}")
        whole, none, new = (
            resnet_jax.load_pretrained("timm/resnet50.test", **given, **tiny)
            for given in ({}, {"num_classes": 0}, {"num_classes": 5, "new_head": True})
        )
        message = error_of(lambda: resnet_jax.load_pretrained("timm/resnet50.test", 5, **tiny))
        unknown = error_of(lambda: resnet_jax.load_pretrained("timm/resnet50.test", greyscale=True, **tiny))
    assert none.model == resnet_jax.create_model("resnet50", 0, **TINY) and new.model.num_classes == 5
    assert new.variables["params"].pop("head")["kernel"].shape == (128, 5) != whole.variables["params"]["head"]
    del whole.variables["params"]["head"]
    assert_equal(none.variables, whole.variables)
    assert_equal(new.variables, whole.variables)
    assert message.endswith("or new_head=True for a new classifier")
    assert "field 'greyscale'" in unknown


def error_of(read):
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_faults_are_said_in_one_line(client, repositories):
    expected = {
        "timm/resnet60d.test": "those near it are resnet50d",
        "timm/wider.test": "changes resnet10t by the model_args {'base_width': 128}, which",
        "timm/maximum.test": "changes resnet10t by the model_args {'global_pool': 'max'}, which",
        "timm/pickled.test": "has no file model.safetensors",
        "timm/damaged.test": "cannot be read as PyTorch weights",
        "timm/more.test": "fc.weight",
        "timm/blind.test": "KeyError 'mean'",
        "timm/missing.test": "there is no public repository timm/missing.test",
        "other/resnet": "KeyError 'architecture'",
        "other/infinite": "is not one of timm's networks",
        "other/list": "is not one of timm's networks",
        "a/b/c": "OWNER/NAME",
    }
    with serving(repositories, []) as port:
        client(HF_ENDPOINT=f"http://127.0.0.1:{port}")
        for name, message in expected.items():
            assert message in error_of(lambda name=name: resnet_jax.load_pretrained(name))
        of_revision = error_of(lambda: read_repository("timm/resnet10t.test", "v9"))
    assert "has no revision 'v9'" in of_revision
    unreachable = error_of(lambda: resnet_jax.load_pretrained("timm/resnet10t.test"))
    assert "the Hub cannot be reached" in unreachable and "refused" in unreachable


def test_without_huggingface_hub_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in error_of(lambda: resnet_jax.load_pretrained("timm/resnet10t.test"))


@pytest.mark.extensive
def test_a_run_starts_from_a_repository(client, repositories, trained, capsys):
    def start(name, network="resnet10t", shape=(64, 64, 3), class_names=CLASSES, **changes):
        config = load_config(f"configs/finetune.py:{network}")
        config = override(config, {"init.path": name} | {key.replace("__", "."): changes[key] for key in changes})
        model = build.make_model(config, len(class_names))
        return read_start(config, model, class_names, shape, parallel.data_mesh(jax.devices()[:1]))

    with serving(repositories, []) as port:
        client(HF_ENDPOINT=f"http://127.0.0.1:{port}")
        kept = start("timm/resnet10t.test", init__head="keep")
        (note,) = re.findall("^note: timm evaluates timm/resnet10t.test on .*", capsys.readouterr().err, re.M)
        same = dict(re.findall(r"--config\.(\S+)=(\S+)", note))
        assert same == {"data.eval_shorter_side": "235", "data.interpolation": "bicubic"}  # Of tests, not training.
        start("timm/resnet10t.test", data__eval_shorter_side=235, data__interpolation="bicubic")
        assert "note" not in capsys.readouterr().err
        new = start("timm/resnet10t.test", class_names=["dog", "eel"], shape=(64, 64, 1))
        other = error_of(lambda: start("timm/resnet10t.test", "resnet18"))
        paper_s = error_of(lambda: start("timm/resnet50.test", "resnet50", model__stride_placement="v1"))
    assert_equal(kept.variables, trained[0])
    np.testing.assert_array_equal(kept.normalization.mean, np.float32(MEAN))
    np.testing.assert_array_equal(kept.normalization.std, np.float32(STD))
    hub = {"kind": "hub", "name": "timm/resnet10t.test", "revision": COMMIT}
    assert kept.record == hub | {"head": "keep", "normalization": "weights"}
    assert "head" not in new.variables["params"] and new.normalization is None
    assert "'resnet10t'" in other and "config.model.name=resnet10t" in other
    assert "config.model.stride_placement=v1.5" in paper_s


@pytest.mark.extensive
def test_a_repository_is_scored_as_it_is(client, repositories, trained, tmp_path, capsys):
    """Against Pillow's resizing of whole photographs, and the network applied to each."""
    rng, losses = np.random.default_rng(0), []
    model = resnet_jax.create_model("resnet10t", 3)
    for label, name in enumerate(CLASSES):
        photograph = PIL.Image.fromarray(rng.integers(256, size=(190 + 7 * label, 230, 3), dtype=np.uint8))
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            photograph.save(tmp_path / split / name / "0.png")
        width, height = (int(235 * side / min(photograph.size)) for side in photograph.size)
        resized = np.asarray(photograph.resize((width, height), PIL.Image.Resampling.BICUBIC), np.float32) / 255
        top, left = round((height - 224) / 2), round((width - 224) / 2)
        image = (resized[top : top + 224, left : left + 224] - np.float32(MEAN)) / np.float32(STD)
        losses.append(-jax.nn.log_softmax(model.apply(trained[0], image[None]))[0, label])
    config = override(
        load_config("configs/finetune.py:resnet10t"),
        {"data_dir": str(tmp_path), "data.eval_shorter_side": 235}
        | {"data.interpolation": "bicubic", "eval_batch_size": 3},
    )
    with serving(repositories, []) as port:
        client(HF_ENDPOINT=f"http://127.0.0.1:{port}")
        found = score(config, torch_weights=["timm/resnet10t.test"])
        network = load_network(config, None, "timm/resnet10t.test")
        other = override(config, {"model.name": "resnet18"})
        mistaken = error_of(lambda: score(other, torch_weights=["timm/resnet10t.test"]))
    assert found.record["num_examples"] == 3 and "note" not in capsys.readouterr().err
    assert found.record["loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    np.testing.assert_array_equal(network.normalize.mean, np.float32(MEAN))
    assert "the network of timm/resnet10t.test has name 'resnet10t'" in mistaken
