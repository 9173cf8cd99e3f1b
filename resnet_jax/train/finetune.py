"""Which parameters are trained, and how fast: frozen stages, frozen batch normalisation, and a rate for each layer."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import optax
from pydantic import Field

from resnet_jax.errors import UserError
from resnet_jax.models import Model
from resnet_jax.parts import Part
from resnet_jax.train.optimizers.masked import scaled

Place = tuple[str, ...]


class FineTune(Part):
    """What of the network is trained; by default all of it, at one rate. Of a detector, what of its backbone is.

    freeze: stages that stay as they are: "stem", "stage1", ..., "head" (``Model.stage_names``). Their batch
        normalisations use their running averages in training, too, and keep them.
    freeze_bn: the same for all batch normalisations, with their scales and biases; the rest is trained.
    layer_decay: the learning rate of a block is multiplied by this to the power of its distance from the head, which is
        0 for the head itself, 1 for the last block, and so on to the stem (Clark et al., arXiv 2003.10555, appendix A).
    head_rate: what the learning rate of the head is multiplied by; of a detector, that of all but its backbone.
    """

    freeze: tuple[str, ...] = ()
    freeze_bn: bool = False
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    head_rate: Annotated[float, Field(gt=0)] = 1.0

    @property
    def freezes(self) -> bool:
        """Whether anything is frozen."""
        return bool(self.freeze) or self.freeze_bn

    def check(self, networks: Mapping[Place, Model]) -> None:
        """Raises UserError for stages that a network does not have, and where nothing would be trained."""
        network = next(iter(networks.values()))  # Where there are several, they are the same.
        stages = network.stage_names if network.num_classes else network.stage_names[:-1]  # A backbone has no head.
        for stage in self.freeze:
            if stage not in stages:
                raise UserError(
                    f"config.finetune.freeze names {stage!r}, which the network does not have; its stages are "
                    f"{', '.join(stages)}"
                )
        if set(self.freeze) == set(network.stage_names):
            raise UserError("config.finetune.freeze names every stage, so nothing is trained; leave out the head")
        if self.freeze_bn and not network.has_batch_norm:
            raise UserError("config.finetune.freeze_bn is set, but the network has no batch normalisation; remove it")

    def model(self, model: Any) -> Any:
        """The network, or a detector's networks, in which what is frozen uses its running averages.

        No gradient reaches stages that only frozen ones come before. Of the other frozen parameters there is one, of
        which the training step makes no use.
        """
        return model.frozen(self.freeze, self.freeze_bn) if self.freezes else model

    def optimizer(
        self, optimizer: optax.GradientTransformationExtraArgs, networks: Mapping[Place, Model]
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer with the rate of each parameter scaled, and what is frozen left alone; see ``rate_scales``."""
        if self == FineTune():
            return optimizer
        return scaled(optimizer, lambda params: rate_scales(self, networks, params))


def rate_scales(settings: FineTune, networks: Mapping[Place, Model], params: Any) -> Any:
    """What the learning rate of each parameter is multiplied by: a tree of floats, 0 for what is frozen.

    Of stacked blocks it is an array that broadcasts against the parameter, unless it is the same for all of them.

    Args:
        settings: of which network only stages and blocks count.
        networks: by the places of their parameters in ``params``: {(): network} for a network by itself. What is in
            none of them, a detector's own layers, has the rate of a head.
        params: in the layout of the networks; only their names and shapes count.
    """
    norms = {path[:-1] for path, _ in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "scale"}

    def scale(path: Sequence[Any], leaf: Any) -> float | np.ndarray:
        place = tuple(key.key for key in path)
        inside = next((at for at in networks if place[: len(at)] == at), None)
        if inside is None:
            return settings.head_rate
        network, module = networks[inside], place[len(inside)]
        stage = network.stage_of(module)
        if stage in settings.freeze or (settings.freeze_bn and path[:-1] in norms):
            return 0.0
        scales = [settings.layer_decay**distance for distance in network.head_distances(module)]
        if stage == "head":
            return scales[0] * settings.head_rate
        if len(set(scales)) == 1:
            return scales[0]
        return np.array(scales, np.float32).reshape(-1, *[1] * (leaf.ndim - 1))

    return jax.tree_util.tree_map_with_path(scale, params)
