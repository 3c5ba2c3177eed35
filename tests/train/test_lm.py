"""The loss of pretraining and SFT against its formula, and a step against gradient descent."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model import sharding
from model.attention import TokenIndex
from model.config import MoEConfig, TransformerConfig
from model.sharding import MeshConfig
from model.transformer import declare, features
from tests.tiny import replace
from train.lm import lm_loss
from train.step import init_state, make_step, state_shardings

pytestmark = pytest.mark.usefixtures("quick_compilation")

VALUE_RTOL = 5e-6  # float32 sums in another order
GRAD_TOL = 2e-5  # of the largest gradient of the weight
Z_LOSS, RATE = 0.05, 0.3
B, L, V = 4, 12, 13

DENSE = TransformerConfig(
    vocab_size=V,
    num_layers=2,
    d_model=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    d_ff=12,
    vocab_multiple=8,
    logit_softcap=3.0,
)
MOE = MoEConfig(num_experts=4, top_k=2, d_ff=8, aux_loss=0.3, z_loss=0.1)
CONFIGS = {"dense": DENSE, "moe": dataclasses.replace(DENSE, head="untied", moe=MOE)}
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def make_params(config):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda declared: np.float32(0.4 * rng.normal(size=declared.shape)),
        declare(config),
    )


def make_batch():
    """Two documents a row, then padding; weights of any size, none on some real tokens."""
    rng = np.random.default_rng(1)
    segments_BL = np.tile(np.repeat([1, 2, 0], [5, 4, 3]), (B, 1))
    segments_BL[1] = 0  # a row of padding alone
    segments_BL[3, 1:] = 0  # and one of a single token
    weights_BL = np.float32(rng.uniform(0.5, 2.0, (B, L)) * (segments_BL > 0))
    weights_BL[:, 2] = 0
    return {
        "tokens": rng.integers(0, V, (B, L)),
        "targets": rng.integers(0, V, (B, L)),
        "segments": segments_BL,
        "positions": np.tile(np.concatenate([np.arange(n) for n in (5, 4, 3)]), (B, 1)),
        "weights": weights_BL,
    }


def by_formula(config, params, batch):
    """Sum of w (logsumexp - chosen + z logsumexp^2) over all logits at once, for autodiff.

    With experts, for each row and layer, its balance and z losses times the row's mean weight.
    """
    tokens = TokenIndex(batch["positions"], batch["segments"])
    x_BLD, head_DV, stats = features(config, params, batch["tokens"], tokens)
    logits_BLV, weights_BL = (x_BLD @ head_DV)[..., :V], batch["weights"]
    logits_BLV = config.logit_softcap * jnp.tanh(logits_BLV / config.logit_softcap)
    lse_BL = jax.nn.logsumexp(logits_BLV, -1)
    chosen_BL = jnp.sum(logits_BLV * jax.nn.one_hot(batch["targets"], V), -1)
    total = jnp.sum((lse_BL - chosen_BL + Z_LOSS * lse_BL**2) * weights_BL)
    if stats:
        means_B = [
            w[s > 0].mean() if s.any() else 0.0
            for w, s in zip(weights_BL, batch["segments"], strict=True)
        ]
        router_B = config.moe.aux_loss * stats["moe_balance"] + config.moe.z_loss * stats["moe_z"]
        total += jnp.sum(router_B * np.array(means_B)) / config.num_layers
    return total


def assert_near(got, expected):
    for (path, leaf), other in zip(
        jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        limit = GRAD_TOL * max(np.abs(other).max(), 1e-2)
        assert np.abs(leaf - other).max() <= limit, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_the_formula(name):
    config, batch = CONFIGS[name], make_batch()
    params = make_params(config)

    def by_chunks(params):
        sums = lm_loss(replace(config, chunk_tokens=10), Z_LOSS)(params, batch)
        return sums.objective, sums

    run = functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    (total, sums), grads = run(jax.value_and_grad(by_chunks, has_aux=True))(params)
    formula = functools.partial(by_formula, config, batch=batch)
    wanted, wanted_grads = run(jax.value_and_grad(formula))(params)
    np.testing.assert_allclose(total, wanted, VALUE_RTOL)
    np.testing.assert_allclose(sums.weight, batch["weights"].sum(), VALUE_RTOL)
    terms = {"z_loss": Z_LOSS, "moe_balance": config.moe.aux_loss, "moe_z": config.moe.z_loss}
    parts = sum(rate * sums.named.get(name, 0.0) for name, rate in terms.items())
    np.testing.assert_allclose(sums.loss + parts, total, VALUE_RTOL)
    assert_near(grads, wanted_grads)
    if "moe_load" in sums.named:  # an even load would be 1 everywhere; it is 1 on average
        load_XE = sums.named["moe_load"] / sums.weight
        assert load_XE.shape == (2, 4)
        np.testing.assert_allclose(load_XE.mean(1), 1.0, VALUE_RTOL)


def test_a_step_of_sgd_follows_the_mean_gradient():
    """AdamW hides a wrong scale of the gradients; with SGD parameters move by rate x gradient."""
    config, batch, optimizer = DENSE, make_batch(), optax.sgd(RATE)
    params = make_params(config)
    mean = jax.grad(lambda p: by_formula(config, p, batch) / batch["weights"].sum())
    wanted = jax.tree.map(
        lambda p, g: p - RATE * g, params, jax.jit(mean, compiler_options=FAST_COMPILE)(params)
    )
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        shardings = state_shardings(optimizer, config, mesh)
        state = init_state(jax.device_put(params, shardings.params), optimizer, shardings)
        step = make_step(lm_loss(replace(config, chunk_tokens=10), Z_LOSS), optimizer, 2, shardings)
        state, _ = step(state, batch)
    assert_near(state.params, wanted)
