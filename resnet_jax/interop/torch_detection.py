"""torchvision's weights of Faster R-CNN with FPN as this project's variables."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.detection.faster_rcnn import FasterRCNN
from resnet_jax.errors import UserError
from resnet_jax.interop.torch_files import read_torch_file
from resnet_jax.interop.torch_keys import Place, misfits, to_flax_layout, torch_keys
from resnet_jax.interop.torch_weights import arrays_of
from resnet_jax.models.stacking import stack_blocks, unstack_blocks

_LEAVES = {"kernel": "weight", "bias": "bias"}
_MODULES = {
    ("rpn_head", "conv"): "rpn.head.conv.0.0",
    ("rpn_head", "cls"): "rpn.head.cls_logits",
    ("rpn_head", "box"): "rpn.head.bbox_pred",
    ("backbone", "fc6"): "roi_heads.box_head.fc6",
    ("backbone", "fc7"): "roi_heads.box_head.fc7",
    ("box_score",): "roi_heads.box_predictor.cls_score",
    ("box_deltas",): "roi_heads.box_predictor.bbox_pred",
}
# Until version 0.13, and so in the published files, these were single layers.
_OLD_KEY = re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+|rpn\.head\.conv)\.(weight|bias)")


def load_torch_detection(model: FasterRCNN, source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} of ``model`` from a state dict of torchvision's fasterrcnn_resnet50_fpn.

    Args:
        model: ``detection.named.torchvision_fpn(network, num_classes)``, whose ``network`` is
            ``create_model("resnet50", 0, stride_placement="v1.5")``, or another ResNet. The published COCO weights were
            trained with an epsilon of 0 in batch normalisation: ``norm=partial(BatchNorm, epsilon=0.0)``.
        source: a .pth or .pt file (needs PyTorch), a .safetensors file, or a state dict of arrays or tensors. The keys
            of all versions of torchvision are known.

    Raises UserError if the detector has two backbones, if the file cannot be read, or if any key is missing, left over
    or of another shape.
    """
    if model.rpn_backbone is not None:
        raise UserError(
            "torchvision's detectors have one backbone and this one two; set config.task.shared, or rpn_backbone=None"
        )
    origin = f"{source}" if isinstance(source, (str, Path)) else "the state dict"
    weights = arrays_of(read_torch_file(Path(source)) if isinstance(source, (str, Path)) else source, origin)
    weights = {_OLD_KEY.sub(_new_key, key): value for key, value in weights.items()}
    network = model.backbone.network
    shapes = _shapes(model)
    of_network = torch_keys(network, "fc")
    places = {_key(place, of_network): place for place in shapes}
    arrays = {key: to_flax_layout(value, places.get(key, (key,)), network) for key, value in weights.items()}
    problems = misfits(
        {key: array.shape for key, array in arrays.items()},
        {key: shapes[place] for key, place in places.items()},
        "the detector",
    )
    if problems:
        raise UserError(
            f"{origin} does not fit the detector: {'; '.join(problems)}; make the detector by torchvision_fpn, of the "
            "network and the number of classes that the weights have"
        )
    loaded = flax.traverse_util.unflatten_dict({place: jnp.asarray(arrays[key]) for key, place in places.items()})
    return loaded if network == network.unrolled() else _each_network(stack_blocks, loaded)


def _shapes(model: FasterRCNN) -> dict[Place, Any]:
    """The shape of each variable in the unrolled layout."""
    # Tracing the scanned layout is quicker; the views take no memory.
    scanned = model.clone(backbone=model.backbone.clone(network=model.backbone.network.scanned()))
    template: Any = jax.eval_shape(
        lambda: scanned.init(
            jax.random.key(0), jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 1, 4)), jnp.ones((1, 2)), method="outputs"
        )
    )
    views = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), template)
    unrolled = _each_network(unstack_blocks, views)
    return {place: leaf.shape for place, leaf in flax.traverse_util.flatten_dict(unrolled).items()}


def _each_network(convert: Callable[[Any], Any], variables: Any) -> Any:
    """The variables with those of the backbone's network in another layout."""
    networks = convert({name: collection["backbone"]["network"] for name, collection in variables.items()})
    return {
        name: {**collection, "backbone": {**collection["backbone"], "network": networks[name]}}
        for name, collection in variables.items()
    }


def _new_key(match: re.Match[str]) -> str:
    return f"{match[1]}.0{'.0' if match[1].startswith('rpn') else ''}.{match[2]}"


def _key(place: Place, of_network: Any) -> str:
    """("params", "backbone", "inner_0", "kernel") -> "backbone.fpn.inner_blocks.0.0.weight"."""
    collection, *modules, leaf = place
    if modules[:2] == ["backbone", "network"]:
        return f"backbone.body.{of_network((collection, *modules[2:], leaf))}"
    level = re.fullmatch(r"(inner|layer)_(\d+)", modules[-1])
    module = f"backbone.fpn.{level[1]}_blocks.{level[2]}.0" if level else _MODULES[tuple(modules)]
    return f"{module}.{_LEAVES[leaf]}"
