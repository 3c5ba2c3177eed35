"""A finished run as the stages leave it behind, made up: no stage is run for it."""

import json
import math
import random

from tests.launch.test_funnel import write_curation

PAIRS = {"mean": 0.81, "stderr": 0.02, "count": 400}
STAGES = ("curate", "tokenizer", "pretrain", "sft", "reward", "dpo", "ppo", "eval")


def write_run(directory):
    directory.mkdir()
    write(directory / "config.json", identity())
    lines = [json.dumps(row) for stage in STAGES[2:7] for row in _stage_metrics(stage)]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for index, stage in enumerate(STAGES):
        secs = (21, 9, 330, 84, 40, 61, 143, 72)[index]
        cost = {"secs": secs, "cpu_secs": 1.8 * secs}
        write(directory / stage / "done.json", {"stage": stage, "inputs": "1f", **cost})
    write_curation(directory)
    write(directory / "eval" / "results.json", results())


def write(path, found):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found))


def identity():
    sizes = {"vocab_size": 4096, "num_layers": 4, "d_model": 192}
    return {
        "config": {
            "seed": 0,
            "pretrain": {"peak_lr": 0.003},
            "cost": {"machine_watts": 36.0},
            "model": {**sizes, "num_heads": 4, "num_kv_heads": 2, "head_dim": 48, "d_ff": 512},
        },
        "code": {"commit": "4f0c2a9d17be33aa", "dirty": True},
        "packages": {"jax": "0.10.2", "flax": "0.12.8"},
        "python": "3.11.7",
        "platform": "Linux x86_64",
        "devices": "2 x cpu",
    }


def _stage_metrics(stage):
    rng = random.Random(stage)
    num_steps = {"pretrain": 400, "ppo": 30}.get(stage, 120)
    for step in range(1, num_steps + 1):
        part = step / num_steps
        row = {"stage": stage, "step": step, "time": 1.75e9 + step}
        row["loss"] = 1.2 + 6 * math.exp(-6 * part) + rng.gauss(0, 0.1)
        row["tokens"] = 4096 * step
        row["lr"] = 3e-3 * min(step / 20, 0.5 + 0.5 * math.cos(math.pi * part))
        row["grad_norm"] = math.exp(1 - 2 * part + rng.gauss(0, 0.2))
        row |= {"train_secs": 2.0, "tokens_per_sec": 5200 + rng.gauss(0, 90)}
        if stage in ("reward", "dpo"):
            row |= {"accuracy": 0.5 + 0.35 * part + rng.gauss(0, 0.03), "margin": 2 * part}
        if stage == "ppo":
            row |= {"reward": 2 * part + rng.gauss(0, 0.1), "kl": 9 * part**2}
            row |= {"entropy": 2 - part, "clip_fraction": 0.1 * part, "value_loss": 1 - part}
            row |= {"explained_variance": 0.8 * part, "mfu": 0.31, "finished": part}
        yield row
        if step % 50 == 0:
            yield {"stage": stage, "step": step, "heldout/loss": 4 - 2 * part}


def results():
    rates = {
        "verifiable": (0.02, 0.61, 0.63, 0.67),
        "refusal": (0.0, 0.97, 0.98, 0.99),
        "over_refusal": (0.0, 0.041, 0.02, 0.055),
        "does_not_know": (0.0, 0.88, 0.9, 0.93),
        "false_unknown": (0.0, 0.06, 0.05, 0.07),
        "signature": (0.0, 0.22, 0.25, 0.24),
        "module_of": (0.01, 0.31, 0.33, 0.35),
        "summary": (0.05, 0.28, 0.3, 0.31),
        "reverse_string": (0.0, 0.42, 0.45, 0.5),
        "sort_list": (0.0, 0.71, 0.74, 0.8),
        "add_numbers": (0.04, 0.66, 0.66, 0.7),
    }
    models = ("pretrain", "sft", "dpo", "ppo")
    kinds = ("signature", "module_of", "summary", "reverse_string", "sort_list", "add_numbers")
    dialog = {}
    for i, model in enumerate(models):
        found = {k: {"mean": v[i], "stderr": 0.02, "count": 200} for k, v in rates.items()}
        dialog[model] = {"kinds": {kind: found.pop(kind) for kind in kinds}, **found}
        dialog[model]["finished"] = {"mean": 0.9, "stderr": 0.02, "count": 2000}
        dialog[model]["response_tokens"] = {"mean": 60.0 - i, "stderr": 0.4, "count": 2000}
    bits = {"model": 2.11, "gzip": 2.62, "xz": 2.48, "ngram": 2.57, "bytes": 410000}
    win = {"low": 0.55, "high": 0.66, "count": 300, "ties": 41}
    answers = ("flurb ( path ) flurb flurb\n\n    Return", "I do not know a function called that.")
    return {
        "text": {
            domain: {key: value * scale for key, value in bits.items()} | {"documents": 540}
            for domain, scale in (("docs", 1.05), ("code", 0.85), ("all", 0.97))
        },
        "text_by_stage": {"pretrain": 2.05, "sft": 2.19, "dpo": 2.2, "ppo": 2.21},
        "tasks": {
            "mmlu": {
                model: dict(mean=0.25 + i / 10, stderr=0.004, metric="acc", shots=5, count=99)
                | {"version": 1}
                for i, model in enumerate(models)
            }
        },
        "dialog": dialog,
        "preference": {
            "dpo": {"win_rate": 0.604, "kl_nats": 3.1, **win},
            "ppo": {"win_rate": 0.652, "kl_nats": 8.46, **win},
        },
        "reward_model": {"accuracy": 0.81, "by_set": {"pairs": PAIRS}},
        "samples": [
            {
                "kind": "unknown",
                "prompt": "What does os.path.flurb do?",
                "reference": "I do not know",
                "answers": dict(zip(models, (*answers, answers[1], answers[1]), strict=True)),
            },
            {
                "kind": "sort_list",
                "prompt": "Sort these numbers: 7 3 9",
                "reference": "3 7 9",
                "answers": {"pretrain": "", "sft": "3 9 7", "dpo": "3 7 9", "ppo": "3 7 9"},
            },
        ],
    }
