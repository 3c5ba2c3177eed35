"""Prompts and a reward to a policy, with a critic."""

import jax

from alignment import ppo, reward
from launch.job import Job
from launch.stages import prompts


def run(job: Job) -> dict:
    """Optimises the policy by PPO; the critic starts from the reward model where there is one."""
    config, seed, reference = job.section, job.settings.seed, job.start_params()
    found = prompts.read(job)
    score = prompts.make_score(job, found.examples)
    if job.settings.reward.function:
        rng = jax.random.fold_in(jax.random.key(seed), 1)
        critic = reward.start_from(job.model, reference, rng)
    else:
        critic = job.params("reward")
    start = ppo.start(config, job.model, reference, critic, job.mesh)
    iterate = ppo.make_iteration(config, job.model, score, reference, job.tokenizer, seed, job.mesh)
    return prompts.optimise(job, found, score, reference, start, iterate, answers=1)
