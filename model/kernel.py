"""Attention kernels: which one computes self-attention, and how each is called.

Rows are always packed, so every kernel here supports segments. A kernel that cannot handle the rest
of a request is skipped with one warning, and the next one is tried.

            packed   window  softcap  GQA  sinks  H != Hv  float32  bfloat16  context   stages
  xla       yes      yes     yes      yes  yes    yes      yes      yes       yes       yes
  splash    yes      yes     yes      yes  yes    yes      yes      yes       balanced  yes
  cudnn     by mask  by mask no       yes  no     padded   no       yes       yes       no
  tokamax   by mask  by mask not GPU  yes  no     yes      not GPU  yes       yes       yes

All give gradients of queries, keys and values, and of sinks where they take them. 'By mask': a
(B, L, M) array, not N of them. 'Context': queries split over the context axis, keys gathered,
tokens in any order or in the balanced one alone. 'Stages': inside model/layer_pipeline.py. cuDNN
and tokamax's GPU kernels were lowered for CUDA and not yet run.
"""

import dataclasses
import functools
import importlib.util
import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from model import sharding
from model.attention import TokenIndex, attend, visible
from model.config import TransformerConfig
from model.ring import balanced_order, text_order

# What 'auto' tries, best first; the last one handles every request.
PLATFORMS = {"tpu": ("splash", "xla"), "gpu": ("cudnn", "xla"), "cpu": ("xla",)}
# Splash computes scores in square blocks. With blocks of 1024, heads of 256 exceed the compiler's
# default limit of scoped vector memory (v5p).
BLOCKS = (512, 256, 128)


@dataclasses.dataclass(frozen=True)
class Request:
    """The properties of one attention call that some kernel does not support.

    `hopper`: a GPU of compute capability 9.0 or more. `has_tokamax`: the package is installed.
    `order`: of a row's tokens in memory: that of their positions ('text'), 'balanced' over
    `num_shards` of a context axis, or 'any'. `staged`: pipelined.
    """

    platform: str
    hopper: bool
    has_tokamax: bool
    order: str
    num_shards: int
    staged: bool
    dtype: str
    length: int
    head_dim: int
    value_dim: int
    window: int
    softcap: float
    sinks: bool


def attention(
    config: TransformerConfig,
    q_BLNH: jax.Array,
    k_BKMH: jax.Array,
    v_BKMH: jax.Array,
    tokens: TokenIndex,
    window: int,
    scale: float,
    sink_N: jax.Array | None,
) -> jax.Array:
    """Self-attention of packed rows by the kernel that `layout.kernel` names, or the next one.

    Args:
      config: kernel and attention_softcap are read.
      q_BLNH: queries.
      k_BKMH: keys, M = L.
      v_BKMH: values; their H may differ from the keys'.
      tokens: of both queries and keys. Only on a mesh with a context axis may a row's tokens be
        in another order than that of their positions: in the balanced one, if `tokens.balanced`,
        or else in any. A kernel that relies on the order gives NaN for a row in another one.
      window: how many positions back a query sees, itself included; 0 for all.
      scale: multiplies the scores.
      sink_N: a logit a head without a value; None for none.

    Returns:
      Mixed values, shape (B, L, N, H of the values). Those of padding mean nothing.
    """
    num_shards = sharding.axis_size("context")
    request = Request(
        platform=_platform(),
        hopper=_is_hopper(),
        has_tokamax=importlib.util.find_spec("tokamax") is not None,
        order="text" if num_shards == 1 else "balanced" if tokens.balanced else "any",
        num_shards=num_shards,
        staged=sharding.axis_size("stage") > 1,
        dtype=q_BLNH.dtype.name,
        length=q_BLNH.shape[1],
        head_dim=q_BLNH.shape[-1],
        value_dim=v_BKMH.shape[-1],
        window=window,
        softcap=config.attention_softcap,
        sinks=sink_N is not None,
    )
    name = choose(config.layout.kernel, request)
    if name == "xla":
        mask_BLM = visible(tokens, tokens, window)
        return attend(q_BLNH, k_BKMH, v_BKMH, mask_BLM, scale, config.attention_softcap, sink_N)
    kernel = {"splash": _splash, "cudnn": _cudnn, "tokamax": _tokamax}[name]
    kernel = functools.partial(kernel, request)
    if request.order != "any":
        scale = jnp.where(_is_in_order(tokens, num_shards), scale, jnp.nan)
        scale = scale[:, None, None, None]
    q_BLNH = q_BLNH * jnp.asarray(scale, q_BLNH.dtype)
    return _on_each_device(kernel, q_BLNH, k_BKMH, v_BKMH, tokens, sink_N)


def choose(wanted: str, request: Request) -> str:
    """The first kernel that can handle the request: the wanted one, then those of the platform.

    Args:
      wanted: one of config.KERNELS.
      request: see Request.

    Returns:
      Its name. Each kernel that is skipped is logged once.
    """
    names = PLATFORMS[request.platform]
    for name in names if wanted == "auto" else (wanted, *names):
        reason = refusal(name, request)
        if reason is None:
            return name
        warn_once(name, reason)
    raise AssertionError("xla handles every request")


def refusal(kernel: str, request: Request) -> str | None:
    """Why a kernel cannot handle a request, for the log; None if it can."""
    if kernel == "xla":
        return None
    for broken, reason in _LIMITS[kernel]:
        if broken(request):
            return reason.format(**dataclasses.asdict(request))
    return None


_LIMITS: dict[str, tuple[tuple[Callable[[Request], bool], str], ...]] = {
    "splash": (
        (lambda r: r.platform != "tpu", "it runs on TPUs, not on a {platform}"),
        (
            lambda r: r.order == "any",
            "it needs to know the order of tokens in memory, which on a mesh with a context axis "
            "is known only for rows of the training loader",
        ),
        (
            lambda r: _chunk(r) % BLOCKS[-1] > 0,
            f"rows are {{length}} long on {{num_shards}} context shards: their chunks, or they "
            f"themselves, are no multiple of {BLOCKS[-1]}",
        ),
    ),
    "cudnn": (
        (lambda r: r.platform != "gpu", "it runs on GPUs, not on a {platform}"),
        (lambda r: r.dtype == "float32", "it computes in 16 bits, not in {dtype}"),
        (lambda r: r.softcap > 0, "it has no softcap"),
        (lambda r: r.sinks, "it has no sinks"),
        (lambda r: r.staged, "jax cannot batch its masks over pipeline stages (jax PR 36702)"),
        (lambda r: r.length % 2 > 0, "rows are {length} long, and it wants even lengths"),
        (
            lambda r: max(r.head_dim, r.value_dim) % 8 > 0,
            "heads are {head_dim} and {value_dim} long, no multiple of 8",
        ),
        (
            lambda r: max(r.head_dim, r.value_dim) > (256 if r.hopper else 128),
            "heads are {head_dim} and {value_dim} long, and it takes 128, or 256 from Hopper on",
        ),
    ),
    "tokamax": (
        (lambda r: not r.has_tokamax, "the package tokamax is not installed"),
        (lambda r: r.platform == "tpu", "its TPU kernel is splash, here with a dense mask"),
        (lambda r: r.sinks, "it has no sinks"),
        (
            lambda r: r.platform == "gpu" and r.dtype == "float32",
            "it would compute {dtype} in fewer bits",
        ),
        (
            lambda r: r.platform == "gpu" and r.softcap > 0,
            "its Triton kernel has no gradient through a softcap",
        ),
    ),
}


@functools.lru_cache
def warn_once(kernel: str, reason: str) -> None:
    """Logs that a kernel is skipped, and why."""
    logging.getLogger(__name__).warning("attention kernel %s is not used: %s", kernel, reason)


def _platform() -> str:
    """Platform the program is compiled for, whose devices this machine may not have."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _is_hopper() -> bool:
    capability = getattr(jax.local_devices()[0], "compute_capability", "0.0")
    return float(capability) >= 9


def _chunk(request: Request) -> int:
    """Length of the pieces of a row whose tokens are consecutive in memory."""
    pieces = 1 if request.num_shards == 1 else 2 * request.num_shards
    return request.length // pieces if request.length % pieces == 0 else 1


def _is_in_order(tokens: TokenIndex, num_shards: int) -> jax.Array:
    """in_order_B: whether positions count up by one along each document of a row."""
    segments_BL, positions_BL = (
        text_order(x, 1, num_shards) for x in (tokens.segments_BL, tokens.positions_BL)
    )
    same_BL = (segments_BL[:, 1:] == segments_BL[:, :-1]) & (segments_BL[:, 1:] > 0)
    return jnp.all(~same_BL | (positions_BL[:, 1:] - positions_BL[:, :-1] == 1), axis=1)


def _on_each_device(kernel, q_BLNH, k_BKMH, v_BKMH, tokens: TokenIndex, sink_N) -> jax.Array:
    """Calls a kernel on each device's rows and heads: XLA cannot partition a kernel.

    Queries stay split over the context axis, keys are gathered.
    """
    N, K = q_BLNH.shape[2], k_BKMH.shape[1]
    num_tensor = sharding.axis_size("tensor")
    if N % num_tensor == 0 and K % num_tensor:
        # Queries of one kv head are on several devices: each gets a copy of it.
        copies = math.lcm(K, num_tensor) // K
        k_BKMH, v_BKMH = (jnp.repeat(x, copies, axis=1) for x in (k_BKMH, v_BKMH))
    queries = sharding.activation_spec("BLN_", q_BLNH.shape)
    keys = sharding.activation_spec("BK__", k_BKMH.shape)
    spec = jax.sharding.PartitionSpec
    rows, whole_rows = spec(*queries[:2]), spec(queries[0])
    heads = None if sink_N is None else spec(queries[2])
    run = sharding.on_each_device(kernel, (queries, keys, keys, rows, whole_rows, heads), queries)
    return run(q_BLNH, k_BKMH, v_BKMH, tokens, tokens, sink_N)


def _splash(request: Request, q_BLNH, k_BKMH, v_BKMH, queries, keys, sink_N) -> jax.Array:
    """Splash attention of jax, which skips blocks that the causal mask and the window hide.

    Keys that were gathered in the balanced order are sorted into that of the text; the mask of each
    device's queries follows from their positions in it.
    Source: jax.experimental.pallas.ops.tpu.splash_attention, after arXiv 2205.14135.
    """
    shards, length = request.num_shards, request.length
    k_BKMH, v_BKMH = (text_order(x, 2, shards) for x in (k_BKMH, v_BKMH))
    key_segments_BM = text_order(keys.segments_BL, 1, shards)
    block = next(size for size in BLOCKS if _chunk(request) % size == 0)
    sizes = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    back = request.window - 1 if request.window else None
    # Late: Pallas takes long to import, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mask_LM = splash.LocalMask((length, length), (back, 0), offset=0)
    mask_LM.q_sequence = balanced_order(length, shards).astype(np.int32)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask_LM] * q_BLNH.shape[2]),
        block_sizes=splash.BlockSizes(**dict.fromkeys(sizes, block)),
        head_shards=1,
        q_seq_shards=shards,
        attn_logits_soft_cap=request.softcap or None,
    )
    segments = splash.SegmentIds(queries.segments_BL, key_segments_BM)
    mix = jax.vmap(_own_part(kernel, shards), in_axes=(0, 0, 0, 0, None))
    mixed_BNLH = mix(jnp.moveaxis(q_BLNH, 1, 2), k_BKMH, v_BKMH, segments, sink_N)
    return jnp.moveaxis(mixed_BNLH, 2, 1)


def _own_part(kernel: Callable, num_shards: int) -> Callable:
    """This device's part, along the context axis, of a kernel's masks."""
    if num_shards == 1:
        return kernel
    mesh = jax.sharding.AbstractMesh((num_shards,), ("context",))
    spec = jax.sharding.PartitionSpec(None, "context")
    specs = kernel.manual_sharding_spec(jax.sharding.NamedSharding(mesh, spec))

    def cut(x, spec):
        if "context" not in spec:
            return x
        dim = spec.index("context")
        size = x.shape[dim] // num_shards
        start = jax.lax.axis_index("context") * size
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(x), start, size, dim)

    return jax.tree.map(cut, kernel, specs)


def _cudnn(request: Request, q_BLNH, k_BKMH, v_BKMH, queries, keys, sink_N) -> jax.Array:
    """cuDNN's flash attention, with segments and windows as a mask.

    Its sequence lengths support padding at the end only, and its ragged layout computes wrong
    offsets for keys of fewer heads than queries (jax 0.10.2, _fix_seqlen_offsets).
    """
    del sink_N
    size = max(request.head_dim, request.value_dim)
    q_BLNH, k_BKMH, v_BKMH = (
        jnp.pad(x, [(0, 0)] * 3 + [(0, size - x.shape[-1])]) for x in (q_BLNH, k_BKMH, v_BKMH)
    )
    mixed_BLNH = jax.nn.dot_product_attention(
        q_BLNH,
        jnp.moveaxis(k_BKMH, 1, 2),
        jnp.moveaxis(v_BKMH, 1, 2),
        mask=visible(queries, keys, request.window)[:, None],
        scale=1.0,
        is_causal=request.order == "text",  # the mask is causal already; this halves the work
        implementation="cudnn",
    )
    return mixed_BLNH[..., : request.value_dim]


def _tokamax(request: Request, q_BLNH, k_BKMH, v_BKMH, queries, keys, sink_N) -> jax.Array:
    """tokamax's attention, by the kernel that it chooses for the device."""
    del sink_N
    import tokamax

    if not flags.FLAGS.is_parsed():  # or tokamax would parse our command line
        flags.FLAGS.mark_as_parsed()
    return tokamax.dot_product_attention(
        q_BLNH,
        jnp.moveaxis(k_BKMH, 1, 2),
        jnp.moveaxis(v_BKMH, 1, 2),
        mask=visible(queries, keys, request.window)[:, None],
        scale=1.0,
        is_causal=request.order == "text",
        logits_soft_cap=request.softcap or None,
    )
