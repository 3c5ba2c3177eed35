"""What PPO and GRPO share: prompts by set, the reward of an answer, and the loop."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from alignment import policy, rollout, score
from alignment.policy import Score
from data.errors import BadInput
from data.mixture.loader import Batch
from data.quickstart.instruct import Example
from eval import grade
from launch import own_sets
from launch.job import Job
from launch.stages import conversations
from launch.stages.conversations import BUILT_IN
from model.transformer import Params
from train import loop
from train.checkpoint import params_hash

GRADE = "grade"  # the reward function that grades an answer as evaluation does


class Prompts(NamedTuple):
    """Rows of prompts by set, '' of the built-in ones in `heldout`; `examples` by their index."""

    sources: dict[str, tuple[list[Batch], float]]
    heldout: dict[str, list[Batch]]
    examples: list[Example]


def read(job: Job) -> Prompts:
    """The prompts of a stage; those that are too long are left out, with a note."""
    sets, examples = conversations.read(job), []

    def rows(name: str, chosen: Sequence[Example]) -> list[Batch]:
        limit, first = job.section.rollout.max_prompt_tokens, len(examples)
        found = rollout.prompt_rows(chosen, job.tokenizer, limit)
        examples.extend(chosen)
        lost = own_sets.share(len(chosen) - len(found), len(chosen))
        job.progress.note(
            f"{name}: {len(found)} prompts; {lost} over max_prompt_tokens = {limit}, left out"
        )
        return [{**row, "index": row["index"] + first} for row in found]

    sources, heldout = {}, {}
    for name, found in sets.train.items():
        sources[name] = rows(name, found), sets.weights[name]
        if not sources[name][0]:
            raise BadInput(
                f"{name}: none of {len(found)} prompts fits into rollout.max_prompt_tokens, which "
                f"is {job.section.rollout.max_prompt_tokens}"
            )
    for name, found in sets.heldout.items():
        few = conversations.first(found, job.settings.eval.num_heldout)
        if few and (kept := rows(f"{name}, held out", few)):
            heldout[name.removeprefix(BUILT_IN)] = kept
    return Prompts(sources, heldout, examples)


def make_score(job: Job, examples: Sequence[Example]) -> Score:
    """The reward of an answer: by `reward.function`, or else by the run's reward model."""
    if job.settings.reward.function:
        fn = find_function(job.settings.reward.function)
        return score.by_function(fn, examples, job.tokenizer)
    normalizer = job.run.read_done("reward")["summary"]["normalizer"]
    return score.by_model(job.model, job.params("reward"), normalizer["mean"], normalizer["std"])


def find_function(name: str) -> score.RewardFn:
    """The function that `reward.function` names: 'grade', or MODULE:NAME of fn(example, answer).

    Raises:
      BadInput: there is no such module or function.
    """
    if name == GRADE:
        return grade.grade
    module, _, function = name.partition(":")
    own_sets.find_modules_beside()
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(
            f"reward.function is {name!r}: {error}; allowed: {GRADE}, or MODULE:NAME of a function "
            "of (example, answer), the module in the working directory or installed"
        ) from error
    if not callable(found) or len(inspect.signature(found).parameters) < 2:
        raise BadInput(f"reward.function is {name!r}; it must be a function of (example, answer)")
    return found


def optimise(
    job: Job,
    prompts: Prompts,
    score: Score,
    reference: Params,
    start: Any,
    iterate: Callable[[Any, Any], tuple[Any, dict]],
    answers: int,
) -> dict:
    """Runs a stage's iterations from the state `start`; `answers` are those to one prompt.

    Returns the stage's summary.
    """
    config = job.section
    schedule = policy.learning_rate(config.rollout, config.optimizer, config.loop.num_steps)
    with job.keeping(job.model) as (checkpointer, watch):
        state = loop.run(
            config.loop,
            start,
            iterate,
            job.loader(prompts.sources),
            job.mesh,
            checkpointer,
            watch,
            work=loop.Work(config.loop.batch_size * answers * config.rollout.max_new_tokens),
            learning_rate=schedule,
            evaluators=_evaluators(job, prompts, score, reference),
        )
    num_prompts = sum(len(rows) for rows, _ in prompts.sources.values())
    return {"prompts": num_prompts, "params_sha256": params_hash(state.params)}


def _evaluators(job: Job, prompts: Prompts, score: Score, reference: Params) -> dict:
    """Rewards of answers to held-out prompts, by set."""
    config = job.section
    return {
        f"heldout_{name}".rstrip("_"): policy.heldout_reward(
            config.rollout,
            job.model,
            score,
            reference,
            job.tokenizer,
            rows,
            config.loop.batch_size,
            job.settings.seed,
            job.mesh,
        )
        for name, rows in prompts.heldout.items()
    }
