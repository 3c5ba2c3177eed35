"""Prompts and a reward to a policy, by comparing the answers to each prompt."""

from alignment import grpo, policy
from launch.job import Job
from launch.stages import prompts
from train import loop
from train.checkpoint import params_hash


def run(job: Job) -> dict:
    """Optimises the policy by GRPO."""
    config, reference = job.section, job.start_params()
    found = prompts.read(job)
    score = prompts.make_score(job, found.examples)
    start = grpo.start(config, job.model, reference, job.mesh)
    iterate = grpo.make_iteration(
        config, job.model, score, reference, job.tokenizer, job.settings.seed, job.mesh, start
    )
    answers = config.loop.batch_size * config.group_size
    with job.keeping(job.model) as (checkpointer, watch):
        state = loop.run(
            config.loop,
            start,
            iterate,
            job.loader(found.sources),
            job.mesh,
            checkpointer,
            watch,
            step_tokens=answers * config.rollout.max_new_tokens,
            learning_rate=policy.learning_rate(
                config.rollout, config.optimizer, config.loop.num_steps
            ),
            evaluators=prompts.evaluators(job, found, score, reference),
        )
    num_prompts = sum(len(rows) for rows, _ in found.sources.values())
    return {"prompts": num_prompts, "params_sha256": params_hash(state.params)}
