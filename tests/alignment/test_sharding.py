"""Every loss sum, and the targets of PPO, are the same on eight devices and in microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment import gae, losses

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPLIT_RTOL = 2e-5  # float32 sums over rows, taken in another order
SPLIT_ATOL = 2e-6


def make_rows(num_rows=8, num_tokens=6):
    """Eight rows of unequal lengths, with a hole in one of them as a tool token would leave."""
    rng = np.random.default_rng(1)
    lengths_B = np.array([6, 1, 4, 2, 6, 3, 5, 1])
    mask_BR = np.arange(num_tokens) < lengths_B[:, None]
    mask_BR[4, 2] = False
    shape = (num_rows, num_tokens)
    return {
        "features_BRV": rng.normal(size=(*shape, 5)).astype(np.float32),
        "other_BRV": rng.normal(size=(*shape, 5)).astype(np.float32),
        "mask_BR": mask_BR.astype(np.float32),
        "old_BR": rng.normal(size=shape).astype(np.float32),
        "target_BR": rng.normal(size=shape).astype(np.float32),
        "margin_B": rng.uniform(size=num_rows).astype(np.float32),
    }


def pair_loss(kind, smoothing):
    def loss_of(params, batch):
        chosen_B = losses.sequence_logprob(batch["features_BRV"] @ params, batch["mask_BR"])
        rejected_B = losses.sequence_logprob(batch["other_BRV"] @ params, batch["mask_BR"])
        ref_B = losses.sequence_logprob(batch["old_BR"], batch["mask_BR"])
        zero_B = jnp.zeros_like(ref_B)
        return losses.dpo(
            chosen_B, rejected_B, ref_B, zero_B, beta=0.1, label_smoothing=smoothing, kind=kind
        )[0]

    return loss_of


def reward_loss(params, batch):
    chosen_B = losses.last_token_value(batch["features_BRV"] @ params, batch["mask_BR"])
    rejected_B = losses.last_token_value(batch["other_BRV"] @ params, batch["mask_BR"])
    return losses.bradley_terry(chosen_B, rejected_B, batch["margin_B"], 0.01)


def token_loss(formula):
    return lambda params, batch: batch["mask_BR"] * formula(batch["features_BRV"] @ params, batch)


ROW_LOSSES = {
    "bradley_terry": reward_loss,
    "dpo": pair_loss("sigmoid", 0.1),
    "ipo": pair_loss("ipo", 0.0),
    "ppo_policy": token_loss(
        lambda logp, batch: losses.ppo_policy_loss(
            logp, batch["old_BR"], batch["target_BR"], clip_low=0.2, clip_high=0.2, dual_clip=3.0
        )[0]
    ),
    "ppo_value": token_loss(
        lambda value, batch: losses.ppo_value_loss(
            value, batch["old_BR"], batch["target_BR"], clip=0.2
        )
    ),
    "kl_k2": token_loss(lambda logp, batch: losses.kl_k2(logp, batch["old_BR"])),
    "kl_k3": token_loss(lambda logp, batch: losses.kl_k3(logp, batch["old_BR"])),
    "entropy": lambda params, batch: (
        batch["mask_BR"] * losses.entropy(batch["features_BRV"] * params[None, None], 0.7)
    ),
}
PARAMS_V = jnp.array([0.4, -0.3, 0.2, 0.5, -0.1])


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_sums_and_gradients_do_not_depend_on_the_split(name):
    batch = make_rows()

    @jax.jit
    def sum_and_grad(rows):
        return jax.value_and_grad(lambda p: jnp.sum(ROW_LOSSES[name](p, rows)))(PARAMS_V)

    whole, whole_grad = sum_and_grad(batch)
    for num_parts in (2, 4):
        per_part = 8 // num_parts
        parts = [
            sum_and_grad({k: v[i : i + per_part] for k, v in batch.items()})
            for i in range(0, 8, per_part)
        ]
        np.testing.assert_allclose(sum(part[0] for part in parts), whole, rtol=SPLIT_RTOL)
        np.testing.assert_allclose(
            sum(part[1] for part in parts), whole_grad, rtol=SPLIT_RTOL, atol=SPLIT_ATOL
        )
    sharded, sharded_grad = sum_and_grad(spread_rows(batch))
    np.testing.assert_allclose(sharded, whole, rtol=SPLIT_RTOL)
    np.testing.assert_allclose(sharded_grad, whole_grad, rtol=SPLIT_RTOL, atol=SPLIT_ATOL)


def spread_rows(batch):
    mesh = Mesh(np.array(jax.devices()), ("B",))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("B")))
    assert len(jax.tree.leaves(spread)[0].sharding.device_set) == 8
    return spread


@jax.jit
def ppo_targets(batch):
    mask_BR = batch["mask_BR"]
    score_B = batch["margin_B"]
    rewards_BR = gae.kl_penalised_rewards(
        score_B, batch["old_BR"], batch["target_BR"], mask_BR, 0.05
    )
    advantages_BR, returns_BR = gae.gae(rewards_BR, batch["old_BR"], mask_BR, 0.99, 0.95)
    explained = gae.explained_variance(batch["old_BR"], returns_BR, mask_BR)
    return gae.whiten(advantages_BR, mask_BR), returns_BR, explained


def test_ppo_targets_are_global_on_eight_devices():
    batch = make_rows()
    whole = ppo_targets(batch)
    sharded = ppo_targets(spread_rows(batch))
    for ours, expected in zip(sharded, whole, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=SPLIT_RTOL, atol=SPLIT_ATOL)
    by_device = [ppo_targets({k: v[i : i + 1] for k, v in batch.items()}) for i in range(8)]
    local_BR = np.concatenate([part[0] for part in by_device])
    assert np.abs(local_BR - whole[0]).max() > 0.5  # whitening each device by itself would show
