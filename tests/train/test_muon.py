"""Muon: which weights it moves, its update against numpy, AdamW beside it, and any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model import sharding
from model.config import MLAConfig, MoEConfig, TransformerConfig
from model.transformer import init
from tests.tiny import make_params
from train.optimizer import MUON_RMS, OptimizerConfig, make_optimizer, muon_dims
from train.step import init_state, state_shardings

pytestmark = pytest.mark.usefixtures("quick_compilation")
ADAMW = OptimizerConfig(peak_lr=0.01, warmup_steps=0, weight_decay=0.1, clip_norm=1e9)
MUON = dataclasses.replace(ADAMW, kind="muon")
SHAPE = TransformerConfig(64, 4, 16, 4, 2, 4, 32, head="untied", qk_norm="head", bias=("qkv",))
EXPERTS = dataclasses.replace(
    SHAPE, moe=MoEConfig(num_experts=4, top_k=2, d_ff=8, balance_bias=True)
)
LATENT = dataclasses.replace(
    SHAPE, num_kv_heads=4, qk_norm="none", bias=(), mla=MLAConfig(8, 6, 2, 4)
)
RTOL, ATOL = 2e-3, 2e-5  # five products of float32 matrices against float64, at a rate of 0.01


def draw(params, seed):
    """Gradients like the parameters."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def updates_of(optimizer, params, num_steps=2):
    state = optimizer.init(params)
    for step in range(num_steps):
        updates, state = jax.jit(optimizer.update)(draw(params, step), state, params)
        params = optax.apply_updates(params, updates)
    return updates


@pytest.mark.parametrize(
    ("name", "letters", "expected"),
    [
        ("q", "XDNH", ((1,), (2, 3))),
        ("out", "XNHD", ((1, 2), (3,))),
        ("up", "XDF", ((1,), (2,))),
        ("up", "XEDF", ((2,), (3,))),  # each expert a matrix
        ("router", "XDE", ((1,), (2,))),
        ("q_up", "XRNH", ((1,), (2, 3))),
        ("embedding", "VD", None),
        ("head", "DV", None),
        ("scale", "XD", None),
        ("up_bias", "XEF", None),
    ],
)
def test_matrices_are_what_a_product_sums_over_by_what_it_gives(name, letters, expected):
    found = muon_dims(name, letters)
    assert (found and tuple(found)) == expected


def orthogonalise(g):
    """Five Newton-Schulz steps in float64, as in the author's code."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / np.linalg.norm(x)
    for _ in range(5):
        y = x @ x.T
        x = a * x + (b * y + c * y @ y) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def expected_update(gradients, weight, shape):
    """Of the last of two steps, for one matrix."""
    beta, momentum, step = MUON.beta1, np.zeros(shape), len(gradients)
    for gradient in gradients:
        gradient = np.asarray(gradient, np.float64).reshape(shape)
        momentum = beta * momentum + (1 - beta) * gradient
    nesterov = beta * momentum / (1 - beta ** (step + 1)) + (1 - beta) * gradient / (1 - beta**step)
    moved = MUON_RMS * max(shape) ** 0.5 * orthogonalise(nesterov)
    return moved + MUON.weight_decay * np.asarray(weight, np.float64).reshape(shape)


def test_the_update_of_a_matrix_is_that_of_the_published_formula():
    params = make_params(SHAPE)
    optimizer = make_optimizer(MUON, SHAPE, 10)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    first, state = update(draw(params, 0), state, params)
    moved = optax.apply_updates(params, first)
    second, _ = update(draw(params, 1), state, moved)
    rate = ADAMW.peak_lr * (0.1 + 0.9 * (1 + np.cos(np.pi / 9)) / 2)  # of the second of 10 updates
    for path, shape in (
        (("stack0", "layer0", "attention", "q"), (16, 16)),
        (("stack0", "layer0", "attention", "out"), (16, 16)),
        (("stack0", "layer0", "feed_forward", "up"), (16, 32)),
        (("stack0", "layer0", "feed_forward", "down"), (32, 16)),
    ):
        trees = [draw(params, 0), draw(params, 1), moved, second]
        for key in path:
            trees = [tree[key] for tree in trees]
        for layer in range(4):
            g0, g1, weight, got = (np.asarray(tree[layer]) for tree in trees)
            wanted = -rate * expected_update((g0, g1), weight, shape)
            np.testing.assert_allclose(got.reshape(shape), wanted, RTOL, ATOL)


@pytest.mark.parametrize("shape", [SHAPE, EXPERTS, LATENT], ids=["plain", "experts", "latent"])
def test_tables_norms_and_biases_move_as_under_adamw_and_all_others_do_not(shape):
    params = make_params(shape)
    muon, adamw = (updates_of(make_optimizer(c, shape, 10), params, 1) for c in (MUON, ADAMW))
    for (path, got), expected in zip(
        jax.tree.leaves_with_path(muon), jax.tree.leaves(adamw), strict=True
    ):
        name = path[-1].key
        same = name in ("embedding", "head", "scale") or name.endswith("bias")
        assert np.array_equal(got, expected) == same, path
        rms = float(jnp.sqrt(jnp.mean(got**2))) / ADAMW.peak_lr
        assert same or 0.1 < rms < 0.4, f"{path}: {rms}, about that of AdamW's 0.2"


def test_a_mesh_changes_nothing():
    params, expected = make_params(EXPERTS), None
    for sizes in (dict(data=1), dict(data=1, fsdp=2, expert=2, tensor=2)):
        mesh = sharding.make_mesh(
            sharding.MeshConfig(**sizes), jax.devices()[: int(np.prod(list(sizes.values())))]
        )
        with jax.set_mesh(mesh):
            placed, optimizer = (
                init(EXPERTS, jax.random.key(0), mesh),
                make_optimizer(MUON, EXPERTS, 10),
            )
            state = init_state(placed, optimizer, state_shardings(optimizer, EXPERTS, mesh))
            moment = state.opt_state[1].inner_states["muon"].inner_state[0].mu
            up = moment["stack0"]["layer0"]["feed_forward"]["up"]
            assert up.sharding.is_fully_replicated == (expected is None)
            updates, _ = jax.jit(optimizer.update)(draw(params, 0), state.opt_state, state.params)
            got = jax.device_get(updates)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected or got), strict=True):
            np.testing.assert_allclose(a, b, RTOL, ATOL)
        expected = got


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'sgd'; it must be one of"):
        dataclasses.replace(ADAMW, kind="sgd")
