"""The eval stage: every model of the run, measured the same way, in one results.json."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from alignment import rollout
from data import curated, instruct
from data.instruct import Example
from data.loader import fixed_batches
from eval import baseline, dialog, rater
from eval.dialog import Response
from eval.text import bits_per_byte
from launch import training
from launch.pipeline import Context
from launch.rundir import write_json
from model.transformer import Params

# Name in tables and reports: the stage whose checkpoint it is.
POLICIES = {"base": "pretrain", "sft": "sft", "dpo": "dpo", "ppo": "ppo"}
# Most text that is scored, and most that the n-gram is fitted on, UTF-8 bytes over all domains;
# each domain has an equal share.
MAX_HELDOUT_BYTES = 1 << 24
MAX_NGRAM_BYTES = 1 << 25


def read_sample(context: Context, split: str, num_bytes: int) -> dict[str, list[str]]:
    """Curated texts of 'train' or 'heldout' by domain: all, or a sample where there is more."""
    num_domains = len(read_first(context, 1))
    return curated.collect(
        context.run.stage("curate") / "documents",
        split,
        num_bytes // max(1, num_domains),
        lambda text: len(text.encode()),
        scattered=True,
    )


def read_first(context: Context, num_documents: int) -> dict[str, list[str]]:
    """The first held-out documents of each domain; says so if there are none."""
    folder = context.run.stage("curate") / "documents"
    texts = curated.collect(folder, "heldout", num_documents, lambda _: 1, scattered=False)
    if not texts:
        context.progress.note(
            "no document is held out (data.heldout_fraction is a share of source files): nothing "
            "to measure bits per byte on"
        )
    return texts


def answer(
    context: Context, params: Params, examples: Sequence[Example], temperature: float, seed: int
) -> list[Response]:
    """A model's answers to examples."""
    config = context.settings.eval
    return dialog.respond(
        training.language_model(context),
        params,
        training.load_tokenizer(context.run),
        [example.messages for example in examples],
        seq_len=context.settings.sft.seq_len,
        max_new_tokens=config.max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=config.batch_size,
        log=context.progress.log,
    )


@training.on_mesh
def run_eval(context: Context) -> dict:
    """Measures every policy of the run; writes eval/results.json."""
    models = {
        name: training.load_params(context, stage)
        for name, stage in POLICIES.items()
        if stage in context.settings.stages
    }
    results: dict[str, Any] = {"mixture": _mixture(context)}
    results |= _measure_text(context, models)
    if "sft" in models:
        results |= _measure_dialog(context, models)
    if "reward" in context.settings.stages:
        summary = context.run.read_done("reward")["summary"]
        accuracy = summary["heldout_accuracy"]
        results["reward_model"] = {
            "accuracy": accuracy["mean"],
            "stderr": accuracy["stderr"],
            "count": accuracy["count"],
        }
    write_json(context.run.stage("eval") / "results.json", results)
    return headline(results)


def headline(results: dict) -> dict:
    """The few figures that say what each stage bought."""
    lines: dict[str, Any] = {}
    if "text_by_stage" in results:
        bits = results["text_by_stage"]
        lines["bits_per_byte"] = {name: round(value, 4) for name, value in bits.items()}
    for key in ("verifiable", "refusal", "over_refusal", "does_not_know", "false_unknown"):
        if "dialog" in results:
            lines[key] = {
                name: round(table[key]["mean"], 4) for name, table in results["dialog"].items()
            }
    if results.get("preference"):
        keys = ("win_rate", "low", "high", "kl_nats")
        lines["gold_wins_over_sft"] = {
            name: {key: round(duel[key], 4) for key in keys}
            for name, duel in results["preference"].items()
        }
    if "reward_model" in results:
        lines["reward_model_accuracy"] = round(results["reward_model"]["accuracy"], 4)
    return lines


def _mixture(context: Context) -> dict:
    """Shares of the domains in all of pretraining: asked for, and read."""
    shares: dict[str, dict[str, float]] = {"asked": {}, "realised": {}}
    for row in context.run.read_done("pretrain")["summary"]["mixture"]:
        for key, found in shares.items():
            if not row["stage"]:
                found[row["domain"]] = found.get(row["domain"], 0.0) + row[key]
    return shares


def _measure_text(context: Context, models: dict[str, Params]) -> dict:
    """Bits per byte of held-out text: each model, two compressors and an n-gram."""
    heldout = read_sample(context, "heldout", MAX_HELDOUT_BYTES)
    if not heldout:
        return {}
    train = read_sample(context, "train", MAX_NGRAM_BYTES)
    by_stage = {}
    for name, params in models.items():
        context.progress.log(f"bits per byte: {name}")
        by_stage[name] = bits_per_byte(
            training.language_model(context),
            params,
            training.load_tokenizer(context.run),
            heldout,
            seq_len=context.settings.pretrain.seq_len,
            batch_size=context.settings.eval.batch_size,
        )
    heldout["all"] = [text for texts in heldout.values() for text in texts]
    train["all"] = [text for texts in train.values() for text in texts]
    context.progress.log("bits per byte: gzip, xz, n-gram")
    text = {
        domain: {
            "bytes": row["bytes"],
            "documents": row["documents"],
            "base": row["bits_per_byte"],
            "gzip": baseline.compress_bits_per_byte(heldout[domain], "gzip"),
            "xz": baseline.compress_bits_per_byte(heldout[domain], "xz"),
            **_fit_ngram(train.get(domain, []), heldout[domain], context.settings.eval.ngram_order),
        }
        for domain, row in by_stage["base"].items()
    }
    return {
        "text": text,
        "text_by_stage": {name: rows["all"]["bits_per_byte"] for name, rows in by_stage.items()},
    }


def _fit_ngram(train: Sequence[str], heldout: Sequence[str], order: int) -> dict:
    """Bits per byte of the n-gram, and the bytes that it was fitted on; {} without such."""
    num_bytes = sum(len(text.encode()) for text in train)
    if not num_bytes:
        return {}
    bits = baseline.ngram_bits_per_byte(train, heldout, order)
    return {"ngram": bits, "ngram_bytes": num_bytes}


def _measure_dialog(context: Context, models: dict[str, Params]) -> dict:
    """Greedy answers by kind, and sampled answers against the fine-tuned model's by gold score."""
    config = context.settings.eval
    examples = instruct.build(context.settings.instruct)["heldout"]
    greedy = {}
    for name, params in models.items():
        context.progress.log(f"greedy answers: {name}")
        greedy[name] = answer(context, params, examples, 0.0, 0)
    # Every k-th, so that all kinds take part.
    duel_examples = examples[:: max(1, len(examples) // config.num_duels)]
    scores, kl = {}, {}
    for name in models.keys() - {"base"}:
        context.progress.log(f"sampled answers: {name}")
        answers = answer(
            context, models[name], duel_examples, config.temperature, context.settings.seed
        )
        scores[name] = [
            rater.gold_score(example, response.text, response.finished)
            for example, response in zip(duel_examples, answers, strict=True)
        ]
        kl[name] = _kl_spent(context, models[name], models["sft"], duel_examples, answers)
    return {
        "dialog": {name: dialog.evaluate(examples, answers) for name, answers in greedy.items()},
        "preference": {
            name: {**rater.win_rate(scores[name], scores["sft"]), "kl_nats": kl[name]}
            for name in ("dpo", "ppo")
            if name in scores
        },
        "samples": _samples(examples, greedy, config.num_samples),
    }


def _kl_spent(context: Context, params, reference, examples, answers) -> float:
    """KL from the fine-tuned model in nats an answer, estimated on the sampled answers."""
    config, model = context.settings.eval, training.load_tokenizer(context.run)
    P = context.settings.sft.seq_len - config.max_new_tokens
    prompts = rollout.prompt_rows(examples, model, P)
    kl_nats = []
    for batch in fixed_batches(prompts, config.batch_size, filler=prompts[0]):
        tokens_BR = np.full((config.batch_size, config.max_new_tokens), model.pad_id, np.int32)
        mask_BR = np.zeros_like(tokens_BR)
        for row, index in enumerate(batch["index"]):
            ids = answers[int(index)].tokens
            tokens_BR[row, : len(ids)], mask_BR[row, : len(ids)] = ids, 1
        sequences = rollout.join(batch, jnp.asarray(tokens_BR), jnp.asarray(mask_BR))
        shape = training.language_model(context)
        kl_B = rollout.sequence_kl(shape, params, reference, sequences, config.temperature)
        kl_nats.extend(np.asarray(kl_B).tolist())
    return float(np.mean(kl_nats[: len(prompts)]))


def _samples(examples, greedy: dict[str, list[Response]], count: int) -> list[dict]:
    """Examples of as many kinds as fit, with every model's greedy answer."""
    first_of_kind: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        first_of_kind.setdefault(example.kind, []).append(index)
    kinds = list(first_of_kind.values())
    turns = max(map(len, kinds))
    # Every second kind first: neighbours in the list are alike.
    order = [
        ids[turn] for turn in range(turns) for ids in kinds[::2] + kinds[1::2] if turn < len(ids)
    ]
    return [
        {
            "kind": examples[index].kind,
            "prompt": "\n".join(f"{m['role']}: {m['content']}" for m in examples[index].messages),
            "reference": examples[index].reference,
            "answers": {name: answers[index].text for name, answers in greedy.items()},
        }
        for index in order[:count]
    ]
