"""MMLU and GSM8K of one imported model, ours beside lm-evaluation-harness, run by hand.

    python -m benchmarks.lm_eval_peer peer TASK DATA HF_DIR OUT   (lm_eval, torch, transformers)
    python -m benchmarks.lm_eval_peer ours TASK DATA RUN OUT      (RUN: of `seedbed import`)
    python -m benchmarks.lm_eval_peer compare OURS PEER

HF_DIR is RUN exported. DATA holds mmlu/ and gsm8k/. Both sides answer the same NUM_QUESTIONS,
spread evenly over the test rows, in float32 on a CPU, and write a JSON line for each. They are
asked in NUM_PARTS, each of them spread evenly too: what OUT has already is not asked again, and a
number behind OUT says how many parts to do. lm-eval runs its own task with two changes: the rows
come from DATA, and the shots of gsm8k are the first ones of train, where it draws others for each
question. `compare` prints counts, and every question that differs.
"""

import csv
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

NUM_QUESTIONS = 300
NUM_PARTS = 25
NUM_SHOTS = 5
BATCH_SIZE = {"mmlu": 1, "gsm8k": 12}


def main() -> None:
    """Runs one of the two, or compares what they wrote."""
    who, *places = sys.argv[1:]
    if who == "compare":
        print(json.dumps(compare(*(read(Path(place)) for place in places)), indent=1))
        return
    name, data, model, out, *parts = places
    answer = {"ours": ours, "peer": peer}[who](name, Path(data), Path(model))
    done = read(Path(out)) if Path(out).exists() else {}
    for part in range(int(parts[0]) if parts else NUM_PARTS):
        wanted = chosen(name, Path(data))[part::NUM_PARTS]
        if not all(row["id"] in done for row in wanted):
            rows = answer(wanted)
            with Path(out).open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


def read(path: Path) -> dict[str, dict]:
    """Lines by question."""
    return {row["id"]: row for row in map(json.loads, path.read_text().splitlines())}


def chosen(name: str, data: Path) -> list[dict]:
    """The questions to ask, each with its id, as lm-eval's data sets have them."""
    rows = list(read_rows(name, data, "test"))
    return [rows[number * len(rows) // NUM_QUESTIONS] for number in range(NUM_QUESTIONS)]


def read_rows(name: str, data: Path, split: str) -> Iterator[dict]:
    """The rows of a split, in the order of the files."""
    pattern = f"{split}/*.csv" if name == "mmlu" else f"{split}*.jsonl*"
    for path in sorted((data / name).glob(pattern)):
        text = (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8")
        subject = path.stem.removesuffix(f"_{split}")
        with text as lines:
            for number, row in enumerate(csv.reader(lines) if name == "mmlu" else lines):
                found = {"id": f"{subject}/{number}", "subject": subject}
                if name == "mmlu":
                    answer = "ABCD".index(row[5])
                    yield found | {"question": row[0], "choices": row[1:5], "answer": answer}
                else:
                    yield found | json.loads(row)


def ours(name: str, data: Path, model: Path):
    """Our own tasks over those rows."""
    import dataclasses

    import jax

    from eval import harness, task
    from eval.tasks import gsm8k
    from launch.load import load_model, load_tokenizer
    from launch.store.rundir import RunDir
    from model.config import Layout
    from model.sharding import MeshConfig, make_mesh

    run, mesh = RunDir(model), make_mesh(MeshConfig(), jax.devices()[:1])
    config, params = load_model(run, "import", mesh)
    layout = Layout(scan_layers=name == "mmlu")  # unrolled layers decode faster
    config = dataclasses.replace(config, layout=layout, dtype="float32")
    tokenizer, loaded = load_tokenizer(run), task.load(name, str(data))
    ids = [row["id"] for row in chosen(name, data)]
    by_id = dict(zip(ids, harness.choose(loaded.examples, NUM_QUESTIONS), strict=True))

    def answer(rows: list[dict]) -> list[dict]:
        examples = [by_id[row["id"]] for row in rows]
        prompts = [loaded.prompt(example, NUM_SHOTS) for example in examples]
        outputs = harness.answer(
            *(loaded, examples, prompts, config, params, tokenizer),
            **dict(batch_size=BATCH_SIZE[name], log=print),
        )
        found = []
        for row, example, prompt, output in zip(rows, examples, prompts, outputs, strict=True):
            grades = loaded.grade(example, output)
            answered = {"id": row["id"], "prompt": prompt}
            if name == "mmlu":
                found.append(answered | {"logprobs": output, "right": grades["acc"]})
                continue
            extracted = {f"{rule}_answer": x for rule, x in gsm8k.extract(output).items()}
            found.append(answered | {"text": output} | grades | extracted)
        return found

    return answer


def peer(name: str, data: Path, model: Path):
    """lm-eval's own tasks over those rows."""
    import torch
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(1)
    lm = HFLM(str(model), dtype="float32", device="cpu", batch_size=BATCH_SIZE[name])
    manager, shots = TaskManager(), "dev" if name == "mmlu" else "train"

    def answer(rows: list[dict]) -> list[dict]:
        with TemporaryDirectory() as folder:
            specs = []
            for subject in sorted({row["subject"] for row in rows}):
                of_subject = [row for row in rows if row["subject"] == subject]
                before = list(read_rows(name, data, shots))
                before = [row for row in before if name == "gsm8k" or row["subject"] == subject]
                specs.append(spec(name, subject, {"test": of_subject, shots: before}, folder))
            # As members of a group, since a group's members keep what lm-eval says of them.
            tasks = manager.load({"group": "local", "task": specs})
            found = evaluate(lm, tasks, bootstrap_iters=0)["samples"]
        samples: dict[str, dict] = {}
        for sample in (sample for of_task in found.values() for sample in of_task):
            row = samples.setdefault(sample["doc"]["id"], {"id": sample["doc"]["id"]})
            row["prompt"] = sample["arguments"][0][0]
            if name == "mmlu":
                row["logprobs"] = [float(response[0][0]) for response in sample["resps"]]
                row["right"] = float(sample["acc"])
            else:
                filtered = sample["filter"].partition("-")[0]
                row["text"] = sample["resps"][0][0]
                row |= {filtered: float(sample["exact_match"])}
                row |= {f"{filtered}_answer": sample["filtered_resps"][0]}
        return list(samples.values())

    return answer


def spec(name: str, subject: str, splits: dict[str, list[dict]], folder: str) -> dict:
    """lm-eval's task with its rows from files."""
    files = {}
    for split, rows in splits.items():
        files[split] = f"{folder}/{subject}_{split}.json"
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": f"mmlu_{subject}" if name == "mmlu" else name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": f"{folder}/cache"},
        "num_fewshot": NUM_SHOTS,
        "fewshot_config": {"sampler": "first_n"},
    }


def compare(ours: dict[str, dict], peer: dict[str, dict]) -> dict:
    """Counts over the questions that both have, and those on which they differ."""
    both = [(ours[key], peer[key]) for key in ours if key in peer]
    found = {"questions": len(both)}
    found["same_prompt"] = sum(a["prompt"] == b["prompt"] for a, b in both)
    if "logprobs" not in both[0][0]:
        for key in ("strict", "flexible"):
            found |= {f"{key}_ours": sum(a[key] for a, _ in both)}
            found |= {f"{key}_peer": sum(b[key] for _, b in both)}
        keys = ("strict_answer", "flexible_answer", "text")
        for row in (row for pair in both for row in pair):
            row["text"] = row["text"].strip()
            row |= {key: None for key in keys if row[key] == "[invalid]"}
        for key in keys:
            found[f"same_{key}"] = sum(a[key] == b[key] for a, b in both)
        keys = ("id", *keys)
        unlike = [(a, b) for a, b in both if any(a[key] != b[key] for key in keys)]
        return found | {"differ": [[{key: row[key] for key in keys} for row in x] for x in unlike]}
    scores = np.array([[row["logprobs"] for row in pair] for pair in both])
    same = scores[:, 0].argmax(-1) == scores[:, 1].argmax(-1)
    found |= {"right_ours": sum(a["right"] for a, _ in both)}
    found |= {"right_peer": sum(b["right"] for _, b in both)}
    found["same_choice"] = int(same.sum())
    found["largest_difference_nats"] = float(np.abs(scores[:, 0] - scores[:, 1]).max())
    found["smallest_lead_nats"] = float(np.diff(np.sort(scores[:, 1]), axis=-1)[:, -1].min())
    return found | {"differ": [both[index] for index in np.flatnonzero(~same)]}


if __name__ == "__main__":
    main()
