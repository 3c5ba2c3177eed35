"""The eval stage: every model of the run, measured the same way, in one results.json."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.quickstart import instruct
from data.quickstart.instruct import Example
from data.tokens import chat
from eval import baseline, batching, dialog, harness, rater, task
from eval.dialog import Response
from eval.task import Task
from eval.text import bits_per_byte
from launch import load, own_sets
from launch.identity import reads_start
from launch.job import Job
from launch.stages import conversations
from launch.stages.stage import CHATS, MODELS, STAGES, START
from launch.stages.texts import read_sample
from launch.store.rundir import write_json
from model.transformer import Params

# Most text that is scored, and most that the n-gram is fitted on, UTF-8 bytes over all domains;
# each domain has an equal share.
MAX_HELDOUT_BYTES = 1 << 24
MAX_NGRAM_BYTES = 1 << 25
NGRAM_BYTES = 5  # of the n-gram baseline
NUM_SAMPLES = 8  # dialogues shown in the report


def run(job: Job) -> dict:
    """Measures every language model of the run; writes eval/results.json."""
    tasks = [task.load(name, job.settings.eval.data) for name in job.settings.eval.tasks]
    job.refuse_changed_files()
    stages = job.settings.stages
    models = {stage: job.params(stage) for stage in MODELS if stage in stages}
    if reads_start(job.settings, "eval"):
        models = {START: load.load_start(job.start, job.model, job.mesh)} | models
    results: dict[str, Any] = {}
    if "curate" in stages:
        results |= _measure_text(job, models)
    if any(name in CHATS for name in models):
        results |= _measure_dialog(job, models)
    if tasks:
        results["tasks"] = {one.name: _measure_task(job, models, one) for one in tasks}
    if "reward" in job.settings.stages:
        accuracy = job.run.read_done("reward")["summary"]["heldout_accuracy"]
        results["reward_model"] = {
            "accuracy": accuracy["mean"],
            "stderr": accuracy["stderr"],
            "count": accuracy["count"],
            "by_set": job.run.read_done("reward")["summary"]["heldout_accuracy_by_set"],
        }
    write_json(job.run.stage("eval") / "results.json", results)
    return headline(results)


def headline(results: dict) -> dict:
    """The few figures that say what each stage gained."""
    lines: dict[str, Any] = {}
    if "text_by_stage" in results:
        bits = results["text_by_stage"]
        lines["bits_per_byte"] = {name: round(value, 4) for name, value in bits.items()}
    for key in ("verifiable", "refusal", "over_refusal", "does_not_know", "false_unknown"):
        tables = results.get("dialog", {}).items()
        found = {name: round(table[key]["mean"], 4) for name, table in tables if key in table}
        lines |= {key: found} if found else {}  # a mix of conversations may leave a kind out
    for name, by_model in results.get("tasks", {}).items():
        lines[name] = {model: round(found["mean"], 4) for model, found in by_model.items()}
    if results.get("preference"):
        keys = ("win_rate", "low", "high", "kl_nats")
        lines["gold_wins_over_start"] = {
            name: {key: round(found[key], 4) for key in keys}
            for name, found in results["preference"].items()
        }
    if "reward_model" in results:
        lines["reward_model_accuracy"] = round(results["reward_model"]["accuracy"], 4)
    return lines


def _measure_text(job: Job, models: dict[str, Params]) -> dict:
    """Bits per byte of held-out text: each model, two compressors and an n-gram."""
    heldout = read_sample(job, "heldout", MAX_HELDOUT_BYTES)
    if not heldout:
        return {}
    train = read_sample(job, "train", MAX_NGRAM_BYTES)
    by_stage, first = {}, next(iter(models))
    for name, params in models.items():
        job.progress.log(f"bits per byte: {name}")
        by_stage[name] = bits_per_byte(
            job.model,
            params,
            job.tokenizer,
            heldout,
            seq_len=job.settings.pretrain.seq_len,
            batch_size=job.settings.eval.batch_size,
        )
    groups = {domain: [texts] for domain, texts in heldout.items()}
    groups["all"] = list(heldout.values())
    heldout["all"] = [text for texts in heldout.values() for text in texts]
    train["all"] = [text for texts in train.values() for text in texts]
    job.progress.log("bits per byte: gzip, xz, n-gram")
    text = {
        domain: {
            "bytes": row["bytes"],
            "documents": row["documents"],
            "model": row["bits_per_byte"],
            "gzip": baseline.compress_bits_per_byte(groups[domain], "gzip"),
            "xz": baseline.compress_bits_per_byte(groups[domain], "xz"),
            **_fit_ngram(train.get(domain, []), heldout[domain], NGRAM_BYTES),
        }
        for domain, row in by_stage[first].items()
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


def _measure_dialog(job: Job, models: dict[str, Params]) -> dict:
    """Greedy answers by kind, and sampled answers beside those of the model it started from."""
    config = job.settings.eval
    examples = _examples(job)
    if not examples:
        job.progress.note("no conversation is held out: answers are not measured")
        return {}
    respond = functools.partial(
        conversations.answer, job, max_new_tokens=config.max_new_tokens, seed=job.settings.seed
    )
    greedy = {}
    for name, params in models.items():
        job.progress.log(f"greedy answers: {name}")
        greedy[name] = respond(params, examples, temperature=0.0)
    # Every k-th, so that all kinds take part.
    compared = examples[:: max(1, len(examples) // config.num_comparisons)]
    parents = {name: STAGES[name].parent(models) or START for name in models if name != START}
    parents = {
        name: parent
        for name, parent in parents.items()
        if parent in CHATS or (parent == START and START in models)
    }
    scores, kl = {}, {}
    for name in dict.fromkeys((*parents.values(), *parents)):
        job.progress.log(f"sampled answers: {name}")
        answers = respond(models[name], compared, temperature=1.0)
        scores[name] = [
            rater.gold_score(example, response.text, response.finished)
            for example, response in zip(compared, answers, strict=True)
        ]
        if name in parents:
            reference = models[parents[name]]
            kl[name] = _kl_spent(job, models[name], reference, compared, answers)
    return {
        "dialog": {name: dialog.evaluate(examples, answers) for name, answers in greedy.items()},
        "preference": {
            name: {**rater.win_rate(scores[name], scores[parent]), "kl_nats": kl[name]}
            for name, parent in parents.items()
        },
        "samples": _samples(examples, greedy, NUM_SAMPLES),
        "questions": {
            example.kind: example.messages[-1]["content"] for example in reversed(examples)
        },
    }


def _examples(job: Job) -> list[Example]:
    """Held-out conversations: the built-in ones, and some of each own set of fine-tuning."""
    config = job.settings.instruct
    own = own_sets.read(job.settings, "sft", job.progress.note)
    if own:
        job.refuse_changed_files()
    kept = [
        example
        for made in own.values()
        for example in conversations.first(made.heldout, config.num_heldout_per_kind)
    ]
    return instruct.build(config)["heldout"] + kept


def _measure_task(job: Job, models: dict[str, Params], one: Task) -> dict[str, dict]:
    """A benchmark's means by model."""
    config, found = job.settings.eval, {}
    for name, params in models.items():
        job.progress.log(f"{one.name}: {name}")
        found[name] = harness.measure(
            one,
            job.model,
            params,
            job.tokenizer,
            num_shots=config.num_shots,
            limit=config.limit,
            batch_size=config.batch_size,
            log=job.progress.log,
        )
    return found


def _kl_spent(job: Job, params, reference, examples, answers) -> float:
    """KL from the reference in nats an answer, estimated on the sampled answers."""
    pairs = [
        (chat.render_prompt(job.tokenizer, example.messages), response.tokens)
        for example, response in zip(examples, answers, strict=True)
    ]
    ours, theirs = (
        batching.logprobs(
            job.model,
            weights,
            pairs,
            batch_size=job.settings.eval.batch_size,
            pad_id=job.tokenizer.pad_id,
            log=job.progress.log,
        )
        for weights in (params, reference)
    )
    return float(np.mean(np.subtract(ours, theirs)))


def _samples(examples, greedy: dict[str, list[Response]], count: int) -> list[dict]:
    """Examples from all over the list, so of many kinds, with every model's greedy answer."""
    return [
        {
            "kind": examples[index].kind,
            "prompt": "\n".join(f"{m['role']}: {m['content']}" for m in examples[index].messages),
            "reference": examples[index].reference,
            "answers": {name: answers[index].text for name, answers in greedy.items()},
        }
        for index in harness.choose(range(len(examples)), count)
    ]
