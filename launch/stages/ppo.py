"""Prompts and the reward model to a policy."""

from alignment import ppo, rollout
from data import instruct
from launch.job import Job
from launch.stages import conversations
from train import loop
from train.checkpoint import params_hash


def run(job: Job) -> dict:
    """Optimises the policy against the reward model by PPO."""
    config, seed, tokenizer = job.section, job.settings.seed, job.tokenizer
    normalizer = job.run.read_done("reward")["summary"]["normalizer"]
    scorer = ppo.Scorer(
        job.params("reward"), normalizer["mean"], normalizer["std"], job.start_params()
    )
    examples = instruct.build(job.settings.instruct)["train"]
    rows = rollout.prompt_rows(examples, tokenizer, config.max_prompt_tokens)
    loader = job.loader({"prompts": (rows, 1.0)})
    start = ppo.start(config, job.model, scorer.reference, scorer.reward, job.mesh)
    iterate = ppo.make_iteration(config, job.model, scorer, tokenizer, seed, job.mesh, start)
    evaluators = {}
    if heldout := conversations.heldout(job):
        prompts = rollout.prompt_rows(heldout, tokenizer, config.max_prompt_tokens)
        evaluators["heldout"] = ppo.heldout_reward(
            config, job.model, scorer, tokenizer, prompts, seed, job.mesh
        )
    with job.keeping(job.model) as (checkpointer, watch):
        state = loop.run(
            config.loop,
            start,
            iterate,
            loader,
            job.mesh,
            checkpointer,
            watch,
            step_tokens=config.loop.batch_size * config.max_new_tokens,
            learning_rate=ppo.learning_rate(config),
            evaluators=evaluators,
        )
    return {"prompts": len(rows), "params_sha256": params_hash(state.params)}
