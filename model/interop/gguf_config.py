"""GGUF files: metadata to the keys of config.json, and the names of their tensors.

The names are those of gguf.MODEL_TENSORS; what llama.cpp's converter does to values (Gemma's scales
are stored whole, Llama's and DeepSeek's rotated dims as pairs, gate and up apart) is in the rules.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from model.attention import frequencies
from model.config import RopeConfig
from model.interop.hf_families import MODEL_TYPES
from model.interop.mapping import Rule, linear, norm, vary

LAYER = "blk.{i}"
# Architecture of llama.cpp: model_type of transformers. A 'llama' with experts is a Mixtral.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
    "olmo2": "olmo2",
    "deepseek2": "deepseek_v3",
    "gpt-oss": "gpt_oss",
}
KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
GPT2 = {
    "context_length": "n_positions",
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
DEEPSEEK = KEYS | {
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_count": "n_routed_experts",
    "expert_shared_count": "n_shared_experts",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
}
SCALING = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
    "yarn_attn_factor": "attention_factor",
}
# Keys that are looked at without having one of their own in config.json, or that say nothing.
SEEN = {
    "vocab_size",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.attn_factor",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_log_multiplier",
    "attention.value_length",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "attention.sliding_window_pattern",
    "expert_gating_func",
    *(f"rope.scaling.{key}" for key in SCALING),
}
# Which tensor shows that a model has a family's biases.
BIASED = {"attention_bias": "attn_q", "qkv_bias": "attn_q", "mlp_bias": "ffn_down"}
NEEDED = ("block_count", "embedding_length", "attention.head_count")
MLA = ("attention.key_length", "attention.value_length", "rope.dimension_count")
MLA_SIZES = ("attention.key_length_mla", "attention.value_length_mla")
SOFTMAX, SIGMOID = 1, 2  # of expert_gating_func
# The stretching of Llama 3 is stored as divisors of the frequencies, in a tensor of this name.
FREQS = "rope_freqs.weight"


def to_config(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], divisors: Any
) -> dict[str, Any]:
    """The config.json that a file's metadata stand for.

    Args:
      metadata: of the file.
      shapes: of its tensors.
      divisors: values of the tensor FREQS, or None.

    Raises:
      ValueError: an architecture or setting that is not read.
    """
    arch = metadata.get("general.architecture")
    if arch not in tuple(ARCHITECTURES):
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"general.architecture is {arch!r}; it must be one of {known}")
    given = {
        key.removeprefix(f"{arch}."): value
        for key, value in metadata.items()
        if key.startswith(f"{arch}.")
    }
    names = {"gpt2": GPT2, "deepseek2": DEEPSEEK}.get(arch, KEYS)
    sizes = [*NEEDED, *(MLA if arch == "deepseek2" else ())]
    for key in [*sizes, *(key for key in MLA_SIZES if key in given)]:
        if not isinstance(given.get(key), int) or given[key] < 1:
            value = given.get(key)
            raise ValueError(f"{arch}.{key} is {value!r}; a number for all layers is needed")
    raw = {theirs: _plain(given[key]) for key, theirs in names.items() if key in given}
    raw |= {
        "model_type": ARCHITECTURES[arch],
        "vocab_size": shapes.get("token_embd.weight", (0,))[0],
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    for key, value in given.items():
        if key not in names and key not in SEEN:
            raise ValueError(f"{arch}.{key} is {value!r}; it is not read")
    for key in MODEL_TYPES[ARCHITECTURES[arch]].biases:
        raw[key] = f"blk.0.{BIASED[key]}.bias" in shapes
    if arch not in ("gpt2", "deepseek2"):
        _check_rotated(arch, given, raw)
    if arch != "gpt2":
        raw["rope_scaling"] = _scaling(arch, given, divisors, raw)
    raw |= _hard_coded(arch, given, raw)
    return raw


def _plain(value: Any) -> Any:
    """A number as it was before it was stored in 32 bits."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _head_dim(raw: Mapping[str, Any]) -> Any:
    return raw.get("head_dim", raw["hidden_size"] // raw["num_attention_heads"])


def _check_rotated(arch: str, given: Mapping[str, Any], raw: Mapping[str, Any]) -> None:
    head_dim = _head_dim(raw)
    rotated = given.get("rope.dimension_count", head_dim)
    if (
        not isinstance(head_dim, int)
        or rotated != head_dim
        or given.get("attention.value_length", head_dim) != head_dim
    ):
        raise ValueError(
            f"{arch}.rope.dimension_count and {arch}.attention.value_length must be the size of a "
            f"head, {head_dim!r}"
        )


def _scaling(
    arch: str, given: Mapping[str, Any], divisors: Any, raw: Mapping[str, Any]
) -> dict[str, Any] | None:
    """rope_scaling of config.json."""
    kind = given.get("rope.scaling.type", "none")
    if divisors is not None:
        return _llama3(divisors, raw)
    if kind == "none":
        return None
    found = {
        theirs: _plain(given[f"rope.scaling.{key}"])
        for key, theirs in SCALING.items()
        if f"rope.scaling.{key}" in given
    }
    if given.get("rope.scaling.attn_factor", 1.0) != 1.0:
        raise ValueError(f"{arch}.rope.scaling.attn_factor is not read")
    if arch == "gpt-oss":
        found["truncate"] = False  # as the model was trained
    if arch == "deepseek2" and "rope.scaling.yarn_log_multiplier" in given:
        weight = 10 * _plain(given["rope.scaling.yarn_log_multiplier"])
        found |= {"mscale": weight, "mscale_all_dim": weight}
    return {"rope_type": kind, **found}


def _llama3(divisors: np.ndarray, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings behind Llama 3's divisors: they are of one kind but for the factor."""
    theta = raw.get("rope_theta", 1e4)
    count = _head_dim(raw)
    if not isinstance(theta, float) or divisors.shape != (count // 2,):
        raise ValueError(f"{FREQS} of shape {divisors.shape} for rope.freq_base {theta!r}")
    rope = RopeConfig(theta, 0.0, "llama3", float(divisors.max()), 8192, 1.0, 4.0)
    kept = frequencies(RopeConfig(rope.theta), count, False)
    if not np.allclose(kept / divisors, frequencies(rope, count, False), rtol=1e-4):
        raise ValueError(f"{FREQS} holds other divisors than Llama 3's, for 8192 tokens before")
    return dict(
        rope_type="llama3",
        factor=rope.factor,
        original_max_position_embeddings=rope.original_len,
        low_freq_factor=rope.slow,
        high_freq_factor=rope.fast,
    )


def _hard_coded(arch: str, given: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that llama.cpp hard-codes for an architecture."""
    gate = given.get("expert_gating_func", SOFTMAX)
    wanted = SIGMOID if arch == "deepseek2" else SOFTMAX
    if gate != wanted:
        raise ValueError(f"{arch}.expert_gating_func is {gate}; only {wanted} is read")
    if arch == "llama" and raw.get("num_experts"):
        return {"model_type": "mixtral", "sliding_window": raw.get("sliding_window")}
    if arch == "llama" and raw.get("sliding_window"):
        return {"model_type": "mistral"}
    if arch == "qwen3moe":
        return {"norm_topk_prob": raw.get("norm_topk_prob", True)}
    if arch in ("gemma2", "gemma3"):
        # Scores of the 27B models are scaled by the width of a head's share of the embedding.
        large = raw["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[arch]
        share = raw["hidden_size"] // raw["num_attention_heads"]
        found = {"query_pre_attn_scalar": share if large else raw.get("head_dim", 256)}
        pattern = given.get("attention.sliding_window_pattern")
        if isinstance(pattern, list):
            kinds = ("full_attention", "sliding_attention")
            return found | {"layer_types": [kinds[bool(slides)] for slides in pattern]}
        return found | ({"sliding_window_pattern": pattern} if pattern else {})
    if arch == "deepseek2":
        whole = given.get("attention.key_length_mla", given["attention.key_length"])
        return {
            "num_key_value_heads": raw["num_attention_heads"],
            "norm_topk_prob": given.get("expert_weights_norm", False),
            "qk_nope_head_dim": whole - raw["qk_rope_head_dim"],
            "v_head_dim": given.get("attention.value_length_mla", given["attention.value_length"]),
        }
    return {}


def _gated(kind: str, suffix: str, expert: str = "") -> dict[str, Rule]:
    return {
        **linear(f"{kind}/gate", f".ffn_gate{suffix}", f"{expert}F D"),
        **linear(f"{kind}/up", f".ffn_up{suffix}", f"{expert}F D"),
        **linear(f"{kind}/down", f".ffn_down{suffix}", f"{expert}D F"),
    }


BASE = {
    "embedding": Rule("token_embd.weight", "V D"),
    "position_table": Rule("position_embd.weight", "T D"),
    "head": Rule("output.weight", "V D"),
    **norm("norm", "output_norm"),
    **norm("attention_norm", ".attn_norm"),
    **norm("feed_forward_norm", ".ffn_norm"),
    **norm("attention_post_norm", ".post_attention_norm"),
    **norm("feed_forward_post_norm", ".post_ffw_norm"),
    **norm("attention/q_norm", ".attn_q_norm", "H"),
    **norm("attention/k_norm", ".attn_k_norm", "H"),
    **linear("attention/q", ".attn_q", "NH D"),
    **linear("attention/k", ".attn_k", "KH D"),
    **linear("attention/v", ".attn_v", "KH D"),
    **linear("attention/out", ".attn_output", "D NH"),
    **_gated("feed_forward", ""),
    **linear("experts/router", ".ffn_gate_inp", "E D"),
    **_gated("experts", "_exps", "E "),
    **_gated("experts/shared", "_shexp"),
    "experts/shared_gate": Rule(".ffn_gate_inp_shexp.weight", "D"),
}
HARD_CODED = {
    "llama": vary(
        linear("attention/q", ".attn_q", "NH D") | linear("attention/k", ".attn_k", "KH D"),
        interleaved=True,
    ),
    "olmo2": norm("attention/q_norm", ".attn_q_norm", "NH")
    | norm("attention/k_norm", ".attn_k_norm", "KH"),
    "gpt2": {
        f"attention/{ours}{leaf}": Rule(f".attn_qkv.{stored}", dims.format(letter), place)
        for place, (ours, letter) in enumerate(zip("qkv", "NKK", strict=True))
        for leaf, stored, dims in (("", "weight", "3{}H D"), ("_bias", "bias", "3{}H"))
    },
    "gpt-oss": norm("feed_forward_norm", ".post_attention_norm")
    | {"attention/sink": Rule(".attn_sinks.weight", "N")},
    "deepseek2": {
        "experts/balance_bias": Rule(".exp_probs_b.bias", "E"),
        "attention/q": Rule(".attn_q.weight", "NH D", interleaved=True),
        "attention/q_down": Rule(".attn_q_a.weight", "Z D"),
        "attention/q_down_norm/scale": Rule(".attn_q_a_norm.weight", "Z"),
        "attention/q_up": Rule(".attn_q_b.weight", "NH Z", interleaved=True),
        "attention/kv_down": Rule(".attn_kv_a_mqa.weight", "Z D", interleaved=True),
        "attention/kv_norm/scale": Rule(".attn_kv_a_norm.weight", "Z"),
        "attention/k_up": Rule(".attn_k_b.weight", "N Z H"),
        "attention/v_up": Rule(".attn_v_b.weight", "N H Z"),
    },
}
# As llama.cpp's converter wrote it before it kept keys and values apart.
TOGETHER = {
    "attention/k_up": Rule(".attn_kv_b.weight", "NH Z", half=0),
    "attention/v_up": Rule(".attn_kv_b.weight", "NH Z", half=1),
}


def rules(arch: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Rule]:
    """The rules of an architecture, in the spelling of a file with these tensors."""
    found = BASE | HARD_CODED.get(arch, {})
    if any(name.endswith(TOGETHER["attention/k_up"].name) for name in shapes):
        found |= TOGETHER
    gate = found["experts/shared_gate"]
    if any(name.endswith(gate.name) and len(shape) == 2 for name, shape in shapes.items()):
        found |= {"experts/shared_gate": dataclasses.replace(gate, dims="1 D")}
    return found
