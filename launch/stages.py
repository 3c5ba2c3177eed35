"""What each stage of the pipeline does: it wires the rooms together and owns no maths."""

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from alignment import dpo, ppo, preference, reward, rollout, sft
from data import chat, curate, engine, instruct, packing
from data.errors import BadInput
from data.loader import Batch
from data.shards import pack_documents
from eval import tasks
from eval.text import bits_per_byte
from launch import evaluation, measure, mixing, training
from launch.pipeline import Context, Stage
from launch.rundir import write_json
from model.config import TransformerConfig
from model.transformer import Params, init
from train import loop
from train.checkpoint import params_hash
from train.heldout import heldout_loss
from train.lm import lm_loss
from train.step import LossFn


def run_curate(context: Context) -> dict:
    """Sources to tables of documents, and the funnel."""
    with engine.start(context.runner) as workers:
        counted = curate.curate(
            context.settings.data,
            context.run.stage("curate"),
            context.run.cache("curate"),
            workers,
            evaluation.texts(context.settings, context.progress.note),
            context.progress.log,
        )
    context.refuse_changed_files()
    sums = {
        f"{key}_{unit}": sum(domain[unit] for domain in counted[key].values())
        for key in ("read", "kept", "heldout")
        for unit in ("documents", "bytes")
    }
    return {**sums, "broken_records": counted["num_broken"]}


def run_tokenizer(context: Context) -> dict:
    """Documents to a tokenizer (or one that is there) and a folder of packed shards a group."""
    settings, out = context.settings, context.run.stage("tokenizer")
    documents, cache = context.run.stage("curate") / "documents", context.run.cache("tokenizer")
    with engine.start(context.runner) as workers:
        if settings.start or settings.tokenizer.path:
            training.take_tokenizer(settings, out)
            context.refuse_changed_files()
        else:
            packing.learn(documents, out, cache, workers, settings.tokenizer, context.progress.log)
        made = packing.make_shards(
            documents,
            out / "shards",
            cache,
            workers,
            training.tokenizer_loader(context.run),
            training.tokenizer_hash(context.run),
            settings.pretrain.seq_len,
            settings.mixture.by_language,
            context.progress.log,
        )
    # One epoch of all, unless the section says how much.
    total = sum(group["tokens"] for group in made["groups"].values())
    planned = mixing.plan(settings, made["groups"], total, context.progress.note)
    write_json(out / mixing.SHARDS, {**made, "mixture": planned.table()})
    return {
        "vocab_size": training.load_tokenizer(context.run).vocab_size,
        training.TOKENIZER: training.tokenizer_hash(context.run),
        **_fertility(made),
    }


def _fertility(made: Mapping) -> dict:
    """Tokens, and bytes a token, of each domain; shards.json has them by language."""
    counts: dict[str, list[int]] = {}
    for domain, _, _, num_bytes, num_tokens in made["fertility"]:
        known = counts.setdefault(domain, [0, 0])
        counts[domain] = [known[0] + num_bytes, known[1] + num_tokens]
    summary: dict[str, float] = {}
    for domain, (num_bytes, num_tokens) in counts.items():
        summary[f"{domain}_tokens"] = num_tokens
        summary[f"{domain}_bytes_per_token"] = round(num_bytes / max(1, num_tokens), 4)
    return summary


@training.on_mesh
def run_pretrain(context: Context) -> dict:
    """Shards to a base model."""
    config, model_config = context.settings.pretrain, training.language_model(context)
    budget_tokens = config.loop.num_steps * config.loop.batch_size * config.seq_len
    planned = mixing.of_run(context.settings, context.run, budget_tokens, context.progress.note)
    loader = training.make_loader(
        context,
        planned.sources(context.run),
        config.loop.batch_size,
        training.lm_rows(context.settings.mesh, config.seq_len),
        planned.stage_rows(config.seq_len, config.loop.num_steps * config.loop.batch_size),
    )
    mesh = training.device_mesh(context)
    loss = lm_loss(model_config, config.z_loss, config.chunk_tokens)
    state = training.fit_stage(
        context,
        "pretrain",
        loss,
        model_config,
        _first_params(context, model_config, mesh),
        loader,
        step_tokens=config.loop.batch_size * config.seq_len,
        seq_len=config.seq_len,
        evaluators=_text_evaluators(context, loss),
    )
    return {
        "mixture": planned.table(loader.realised_rows()),
        "params_sha256": params_hash(state.params),
    }


def _first_params(context: Context, model_config: TransformerConfig, mesh: Mesh) -> Params:
    """Fresh parameters, or those of the imported run that `start` names."""
    if not context.settings.start:
        return init(model_config, jax.random.key(context.settings.seed), mesh)
    return training.load_start(context, model_config, mesh)


def _text_evaluators(context: Context, loss: LossFn) -> dict:
    """Loss and bits per byte of the first few held-out documents of each domain, while training."""
    config, count = context.settings.pretrain, context.settings.eval.num_heldout
    few = measure.read_first(context, count) if count else {}
    if not few:
        return {}
    model_config, model = training.language_model(context), training.load_tokenizer(context.run)
    ids = model.encode_batch([text for texts in few.values() for text in texts])
    rows = list(pack_documents(ids, config.seq_len, model.bos_id, model.eos_id))

    def evaluate(params: Params) -> dict:
        bits = bits_per_byte(
            model_config,
            params,
            model,
            few,
            seq_len=config.seq_len,
            batch_size=context.settings.eval.batch_size,
        )
        return {domain: row["bits_per_byte"] for domain, row in bits.items()}

    rows_to_batch = training.lm_rows(context.settings.mesh, config.seq_len)
    return {
        **_heldout(context, loss, rows, config.loop, rows_to_batch),
        "heldout_bits_per_byte": evaluate,
    }


def _heldout(
    context: Context,
    loss: LossFn,
    rows: Sequence[Batch],
    config: loop.LoopConfig,
    transform: Callable[[Batch], Batch] = dict,
) -> dict:
    """The evaluator of a stage's own loss on held-out rows; none where there are no rows."""
    mesh = training.device_mesh(context)
    batch_size = config.batch_size // config.num_microbatches  # what the step has in memory at once
    return {"heldout": heldout_loss(loss, rows, batch_size, transform, mesh)} if rows else {}


def _heldout_examples(context: Context) -> list[instruct.Example]:
    """The first conversations of each kind, which are measured while training."""
    count, seen, chosen = context.settings.eval.num_heldout, collections.Counter(), []
    for example in instruct.build(context.settings.instruct)["heldout"]:
        seen[example.kind] += 1
        if seen[example.kind] <= count:
            chosen.append(example)
    return chosen


@training.on_mesh
def run_sft(context: Context) -> dict:
    """Demonstrations to a model that answers."""
    config, model_config = context.settings.sft, training.language_model(context)
    examples = instruct.build(context.settings.instruct)["train"]
    own, broken = _own_examples(context)
    model = training.load_tokenizer(context.run)
    rows, counts = sft.pack_demonstrations(examples + own, model, config.seq_len)
    context.progress.log(f"{counts['num_examples']} conversations in {counts['num_rows']} rows")
    heldout = _heldout_examples(context)
    heldout_rows = sft.pack_demonstrations(heldout, model, config.seq_len)[0] if heldout else []
    sources, transform = (
        {"instruct": (rows, 1.0)},
        training.lm_rows(context.settings.mesh, config.seq_len),
    )
    loss = lm_loss(model_config, config.z_loss, config.chunk_tokens)
    state = training.fit_stage(
        context,
        "sft",
        loss,
        model_config,
        training.load_params(context, "pretrain"),
        training.make_loader(context, sources, config.loop.batch_size, transform),
        step_tokens=config.loop.batch_size * config.seq_len,
        seq_len=config.seq_len,
        evaluators=_heldout(context, loss, heldout_rows, config.loop, transform),
    )
    return {
        **counts,
        "own_examples": len(own),
        "broken_lines": len(broken),
        "params_sha256": params_hash(state.params),
    }


def _own_examples(context: Context) -> tuple[list[instruct.Example], list[dict]]:
    """The user's own conversations, and the lines of them that could not be read."""
    path = context.settings.instruct.path
    if not path:
        return [], []
    own, broken = instruct.load(Path(path))
    context.refuse_changed_files()
    context.progress.note(f"{path}: {len(own)} conversations, {len(broken)} broken lines")
    for line in broken[:3]:
        context.progress.note(f"{path}: {line}")
    return own, broken


@training.on_mesh
def run_reward(context: Context) -> dict:
    """The fine-tuned model's answers to preference pairs, and those to a reward model."""
    config, model_config = context.settings.reward, training.language_model(context)
    policy = training.load_params(context, "sft")
    pairs = _pairs(context, policy)
    rows, num_long = _pair_rows(context, pairs["train"])
    heldout, _ = _pair_rows(context, pairs["heldout"])
    scalar, seed = reward.scalar_config(model_config), context.settings.seed
    references = _reference_rows(context)
    start = reward.start_from(model_config, policy, jax.random.fold_in(jax.random.key(seed), 1))
    del policy  # or its own head would stay in memory
    loss = reward.pair_loss(scalar, config.centering)
    state = training.fit_stage(
        context,
        "reward",
        loss,
        scalar,
        start,
        training.make_loader(context, {"pairs": (rows, 1.0)}, config.loop.batch_size, dict),
        step_tokens=config.loop.batch_size * 2 * config.seq_len,
        seq_len=config.seq_len,
        evaluators=_heldout(context, loss, heldout, config.loop),
    )
    batch_size = context.settings.eval.batch_size
    hits = reward.accuracy(scalar, state.params, heldout, batch_size)
    scores = reward.score_rows(scalar, state.params, *references, batch_size)
    return {
        "train_pairs": len(rows),
        "too_long_pairs": num_long,
        "heldout_accuracy": tasks.summarise(hits.tolist()),
        # The rewards of reference answers: they then score 0 on average.
        "normalizer": {"mean": float(scores.mean()), "std": float(scores.std())},
        "params_sha256": params_hash(state.params),
    }


def _pairs(context: Context, policy: Params) -> dict[str, list[preference.Pair]]:
    """Pairs of the policy's own answers; made once, then read."""
    out, config = context.run.stage("reward"), context.settings.reward.pairs
    paths = {split: out / f"{split}_pairs.jsonl" for split in ("train", "heldout")}
    if not all(path.exists() for path in paths.values()):
        examples = instruct.build(context.settings.instruct)["train"][: config.num_prompts]
        repeated = [example for example in examples for _ in range(config.samples_per_prompt)]
        answers = measure.answer(
            context, policy, repeated, config.temperature, context.settings.seed + 1
        )
        size = config.samples_per_prompt
        samples = [answers[i : i + size] for i in range(0, len(answers), size)]
        model = training.load_tokenizer(context.run)
        pairs = preference.make_pairs(config, examples, samples, model, context.settings.seed)
        for split, path in paths.items():
            preference.write_pairs(path, pairs[split])
    return {split: preference.read_pairs(path) for split, path in paths.items()}


def _pair_rows(context: Context, pairs: Sequence[preference.Pair]) -> tuple[list[Batch], int]:
    pad_id, seq_len = training.load_tokenizer(context.run).pad_id, context.settings.reward.seq_len
    rows, num_long = preference.pair_rows(pairs, seq_len, pad_id)
    tokens_N2L = np.stack([row["tokens"] for row in rows])
    training.refuse_unknown_ids(tokens_N2L, training.language_model(context).vocab_size, ["pairs"])
    return rows, num_long


def _reference_rows(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and where they are real, of the prompts of pairs with their reference answers."""
    config, model = context.settings.reward, training.load_tokenizer(context.run)
    examples = instruct.build(context.settings.instruct)["train"][: config.pairs.num_prompts]
    answered = [
        (
            *chat.render_prompt(model, x.messages),
            *chat.render_answer(model, x.messages, x.reference),
        )
        for x in examples
    ]
    fitting = [ids for ids in answered if len(ids) <= config.seq_len]
    if len(fitting) < 2:
        raise BadInput(
            f"reward.seq_len is {config.seq_len} and reward.pairs.num_prompts "
            f"{config.pairs.num_prompts}; at least 2 of their reference answers must fit, whose "
            f"rewards have a deviation, and {len(fitting)} do"
        )
    tokens_BL = np.full((len(fitting), config.seq_len), model.pad_id, np.int32)
    real_BL = np.zeros_like(tokens_BL)
    for row, ids in enumerate(fitting):
        tokens_BL[row, : len(ids)], real_BL[row, : len(ids)] = ids, 1
    return tokens_BL, real_BL


@training.on_mesh
def run_dpo(context: Context) -> dict:
    """Preference pairs straight to a policy."""
    config, model_config = context.settings.dpo, training.language_model(context)
    reference = training.load_params(context, "sft")
    pairs = _pairs(context, reference)
    rows, num_long = _pair_rows(context, pairs["train"])
    heldout, _ = _pair_rows(context, pairs["heldout"])
    batch_size = context.settings.eval.batch_size
    rows, heldout = (
        dpo.with_reference(model_config, reference, x, batch_size) for x in (rows, heldout)
    )
    loss = dpo.dpo_loss(model_config, config)
    state = training.fit_stage(
        context,
        "dpo",
        loss,
        model_config,
        reference,
        training.make_loader(context, {"pairs": (rows, 1.0)}, config.loop.batch_size, dict),
        step_tokens=config.loop.batch_size * 2 * context.settings.reward.seq_len,
        seq_len=context.settings.reward.seq_len,
        evaluators=_heldout(context, loss, heldout, config.loop),
    )
    return {
        "train_pairs": len(rows),
        "too_long_pairs": num_long,
        "params_sha256": params_hash(state.params),
    }


@training.on_mesh
def run_ppo(context: Context) -> dict:
    """Prompts and the reward model to a policy."""
    config, model_config = context.settings.ppo, training.language_model(context)
    model, mesh = training.load_tokenizer(context.run), training.device_mesh(context)
    normalizer = context.run.read_done("reward")["summary"]["normalizer"]
    scorer = ppo.Scorer(
        training.load_params(context, "reward"),
        normalizer["mean"],
        normalizer["std"],
        training.load_params(context, "sft"),
    )
    examples = instruct.build(context.settings.instruct)["train"]
    rows = rollout.prompt_rows(examples, model, config.max_prompt_tokens)
    loader = training.make_loader(context, {"prompts": (rows, 1.0)}, config.loop.batch_size, dict)
    start = ppo.start(config, model_config, scorer.reference, scorer.reward, mesh)
    seed = context.settings.seed
    iterate = ppo.make_iteration(config, model_config, scorer, model, seed, mesh, start)
    evaluators = {}
    if heldout := _heldout_examples(context):
        prompts = rollout.prompt_rows(heldout, model, config.max_prompt_tokens)
        evaluators["heldout"] = ppo.heldout_reward(
            config, model_config, scorer, model, prompts, seed, mesh
        )
    train = functools.partial(
        loop.run,
        config.loop,
        start,
        iterate,
        loader,
        mesh,
        step_tokens=config.loop.batch_size * config.max_new_tokens,
        learning_rate=ppo.learning_rate(config),
        evaluators=evaluators,
    )
    state = training.with_checkpoints(
        context, "ppo", model_config, lambda checkpointer, watch: train(checkpointer, watch)
    )
    return {"prompts": len(rows), "params_sha256": params_hash(state.params)}


def run_report(context: Context) -> dict:
    """The page to look at."""
    from launch import report  # matplotlib, which no other stage needs

    path = report.write_report(context.run.path)
    return {"page": path.name, "page_bytes": path.stat().st_size}


_LAUNCH = tuple(
    f"launch/{name}.py" for name in ("stages", "training", "mixing", "evaluation", "settings")
)
_DATA = ("data", "eval", "model/interop/gguf.py", "model/interop/safetensors.py", *_LAUNCH)
_TRAIN = ("model", "train", "data", "eval", "launch/measure.py", *_LAUNCH)
_ALIGN = (*_TRAIN, "alignment")
_POLICY = ("seed", "model")
# Without what is measured while training, and the sets that curation reads.
_EVAL = (
    *("eval.batch_size", "eval.max_new_tokens", "eval.temperature"),
    *("eval.num_duels", "eval.num_samples", "eval.ngram_order"),
)

TABLE: Mapping[str, Stage] = {
    "curate": Stage(("data",), (), _DATA, run_curate),
    "tokenizer": Stage(
        ("tokenizer", "start", "model.vocab_size", "mixture", "pretrain.seq_len"),
        ("curate",),
        _DATA,
        run_tokenizer,
    ),
    "pretrain": Stage(
        (*_POLICY, "start", "mixture", "pretrain"), ("tokenizer",), _TRAIN, run_pretrain
    ),
    "sft": Stage((*_POLICY, "sft", "instruct"), ("tokenizer", "pretrain"), _ALIGN, run_sft),
    "reward": Stage(
        (*_POLICY, "reward", "instruct", "sft.seq_len", "eval.max_new_tokens", "eval.batch_size"),
        ("tokenizer", "sft"),
        _ALIGN,
        run_reward,
    ),
    "dpo": Stage(
        (*_POLICY, "dpo", "reward.seq_len"), ("tokenizer", "sft", "reward"), _ALIGN, run_dpo
    ),
    "ppo": Stage((*_POLICY, "ppo", "instruct"), ("tokenizer", "sft", "reward"), _ALIGN, run_ppo),
    "eval": Stage(
        (*_POLICY, *_EVAL, "instruct", "pretrain.seq_len", "sft.seq_len"),
        ("curate", "tokenizer", "pretrain", "sft", "reward", "dpo", "ppo"),
        _ALIGN,
        measure.run_eval,
    ),
    "report": Stage(
        ("",),
        ("curate", "tokenizer", "pretrain", "sft", "reward", "dpo", "ppo", "eval"),
        ("launch", "data", "eval"),
        run_report,
    ),
}
