"""Prompts and the reward model to a policy."""

from collections.abc import Sequence

from alignment import ppo, rollout
from data.instruct import Example
from data.loader import Batch
from launch import own_sets
from launch.job import Job
from launch.stages import conversations
from launch.stages.conversations import BUILT_IN
from train import loop
from train.checkpoint import params_hash


def run(job: Job) -> dict:
    """Optimises the policy against the reward model by PPO."""
    config, seed, tokenizer = job.section, job.settings.seed, job.tokenizer
    normalizer = job.run.read_done("reward")["summary"]["normalizer"]
    scorer = ppo.Scorer(
        job.params("reward"), normalizer["mean"], normalizer["std"], job.start_params()
    )
    sets = conversations.read(job)
    sources = {
        name: (prompt_rows(job, name, examples), sets.weights[name])
        for name, examples in sets.train.items()
    }
    start = ppo.start(config, job.model, scorer.reference, scorer.reward, job.mesh)
    iterate = ppo.make_iteration(config, job.model, scorer, tokenizer, seed, job.mesh, start)
    heldout = {
        name.removeprefix(BUILT_IN): prompt_rows(job, name, few)
        for name, examples in sets.heldout.items()
        if (few := conversations.first(examples, job.settings.eval.num_heldout))
    }
    evaluators = {
        f"heldout_{name}".rstrip("_"): ppo.heldout_reward(
            config, job.model, scorer, tokenizer, rows, seed, job.mesh
        )
        for name, rows in heldout.items()
    }
    with job.keeping(job.model) as (checkpointer, watch):
        state = loop.run(
            config.loop,
            start,
            iterate,
            job.loader(sources),
            job.mesh,
            checkpointer,
            watch,
            step_tokens=config.loop.batch_size * config.max_new_tokens,
            learning_rate=ppo.learning_rate(config),
            evaluators=evaluators,
        )
    num_prompts = sum(len(rows) for rows, _ in sources.values())
    return {"prompts": num_prompts, "params_sha256": params_hash(state.params)}


def prompt_rows(job: Job, name: str, examples: Sequence[Example]) -> list[Batch]:
    """Prompts of a set, those that are too long left out."""
    limit = job.section.max_prompt_tokens
    rows = rollout.prompt_rows(examples, job.tokenizer, limit)
    lost = own_sets.share(len(examples) - len(rows), len(examples))
    job.progress.note(
        f"{name}: {len(rows)} prompts; {lost} longer than max_prompt_tokens = {limit}, left out"
    )
    return rows
