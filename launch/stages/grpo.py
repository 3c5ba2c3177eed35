"""Prompts and a reward to a policy, by comparing the answers to each prompt."""

from alignment import grpo
from launch.job import Job
from launch.stages import prompts


def run(job: Job) -> dict:
    """Optimises the policy by GRPO."""
    config, seed, reference = job.section, job.settings.seed, job.start_params()
    found = prompts.read(job)
    score = prompts.make_score(job, found.examples)
    start = grpo.start(config, job.model, reference, job.mesh)
    iterate = grpo.make_iteration(
        config, job.model, score, reference, job.tokenizer, seed, job.mesh
    )
    return prompts.optimise(job, found, score, reference, start, iterate, config.group_size)
