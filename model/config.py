"""The shape of a decoder: one frozen dataclass with switches, and the layers that follow from it.

A published architecture is a set of config values (configs/families.py), not a class.
"""

import dataclasses
import functools
import math
import types
from typing import Any

import jax.numpy as jnp

HEADS = ("tied", "untied", "scalar")
LAYERS = ("full", "sliding")
POSITIONS = ("rope", "learned")
NORMS = ("rms", "layer")
NORM_PLACES = ("pre", "post", "sandwich")
QK_NORMS = ("none", "head", "whole")
MLPS = ("swiglu", "geglu", "gelu", "relu2", "clamped_swiglu")
BIASES = ("qkv", "out", "mlp", "router")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")
ROUTERS = ("softmax", "sigmoid")
DISPATCHES = ("dropless", "capacity")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
REMATS = ("none", "dots", "full")
KERNELS = ("auto", "xla", "splash", "cudnn", "tokamax")
CONTEXTS = ("gather", "ring")
QUANTIZED = ("none", "int8", "fp8")
# Metadata of a field that affects how something is computed, logged or kept, but not the result:
# such a field is no part of a stage's identity, and a change of it does not restart the stage.
LAYOUT = types.MappingProxyType({"identity": False})


def require(config: Any, path: str = "", /, **keys: tuple[bool, str]) -> None:
    """Refuses values of a dataclass.

    Args:
      config: has the values.
      path: what stands before a key in the message, with a dot at its end.
      keys: for a key, whether its value fits, and what is allowed.

    Raises:
      ValueError: a value does not fit; the message names key, value and what is allowed.
    """
    for key, (fits, allowed) in keys.items():
        if not fits:
            raise ValueError(f"{path}{key} is {getattr(config, key)!r}; it must be {allowed}")


def _require_numbers(config: Any, path: str, least: int, *keys: str, above: bool = False) -> None:
    """Refuses what is not finite, or below `least`, or, with `above`, equal to it."""
    for key in keys:
        value, word = getattr(config, key), "above" if above else "at least"
        fits = least < value < math.inf or (value == least and not above)
        finite = ", finite" if isinstance(value, float) else ""
        require(config, path, **{key: (fits, f"{word} {least}{finite}")})


def _require_choices(config: Any, path: str, **choices: tuple[str, ...]) -> None:
    """Refuses a value, or an entry of a tuple, that is not among those allowed."""
    for key, allowed in choices.items():
        value = getattr(config, key)
        values = value if isinstance(value, tuple) else (value,)
        require(config, path, **{key: (set(values) <= set(allowed), f"one of {allowed}")})


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (arXiv 2104.09864) and how they are stretched beyond the trained length.

    With r = original_len / wavelength turns of a frequency over the trained length, 'llama3' and
    'yarn' (arXiv 2309.00071) divide it by `factor` where r < slow, keep it where r > fast, and
    blend between; 'linear' divides every frequency. `magnitude` multiplies sines and cosines
    (YaRN's attention factor); `truncate` rounds YaRN's bounds to whole dims.
    """

    theta: float = 10_000.0  # base of the frequencies
    local_theta: float = 0.0  # base in sliding layers, never stretched; 0: as in full ones
    scaling: str = "none"  # none, linear, llama3, yarn
    factor: float = 1.0  # of stretching
    original_len: int = 0  # tokens it was trained on before (llama3, yarn)
    slow: float = 1.0  # turns over original_len below which a frequency is stretched
    fast: float = 32.0  # turns above which it is kept
    magnitude: float = 1.0  # multiplies sines and cosines
    truncate: bool = True  # yarn: bounds at whole dims

    def __post_init__(self):
        path = "model.rope."
        _require_numbers(self, path, 0, "theta", "magnitude", above=True)
        _require_numbers(self, path, 0, "local_theta", "original_len", "slow", "fast")
        _require_numbers(self, path, 1, "factor")
        _require_choices(self, path, scaling=ROPE_SCALINGS)
        if self.scaling in ("llama3", "yarn"):
            _require_numbers(self, path, 1, "original_len")
            require(self, path, slow=(0 < self.slow < self.fast, "above 0, below fast"))


@dataclasses.dataclass(frozen=True)
class MLAConfig:
    """Multi-head latent attention (arXiv 2405.04434, section 2.1); kv_rank 0 turns it off.

    model.head_dim is the whole size of a query: `rope_dim` rotated dims come last in it, and one
    rotated key is shared by all heads. query_rank 0: queries are not compressed.
    """

    kv_rank: int = 0  # dims of the latent; 0 for none
    query_rank: int = 0  # dims that queries go through; 0: straight
    rope_dim: int = 0  # rotated dims of head_dim
    value_dim: int = 0  # dims of a value

    def __post_init__(self):
        path = "model.mla."
        _require_numbers(self, path, 0, "kv_rank", "query_rank", "rope_dim", "value_dim")
        if self.kv_rank:
            fits = self.rope_dim > 0 and self.rope_dim % 2 == 0
            require(self, path, rope_dim=(fits, "even and above 0"))
            _require_numbers(self, path, 1, "value_dim")


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """Mixture of experts in place of the feed-forward; num_experts 0 turns it off.

    The first `num_dense` layers keep the plain feed-forward, and so do all but every `every`-th.
    `normalize` divides the chosen weights by their sum, `scale` multiplies them. Experts are
    chosen from the `top_groups` best of `num_groups` groups (arXiv 2412.19437, section 2.1.2).
    `bias_rate` above 0 balances by a bias on the choice alone, moved by that much a step.
    """

    num_experts: int = 0  # E; 0 for none
    top_k: int = 1  # experts a token
    d_ff: int = 0  # F of an expert
    shared_d_ff: int = 0  # F of the expert that every token passes; 0 for none
    shared_gate: bool = False  # it has a sigmoid gate
    num_dense: int = 0  # first layers without experts
    every: int = 1  # every n-th layer has experts
    router: str = "softmax"  # softmax or sigmoid
    normalize: bool = True  # chosen weights sum to 1
    scale: float = 1.0  # multiplies them
    num_groups: int = 1  # of experts
    top_groups: int = 1  # groups that a token may choose from
    balance_bias: bool = False  # a bias on the choice alone
    bias_rate: float = 0.0  # its move a step against the load
    aux_loss: float = 0.0  # weight of the load-balancing loss (1 if even), in pretrain and sft
    z_loss: float = 0.0  # weight of the router's logsumexp^2, in pretrain and sft
    dispatch: str = "dropless"  # dropless or capacity
    capacity_factor: float = 1.0  # slots of an expert, relative to an even share of a row

    def __post_init__(self):
        path = "model.moe."
        _require_numbers(self, path, 0, "num_experts", "d_ff", "shared_d_ff", "num_dense")
        _require_numbers(self, path, 0, "bias_rate", "aux_loss", "z_loss")
        _require_numbers(self, path, 1, "top_k", "every", "num_groups", "top_groups")
        _require_numbers(self, path, 0, "scale", "capacity_factor", above=True)
        _require_choices(self, path, router=ROUTERS, dispatch=DISPATCHES)
        if not self.num_experts:
            return
        _require_numbers(self, path, 1, "d_ff")
        groups, experts = self.num_groups, self.num_experts
        most = experts // groups * self.top_groups
        require(
            self,
            path,
            num_groups=(experts % groups == 0, f"a divisor of {path}num_experts = {experts}"),
            top_groups=(self.top_groups <= groups, f"at most {path}num_groups = {groups}"),
            top_k=(self.top_k <= most, f"1 to {most}, the experts to choose from"),
            bias_rate=(
                self.balance_bias or not self.bias_rate,
                f"0 unless {path}balance_bias is set",
            ),
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model is computed on the devices at hand; the result is the same."""

    remat: str = "none"  # none, dots (keep matrix products) or full (keep layer inputs)
    scan_layers: bool = True  # True: one compiled body for all layers; False: faster on a CPU
    kernel: str = "auto"  # attention: auto (by platform), xla, splash, cudnn, tokamax
    context: str = "gather"  # attention over a context axis: gather keys, or ring
    stage_microbatches: int = 1  # parts of a batch in a pipeline, at least mesh.stage to fill it
    stage_repeats: int = 1  # times that a microbatch passes through the stages
    chunk_tokens: int = 1024  # tokens a device whose logits exist at once

    def __post_init__(self):
        path = "layout."
        _require_numbers(self, path, 1, "stage_microbatches", "stage_repeats", "chunk_tokens")
        _require_choices(self, path, remat=REMATS, kernel=KERNELS, context=CONTEXTS)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a decoder."""

    vocab_size: int  # rows of the embedding; in a configuration 0 stands for tokenizer.vocab_size
    num_layers: int  # layers
    d_model: int  # D
    num_heads: int  # N
    num_kv_heads: int  # K; N: multi-head, 1: multi-query
    head_dim: int  # H
    d_ff: int  # F
    head: str = "tied"  # tied or untied output embedding; scalar: a value a position (critic)
    layers: tuple[str, ...] = ("full",)  # kinds of attention, cycled over the depth: full, sliding
    window: int = 0  # tokens that a sliding layer sees
    positions: str = "rope"  # rope or learned
    max_positions: int = 0  # tokens; size of the learned table
    norm: str = "rms"  # rms or layer, which always has a bias
    # Of the two norms of a sublayer f: pre x + f(norm(x)), post x + norm(f(x)), sandwich both.
    norm_place: str = "pre"
    norm_eps: float = 1e-6  # added to the mean square or variance
    mlp: str = "swiglu"  # swiglu, geglu, gelu, relu2, clamped_swiglu (that of gpt-oss)
    bias: tuple[str, ...] = ()  # products with a bias: qkv, out, mlp, router
    qk_norm: str = "none"  # RMSNorm of queries and keys: none, head, whole (projection)
    sinks: bool = False  # a learned logit a head that attention may flow to (arXiv 2309.17453)
    attention_scale: float = 0.0  # multiplies scores; 0 for head_dim^-0.5
    attention_softcap: float = 0.0  # bounds scores: c tanh(x / c) (arXiv 2408.00118); 0: none
    logit_softcap: float = 0.0  # bounds logits likewise; 0 for none
    scale_embedding: bool = False  # token vectors times sqrt(D)
    rope: RopeConfig = RopeConfig()
    mla: MLAConfig = MLAConfig()  # latent attention
    moe: MoEConfig = MoEConfig()
    vocab_multiple: int = 1  # the vocabulary is padded to a multiple of this, for tensor axes
    dtype: str = "float32"  # of activations, float32 or bfloat16; parameters are float32
    # Products in training: none, int8, fp8; not those of embedding, head, routers, routed experts.
    quantized: str = "none"
    layout: Layout = dataclasses.field(default=Layout(), metadata={"identity": False, "key": False})

    def __post_init__(self):
        path = "model."
        sizes = "vocab_size num_layers d_model num_heads num_kv_heads head_dim d_ff vocab_multiple"
        _require_numbers(self, path, 1, *sizes.split())
        _require_numbers(self, path, 0, "window", "max_positions", "attention_scale")
        _require_numbers(self, path, 0, "attention_softcap", "logit_softcap")
        _require_numbers(self, path, 0, "norm_eps", above=True)
        _require_choices(self, path, head=HEADS, layers=LAYERS, positions=POSITIONS, norm=NORMS)
        _require_choices(self, path, norm_place=NORM_PLACES, mlp=MLPS, bias=BIASES)
        _require_choices(self, path, qk_norm=QK_NORMS, dtype=tuple(DTYPES), quantized=QUANTIZED)
        require(self, path, layers=(bool(self.layers), "at least one kind"))
        self._check_attention(path)

    def _check_attention(self, path: str) -> None:
        learned, sliding = self.positions == "learned", "sliding" in self.layers
        divides = self.num_heads % self.num_kv_heads == 0
        require(
            self,
            path,
            num_kv_heads=(divides, f"a divisor of {path}num_heads = {self.num_heads}"),
            head_dim=(learned or self.head_dim % 2 == 0, "even, RoPE rotates pairs"),
            max_positions=(
                self.max_positions > 0 or not learned,
                "at least 1 with learned positions",
            ),
            window=(self.window > 0 or not sliding, "at least 1 with sliding layers"),
        )
        if self.mla.kv_rank:
            most, with_latent = self.head_dim - 1, "with latent attention"
            fits = self.mla.rope_dim <= most
            require(self.mla, "model.mla.", rope_dim=(fits, f"at most {most}"))
            require(
                self,
                path,
                positions=(not learned, f"'rope' {with_latent}"),
                qk_norm=(self.qk_norm == "none", f"'none' {with_latent}"),
                num_kv_heads=(self.num_kv_heads == self.num_heads, f"num_heads {with_latent}"),
            )

    def check_length(self, what: str, length: int) -> None:
        """Raises ValueError if a row of this length has more tokens than learned positions."""
        if self.positions == "learned" and length > self.max_positions:
            raise ValueError(
                f"{what} is {length} long; model.max_positions is {self.max_positions}, and "
                "beyond them this model has learned no positions"
            )

    def value_dim(self) -> int:
        """Dims of a value of a head."""
        return self.mla.value_dim or self.head_dim

    def max_tokens(self) -> int:
        """Longest row that the positions allow; RoPE allows any, which is 2^24 here."""
        return self.max_positions if self.positions == "learned" else 1 << 24

    def sizes(self) -> dict[str, int]:
        """Length of each lettered dim of the weights; F and Z differ from module to module."""
        multiple = self.vocab_multiple
        return {
            "V": -(-self.vocab_size // multiple) * multiple,
            "D": self.d_model,
            "N": self.num_heads,
            "K": self.num_kv_heads,
            "H": self.head_dim,
            "F": self.d_ff,
            "E": self.moe.num_experts,
            "T": self.max_positions,
        }


@dataclasses.dataclass(frozen=True)
class Layer:
    """What sets one layer apart from another."""

    sliding: bool
    experts: bool


@dataclasses.dataclass(frozen=True)
class Stack:
    """`repeats` copies of a few layers: parameters are stacked along X, computation is scanned."""

    layers: tuple[Layer, ...]
    repeats: int


def layer_kinds(config: TransformerConfig) -> tuple[Layer, ...]:
    """The kind of every layer, from the embedding up."""
    moe = config.moe
    return tuple(
        Layer(
            sliding=config.layers[i % len(config.layers)] == "sliding",
            experts=bool(moe.num_experts and i >= moe.num_dense and (i + 1) % moe.every == 0),
        )
        for i in range(config.num_layers)
    )


@functools.lru_cache(maxsize=256)
def stacks(config: TransformerConfig) -> tuple[Stack, ...]:
    """The layers as few stacks: from below, always the repetition that covers most layers.

    Llama is one stack of one layer; Gemma 3 one of six, then the layers left over; DeepSeek-V3 its
    dense layers, then those with experts.
    """
    left, found = list(layer_kinds(config)), []
    while left:
        period, repeats = max(
            ((p, _repeats(left, p)) for p in range(1, len(left) + 1)),
            key=lambda x: (x[0] * x[1] if x[1] > 1 or x[0] == 1 else 0, -x[0]),
        )
        found.append(Stack(tuple(left[:period]), repeats))
        left = left[period * repeats :]
    return tuple(found)


def _repeats(kinds: list[Layer], period: int) -> int:
    count = 1
    while kinds[count * period : (count + 1) * period] == kinds[:period]:
        count += 1
    return count
