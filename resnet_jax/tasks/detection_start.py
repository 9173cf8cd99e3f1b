"""Which of given variables a detector or localiser starts with: those of a classification network, or of another."""

from resnet_jax.detection.backbones import with_weights
from resnet_jax.models.stacking import stack_blocks, unstack_blocks
from resnet_jax.tasks.fitting import check_fit
from resnet_jax.tasks.task import Variables


def starting_variables(template: Variables, weights: Variables, keep_head: bool, shared: bool) -> Variables:
    """See ``Detection.starting``.

    template: the detector's variables, by shape. shared: whether both of its stages read the maps of one backbone.
    """
    backbones = {"backbone", "rpn_backbone"} & set(template["params"])
    if not {"backbone", "rpn_backbone"} & set(weights["params"]):
        filled = with_weights(template, weights)
        return {
            collection: {name: {"network": tree[name]["network"]} for name in backbones & set(tree)}
            for collection, tree in filled.items()
        }
    new = set() if keep_head else {"box_score", "box_deltas"}
    if "rpn_backbone" in weights["params"] and shared:
        new |= {"rpn_backbone", "rpn_head"}
    given, expected = (_without(tree, new) for tree in (weights, template))
    for name in backbones & set(given["params"]):
        given = _with_network(given, name, _in_layout(_network(given, name), _network(template, name)))
    check_fit(given, expected)
    return given


def _without(variables: Variables, modules: set[str]) -> Variables:
    return {
        collection: {module: leaves for module, leaves in tree.items() if module not in modules}
        for collection, tree in variables.items()
    }


def _network(variables: Variables, backbone: str) -> Variables:
    """Those of the classification network in a backbone."""
    return {name: dict(tree.get(backbone, {}).get("network", {})) for name, tree in variables.items()}


def _with_network(variables: Variables, backbone: str, network: Variables) -> Variables:
    return {
        name: tree | {backbone: {**tree.get(backbone, {}), "network": network[name]}}
        for name, tree in variables.items()
    }


def _in_layout(network: Variables, like: Variables) -> Variables:
    """With blocks scanned where those of ``like`` are."""
    network = unstack_blocks(network)
    return stack_blocks(network) if any(name.endswith("_blocks") for name in like["params"]) else network
