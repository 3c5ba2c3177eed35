"""Prompts and a reward to a policy, with a critic."""

import jax

from alignment import policy, ppo, reward
from launch.job import Job
from launch.stages import prompts
from train import loop
from train.checkpoint import params_hash


def run(job: Job) -> dict:
    """Optimises the policy by PPO; the critic starts from the reward model where there is one."""
    config, reference = job.section, job.start_params()
    found = prompts.read(job)
    score = prompts.make_score(job, found.examples)
    if job.settings.reward.function:
        rng = jax.random.fold_in(jax.random.key(job.settings.seed), 1)
        critic = reward.start_from(job.model, reference, rng)
    else:
        critic = job.params("reward")
    start = ppo.start(config, job.model, reference, critic, job.mesh)
    iterate = ppo.make_iteration(
        config, job.model, score, reference, job.tokenizer, job.settings.seed, job.mesh, start
    )
    with job.keeping(job.model) as (checkpointer, watch):
        state = loop.run(
            config.loop,
            start,
            iterate,
            job.loader(found.sources),
            job.mesh,
            checkpointer,
            watch,
            step_tokens=config.loop.batch_size * config.rollout.max_new_tokens,
            learning_rate=policy.learning_rate(
                config.rollout, config.optimizer, config.loop.num_steps
            ),
            evaluators=prompts.evaluators(job, found, score, reference),
        )
    num_prompts = sum(len(rows) for rows, _ in found.sources.values())
    return {"prompts": num_prompts, "params_sha256": params_hash(state.params)}
