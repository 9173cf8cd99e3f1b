"""AdamW, LAMB and LARS against PyTorch and loops over NumPy arrays; decay by rule; clipping; the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
import pytest

from resnet_jax.models.stacking import stack_blocks, unstack_blocks
from resnet_jax.train.optimizers import LAMB, LARS, SGD, AdamW, AnyOptimizer

torch = pytest.importorskip("torch")

RATES = [0.1, 0.1, 0.05, 0.02]


def parameters(seed=0):
    """A convolution, its normalisation, and a classifier."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "conv": {"kernel": draw(3, 3, 2, 4)},
        "bn": {"scale": draw(4), "bias": draw(4)},
        "head": {"kernel": draw(4, 5), "bias": draw(5)},
    }


def gradients():
    return [jax.tree.map(lambda leaf, i=i: leaf * (0.5 + i), parameters(seed=i + 1)) for i in range(len(RATES))]


def after_each_step(optimizer, rates=RATES):
    made, weights = optimizer.make(), parameters()
    update = jax.jit(lambda g, s, w, rate: made.update(g, s, w, learning_rate=rate))
    state, history = made.init(weights), []
    for gradient, rate in zip(gradients(), rates, strict=True):
        updates, state = update(gradient, state, weights, jnp.float32(rate))
        weights = jax.tree.map(np.asarray, optax.apply_updates(weights, updates))
        history.append(weights)
    return history


def assert_same(history, expected):
    for found, reference in zip(history, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), found, reference)


def by_torch(make, decaying, rates=RATES):
    """The weights after each step of a PyTorch optimizer made of groups with and without decay."""
    tensors = jax.tree.map(lambda leaf: torch.nn.Parameter(torch.tensor(leaf)), parameters())
    paths = jax.tree_util.tree_leaves_with_path(tensors)
    names = [f"{path[0].key}/{path[1].key}" for path, _ in paths]
    chosen = [leaf for name, (_, leaf) in zip(names, paths, strict=True) if name in decaying]
    rest = [leaf for name, (_, leaf) in zip(names, paths, strict=True) if name not in decaying]
    optimizer = make([{"params": chosen}, {"params": rest, "weight_decay": 0.0}])
    for gradient, rate in zip(gradients(), rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        jax.tree.map(lambda leaf, value: setattr(leaf, "grad", torch.tensor(value)), tensors, gradient)
        optimizer.step()
        yield jax.tree.map(lambda leaf: leaf.detach().numpy().copy(), tensors)


KERNELS = {"conv/kernel", "head/kernel"}


@pytest.mark.extensive
def test_adamw_is_that_of_pytorch_with_decay_of_kernels():
    expected = by_torch(lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.3, eps=1e-7), KERNELS)
    assert_same(after_each_step(AdamW(weight_decay=0.3, epsilon=1e-7)), expected)


def test_nesterov_is_that_of_pytorch_while_the_rate_is_constant():
    expected = by_torch(
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        {*KERNELS, "head/bias"},
        rates=[0.1] * 4,
    )
    assert_same(after_each_step(SGD(nesterov=True, weight_decay=0.01, decay="not_norm"), [0.1] * 4), expected)


def slow_lamb(weight_decay, clip):
    """Algorithm 2, with timm's clipping of the whole gradient, and the ratio where there is decay."""
    weights = {k: {n: v.astype(np.float64) for n, v in part.items()} for k, part in parameters().items()}
    moments = {(k, n): [0.0, 0.0] for k, part in weights.items() for n in part}
    for step, (gradient, rate) in enumerate(zip(gradients(), RATES, strict=True), start=1):
        norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(gradient)))
        for (k, n), moment in moments.items():
            g = gradient[k][n].astype(np.float64) * min(1.0, clip / norm)
            moment[0] = 0.9 * moment[0] + 0.1 * g
            moment[1] = 0.999 * moment[1] + 0.001 * g**2
            r = (moment[0] / (1 - 0.9**step)) / (np.sqrt(moment[1] / (1 - 0.999**step)) + 1e-6)
            if n == "kernel":
                r = r + weight_decay * weights[k][n]
                r = r * np.linalg.norm(weights[k][n]) / np.linalg.norm(r)
            weights[k][n] = weights[k][n] - rate * r
        yield {k: dict(part) for k, part in weights.items()}


def test_lamb_is_algorithm_2_with_gradients_clipped_as_timm_does():
    assert_same(after_each_step(LAMB(weight_decay=0.3, clip_norm=1.0)), slow_lamb(0.3, clip=1.0))


def slow_lars(weight_decay, momentum, trust):
    weights = {k: {n: v.astype(np.float64) for n, v in part.items()} for k, part in parameters().items()}
    velocity = {(k, n): 0.0 for k, part in weights.items() for n in part}
    for gradient, rate in zip(gradients(), RATES, strict=True):
        for k, n in velocity:
            g, w = gradient[k][n].astype(np.float64), weights[k][n]
            if n == "kernel":
                ratio = trust * np.linalg.norm(w) / (np.linalg.norm(g) + weight_decay * np.linalg.norm(w))
                g = ratio * (g + weight_decay * w)
            velocity[k, n] = momentum * velocity[k, n] + rate * g
            weights[k][n] = w - velocity[k, n]
        yield {k: dict(part) for k, part in weights.items()}


def test_lars_is_algorithm_1_with_the_rate_inside_the_velocity():
    found = after_each_step(LARS(weight_decay=0.3, momentum=0.8, trust=0.02))
    assert_same(found, slow_lars(0.3, 0.8, 0.02))


def test_weights_and_gradients_of_zero_have_a_ratio_of_one_in_lars():
    made = LARS(weight_decay=0.0, momentum=0.0).make()
    zero, one = {"conv": {"kernel": np.zeros(3, np.float32)}}, {"conv": {"kernel": np.ones(3, np.float32)}}
    for weights, gradient, expected in ((zero, one, -0.5), (one, zero, 0.0), (zero, zero, 0.0)):
        updates, _ = made.update(gradient, made.init(weights), weights, learning_rate=jnp.float32(0.5))
        np.testing.assert_allclose(updates["conv"]["kernel"], expected)


@pytest.mark.parametrize("kind", [SGD, AdamW, LAMB, LARS])
@pytest.mark.parametrize(
    ("rule", "decaying"),
    [
        ("all", {"conv/kernel", "bn/scale", "bn/bias", "head/kernel", "head/bias"}),
        ("kernels", KERNELS),
        ("not_norm", {*KERNELS, "head/bias"}),
    ],
)
def test_decay_applies_by_rule(kind, rule, decaying):
    mask = kind(decay=rule).decays(parameters())
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    assert {f"{path[0].key}/{path[1].key}" for path, decays in leaves if decays} == decaying


def applied(optimizer, gradient):
    """What SGD at a rate of 1 without momentum and decay subtracts: the clipped gradient."""
    made, weights = optimizer.make(), parameters()
    updates, _ = made.update(gradient, made.init(weights), weights, learning_rate=jnp.float32(1))
    return jax.tree.map(lambda update: -np.asarray(update, np.float64), updates)


def test_gradients_are_clipped_to_a_norm_of_all_together():
    gradient = gradients()[0]
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(gradient)))
    for clip in (0.5, 2 * norm):
        found = applied(SGD(momentum=0.0, weight_decay=0.0, clip_norm=float(clip)), gradient)
        scale = min(1.0, clip / norm)
        jax.tree.map(lambda a, g, s=scale: np.testing.assert_allclose(a, s * g, rtol=1e-5), found, gradient)


def test_adaptive_clipping_is_that_of_each_unit_but_for_the_classifier():
    gradient = gradients()[0]
    found = applied(SGD(momentum=0.0, weight_decay=0.0, adaptive_clip=0.4), gradient)
    weights = parameters()
    for filter_ in range(4):  # Of a convolution a unit is an output channel.
        g, w = gradient["conv"]["kernel"][..., filter_], weights["conv"]["kernel"][..., filter_]
        scale = min(1.0, 0.4 * max(np.linalg.norm(w), 1e-3) / np.linalg.norm(g))
        assert scale < 1
        np.testing.assert_allclose(found["conv"]["kernel"][..., filter_], scale * g, rtol=1e-5)
    jax.tree.map(lambda a, g: np.testing.assert_allclose(a, g, rtol=1e-6), found["head"], gradient["head"])


@pytest.mark.parametrize("decay", ["kernels", "all"])
@pytest.mark.parametrize(
    "optimizer",
    [LARS(trust=0.02, weight_decay=0.3), LAMB(weight_decay=0.3), SGD(adaptive_clip=0.4)],
    ids=lambda optimizer: optimizer.name,
)
def test_stacked_blocks_are_updated_as_the_blocks_one_by_one(optimizer, decay):
    """The norms are those of each block's layers, and not of all blocks of a stage together."""
    optimizer = optimizer.model_copy(update={"decay": decay})
    tree = {f"stage1_block{i}": {k: parameters(i)[k] for k in ("conv", "bn")} for i in (1, 2, 3, 4)}
    tree["stage1_block3"] = jax.tree.map(lambda leaf: 30 * leaf, tree["stage1_block3"])
    weights = tree | {"head": parameters()["head"]}
    gradient = jax.tree.map(jnp.cos, weights)

    def update(weights, gradient):
        made = optimizer.make()
        return made.update(gradient, made.init(weights), weights, learning_rate=jnp.float32(0.1))[0]

    expected = update(weights, gradient)
    stacked = [stack_blocks({"params": tree})["params"] for tree in (weights, gradient)]
    assert "stage1_blocks" in stacked[0]
    found = unstack_blocks({"params": update(*stacked)})["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize("kind", [SGD, AdamW, LAMB, LARS])
def test_the_state_has_one_form_for_all_settings(kind):
    other = kind(decay="all", weight_decay=0.0, clip_norm=1.0, adaptive_clip=0.1, sam_radius=0.05)
    forms = [jax.tree.structure(optimizer.make().init(parameters())) for optimizer in (kind(), other)]
    assert forms[0] == forms[1]


@pytest.mark.parametrize(
    "values",
    [
        {"name": "adamw", "b1": 1.0},
        {"name": "adamw", "epsilon": 0.0},
        {"name": "lamb", "b2": -0.1},
        {"name": "lamb", "momentum": 0.9},
        {"name": "lars", "trust": -1.0},
        {"name": "lars", "nesterov": True},
        {"name": "sgd", "clip_norm": -1.0},
        {"name": "sgd", "sam_radius": -0.1},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_its_key(values):
    with pytest.raises(pydantic.ValidationError) as caught:
        pydantic.TypeAdapter(AnyOptimizer).validate_python(values)
    assert caught.value.errors()[0]["loc"] == (values["name"], list(values)[1])
