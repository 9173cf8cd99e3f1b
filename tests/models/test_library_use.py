"""What a library's user does with a network by JAX's own transformations, with the default kernels."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from resnet_jax.models import create_model

NETWORKS = {
    "resnet": ("resnet18", {"stage_sizes": (1,), "width": 2, "shortcut": "C"}),  # With a max-pool and a projection.
    "groups": ("resnet50", {"stage_sizes": (2,), "width": 2, "stem": "cifar", "scan_blocks": True, "bn_group_size": 2}),
    "vgg": ("vgg16", {"stage_sizes": (1, 1), "width": 2, "hidden": 4}),
}
SIZE = 12


ONE_OF_EACH = pytest.mark.parametrize("network", ["resnet", "vgg"], indirect=True, scope="module")


def images(batch=8):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, SIZE, SIZE, 3)), jnp.float32)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A model, its variables, and a function of (params, images): its loss in training."""
    name, fields = NETWORKS[request.param]
    model = create_model(name, 3, **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(1))
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape) * rng.choice([-1, 1], leaf.shape), jnp.float32)  # noqa: E731
    variables = jax.tree.map(draw, shapes)
    stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes.get("batch_stats", {}))

    def loss(params, x, seed=0):
        logits, _ = model.apply(
            {"params": params, "batch_stats": stats},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(seed)},
        )
        return jnp.mean(jnp.sum(jnp.tanh(logits) ** 2, axis=-1))

    return model, variables["params"], stats, loss


@pytest.fixture(scope="module")
def expected(network):
    """The gradient of the loss on one device."""
    _, params, _, loss = network
    return jax.jit(jax.grad(loss))(params, images())


def assert_close(actual, expected, tolerance=1e-4):
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert scale > 0
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(np.asarray(a), np.asarray(e), rtol=0, atol=tolerance * scale),
        actual,
        expected,
    )


@ONE_OF_EACH
@pytest.mark.extensive
def test_forward_mode_agrees_with_reverse_mode(network, expected):
    _, params, _, loss = network
    slope = jax.jit(lambda p: jax.jvp(lambda p: loss(p, images()), (p,), (expected,))[1])(params)
    squared = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(expected))
    np.testing.assert_allclose(slope, squared, rtol=1e-4)


@ONE_OF_EACH
@pytest.mark.extensive
def test_forward_over_reverse_gives_products_with_a_symmetric_hessian(network, expected):
    _, params, _, loss = network
    gradient = jax.grad(lambda p: loss(p, images()))
    product = jax.jit(lambda v: jax.jvp(gradient, (params,), (v,))[1])
    dot = lambda u, v: sum(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.sum(a * b)), u, v)))  # noqa: E731
    other = jax.tree.map(lambda p: p**2, params)
    # The Hessian is symmetric.
    assert abs(dot(other, product(expected))) > 1e-6
    np.testing.assert_allclose(dot(other, product(expected)), dot(expected, product(other)), rtol=1e-3)


@pytest.mark.extensive
def test_gradients_on_a_default_mesh_are_those_of_one_device(network, expected):
    _, params, _, loss = network
    mesh = jax.make_mesh((4,), ("data",))
    with jax.set_mesh(mesh):
        x = jax.device_put(images(), NamedSharding(mesh, PartitionSpec("data")))
        actual = jax.jit(jax.grad(loss))(jax.device_put(params, NamedSharding(mesh, PartitionSpec())), x)
    assert_close(jax.device_get(actual), expected)


@ONE_OF_EACH
@pytest.mark.extensive
def test_gradients_under_shard_map_are_the_mean_over_the_parts_of_the_batch(network):
    _, params, _, loss = network
    mesh = jax.make_mesh((4,), ("data",))

    def mean_loss(params, x):
        return jax.lax.pmean(loss(params, x), "data")

    whole, parts = PartitionSpec(), PartitionSpec("data")
    mapped = jax.shard_map(jax.grad(mean_loss), mesh=mesh, in_specs=(whole, parts), out_specs=whole)
    x = jax.device_put(images(), NamedSharding(mesh, parts))
    actual = jax.jit(mapped)(jax.device_put(params, NamedSharding(mesh, whole)), x)
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, images().reshape(4, 2, SIZE, SIZE, 3))
    assert_close(jax.device_get(actual), jax.tree.map(lambda leaf: leaf.mean(axis=0), each))


@pytest.mark.parametrize("platforms", [None, ["cuda", "tpu"]], ids=["here", "elsewhere"])
@pytest.mark.parametrize("symbolic", [False, True], ids=["fixed", "symbolic"])
@pytest.mark.extensive
def test_networks_can_be_exported(network, platforms, symbolic):
    model, params, stats, _ = network
    variables = {"params": params, "batch_stats": stats}
    batch = jax.export.symbolic_shape("batch")[0] if symbolic else 2
    x = jax.ShapeDtypeStruct((batch, SIZE, SIZE, 3), jnp.float32)
    exported = jax.export.export(jax.jit(partial(model.apply, variables)), platforms=platforms)(x)
    if platforms is None:
        expected = jax.jit(model.apply)(variables, images(2))
        np.testing.assert_allclose(exported.call(images(2)), expected, rtol=1e-5, atol=1e-6)
    else:
        assert exported.platforms == ("cuda", "tpu")
