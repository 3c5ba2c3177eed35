"""Group relative policy optimisation: several answers to a prompt, each against their mean.

    seedbed grpo --config=configs/quickstart.py --config.stages=...

One iteration: prompts, `group_size` times each -> `policy.answer` -> a score an answer ->
`advantages` -> epochs of minibatches through `train.step.make_step`. There is no critic.

Source: arXiv 2402.03300, section 4.1; every answer token of a batch weighs the same, as in arXiv
2503.14476, section 3.3 (the paper averages over each answer first, which favours short ones).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alignment import gae, policy, rollout
from alignment.policy import Experience, RolloutConfig, Score
from data.tokens.tokenizer import Tokenizer
from model.config import TransformerConfig, require
from model.transformer import Params
from train.loop import LoopConfig
from train.optimizer import OptimizerConfig
from train.step import Batch, StepFn, TrainState, make_training

STD_FLOOR = 1e-4  # of a group whose scores are all but equal


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """GRPO; a step of `loop` is one iteration of `loop.batch_size` prompts."""

    loop: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    rollout: RolloutConfig = RolloutConfig()
    group_size: int = 8  # answers to each prompt
    # Whether advantages are divided by their group's standard deviation (not in arXiv 2503.20783).
    scale: bool = True

    def __post_init__(self):
        require(self, group_size=(self.group_size >= 2, "at least 2"))
        answers = self.loop.batch_size * self.group_size
        self.rollout.check_rows(answers, self.loop.num_microbatches)


def advantages(score_B: jax.Array, mask_BR: jax.Array, group_size: int, scale: bool) -> jax.Array:
    """Each answer's score less its group's mean, over its deviation, at every token of the answer.

    Args:
      score_B: scores; the answers to one prompt are neighbours.
      mask_BR: 1 on answer tokens.
      group_size: answers to a prompt.
      scale: whether to divide by the group's standard deviation (of the population).

    Returns:
      advantages_BR, 0 where the mask is. A group of equal scores has none.

    Source: arXiv 2402.03300, section 4.1.2; without the deviation arXiv 2503.20783, section 3.
    """
    by_group = score_B.reshape(-1, group_size)
    apart = by_group - by_group.mean(-1, keepdims=True)
    if scale:
        apart = apart / (jnp.sqrt(jnp.square(apart).mean(-1, keepdims=True)) + STD_FLOOR)
    return apart.reshape(-1, 1) * mask_BR.astype(jnp.float32)


def start(
    config: GRPOConfig, model_config: TransformerConfig, params: Params, mesh: Mesh
) -> TrainState:
    """State before the first iteration; the parameters are copied, since they are the reference."""
    begin, _ = _training(config, model_config, mesh)
    return begin(jax.tree.map(jnp.copy, params))


def make_iteration(
    config: GRPOConfig,
    model_config: TransformerConfig,
    score: Score,
    reference: Params,
    tokenizer: Tokenizer,
    seed: int,
    mesh: Mesh,
) -> StepFn:
    """One GRPO iteration as a step for `train.loop.run`.

    Args:
      config: of the stage.
      model_config: shape of the policy.
      score: gives rewards.
      reference: what the KL is measured from.
      tokenizer: for the end and padding tokens.
      seed: of sampling and minibatch order, with the iteration's number.
      mesh: device mesh.

    Returns:
      iteration(state, prompts) -> (state, metrics): those of `policy.measure`, and means over the
      iteration's updates of the policy's metrics.
    """
    settings, (_, step) = config.rollout, _training(config, model_config, mesh)
    gather = functools.partial(jax.jit(_gather, static_argnums=(0, 1)), config, model_config)

    def iteration(state: TrainState, prompts: Batch):
        number = state.step // settings.num_updates()
        rng, order_rng = jax.random.split(jax.random.fold_in(jax.random.key(seed), number))
        rows = _repeat(prompts, config.group_size)
        sequences, finished_B = policy.answer(
            settings, model_config, tokenizer, state.params, rows, rng
        )
        score_B = score(sequences, rows["index"])
        experience, metrics = gather(reference, state.params, sequences, finished_B, score_B)
        updates = []
        for part in policy.minibatches(settings, len(score_B), experience, order_rng):
            state, found = step(state, part)
            updates.append(found)
        return state, metrics | policy.mean_metrics(updates)

    return iteration


@functools.partial(jax.jit, static_argnums=1)
def _repeat(prompts: Batch, times: int) -> Batch:
    """Each row so many times, one after another."""
    return {name: jnp.repeat(x, times, axis=0) for name, x in prompts.items()}


def _gather(
    config: GRPOConfig,
    model_config: TransformerConfig,
    reference: Params,
    params: Params,
    sequences: rollout.Sequences,
    finished_B: jax.Array,
    score_B: jax.Array,
) -> tuple[Experience, dict[str, jax.Array]]:
    """A scored rollout as experience, and the iteration's metrics."""
    mask_BR = sequences.mask_BR
    score_B = gae.missing_eos_score(score_B, finished_B, config.rollout.missing_eos_score)
    logp_BR, ref_logp_BR = policy.logprobs(
        config.rollout, model_config, params, reference, sequences
    )
    metrics = policy.measure(score_B, finished_B, logp_BR, ref_logp_BR, mask_BR)
    advantages_BR = advantages(score_B, mask_BR, config.group_size, config.scale)
    even = jnp.abs(advantages_BR).max(-1) == 0
    metrics["even_groups"] = jnp.mean(even.astype(jnp.float32))
    return Experience(sequences, logp_BR, ref_logp_BR, advantages_BR), metrics


def _training(config: GRPOConfig, model_config: TransformerConfig, mesh: Mesh):
    settings, loop = config.rollout, config.loop
    loss = policy.policy_loss(
        settings, model_config, dual_clip=float("inf"), kl_coef=settings.kl_coef
    )
    lengths = (loop.num_steps * settings.num_updates(), loop.num_microbatches)
    return make_training(loss, config.optimizer, model_config, *lengths, mesh)
