"""Prefill and greedy decoding of an imported model, ours and transformers', run by hand.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.imported ours RUN
    python -m benchmarks.imported peer DIR        (torch and transformers; DIR: the run exported)

Float32 on a CPU, batch 1. Prints one JSON line: medians of ROUNDS, tokens a second.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

PROMPT_TOKENS = 512
NEW_TOKENS = 64
ROUNDS = 5


def main() -> None:
    """Times one of the two."""
    who, place = sys.argv[1:]
    prompt = np.random.default_rng(0).integers(1000, 100_000, (1, PROMPT_TOKENS))
    generate = {"ours": ours, "peer": peer}[who](Path(place), prompt)
    secs = {length: [] for length in (1, 1 + NEW_TOKENS)}
    for _ in range(ROUNDS + 1):
        for length, found in secs.items():
            start = time.perf_counter()
            generate(length)
            found.append(time.perf_counter() - start)
    first, whole = (np.median(found[1:]) for found in secs.values())
    speeds = {"prefill": PROMPT_TOKENS / first, "decode": NEW_TOKENS / (whole - first)}
    print(json.dumps({"who": who} | {name: round(float(x), 1) for name, x in speeds.items()}))


def ours(run: Path, prompt: np.ndarray):
    """Our generate, from a run."""
    import dataclasses

    import jax

    from launch.load import load_model
    from launch.store.rundir import RunDir
    from model.config import Layout
    from model.decode import generate
    from model.sharding import MeshConfig, make_mesh

    config, params = load_model(RunDir(run), "import", make_mesh(MeshConfig(), jax.devices()[:1]))
    config = dataclasses.replace(config, layout=Layout(scan_layers=False))
    mask, rng = np.ones_like(prompt, np.int32), jax.random.key(0)

    def run_once(length: int) -> None:
        out = generate(
            *(config, params, prompt.astype(np.int32), mask, rng),
            **dict(max_new_tokens=length, temperature=0.0, end_id=-1, pad_id=0),
        )
        out.tokens_BR.block_until_ready()

    return run_once


def peer(directory: Path, prompt: np.ndarray):
    """transformers' generate, eager, with its own cache."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.tensor(prompt)

    def run_once(length: int) -> None:
        with torch.no_grad():
            model.generate(
                ids, max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=0
            )

    return run_once


if __name__ == "__main__":
    main()
