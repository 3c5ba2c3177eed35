"""Measures a config's own training step and decoder on the devices at hand."""

import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from launch.job import lm_rows
from launch.settings import Settings
from model import decode, flop
from model.config import TransformerConfig
from model.sharding import Mesh, make_mesh
from model.transformer import Params, init
from train.lm import lm_loss
from train.loop import place
from train.step import make_training

NUM_ROUNDS = 5
STEPS_PER_ROUND = 6
PROMPT_TOKENS = 64
NEW_TOKENS = 128
DECODE_BATCHES = (1, 16)


def run_bench(settings: Settings) -> dict:
    """Times the pretraining step and greedy decoding on random tokens and weights.

    Returns:
      tokens_per_sec (median, minimum and maximum of NUM_ROUNDS rounds), step_secs, mfu and the peak
      it is a share of, compile_secs, num_compilations, decode_tokens_per_sec by batch, num_params,
      num_active_params (of experts, the chosen ones), peak_rss_bytes of the process.
    """
    config, mesh = settings.model, make_mesh(settings.mesh)
    with jax.set_mesh(mesh):
        params = init(config, jax.random.key(settings.seed), mesh)
        result = _bench_training(settings, config, params, mesh)
        result["decode_tokens_per_sec"] = {
            f"batch_{size}": _bench_decoding(config, params, size) for size in DECODE_BATCHES
        }
    result["num_params"] = flop.num_params(config)
    result["num_active_params"] = flop.num_active_params(config)
    result["device"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result


def _bench_training(
    settings: Settings, config: TransformerConfig, params: Params, mesh: Mesh
) -> dict:
    section, loss = settings.pretrain, lm_loss(config, settings.pretrain.z_loss)
    lengths = (section.loop.num_steps, section.loop.num_microbatches)
    begin, step = make_training(loss, section.optimizer, config, *lengths, mesh)
    state = begin(jax.tree.map(jnp.copy, params))
    batch_size, seq_len = section.loop.batch_size, section.seq_len
    rows = _random_rows(config.vocab_size, batch_size, seq_len + 1)
    batch = place(lm_rows(settings.mesh, seq_len)(rows), mesh)
    start = time.perf_counter()
    for _ in range(2):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    compile_secs = time.perf_counter() - start
    secs = []
    for _ in range(NUM_ROUNDS):
        start = time.perf_counter()
        for _ in range(STEPS_PER_ROUND):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        secs.append((time.perf_counter() - start) / STEPS_PER_ROUND)
    speeds = batch_size * seq_len / np.asarray(secs)
    peak, source = flop.peak_flops(config.dtype, config.quantized)
    achieved = flop.train_flops(config, seq_len) * float(np.median(speeds))
    if source == "measured":  # while other programs ran
        peak = max(peak, achieved)
    return {
        "tokens_per_sec": round(float(np.median(speeds)), 1),
        "tokens_per_sec_min": round(float(speeds.min()), 1),
        "tokens_per_sec_max": round(float(speeds.max()), 1),
        "step_secs": round(float(np.median(secs)), 5),
        "mfu": round(achieved / peak, 4),
        "peak_flops": peak,
        "peak_flops_source": source,
        "compile_secs": round(compile_secs, 2),
        "num_compilations": step._cache_size(),
    }


def _bench_decoding(config: TransformerConfig, params: Params, batch_size: int) -> float:
    prompt_BP = _random_rows(config.vocab_size, batch_size, PROMPT_TOKENS)["tokens"]
    speeds = []
    for _ in range(NUM_ROUNDS + 1):
        start = time.perf_counter()
        generation = decode.generate(
            config,
            params,
            prompt_BP,
            np.ones_like(prompt_BP),
            jax.random.key(0),
            max_new_tokens=NEW_TOKENS,
            temperature=0.0,
            end_id=-1,  # never: a row ends only where learned positions do
            pad_id=0,
        )
        num_tokens = int(jnp.sum(generation.mask_BR))
        speeds.append(num_tokens / (time.perf_counter() - start))
    return round(float(np.median(speeds[1:])), 1)


def _random_rows(vocab_size: int, num_rows: int, length: int) -> dict[str, np.ndarray]:
    """Rows of one random document each, as `data.tokens.shards` packs them."""
    tokens = np.random.default_rng(0).integers(8, vocab_size, (num_rows, length))
    return {"tokens": tokens, "segments": np.ones_like(tokens), "mask": np.ones_like(tokens)}
