"""Preference pairs to a reward model."""

import jax

from alignment import preference, reward
from data.errors import BadInput
from data.mixture.loader import Batch
from data.quickstart import instruct
from data.tokens import chat
from eval import grade
from launch.job import Job
from launch.stages import pairs
from train.checkpoint import params_hash

MAX_CHOSEN = 1500  # chosen answers whose scores are the measure where no pairs are made here


def run(job: Job) -> dict:
    """Trains a reward model on pairs of the starting model's answers."""
    config, policy = job.section, job.start_params()
    found = pairs.load(job, policy)
    scalar, seed = reward.scalar_config(job.model), job.settings.seed
    references = _reference_rows(job, found)
    start = reward.start_from(job.model, policy, jax.random.fold_in(jax.random.key(seed), 1))
    del policy  # or its own head would stay in memory
    loss = reward.pair_loss(scalar, config.centering)
    state = job.train(
        loss,
        start,
        job.loader(found.sources),
        step_tokens=config.loop.batch_size * 2 * config.seq_len,
        seq_len=config.seq_len,
        evaluators=job.heldout(loss, found.heldout),
        model=scalar,
    )
    batch_size = job.settings.eval.batch_size
    hits = {
        name: reward.accuracy(scalar, state.params, rows, batch_size).tolist()
        for name, rows in found.heldout.items()
    }
    scores = reward.score_rows(scalar, state.params, references, batch_size)
    return {
        **found.counts,
        "heldout_accuracy": grade.summarise([hit for found in hits.values() for hit in found]),
        "heldout_accuracy_by_set": {
            name or pairs.MADE: grade.summarise(found) for name, found in hits.items()
        },
        # The rewards of reference answers: they then score 0 on average.
        "normalizer": {"mean": float(scores.mean()), "std": float(scores.std())},
        "params_sha256": params_hash(state.params),
    }


def _reference_rows(job: Job, found: pairs.Rows) -> list[Batch]:
    """Rows of the prompts of pairs with their reference answers.

    Where no pairs are made here, the chosen answers of the user's own pairs are the references.
    """
    config, model = job.section, job.tokenizer
    if not config.pairs.num_prompts:
        return _chosen_rows(found)
    examples = instruct.build(job.settings.instruct)["train"][: config.pairs.num_prompts]
    answered = [
        (chat.render_prompt(model, x.messages), chat.render_answer(model, x.messages, x.reference))
        for x in examples
    ]
    fitting = [ids for ids in answered if sum(map(len, ids)) <= config.seq_len]
    if len(fitting) < 2:
        raise BadInput(
            f"reward.seq_len is {config.seq_len} and reward.pairs.num_prompts "
            f"{config.pairs.num_prompts}; at least 2 of their reference answers must fit, whose "
            f"rewards have a deviation, and {len(fitting)} do"
        )
    return [preference.row(*ids, config.seq_len, model.pad_id) for ids in fitting]


def _chosen_rows(found: pairs.Rows) -> list[Batch]:
    """The chosen sides of the first pairs of each set."""
    sets = [rows for rows, _ in found.sources.values()]
    chosen = [row for rows in sets for row in rows[: MAX_CHOSEN // len(sets)]]
    if len(chosen) < 2:
        raise BadInput(
            f"reward.data has {len(chosen)} pairs to train on; at least 2 are needed, whose "
            "rewards have a deviation"
        )
    return [{key: row[key][0] for key in ("tokens", "real")} for row in chosen]
