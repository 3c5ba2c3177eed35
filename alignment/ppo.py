"""Proximal policy optimisation with a critic, against a reward, and a KL penalty.

    seedbed ppo --config=configs/quickstart.py

One iteration, in reading order: prompts -> `policy.answer` -> a score an answer -> `measure`
(reference, critic, KL-penalised rewards, `gae`) -> epochs of minibatches through
`train.step.make_step`, once with the policy's loss and once with the critic's.

Source: arXiv 1707.06347; details as in arXiv 2403.17031.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alignment import gae, losses, policy, rollout
from alignment.policy import Experience, RolloutConfig, Score
from alignment.reward import scalar_config
from data.tokens.tokenizer import Tokenizer
from model.config import TransformerConfig, require
from model.transformer import Params
from train.loop import LoopConfig
from train.optimizer import OptimizerConfig
from train.step import Batch, LossFn, StepFn, Sums, TrainState, make_training


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO; a step of `loop` is one iteration of `loop.batch_size` prompts."""

    loop: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    critic_optimizer: OptimizerConfig = OptimizerConfig()
    rollout: RolloutConfig = RolloutConfig()
    gamma: float = 1.0  # discount
    gae_lambda: float = 0.95  # trade of bias against variance in advantages
    dual_clip: float = math.inf  # bound on the ratio for negative advantages; inf: none
    value_clip: float = 0.2  # value units

    def __post_init__(self):
        require(
            self,
            gamma=(0 <= self.gamma <= 1, "in [0, 1]"),
            gae_lambda=(0 <= self.gae_lambda <= 1, "in [0, 1]"),
            dual_clip=(self.dual_clip > 1, "above 1 (inf for none)"),
            value_clip=(self.value_clip > 0, "above 0 (inf for none)"),
        )
        self.rollout.check_rows(self.loop.batch_size, self.loop.num_microbatches)


class CriticExperience(NamedTuple):
    """What policy and critic learn from; one row an answer."""

    policy: Experience
    old_values_BR: jax.Array
    returns_BR: jax.Array


def start(
    config: PPOConfig,
    model_config: TransformerConfig,
    params: Params,
    critic: Params,
    mesh: Mesh,
) -> TrainState:
    """State before the first iteration; beside the policy's, `opt_state` holds the whole critic.

    Args:
      config: of the stage.
      model_config: shape of the policy; the critic has a scalar head on it.
      params: of the policy. Copied, as is `critic`: both stay references, and a step donates its
        state.
      critic: parameters of the critic.
      mesh: device mesh.
    """
    (begin_actor, _), (begin_critic, _) = _trainings(config, model_config, mesh)
    actor = begin_actor(jax.tree.map(jnp.copy, params))
    return _pack(jnp.zeros((), jnp.int32), actor, begin_critic(jax.tree.map(jnp.copy, critic)))


def make_iteration(
    config: PPOConfig,
    model_config: TransformerConfig,
    score: Score,
    reference: Params,
    tokenizer: Tokenizer,
    seed: int,
    mesh: Mesh,
) -> StepFn:
    """One PPO iteration as a step for `train.loop.run`.

    Args:
      config: of the stage.
      model_config: shape of the policy.
      score: gives rewards.
      reference: what the KL is measured from.
      tokenizer: for the end and padding tokens.
      seed: of sampling and minibatch order, with the iteration's number.
      mesh: device mesh.

    Returns:
      iteration(state, prompts) -> (state, metrics); prompts are a batch of
      `rollout.prompt_rows`. Metrics are those of `measure`, and means over the iteration's updates
      of the policy's metrics and, with value_ before their names, of the critic's.
    """
    answer = functools.partial(policy.answer, config.rollout, model_config, tokenizer)
    (_, policy_step), (_, critic_step) = _trainings(config, model_config, mesh)
    gather = functools.partial(jax.jit(measure, static_argnums=(0, 1)), config, model_config)

    def iteration(state: TrainState, prompts: Batch):
        actor, critic = _unpack(state)
        rng, order_rng = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        sequences, finished_B = answer(actor.params, prompts, rng)
        score_B = score(sequences, prompts["index"])
        experience, metrics = gather(
            reference, actor.params, critic.params, sequences, finished_B, score_B
        )
        updates = []
        for part in policy.minibatches(config.rollout, len(score_B), experience, order_rng):
            actor, actor_metrics = policy_step(actor, part.policy)
            critic, critic_metrics = critic_step(critic, part)
            updates.append(actor_metrics | {f"value_{k}": x for k, x in critic_metrics.items()})
        return _pack(state.step + 1, actor, critic), metrics | policy.mean_metrics(updates)

    return iteration


def measure(
    config: PPOConfig,
    model_config: TransformerConfig,
    reference: Params,
    params: Params,
    critic: Params,
    sequences: rollout.Sequences,
    finished_B: jax.Array,
    score_B: jax.Array,
) -> tuple[CriticExperience, dict[str, jax.Array]]:
    """Turns the scores of a rollout into advantages.

    Args:
      config: discount, lambda, and the KL penalty.
      model_config: shape of the policy and of its reference.
      reference, params, critic: parameters of the three models.
      sequences: prompts and answers.
      finished_B: whether each answer has its end token.
      score_B: reward of each answer, without the penalty.

    Returns:
      The experience, and the iteration's metrics: those of `policy.measure`, and the critic's
      explained_variance.
    """
    mask_BR = sequences.mask_BR
    score_B = gae.missing_eos_score(score_B, finished_B, config.rollout.missing_eos_score)
    logp_BR, ref_logp_BR = policy.logprobs(
        config.rollout, model_config, params, reference, sequences
    )
    values_BR = rollout.answer_values(model_config, critic, sequences)
    rewards_BR = gae.kl_penalised_rewards(
        score_B, logp_BR, ref_logp_BR, mask_BR, config.rollout.kl_coef
    )
    advantages_BR, returns_BR = gae.gae(
        rewards_BR, values_BR, mask_BR, config.gamma, config.gae_lambda
    )
    metrics = policy.measure(score_B, finished_B, logp_BR, ref_logp_BR, mask_BR)
    metrics["explained_variance"] = gae.explained_variance(values_BR, returns_BR, mask_BR)
    experience = Experience(sequences, logp_BR, ref_logp_BR, gae.whiten(advantages_BR, mask_BR))
    return CriticExperience(experience, values_BR, returns_BR), metrics


def critic_loss(config: PPOConfig, model_config: TransformerConfig) -> LossFn:
    """Clipped value loss of a batch of CriticExperience rows; weight: answer tokens."""

    def loss(params: Params, part: CriticExperience):
        mask_BR = part.policy.sequences.mask_BR.astype(jnp.float32)
        values_BR = rollout.answer_values(model_config, params, part.policy.sequences)
        loss_BR = losses.ppo_value_loss(
            values_BR, part.old_values_BR, part.returns_BR, clip=config.value_clip
        )
        return Sums(jnp.sum(loss_BR * mask_BR), jnp.sum(mask_BR), {})

    return loss


def _pack(step: jax.Array, actor: TrainState, critic: TrainState) -> TrainState:
    own = {"step": actor.step, "opt_state": actor.opt_state}
    opt_state = {"policy": own, "critic": critic._asdict()}
    return TrainState(step, actor.trainable, opt_state, actor.frozen)


def _unpack(state: TrainState) -> tuple[TrainState, TrainState]:
    own, critic = state.opt_state["policy"], state.opt_state["critic"]
    return state._replace(**own), TrainState(**critic)


def _trainings(config: PPOConfig, model_config: TransformerConfig, mesh: Mesh):
    """(begin, step) of `make_training`, of the policy and of the critic."""
    settings, loop = config.rollout, config.loop
    lengths = (loop.num_steps * settings.num_updates(), loop.num_microbatches)
    loss = policy.policy_loss(settings, model_config, dual_clip=config.dual_clip)
    value_loss, scalar = critic_loss(config, model_config), scalar_config(model_config)
    return (
        make_training(loss, config.optimizer, model_config, *lengths, mesh),
        make_training(value_loss, config.critic_optimizer, scalar, *lengths, mesh),
    )
