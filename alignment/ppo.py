"""Proximal policy optimisation against the learned reward, with a critic and a KL penalty.

    seedbed ppo --config=configs/quickstart.py

One iteration, in reading order: prompts -> `generate` -> `measure` (reward model, reference,
critic) -> `rewards` -> `gae` -> epochs of minibatches through `train.step.make_step`, once with
the policy's loss and once with the critic's. The critic starts from the reward model.

Source: arXiv 1707.06347; details as in arXiv 2403.17031.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignment import gae, losses, rollout
from alignment.reward import scalar_config, score
from data import chat
from data.conversations import OwnSet
from data.loader import fixed_batches
from data.tokenizers.tokenizer import Tokenizer
from model import decode
from model.config import TransformerConfig, require
from model.loss import token_logprobs
from model.transformer import Params
from train.loop import LoopConfig, place
from train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from train.step import Batch, LossFn, Sums, TrainState, init_state, make_step, state_shardings


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO; a step of `loop` is one iteration of `loop.batch_size` prompts."""

    max_prompt_tokens: int = 256  # longer prompts are left out
    max_new_tokens: int = 128  # longest answer, tokens
    loop: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    critic_optimizer: OptimizerConfig = OptimizerConfig()
    temperature: float = 1.0  # of sampling, and of every log-probability
    kl_coef: float = 0.05  # reward units a nat from the model it starts from
    gamma: float = 1.0  # discount
    gae_lambda: float = 0.95  # trade of bias against variance in advantages
    clip_low: float = 0.2  # ratio below 1
    clip_high: float = 0.2  # ratio above 1
    dual_clip: float = math.inf  # bound on the ratio for negative advantages; inf: none
    value_clip: float = 0.2  # value units
    num_epochs: int = 2  # passes over a rollout
    num_minibatches: int = 2  # updates a pass
    missing_eos_score: float = -1.0  # replaces the score of an answer without end token
    # Prompts of the user's own, by name; instruct.num_train=0 leaves the built-in ones out.
    data: Mapping[str, OwnSet] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        require(
            self,
            max_prompt_tokens=(self.max_prompt_tokens >= 1, "at least 1"),
            max_new_tokens=(self.max_new_tokens >= 1, "at least 1"),
            temperature=(self.temperature > 0, "above 0"),
            kl_coef=(self.kl_coef >= 0, "0 or more"),
            gamma=(0 <= self.gamma <= 1, "in [0, 1]"),
            gae_lambda=(0 <= self.gae_lambda <= 1, "in [0, 1]"),
            clip_low=(0 < self.clip_low < 1, "in (0, 1)"),
            clip_high=(self.clip_high > 0, "above 0"),
            dual_clip=(self.dual_clip > 1, "above 1 (inf for none)"),
            value_clip=(self.value_clip > 0, "above 0 (inf for none)"),
            num_epochs=(self.num_epochs >= 1, "at least 1"),
            num_minibatches=(
                self.num_minibatches >= 1
                and self.loop.batch_size % (self.num_minibatches * self.loop.num_microbatches) == 0,
                f"a divisor of loop.batch_size = {self.loop.batch_size} also when multiplied by "
                f"loop.num_microbatches = {self.loop.num_microbatches}",
            ),
        )


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The frozen judges of a rollout: reward model with its normaliser, and reference policy."""

    reward: Params
    reward_mean: float
    reward_std: float
    reference: Params


class Experience(NamedTuple):
    """What an iteration learns from; one row an answer, old values from the rollout's policy."""

    sequences: rollout.Sequences
    old_logp_BR: jax.Array
    old_values_BR: jax.Array
    advantages_BR: jax.Array
    returns_BR: jax.Array


def start(
    config: PPOConfig,
    model_config: TransformerConfig,
    policy: Params,
    critic: Params,
    mesh: Mesh,
) -> TrainState:
    """State before the first iteration; beside the policy's, `opt_state` holds the whole critic.

    Policy and critic are copied: they are judges too, and a step donates its state.
    """
    optimizers = _optimizers(config, model_config)
    configs = (model_config, scalar_config(model_config))
    states = [
        init_state(
            jax.tree.map(jnp.copy, params),
            optimizer,
            state_shardings(optimizer, shape, params, mesh),
        )
        for params, optimizer, shape in zip((policy, critic), optimizers, configs, strict=True)
    ]
    return _pack(jnp.zeros((), jnp.int32), *states)


def make_iteration(
    config: PPOConfig,
    model_config: TransformerConfig,
    scorer: Scorer,
    tokenizer: Tokenizer,
    seed: int,
    mesh: Mesh,
    start_state: TrainState,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """One PPO iteration as a step for `train.loop.run`.

    Args:
      config: of the stage.
      model_config: shape of the policy.
      scorer: frozen judges.
      tokenizer: for the end and padding tokens.
      seed: of sampling and minibatch order, with the iteration's number.
      mesh: device mesh.
      start_state: from `start`, for its shapes.

    Returns:
      iteration(state, prompts) -> (state, metrics); prompts are a batch of
      `rollout.prompt_rows`. Metrics are those of `measure`, and means over the iteration's updates
      of the policy's metrics and, with value_ before their names, of the critic's.
    """
    answer = functools.partial(_answer, config, model_config, tokenizer)
    policy_step, critic_step = _steps(config, model_config, mesh, start_state)
    gather = functools.partial(
        jax.jit(measure, static_argnums=(0, 1)), config, model_config, scorer_arrays(scorer)
    )

    def iteration(state: TrainState, prompts: Batch):
        policy, critic = _unpack(state)
        rng, order_rng = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        sequences, finished_B = answer(policy.params, prompts, rng)
        experience, metrics = gather(policy.params, critic.params, sequences, finished_B)
        updates = []
        for part in _minibatches(config, experience, order_rng):
            policy, policy_metrics = policy_step(policy, part)
            critic, critic_metrics = critic_step(critic, part)
            updates.append(
                policy_metrics | {f"value_{name}": x for name, x in critic_metrics.items()}
            )
        return _pack(state.step + 1, policy, critic), metrics | _mean(updates)

    return iteration


def heldout_reward(
    config: PPOConfig,
    model_config: TransformerConfig,
    scorer: Scorer,
    tokenizer: Tokenizer,
    rows: Sequence[Batch],
    seed: int,
    mesh: Mesh,
) -> Callable[[Params], dict[str, float]]:
    """An evaluator for `train.loop.run`: what answers to prompts that are never trained on score.

    Args:
      config: of the stage; `loop.batch_size` prompts are answered at a time.
      model_config: shape of the policy.
      scorer: frozen judges.
      tokenizer: for the end and padding tokens.
      rows: of `rollout.prompt_rows`, at least one.
      seed: of sampling; each evaluation draws the same numbers.
      mesh: where batches go; the caller has set it.

    Returns:
      evaluate(params) -> {"reward", "kl"}: means over the prompts, as `measure` has them.
    """
    judges = scorer_arrays(scorer)
    judge = functools.partial(jax.jit(_judge, static_argnums=(0, 1)), config, model_config, judges)
    batches = list(fixed_batches(rows, config.loop.batch_size, filler=rows[0]))

    def evaluate(params: Params) -> dict[str, float]:
        scores, spent = [], []
        for number, batch in enumerate(batches):
            rng = jax.random.fold_in(jax.random.key(seed), number)
            prompts = place(batch, mesh)
            sequences, finished_B = _answer(config, model_config, tokenizer, params, prompts, rng)
            score_B, logp_BR, ref_logp_BR = judge(params, sequences, finished_B)
            scores.append(score_B)
            spent.append(jnp.sum(losses.kl_k1(logp_BR, ref_logp_BR) * sequences.mask_BR, -1))
        found = {"reward": scores, "kl": spent}
        return {
            name: float(np.concatenate(jax.device_get(parts))[: len(rows)].mean())
            for name, parts in found.items()
        }

    return evaluate


def _answer(
    config: PPOConfig,
    model_config: TransformerConfig,
    tokenizer: Tokenizer,
    policy: Params,
    prompts: Batch,
    rng: jax.Array,
) -> tuple[rollout.Sequences, jax.Array]:
    """Sampled answers beside their prompts, and which of them reached their end."""
    end_id = chat.end_id(tokenizer)
    answers = decode.generate(
        model_config,
        policy,
        prompts["tokens"],
        prompts["real"],
        rng,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        end_id=end_id,
        pad_id=tokenizer.pad_id,
    )
    finished_B = jnp.any((answers.tokens_BR == end_id) & (answers.mask_BR == 1), -1)
    return rollout.join(prompts, answers.tokens_BR, answers.mask_BR), finished_B


@jax.jit
def _mean(updates: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Each metric's mean over an iteration's updates: not finite if it is in any of them.

    Of growths the greatest: one update that blows the parameters up must show among many.
    """
    columns = {name: jnp.stack([metrics[name] for metrics in updates]) for name in updates[0]}
    return {
        name: (jnp.max if name.endswith("param_growth") else jnp.mean)(values)
        for name, values in columns.items()
    }


def learning_rate(config: PPOConfig) -> Callable[[int], Any]:
    """The policy's learning rate at the last update of the iteration after so many iterations."""
    num_updates = config.num_epochs * config.num_minibatches
    schedule = make_schedule(config.optimizer, config.loop.num_steps * num_updates)
    return lambda num_iterations: schedule((num_iterations + 1) * num_updates - 1)


def measure(
    config: PPOConfig,
    model_config: TransformerConfig,
    judges: dict[str, Any],
    policy: Params,
    critic: Params,
    sequences: rollout.Sequences,
    finished_B: jax.Array,
) -> tuple[Experience, dict[str, jax.Array]]:
    """Scores a rollout and turns scores into advantages.

    Log-probabilities of the rollout's policy are computed by the trainer's own forward pass, not
    taken from the sampler, so that the first ratio is 1 exactly.

    Returns:
      The experience, and the iteration's metrics: reward (normalised score), kl (nats an answer,
      to the reference) and its low-variance estimate kl_k3, answer_tokens, finished,
      explained_variance.
    """
    mask_BR = sequences.mask_BR
    score_B, logp_BR, ref_logp_BR = _judge(
        config, model_config, judges, policy, sequences, finished_B
    )
    values_BR = rollout.answer_values(model_config, critic, sequences)
    rewards_BR = gae.kl_penalised_rewards(score_B, logp_BR, ref_logp_BR, mask_BR, config.kl_coef)
    advantages_BR, returns_BR = gae.gae(
        rewards_BR, values_BR, mask_BR, config.gamma, config.gae_lambda
    )
    num_answers, num_tokens = len(score_B), jnp.sum(mask_BR)
    metrics = {
        "reward": jnp.mean(score_B),
        "kl": jnp.sum(losses.kl_k1(logp_BR, ref_logp_BR) * mask_BR) / num_answers,
        "kl_k3": jnp.sum(losses.kl_k3(logp_BR, ref_logp_BR) * mask_BR) / num_answers,
        "answer_tokens": num_tokens / num_answers,
        "finished": jnp.mean(finished_B.astype(jnp.float32)),
        "explained_variance": gae.explained_variance(values_BR, returns_BR, mask_BR),
    }
    advantages_BR = gae.whiten(advantages_BR, mask_BR)
    return Experience(sequences, logp_BR, values_BR, advantages_BR, returns_BR), metrics


def _judge(
    config: PPOConfig,
    model_config: TransformerConfig,
    judges: dict[str, Any],
    policy: Params,
    sequences: rollout.Sequences,
    finished_B: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(normalised score_B, log-probabilities_BR of the policy, and of the reference)."""
    raw_B = score(
        scalar_config(model_config), judges["reward"], sequences.tokens_BL, sequences.real_BL
    )
    score_B = (raw_B - judges["mean"]) / judges["std"]
    score_B = gae.missing_eos_score(score_B, finished_B, config.missing_eos_score)
    logp_BR, ref_logp_BR = (
        rollout.answer_logprobs(model_config, params, sequences, config.temperature)
        for params in (policy, judges["reference"])
    )
    return score_B, logp_BR, ref_logp_BR


def policy_loss(config: PPOConfig, model_config: TransformerConfig) -> LossFn:
    """Clipped policy loss of a batch of Experience rows; weight: answer tokens.

    Named sums: clip_fraction, entropy (nats a token), update_kl (k2 from the rollout's policy).
    """

    def loss(params: Params, part: Experience):
        mask_BR = part.sequences.mask_BR
        logits_BRV = rollout.answer_logits(model_config, params, part.sequences)
        answer_BR = part.sequences.tokens_BL[:, -mask_BR.shape[1] :]
        logp_BR = token_logprobs(logits_BRV, answer_BR, config.temperature)
        entropy_BR = losses.entropy(jax.lax.stop_gradient(logits_BRV), config.temperature)
        loss_BR, clipped_BR = losses.ppo_policy_loss(
            logp_BR,
            part.old_logp_BR,
            part.advantages_BR,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
        )
        named = {
            "clip_fraction": jnp.sum(clipped_BR * mask_BR),
            "entropy": jnp.sum(entropy_BR * mask_BR),
            "update_kl": jnp.sum(losses.kl_k2(logp_BR, part.old_logp_BR) * mask_BR),
        }
        return Sums(jnp.sum(loss_BR * mask_BR), jnp.sum(mask_BR).astype(jnp.float32), named)

    return loss


def critic_loss(config: PPOConfig, model_config: TransformerConfig) -> LossFn:
    """Clipped value loss of a batch of Experience rows; weight: answer tokens."""

    def loss(params: Params, part: Experience):
        mask_BR = part.sequences.mask_BR
        values_BR = rollout.answer_values(model_config, params, part.sequences)
        loss_BR = losses.ppo_value_loss(
            values_BR, part.old_values_BR, part.returns_BR, clip=config.value_clip
        )
        return Sums(jnp.sum(loss_BR * mask_BR), jnp.sum(mask_BR).astype(jnp.float32), {})

    return loss


def scorer_arrays(scorer: Scorer) -> dict[str, Any]:
    """The judges as a pytree, so that no weight is compiled into a program."""
    return {
        "reward": scorer.reward,
        "mean": jnp.float32(scorer.reward_mean),
        "std": jnp.float32(scorer.reward_std),
        "reference": scorer.reference,
    }


def _pack(step: jax.Array, policy: TrainState, critic: TrainState) -> TrainState:
    own = {"step": policy.step, "opt_state": policy.opt_state}
    return TrainState(step, policy.params, {"policy": own, "critic": critic._asdict()})


def _unpack(state: TrainState) -> tuple[TrainState, TrainState]:
    policy = TrainState(params=state.params, **state.opt_state["policy"])
    return policy, TrainState(**state.opt_state["critic"])


def _minibatches(config: PPOConfig, experience: Experience, rng: jax.Array):
    """Every answer once an epoch, in an order of its own."""
    size = config.loop.batch_size // config.num_minibatches
    for epoch in range(config.num_epochs):
        order = jax.random.permutation(jax.random.fold_in(rng, epoch), config.loop.batch_size)
        for first in range(0, config.loop.batch_size, size):
            chosen = order[first : first + size]
            yield jax.tree.map(lambda x, chosen=chosen: x[chosen], experience)


def _optimizers(config: PPOConfig, model_config: TransformerConfig):
    num_updates = config.loop.num_steps * config.num_epochs * config.num_minibatches
    return (
        make_optimizer(config.optimizer, model_config, num_updates),
        make_optimizer(config.critic_optimizer, scalar_config(model_config), num_updates),
    )


def _steps(config, model_config, mesh, start_state):
    makers = (policy_loss, critic_loss)
    shapes = (model_config, scalar_config(model_config))
    states = _unpack(start_state)
    return [
        make_step(
            maker(config, model_config),
            optimizer,
            config.loop.num_microbatches,
            state_shardings(optimizer, shape, state.params, mesh),
        )
        for maker, optimizer, shape, state in zip(
            makers, _optimizers(config, model_config), shapes, states, strict=True
        )
    ]
