"""The losses of ``FasterRCNN`` with what they are minimised over: which parameters move, and which do not."""

from typing import Any

import flax.traverse_util
import jax

from resnet_jax.detection.backbones import trainable
from resnet_jax.detection.checks import check_one_of
from resnet_jax.detection.faster_rcnn import FasterRCNN, Trains
from resnet_jax.detection.targets import Targets


def training_losses(
    model: FasterRCNN,
    variables: Any,
    images: jax.Array,
    image_hw: jax.Array,
    targets: Targets,
    key: jax.Array,
    trains: Trains = "joint",
) -> tuple[dict[str, jax.Array], Any]:
    """(``FasterRCNN.losses``, the new batch statistics), where what is not ``trained`` gets no gradient, at no cost."""
    sample, dropout = jax.random.split(key)
    losses, updated = model.apply(
        stop_frozen(variables, trained(model, variables, trains)),
        images,
        image_hw,
        targets,
        trains=trains,
        method="losses",
        mutable=["batch_stats"],
        rngs={"sample": sample, "dropout": dropout},
    )
    return losses, updated.get("batch_stats", variables.get("batch_stats", {}))


def trained(model: FasterRCNN, variables: Any, trains: Trains = "joint") -> Any:
    """A tree like ``variables["params"]`` of bools: whether training this part changes a parameter.

    Without what is frozen (``backbones.trainable``). Where the proposal network has no backbone of its own, training
    it changes the shared one. Raises UserError for an unknown part.
    """
    check_one_of("trains", trains, Trains)
    free = flax.traverse_util.flatten_dict(trainable(model.backbone, variables))
    shares = model.rpn_backbone is None

    def of(place: tuple[str, ...]) -> bool:
        of_rpn = place[0] in ("rpn_head", "rpn_backbone")
        shared = shares and place[0] == "backbone" and not model.backbone.of_head(place[1:])
        return {"joint": True, "rpn": of_rpn or shared, "detector": not of_rpn}[trains]

    return flax.traverse_util.unflatten_dict({place: free[place] and of(place) for place in free})


def stop_frozen(variables: Any, trained: Any) -> dict[str, Any]:
    """The variables, of which those that are False in ``trained`` get gradients of zero, which cost nothing."""
    params = jax.tree.map(
        lambda leaf, moves: leaf if moves else jax.lax.stop_gradient(leaf), variables["params"], trained
    )
    return {**variables, "params": params}
