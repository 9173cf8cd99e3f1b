"""PyTorch's weights of ResNets and VGG as this project's variables, and the other way round."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import UserError, one_line
from resnet_jax.files import expanded
from resnet_jax.interop.torch_files import read_torch_file, write_torch_file
from resnet_jax.interop.torch_keys import (
    HEAD_KERNEL,
    HEADS,
    heads,
    is_constant,
    misfits,
    renamed,
    stem_kernel,
    to_flax_layout,
    to_torch_layout,
    torch_keys,
    variable_shapes,
)
from resnet_jax.models import Model, create_model, variant
from resnet_jax.models.layers import he_normal
from resnet_jax.models.stacking import stack_blocks, unstack_blocks

# Training programs put the state dict under one of these. Where there are averaged weights, those are the ones scored.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
# Wrappers of the network: data parallelism and averaging, training frameworks, torch.compile.
_PREFIXES = ("module.", "model.", "_orig_mod.")
# Counters: of batch normalisation, and of torch.optim.swa_utils.AveragedModel.
_COUNTERS = ("num_batches_tracked", "n_averaged")


def load_torch(
    name: str,
    source: str | Path | Mapping[str, Any],
    num_classes: int | None = None,
    *,
    new_head: bool = False,
    channels: int | None = None,
    seed: int = 0,
    **overrides: Any,
) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} for ``create_model(name, num_classes, **overrides)`` from PyTorch weights.

    Args:
        name: a model of ``list_models()``.
        source: a .pth, .pt, .th or .tar file (needs PyTorch), a .safetensors file, or a state dict of arrays or
            tensors. It may be nested under "state_dict_ema", "model_ema", "state_dict" or "model" (the first of them
            counts), and its keys may all begin with "module.", "model." or "_orig_mod.", or with several of these.
            The keys are those of torchvision and timm: conv1, bn1,
            layer{1..}.{0..}.conv{1..}, .bn{1..}, .downsample.{0,1}, and "fc" or "linear"; for timm's stems of three
            layers conv1.{0,1,3,4,6}, for attention .se, for networks of pre-activation blocks stem, stages and head.fc;
            for VGG features.{0..} and classifier.{0,3,6}, or timm's pre_logits.fc{1,2} and head.fc. A gate of a
            highway network, which no other project has, is called gate_conv. Filters of anti-aliased networks, which
            some programs store, are not needed.
        num_classes: default as many as the weights have. With 0 the weights' classifier is left aside.
        new_head: leave the weights' classifier aside and start a new one for ``num_classes``, as the model's own
            initialisation does: normal with standard deviation sqrt(2 / features), biases 0.
        channels: of the images; default as many as the weights' stem reads. With 1 a stem of three is summed over them,
            (h, w, 3, width) to (h, w, 1, width), which gives what the colour network gives for the grey image as each
            of R, G and B. The mean and deviation of the normalisation must then be one for all three.
        seed: of the new classifier.
        **overrides: as for ``create_model``. The weights do not say where a bottleneck strides. resnet50, resnet101 and
            resnet152 are the paper's unless stride_placement="v1.5" makes them torchvision's and timm's; all other
            networks stride as these do.

    Raises UserError if the file cannot be read, or if any key is missing, left over or of another shape. All of them
    are listed, or the first few of a kind where there are many.
    """
    if isinstance(source, (str, Path)):
        origin = str(source)
        weights = arrays_of(read_torch_file(Path(source)), origin)
    elif isinstance(source, Mapping):
        origin = "the state dict"
        weights = arrays_of(source, origin)
    else:
        raise UserError(f"source is {source!r}; it must be the path of a file of weights, or a state dict")
    weights = {key: array for key, array in weights.items() if not is_constant(key, array)}
    weights, names = renamed(weights, variant(name)), heads(variant(name))
    head = next((head for head in names if f"{head}.weight" in weights), names[0])
    if num_classes is None and f"{head}.weight" in weights:
        num_classes = max(1, len(np.atleast_1d(weights[f"{head}.weight"])))
    model = create_model(name, num_classes, **overrides)
    shapes, key_of = variable_shapes(model.unrolled(), channels=channels or 3), torch_keys(model, head)
    stem = stem_kernel(model, shapes)
    head, stem_key = (key_of(place).removesuffix(".weight") for place in (HEAD_KERNEL, stem))

    kernel = weights.get(f"{stem_key}.weight", np.empty(0))
    if channels is None and kernel.ndim == 4:
        shapes[stem] = (*shapes[stem][:2], kernel.shape[1], shapes[stem][3])
    elif channels == 1 and kernel.shape[1:2] == (3,):
        weights[f"{stem_key}.weight"] = kernel.sum(axis=1, keepdims=True)
    if not model.num_classes:
        weights = {key: array for key, array in weights.items() if not key.startswith(f"{head}.")}
    elif new_head:
        kernel = np.asarray(he_normal(jax.random.key(seed), shapes[HEAD_KERNEL], jnp.float32))
        weights[f"{head}.weight"] = to_torch_layout(kernel, HEAD_KERNEL, model)
        weights[f"{head}.bias"] = np.zeros(kernel.shape[1], np.float32)

    places = {key_of(place): place for place in shapes}
    arrays = {key: to_flax_layout(value, places.get(key, (key,)), model) for key, value in weights.items()}
    problems = misfits(
        {key: array.shape for key, array in arrays.items()}, {key: shapes[place] for key, place in places.items()}, name
    )
    if problems:
        fix = "use the model that it was saved from"
        if all(problem.startswith(f"{head}.") for problem in problems):
            fix += ", or new_head=True for a new classifier"
        elif channels not in (None, *kernel.shape[1:2]) and all(each.startswith(f"{stem_key}.") for each in problems):
            fix += f", or channels={kernel.shape[1]}" if kernel.ndim == 4 else ""
        raise UserError(f"{origin} does not fit {name}: {'; '.join(problems)}; {fix}")
    variables = {place: jnp.asarray(arrays[key]) for key, place in places.items()}
    loaded = flax.traverse_util.unflatten_dict(variables)
    return loaded if model == model.unrolled() else stack_blocks(loaded)


def save_torch(variables: Mapping[str, Any], destination: str | Path, *, model: Model, head: str = "fc") -> None:
    """Writes variables {"params", "batch_stats"} of ``model`` as a state dict that torchvision and timm load strictly.

    Args:
        variables: as ``model.init`` makes and ``load_torch`` gives them. The stem's input channels may be any number.
        destination: a .pth, .pt or .th file (needs PyTorch), or a .safetensors file. A file that is there is replaced
            once the new one is whole.
        model: a network of ``create_model``. Those with option C's shortcuts or without shortcuts get the same keys,
            though torchvision has no such network.
        head: what a ResNet's classifier is called: "fc", or "linear" as in the public CIFAR-10 checkpoints.

    The tensors are float32, and ``num_batches_tracked``, which PyTorch counts and this project does not, is 0 (int64).
    In PyTorch stride_placement "v1.5" is torchvision's bottleneck; "v1" needs a network that strides alike.

    Raises UserError if the variables do not fit the model, naming what is missing, left over or of another shape, or
    if the file cannot be written.
    """
    if head not in HEADS:
        raise UserError(f"head is {head!r}; it must be {' or '.join(map(repr, HEADS))}")
    given = flax.traverse_util.flatten_dict(dict(jax.device_get(variables)))
    stem = np.shape(given.get(stem_kernel(model, given)))
    shapes = variable_shapes(model, channels=stem[2] if len(stem) == 4 else 3)
    problems = misfits(
        {"/".join(place): np.shape(leaf) for place, leaf in given.items()},
        {"/".join(place): shape for place, shape in shapes.items()},
        "the model",
    )
    if problems:
        raise UserError(f"the variables do not fit the model: {'; '.join(problems)}; give the model they were made for")
    unrolled = unstack_blocks(flax.traverse_util.unflatten_dict(given))
    state_dict, key_of = {}, torch_keys(model, head)
    for place, leaf in flax.traverse_util.flatten_dict(unrolled).items():
        key = key_of(place)
        state_dict[key] = np.array(to_torch_layout(leaf, place, model), np.float32, order="C")
        if key.endswith("running_var"):
            state_dict[key.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    write_torch_file(expanded(destination), state_dict)


def arrays_of(state_dict: Mapping[str, Any], origin: str) -> dict[str, np.ndarray]:
    """Float32 arrays by torchvision's keys, without counters."""
    nested = [state_dict[key] for key in _NESTED if isinstance(state_dict.get(key), Mapping)]
    weights = {str(key): value for key, value in (nested[0] if nested else state_dict).items()}
    weights = {key: value for key, value in weights.items() if not key.endswith(_COUNTERS)}
    arrays = {key: _to_array(value, f"{key} in {origin}") for key, value in weights.items()}
    while prefix := next((prefix for prefix in _PREFIXES if arrays and all(k.startswith(prefix) for k in arrays)), ""):
        arrays = {key.removeprefix(prefix): value for key, value in arrays.items()}
    return arrays


def _to_array(value: Any, where: str) -> np.ndarray:
    """A float32 array of an array or a tensor of any float type, also one that requires a gradient."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu().float().numpy()
        return np.asarray(value).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} is not a tensor ({one_line(error)}); give a state dict of weights") from None
