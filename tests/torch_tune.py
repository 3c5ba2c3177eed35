"""Training an imported model, ours and torch's: the same rows, the loss of every step. By hand.

    python -m tests.torch_tune make DIR     (torch, transformers: models with their tokenizers)
    python -m tests.torch_tune ours DIR     (imports them and trains through the command line)
    python -m tests.torch_tune torch DIR    (torch, transformers: the same rows; compares)
    python -m tests.torch_tune freeze DIR   (writes tests/torch_tune.json, which the test reads)

`ours` keeps what the loader yields; `torch` takes tokens, targets, weights, segments and positions
as they are there, with a mask that is block-diagonal over the segments. All is float32 on a CPU.
After a change to packing or to the loader, run all four again.
"""

import dataclasses
import json
import math
import os
import random
import sys
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FROZEN = ROOT / "tests" / "torch_tune.json"
NUM_STEPS, BATCH_SIZE, SEQ_LEN, WARMUP_STEPS = 20, 8, 64, 4
PEAK_LR, FINAL_FRACTION, WEIGHT_DECAY, Z_LOSS = 3e-3, 0.1, 0.1, 1e-4
BETAS, EPS, CLIP_NORM = (0.9, 0.95), 1e-8, 1.0
OVERRIDES = {
    "stages": ("curate", "tokenizer", "pretrain"),
    "pretrain.seq_len": SEQ_LEN,
    "pretrain.z_loss": Z_LOSS,
    "pretrain.loop.num_steps": NUM_STEPS,
    "pretrain.loop.batch_size": BATCH_SIZE,
    "pretrain.loop.log_every": 1,
    "pretrain.loop.eval_every": NUM_STEPS,
    "pretrain.optimizer.peak_lr": PEAK_LR,
    "pretrain.optimizer.warmup_steps": WARMUP_STEPS,
    "pretrain.optimizer.final_lr_fraction": FINAL_FRACTION,
    "pretrain.optimizer.weight_decay": WEIGHT_DECAY,
    "pretrain.optimizer.beta1": BETAS[0],
    "pretrain.optimizer.beta2": BETAS[1],
    "pretrain.optimizer.eps": EPS,
    "pretrain.optimizer.clip_norm": CLIP_NORM,
    "eval.batch_size": 8,
    "eval.num_heldout": 1,
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A family's shape and tokenizer: split, special tokens, roles."""

    config: dict
    split: str
    special: tuple[str, ...]
    roles: dict


SHAPE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
SHAPE |= dict(num_key_value_heads=2, max_position_embeddings=256, vocab_size=400)
LLAMA_ROPE = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA_ROPE |= dict(original_max_position_embeddings=32, rope_theta=500_000.0)
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_ROLES = dict(bos_token=None, eos_token=QWEN[0], pad_token=QWEN[0])
LAYOUTS = {
    # bos is not eos, and there is no padding.
    "llama3": Layout(
        SHAPE | dict(model_type="llama", rope_parameters=LLAMA_ROPE, rms_norm_eps=1e-5),
        "llama-bpe",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
        dict(bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"),
    ),
    # No bos; padding is eos.
    "qwen2": Layout(
        SHAPE | dict(model_type="qwen2", tie_word_embeddings=True),
        *("qwen2", QWEN, QWEN_ROLES),
    ),
    "qwen3": Layout(
        SHAPE | dict(model_type="qwen3", head_dim=16),
        *("qwen2", QWEN, QWEN_ROLES),
    ),
}


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight, as a function of its name: the same without torch."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.standard_normal(shape, np.float32)
    if "norm" in name:
        return 1 + np.float32(0.1) * noise
    return np.float32(0.1 if name.endswith("bias") else 0.06) * noise


def write_text(folder: Path) -> None:
    """Documents of every length, so that rows hold several and some span rows."""
    rng = random.Random(folder.name)
    words = ["".join(rng.choices("aeinorstlmkdh", k=rng.randint(1, 7))) for _ in range(300)]
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for _ in range(400):
        chosen = rng.choices(words, k=rng.choice((3, 8, 20, 60)))
        chosen[rng.randrange(len(chosen))] = f"{rng.randrange(10**6)},\n\tn'est"
        lines.append(json.dumps({"text": " ".join(chosen).capitalize() + "."}))
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")


def make(folder: Path) -> None:
    """Models and tokenizers, written by transformers' save_pretrained."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    for name, layout in LAYOUTS.items():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**layout.config))
        for key, weight in model.named_parameters():
            weight.data = torch.from_numpy(values(key, tuple(weight.shape)))
        model.save_pretrained(folder / name)
        backend = build_tokenizer(layout)
        PreTrainedTokenizerFast(tokenizer_object=backend, **layout.roles).save_pretrained(
            folder / name
        )


def build_tokenizer(layout: Layout):
    """A small byte-level vocabulary with the family's split and special tokens."""
    from tokenizers import AddedToken

    from data.tokens.gguf_tokenizer import byte_level
    from tests.data.test_gguf_tokenizer import byte_vocab

    vocab, merges = byte_vocab()
    vocab |= {token: len(vocab) + i for i, token in enumerate(layout.special)}
    added = [AddedToken(token, special=True, normalized=False) for token in layout.special]
    return byte_level(vocab, merges, layout.split, added)


def write_frozen(folder: Path, name: str) -> list[float]:
    """Writes what `make` does, without torch, from FROZEN; gives torch's losses."""
    from safetensors.numpy import save_file

    from model.interop import hf_config, huggingface

    frozen = json.loads(FROZEN.read_text())[name]
    (folder / name).mkdir(parents=True)
    for file in ("config", "tokenizer_config"):
        (folder / name / f"{file}.json").write_text(json.dumps(frozen[file]))
    build_tokenizer(LAYOUTS[name]).save(str(folder / name / "tokenizer.json"))
    parts = huggingface.outline(hf_config.from_hf(frozen["config"]), frozen["config"]["model_type"])
    tensors = {part.name: values(part.name, part.shape) for part in parts}
    save_file(tensors, folder / name / "model.safetensors")
    return frozen["losses"]


def flags(name: str, folder: Path) -> list[str]:
    """The command line that tunes an imported run."""
    sources = {}
    for domain in ("docs", "code"):
        found = {"path": folder / "text" / domain, "text_field": "text", "gates": ()}
        sources |= {f"data.sources.{domain}.{key}": value for key, value in found.items()}
    overrides = [f"--config.{key}={value}" for key, value in (OVERRIDES | sources).items()]
    config = f"--config={ROOT}/configs/tune.py:{folder}/{name}-imported"
    return [config, f"--run={folder}/{name}-tuned", "--json", *overrides]


def tune(name: str, folder: Path, *more: str) -> tuple[list[float], list[dict]]:
    """Imports a model and trains it; the loss of every step, and the batches as they were."""
    from launch import job
    from launch.cli import run_command
    from launch.store.rundir import RunDir

    batches = []

    class Recording(job.Loader):
        def __next__(self):
            batches.append(super().__next__())
            return batches[-1]

    for domain in ("docs", "code"):
        write_text(folder / "text" / domain)
    source = f"--hf={folder}/{name}"
    assert run_command(["import", source, f"--out={folder}/{name}-imported"]) == 0
    plain, job.Loader = job.Loader, Recording
    try:
        assert run_command(["run", *flags(name, folder), "--workers=1", *more]) == 0
    finally:
        job.Loader = plain
    lines = RunDir(folder / f"{name}-tuned").path / "metrics.jsonl"
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    return losses, batches[:NUM_STEPS]


def ours(folder: Path) -> None:
    """Trains; keeps the rows and the losses."""
    for name in LAYOUTS:
        losses, batches = tune(name, folder)
        stacked = {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}
        np.savez(folder / f"{name}.npz", losses=losses, **stacked)
        count = int((stacked["segments"].max(-1) > 1).sum())
        print(json.dumps({"model": name, "first": losses[0], "last": losses[-1], "rows": count}))


def torch_losses(directory: Path, rows: dict[str, np.ndarray]) -> list[float]:
    """torch's cross-entropy of every step over the same rows."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    weights = list(model.parameters())
    matrices = [weight for weight in weights if weight.ndim > 1]
    vectors = [weight for weight in weights if weight.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, PEAK_LR, BETAS, EPS, WEIGHT_DECAY)
    losses = []
    for step in range(NUM_STEPS):
        tokens, targets, weight, segments, positions = (
            torch.from_numpy(rows[key][step])
            for key in ("tokens", "targets", "weights", "segments", "positions")
        )
        length = tokens.shape[1]
        seen = (segments[:, None, :] == segments[:, :, None]) & torch.ones(
            length, length, dtype=torch.bool
        ).tril()
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        logits = model(
            tokens.long(), attention_mask=mask[:, None], position_ids=positions.long()
        ).logits
        lse = logits.logsumexp(-1)
        nll = lse - logits.gather(-1, targets.long()[..., None])[..., 0]
        loss = ((nll + Z_LOSS * lse**2) * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((x.grad**2).sum() for x in weights))
        for x in weights:
            x.grad *= min(1.0, CLIP_NORM / float(norm))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        losses.append(float((nll.detach() * weight).sum() / weight.sum()))
    return losses


def learning_rate(step: int) -> float:
    """Warmup from a fraction of the peak, then a cosine that ends at the last step."""
    if step < WARMUP_STEPS:
        return PEAK_LR * (1 / (WARMUP_STEPS + 1) * (1 - step / WARMUP_STEPS) + step / WARMUP_STEPS)
    turn = math.pi * (step - WARMUP_STEPS) / (NUM_STEPS - 1 - WARMUP_STEPS)
    return PEAK_LR * (FINAL_FRACTION + (1 - FINAL_FRACTION) * 0.5 * (1 + math.cos(turn)))


def torch(folder: Path) -> None:
    """Trains in torch on the rows that `ours` kept, and compares."""
    for name in LAYOUTS:
        rows = np.load(folder / f"{name}.npz")
        theirs = torch_losses(folder / name, rows)
        (folder / f"{name}.json").write_text(json.dumps(theirs))
        apart = np.abs(rows["losses"] - theirs)
        found = {"model": name, "first": theirs[0], "last": theirs[-1]}
        print(json.dumps(found | {"largest difference": apart.max(), "step": int(apart.argmax())}))


def freeze(folder: Path) -> None:
    """config.json and tokenizer files as transformers wrote them, and torch's losses."""
    kept = {
        name: {
            "config": json.loads((folder / name / "config.json").read_text()),
            "tokenizer_config": json.loads((folder / name / "tokenizer_config.json").read_text()),
            "losses": json.loads((folder / f"{name}.json").read_text()),
        }
        for name in LAYOUTS
    }
    FROZEN.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    what, place = sys.argv[1:]
    {"make": make, "ours": ours, "torch": torch, "freeze": freeze}[what](Path(place).absolute())
