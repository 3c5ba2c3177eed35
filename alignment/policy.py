"""What PPO and GRPO share: sampled answers, their scores, minibatches, the clipped policy loss."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignment import gae, losses, rollout
from data.conversations import OwnSet
from data.mixture.loader import fixed_batches
from data.tokens import chat
from data.tokens.tokenizer import Tokenizer
from model import decode
from model.config import TransformerConfig, require
from model.loss import token_logprobs
from model.transformer import Params
from train.loop import place
from train.optimizer import OptimizerConfig, make_schedule
from train.step import Batch, LossFn, Sums

# score(sequences, index_B) -> score_B: a reward for each answer; `index` as of `prompt_rows`.
Score = Callable[[rollout.Sequences, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How answers are sampled, and how much is learned from them."""

    max_prompt_tokens: int = 256  # longer prompts are left out
    max_new_tokens: int = 128  # longest answer, tokens
    temperature: float = 1.0  # of sampling, and of every log-probability
    kl_coef: float = 0.05  # reward units (grpo: loss units) a nat from the model it starts from
    clip_low: float = 0.2  # ratio below 1
    clip_high: float = 0.2  # ratio above 1
    num_epochs: int = 2  # passes over the answers
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
            clip_low=(0 < self.clip_low < 1, "in (0, 1)"),
            clip_high=(self.clip_high > 0, "above 0"),
            num_epochs=(self.num_epochs >= 1, "at least 1"),
            num_minibatches=(self.num_minibatches >= 1, "at least 1"),
        )

    def check_rows(self, num_rows: int, num_microbatches: int) -> None:
        """Raises ValueError if an iteration's answers cannot be cut into its minibatches."""
        if num_rows % (self.num_minibatches * num_microbatches):
            raise ValueError(
                f"rollout.num_minibatches is {self.num_minibatches}; with loop.num_microbatches = "
                f"{num_microbatches} it must divide the {num_rows} answers of an iteration"
            )

    def num_updates(self) -> int:
        """Updates an iteration."""
        return self.num_epochs * self.num_minibatches


class Experience(NamedTuple):
    """What a policy learns from; one row an answer, log-probabilities of the rollout's policy."""

    sequences: rollout.Sequences
    old_logp_BR: jax.Array
    ref_logp_BR: jax.Array
    advantages_BR: jax.Array


def answer(
    config: RolloutConfig,
    model_config: TransformerConfig,
    tokenizer: Tokenizer,
    policy: Params,
    prompts: Batch,
    rng: jax.Array,
) -> tuple[rollout.Sequences, jax.Array]:
    """Samples an answer to each prompt; (sequences, finished_B: those that reached their end)."""
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


def logprobs(
    config: RolloutConfig,
    model_config: TransformerConfig,
    policy: Params,
    reference: Params,
    sequences: rollout.Sequences,
) -> tuple[jax.Array, jax.Array]:
    """(logp_BR, ref_logp_BR) of the answers.

    They are computed by the trainer's own forward pass, not taken from the sampler, so that the
    first ratio is 1 exactly.
    """
    logp_BR, ref_logp_BR = (
        rollout.answer_logprobs(model_config, params, sequences, config.temperature)
        for params in (policy, reference)
    )
    return logp_BR, ref_logp_BR


def measure(score_B, finished_B, logp_BR, ref_logp_BR, mask_BR) -> dict[str, jax.Array]:
    """Metrics of a rollout: reward, kl and kl_k3 (nats an answer), answer_tokens, finished.

    Args:
      score_B: rewards.
      finished_B: whether an answer reached its end token.
      logp_BR, ref_logp_BR: of the sampled tokens under policy and reference, nats.
      mask_BR: 1 on answer tokens.
    """
    num_answers, mask_BR = len(score_B), mask_BR.astype(jnp.float32)
    return {
        "reward": jnp.mean(score_B),
        "kl": jnp.sum(losses.kl_k1(logp_BR, ref_logp_BR) * mask_BR) / num_answers,
        "kl_k3": jnp.sum(losses.kl_k3(logp_BR, ref_logp_BR) * mask_BR) / num_answers,
        "answer_tokens": jnp.sum(mask_BR) / num_answers,
        "finished": jnp.mean(finished_B.astype(jnp.float32)),
    }


def heldout_reward(
    config: RolloutConfig,
    model_config: TransformerConfig,
    score: Score,
    reference: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Batch],
    batch_size: int,
    seed: int,
    mesh: Mesh,
) -> Callable[[Params], dict[str, float]]:
    """An evaluator for `train.loop.run`: what answers to prompts that are never trained on score.

    Args:
      config: of the rollout.
      model_config: shape of the policy.
      score: gives rewards.
      reference: what `kl` is measured from.
      tokenizer: for the end and padding tokens.
      rows: of `rollout.prompt_rows`, at least one.
      batch_size: prompts that are answered at a time.
      seed: of sampling; each evaluation draws the same numbers.
      mesh: where batches go; the caller has set it.

    Returns:
      evaluate(params) -> {"reward", "kl"}: means over the prompts.
    """
    compare = functools.partial(jax.jit(logprobs, static_argnums=(0, 1)), config, model_config)
    batches = list(fixed_batches(rows, batch_size, filler=rows[0]))

    def evaluate(params: Params) -> dict[str, float]:
        found: dict[str, list] = {"reward": [], "kl": []}
        for number, batch in enumerate(batches):
            rng, prompts = jax.random.fold_in(jax.random.key(seed), number), place(batch, mesh)
            sequences, finished_B = answer(config, model_config, tokenizer, params, prompts, rng)
            score_B = score(sequences, prompts["index"])
            logp_BR, ref_logp_BR = compare(params, reference, sequences)
            reward_B = gae.missing_eos_score(score_B, finished_B, config.missing_eos_score)
            found["reward"].append(reward_B)
            kl_BR = losses.kl_k1(logp_BR, ref_logp_BR) * sequences.mask_BR.astype(jnp.float32)
            found["kl"].append(jnp.sum(kl_BR, -1))
        return {
            name: float(np.concatenate(jax.device_get(parts))[: len(rows)].mean())
            for name, parts in found.items()
        }

    return evaluate


def minibatches(
    config: RolloutConfig, num_rows: int, experience: Any, rng: jax.Array
) -> Iterator[Any]:
    """Yields minibatches: all rows once an epoch, in an order drawn for it from `rng`."""
    size = num_rows // config.num_minibatches
    for epoch in range(config.num_epochs):
        order = jax.random.permutation(jax.random.fold_in(rng, epoch), num_rows)
        for first in range(0, num_rows, size):
            chosen = order[first : first + size]
            yield jax.tree.map(lambda x, chosen=chosen: x[chosen], experience)


@jax.jit
def mean_metrics(updates: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Each metric's mean over an iteration's updates: not finite if it is in any of them.

    Of growths the greatest: one update that blows the parameters up must show among many.
    """
    columns = {name: jnp.stack([metrics[name] for metrics in updates]) for name in updates[0]}
    return {
        name: (jnp.max if name.endswith("param_growth") else jnp.mean)(values)
        for name, values in columns.items()
    }


def learning_rate(
    rollout_config: RolloutConfig, optimizer: OptimizerConfig, num_steps: int
) -> Callable[[int], Any]:
    """The learning rate at the last update of the iteration after so many iterations."""
    num_updates = rollout_config.num_updates()
    schedule = make_schedule(optimizer, num_steps * num_updates)
    return lambda num_iterations: schedule((num_iterations + 1) * num_updates - 1)


def policy_loss(
    config: RolloutConfig,
    model_config: TransformerConfig,
    *,
    dual_clip: float,
    kl_coef: float = 0.0,
) -> LossFn:
    """Clipped policy loss of a batch of Experience rows; weight: answer tokens.

    Args:
      config: of the rollout.
      model_config: shape of the policy.
      dual_clip: see `losses.ppo_policy_loss`.
      kl_coef: weight of the KL from the reference (k3) in the objective; the reported loss is
        without it.

    Named sums: clip_fraction, entropy (nats a token), update_kl (k2 from the rollout's policy).
    """

    def loss(params: Params, part: Experience):
        mask_BR = part.sequences.mask_BR.astype(jnp.float32)
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
            dual_clip=dual_clip,
        )
        named = {
            "clip_fraction": jnp.sum(clipped_BR * mask_BR),
            "entropy": jnp.sum(entropy_BR * mask_BR),
            "update_kl": jnp.sum(losses.kl_k2(logp_BR, part.old_logp_BR) * mask_BR),
        }
        clipped, weight = jnp.sum(loss_BR * mask_BR), jnp.sum(mask_BR)
        if not kl_coef:
            return Sums(clipped, weight, named)
        kl_BR = losses.kl_k3(logp_BR, part.ref_logp_BR)
        return Sums(clipped + kl_coef * jnp.sum(kl_BR * mask_BR), weight, named, loss=clipped)

    return loss
