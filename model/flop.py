"""Counts of parameters and FLOPs, and the peak FLOP/s of devices, for trainer, bench and report."""

import functools
import math
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from model.config import DTYPES, TransformerConfig, layer_kinds
from model.layer import is_matrix
from model.transformer import declare

# Dense peak of one chip in bfloat16 and in 8 bits, FLOP/s, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": (275e12, 275e12),
    "TPU v5 lite": (197e12, 394e12),
    "TPU v5": (459e12, 918e12),
    "TPU v6 lite": (918e12, 1836e12),
    "NVIDIA H100 80GB HBM3": (989e12, 1979e12),
    "NVIDIA H200": (989e12, 1979e12),
}
# A product is timed well when it takes this long; beyond the size nothing is faster any more.
MEASURED_SECS, MAX_MEASURED_SIZE = 0.01, 16384


def num_params(config: TransformerConfig) -> int:
    """Number of parameters, embeddings included, the padding of the vocabulary left out."""
    padding = config.sizes()["V"] - config.vocab_size
    num_tables = 2 if config.head == "untied" else 1
    stored = sum(math.prod(shape) for _, _, shape in _weights(config))
    return stored - num_tables * padding * config.d_model


def num_active_params(config: TransformerConfig) -> int:
    """Number of parameters that one token passes through: of experts, the chosen ones."""
    moe = config.moe
    idle = sum(
        math.prod(shape) * (moe.num_experts - moe.top_k) // moe.num_experts
        for name, letters, shape in _weights(config)
        if _is_expert(name, letters)
    )
    return num_params(config) - idle


def forward_flops(config: TransformerConfig, seq_len: int) -> float:
    """Floating-point operations of one token's forward pass, a multiply-add counted as two.

    Matrix products only: every weight matrix that the token meets, once (the embedding as a tied
    head, chosen experts of all), and causal attention over an average context of seq_len / 2, or
    of what a window leaves of it (the masked half is not counted, packing is not subtracted).
    Latent attention is counted as it is trained, with its keys and values expanded.

    Source: arXiv 2204.02311, appendix B, with the causal half of attention.
    """
    moe, head_size = config.moe, config.head_dim + config.value_dim()
    matrices = 0.0
    for name, letters, shape in _weights(config):
        if _is_matrix(name, letters):
            share = moe.top_k / moe.num_experts if _is_expert(name, letters) else 1.0
            matrices += share * math.prod(shape)
    head = config.d_model * (1 if config.head == "scalar" else config.vocab_size)
    window = min(config.window, seq_len)
    context = {False: seq_len / 2, True: window - window**2 / (2 * seq_len)}
    keys = sum(context[kind.sliding] for kind in layer_kinds(config))
    return 2 * (matrices + head) + 2 * config.num_heads * head_size * keys


def _weights(config: TransformerConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, letters, shape) of every weight."""
    for path, weight in jax.tree.leaves_with_path(declare(config)):
        yield path[-1].key, weight.letters, weight.shape


def _is_matrix(name: str, letters: str) -> bool:
    """Whether a token is multiplied by it, the head left out."""
    tables = ("embedding", "position_table", "head")
    return is_matrix(name, letters) and name not in tables


def _is_expert(name: str, letters: str) -> bool:
    return "E" in letters and name not in ("router", "router_bias", "balance_bias")


def train_flops(config: TransformerConfig, seq_len: int) -> float:
    """Floating-point operations of one token's training step: forward and twice that backward."""
    return 3 * forward_flops(config, seq_len)


def peak_flops(dtype: str, quantized: str = "none") -> tuple[float, str]:
    """Peak FLOP/s of all devices, of which MFU is the share, and where the figure comes from.

    Args:
      dtype: that the model computes in, a key of `config.DTYPES`.
      quantized: as `model.quantized`: not 'none' where products are in 8 bits.

    Returns:
      (FLOP/s over all devices, 'data sheet' or 'measured'). A device in PEAK_FLOPS counts with its
      dense peak, in bfloat16 whatever the dtype, or in 8 bits; of another (a CPU, say) matrix
      products in this dtype are timed, on all devices of the process at once.
    """
    kind = jax.devices()[0].device_kind
    if kind in PEAK_FLOPS:
        return PEAK_FLOPS[kind][quantized != "none"] * jax.device_count(), "data sheet"
    return _measured_peak(dtype), "measured"


@functools.cache
def _measured_peak(dtype: str) -> float:
    """The best of square products, of growing size until one takes long enough to be timed."""
    mesh = jax.sharding.Mesh(jax.local_devices(), ("device",))
    each = jax.sharding.PartitionSpec("device")
    multiply = jax.jit(jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(each, each), out_specs=each))
    place = jax.sharding.NamedSharding(mesh, each)
    peak, secs, size = 0.0, 0.0, 512
    with jax.set_mesh(mesh):  # a stage calls this within a mesh of its own
        while secs < MEASURED_SECS and size < MAX_MEASURED_SIZE:
            size *= 2
            x = jax.device_put(jnp.ones((size * mesh.size, size), DTYPES[dtype]), place)
            multiply(x, x).block_until_ready()
            secs = min(_time(multiply, x) for _ in range(8))
            peak = max(peak, 2 * size**3 * jax.device_count() / secs)
    return peak


def _time(multiply: Callable, x: jax.Array) -> float:
    start = time.perf_counter()
    multiply(x, x).block_until_ready()
    return time.perf_counter() - start
