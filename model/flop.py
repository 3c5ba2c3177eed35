"""The one FLOP counter: trainer, bench, report and, later, scaling fits read it."""

import math
import time

import jax
import jax.numpy as jnp

from model.transformer import TransformerConfig, declare

# Dense bf16 peak of one chip, FLOP/s, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def num_params(config: TransformerConfig) -> int:
    """Number of parameters, embeddings included."""
    shapes = jax.tree.leaves(declare(config), is_leaf=lambda node: isinstance(node, tuple))
    return sum(math.prod(shape) for _, shape in shapes)


def forward_flops(config: TransformerConfig, seq_len: int) -> float:
    """Floating-point operations of one token's forward pass, a multiply-add counted as two.

    Matrix products only: projections, feed-forward, head, and causal attention over an average
    context of seq_len / 2 (the masked half is not counted, packing is not subtracted).

    Source: arXiv 2204.02311, appendix B, with the causal half of attention.
    """
    D, H, F = config.d_model, config.head_dim, config.d_ff
    project = 2 * D * H * (2 * config.num_heads + 2 * config.num_kv_heads)
    attention = 2 * 2 * config.num_heads * H * seq_len / 2
    feed_forward = 3 * 2 * D * F
    head = 2 * D * (1 if config.head == "scalar" else config.vocab_size)
    return config.num_layers * (project + attention + feed_forward) + head


def train_flops(config: TransformerConfig, seq_len: int) -> float:
    """Floating-point operations of one token's training step: forward and twice that backward."""
    return 3 * forward_flops(config, seq_len)


def peak_flops() -> tuple[float, str]:
    """Peak FLOP/s of the devices at hand and where the figure comes from.

    Returns:
      (FLOP/s over all devices, 'data sheet' or 'measured'): a device missing from PEAK_FLOPS
      (a CPU, say) is measured by float32 matrix products of 1024 x 1024 on all its cores.
    """
    kind = jax.devices()[0].device_kind
    if kind in PEAK_FLOPS:
        return PEAK_FLOPS[kind] * jax.device_count(), "data sheet"
    size, multiply = 1024, jax.jit(jnp.matmul)
    x = jnp.ones((size, size))
    multiply(x, x).block_until_ready()
    best_secs = math.inf
    for _ in range(8):
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        best_secs = min(best_secs, time.perf_counter() - start)
    return 2 * size**3 / best_secs, "measured"
