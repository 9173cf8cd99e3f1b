"""Trained networks of timm by the name of their repository on the Hugging Face Hub."""

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.errors import UserError, one_line
from resnet_jax.interop.torch_weights import load_torch
from resnet_jax.models import Model, create_model, list_models, variant

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class Preprocessing(NamedTuple):
    """The images that timm evaluates a network on, as its ``pretrained_cfg`` says it.

    mean, std: one value for each channel, for images scaled to [0, 1].
    interpolation: "bicubic", "bilinear", ...
    crop_pct: the side of the central crop over the photograph's shorter side.
    input_size: (channels, height, width), pixels. It and ``crop_pct`` are those for tests (``test_input_size``,
        ``test_crop_pct``), which the published errors are of, where timm has such; training may have seen smaller ones.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    input_size: tuple[int, int, int]

    @property
    def crop_size(self) -> int:
        """Height and width of the central crop, pixels."""
        return self.input_size[-1]

    @property
    def shorter_side(self) -> int:
        """Pixels to which a photograph's shorter side is resized before the crop, rounded down as timm does."""
        return math.floor(self.crop_size / self.crop_pct)


class Pretrained(NamedTuple):
    """A network of ``create_model``, its variables {"params", "batch_stats"}, and the images that it takes."""

    model: Model
    variables: dict[str, Any]
    preprocessing: Preprocessing


class Repository(NamedTuple):
    """What a repository holds.

    architecture, num_classes: the arguments of ``create_model``.
    fields: what else defines the network, as ``create_model`` takes it.
    weights: the file of weights in the cache.
    revision: the commit; None where the cache does not say it.
    """

    architecture: str
    num_classes: int
    fields: dict[str, Any]
    preprocessing: Preprocessing
    weights: Path
    revision: str | None


def load_pretrained(
    name: str,
    num_classes: int | None = None,
    *,
    new_head: bool = False,
    revision: str | None = None,
    **overrides: Any,
) -> Pretrained:
    """A trained network of timm: ``load_pretrained("timm/resnet50.a1_in1k")``.

    Args:
        name: OWNER/NAME of a repository in timm's format, with config.json and model.safetensors. They are downloaded
            once and kept in the cache of huggingface_hub, which needs no network from then on. Its environment
            variables count, such as HF_ENDPOINT (a mirror), HF_HOME, HF_HUB_OFFLINE and HF_TOKEN.
        num_classes, new_head: as for ``load_torch``: by default the network as it is; with ``num_classes`` 0 without
            its classifier; with ``new_head`` a new classifier.
        revision: a commit, tag or branch; default the newest.
        **overrides: as for ``create_model``, such as ``dtype``. resnet50, resnet101 and resnet152, which are the
            paper's elsewhere, stride as timm's do.

    Needs the extra "hub". Raises UserError if the repository or a file cannot be had, if the network is none of
    ``list_models()``, naming those near it, or if the weights do not fit it.
    """
    found = read_repository(name, revision)
    num_classes = found.num_classes if num_classes is None else num_classes
    fields = found.fields | overrides
    model = create_model(found.architecture, num_classes, **fields)
    variables = load_torch(found.architecture, found.weights, num_classes, new_head=new_head, **fields)
    return Pretrained(model, variables, found.preprocessing)


def read_repository(name: str, revision: str | None = None) -> Repository:
    """Downloads what is not in the cache yet. Raises UserError as ``load_pretrained`` does."""
    path = _download(name, _CONFIG, revision)
    # The weights of the same commit, also when the repository has changed meanwhile.
    commit = path.parent.name if path.parent.parent.name == "snapshots" else None
    try:
        config = json.loads(path.read_text())
        architecture, num_classes = str(config["architecture"]), int(config["num_classes"])
        preprocessing = _preprocessing(config["pretrained_cfg"])
        # timm also writes what it would assume without them.
        usual = {"num_classes": num_classes, "in_chans": preprocessing.input_size[0], "global_pool": "avg"}
        changes = {key: value for key, value in (config.get("model_args") or {}).items() if value != usual.get(key)}
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"{_CONFIG} of {name} is not one of timm's networks ({one_line(error)}); name a repository of timm"
        ) from None
    if architecture not in list_models():
        near = difflib.get_close_matches(architecture, list_models(), n=3)
        names = f"those near it are {', '.join(near)}; " if near else ""
        raise UserError(
            f"{name} is the network {architecture!r}, which is not known here; {names}resnet_jax.list_models() has all"
        )
    if changes:
        raise UserError(
            f"{name} changes {architecture} by the model_args {changes}, which is not supported; "
            f"use load_torch with the fields of the network"
        )
    fields = {"stride_placement": "v1.5"} if "stride_placement" in variant(architecture).own_fields else {}
    weights = _download(name, _WEIGHTS, commit or revision)
    return Repository(architecture, num_classes, fields, preprocessing, weights, commit)


def _preprocessing(given: Mapping[str, Any]) -> Preprocessing:
    """Raises ArithmeticError, LookupError, TypeError or ValueError where it is incomplete or makes no sense."""
    mean, std = (tuple(float(value) for value in given[key]) for key in ("mean", "std"))
    channels, height, width = (int(size) for size in given.get("test_input_size") or given["input_size"])
    crop_pct = float(given.get("test_crop_pct") or given["crop_pct"])
    if height != width or height < 1:
        raise ValueError(f"input_size is {(channels, height, width)}, not square")
    if not len(mean) == len(std) == channels or not all(value > 0 for value in (*std, crop_pct)):
        raise ValueError(f"mean {mean}, std {std} and crop_pct {crop_pct} do not fit {channels} channels")
    return Preprocessing(mean, std, str(given["interpolation"]), crop_pct, (channels, height, width))


def _download(name: str, file: str, revision: str | None) -> Path:
    """The path in the cache. Raises UserError."""
    try:
        from huggingface_hub import errors, hf_hub_download
    except ModuleNotFoundError as error:
        raise UserError(f"{name} needs {error.name}: pip install huggingface_hub safetensors") from None
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except errors.HFValidationError:
        raise UserError(f"{name!r} cannot be the name of a repository; give OWNER/NAME") from None
    except errors.GatedRepoError:
        raise UserError(f"{name} is open only to those who accept its terms; do so, and set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"there is no public repository {name}; correct the name, which ends in a tag as in "
            f"timm/resnet50.a1_in1k, or set HF_TOKEN for a private one"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision!r}; give a commit, a tag or a branch of it") from None
    except errors.LocalEntryNotFoundError as error:
        cause = one_line(error.__cause__ or error)
        raise UserError(
            f"{file} of {name} is not in the cache, and the Hub cannot be reached ({cause}); "
            f"connect, or set HF_ENDPOINT to a mirror"
        ) from None
    except errors.EntryNotFoundError:
        raise UserError(
            f"{name} has no file {file}; name a repository in timm's format, or give load_torch a file of weights"
        ) from None
    except Exception as error:  # Of the network, the disk, proxies: httpx has its own, and others may follow.
        raise UserError(f"{file} of {name} cannot be downloaded ({one_line(error)}); try again") from None
