"""Names and dims of the tensors of Hugging Face models, a table of rules a family."""

from collections.abc import Collection, Mapping

from model.interop.mapping import Rule, linear, norm, vary


def _gated(kind: str, name: str) -> dict[str, Rule]:
    return {
        **linear(f"{kind}/gate", f"{name}.gate_proj", "F D"),
        **linear(f"{kind}/up", f"{name}.up_proj", "F D"),
        **linear(f"{kind}/down", f"{name}.down_proj", "D F"),
    }


LLAMA = {
    "embedding": Rule("model.embed_tokens.weight", "V D"),
    "head": Rule("lm_head.weight", "V D"),
    "norm/scale": Rule("model.norm.weight", "D"),
    "attention_norm/scale": Rule(".input_layernorm.weight", "D"),
    "feed_forward_norm/scale": Rule(".post_attention_layernorm.weight", "D"),
    "attention/q_norm/scale": Rule(".self_attn.q_norm.weight", "H"),
    "attention/k_norm/scale": Rule(".self_attn.k_norm.weight", "H"),
    **linear("attention/q", ".self_attn.q_proj", "NH D"),
    **linear("attention/k", ".self_attn.k_proj", "KH D"),
    **linear("attention/v", ".self_attn.v_proj", "KH D"),
    **linear("attention/out", ".self_attn.o_proj", "D NH"),
    **_gated("feed_forward", ".mlp"),
}
SPARSE = {
    "experts/router": Rule(".mlp.gate.weight", "E D"),
    **_gated("experts", ".mlp.experts.{e}"),
}
# Files that a transformers 5 wrote without undoing its own fusion of the experts.
FUSED = {
    "experts/router": Rule(".mlp.gate.weight", "E D"),
    "experts/gate": Rule(".mlp.experts.gate_up_proj", "E 2F D", 0),
    "experts/up": Rule(".mlp.experts.gate_up_proj", "E 2F D", 1),
    "experts/down": Rule(".mlp.experts.down_proj", "E D F"),
}
POST = {
    "attention_post_norm/scale": Rule(".post_attention_layernorm.weight", "D"),
    "feed_forward_post_norm/scale": Rule(".post_feedforward_layernorm.weight", "D"),
}
SANDWICH = POST | {
    "attention_norm/scale": Rule(".input_layernorm.weight", "D"),
    "feed_forward_norm/scale": Rule(".pre_feedforward_layernorm.weight", "D"),
}


def _gemma(rules: Mapping[str, Rule]) -> dict[str, Rule]:
    scales = {kind: rule for kind, rule in rules.items() if kind.endswith("scale")}
    return {**rules, **vary(scales, offset=1.0)}


HF = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA),
    "qwen3_moe": LLAMA | SPARSE,
    "qwen2_moe": LLAMA
    | SPARSE
    | _gated("experts/shared", ".mlp.shared_expert")
    | {"experts/shared_gate": Rule(".mlp.shared_expert_gate.weight", "1 D")},
    "mixtral": LLAMA
    | {
        "experts/router": Rule(".block_sparse_moe.gate.weight", "E D"),
        "experts/gate": Rule(".block_sparse_moe.experts.{e}.w1.weight", "F D"),
        "experts/down": Rule(".block_sparse_moe.experts.{e}.w2.weight", "D F"),
        "experts/up": Rule(".block_sparse_moe.experts.{e}.w3.weight", "F D"),
    },
    "gemma": _gemma(LLAMA),
    "gemma2": _gemma(LLAMA | SANDWICH),
    "gemma3_text": _gemma(LLAMA | SANDWICH),
    "olmo2": LLAMA
    | POST
    | {
        "attention/q_norm/scale": Rule(".self_attn.q_norm.weight", "NH"),
        "attention/k_norm/scale": Rule(".self_attn.k_norm.weight", "KH"),
    },
    "deepseek_v3": LLAMA
    | SPARSE
    | _gated("experts/shared", ".mlp.shared_experts")
    | {
        "experts/balance_bias": Rule(".mlp.gate.e_score_correction_bias", "E"),
        "attention/q": Rule(".self_attn.q_proj.weight", "NH D", interleaved=True),
        **linear("attention/q_down", ".self_attn.q_a_proj", "Z D"),
        "attention/q_down_norm/scale": Rule(".self_attn.q_a_layernorm.weight", "Z"),
        "attention/q_up": Rule(".self_attn.q_b_proj.weight", "NH Z", interleaved=True),
        **vary(
            linear("attention/kv_down", ".self_attn.kv_a_proj_with_mqa", "Z D"), interleaved=True
        ),
        "attention/kv_norm/scale": Rule(".self_attn.kv_a_layernorm.weight", "Z"),
        "attention/k_up": Rule(".self_attn.kv_b_proj.weight", "NH Z", half=0),
        "attention/v_up": Rule(".self_attn.kv_b_proj.weight", "NH Z", half=1),
    },
    "gpt_oss": LLAMA
    | {
        "attention/sink": Rule(".self_attn.sinks", "N"),
        **linear("experts/router", ".mlp.router", "E D"),
        "experts/gate": Rule(".mlp.experts.gate_up_proj", "E D F2", 0),
        "experts/up": Rule(".mlp.experts.gate_up_proj", "E D F2", 1),
        "experts/gate_bias": Rule(".mlp.experts.gate_up_proj_bias", "E F2", 0),
        "experts/up_bias": Rule(".mlp.experts.gate_up_proj_bias", "E F2", 1),
        "experts/down": Rule(".mlp.experts.down_proj", "E F D"),
        "experts/down_bias": Rule(".mlp.experts.down_proj_bias", "E D"),
    },
    "gpt2": {
        "embedding": Rule("transformer.wte.weight", "V D"),
        "position_table": Rule("transformer.wpe.weight", "T D"),
        "head": Rule("lm_head.weight", "V D"),
        **norm("norm", "transformer.ln_f"),
        **norm("attention_norm", ".ln_1"),
        **norm("feed_forward_norm", ".ln_2"),
        "attention/q": Rule(".attn.c_attn.weight", "D 3NH", 0),
        "attention/k": Rule(".attn.c_attn.weight", "D 3KH", 1),
        "attention/v": Rule(".attn.c_attn.weight", "D 3KH", 2),
        "attention/q_bias": Rule(".attn.c_attn.bias", "3NH", 0),
        "attention/k_bias": Rule(".attn.c_attn.bias", "3KH", 1),
        "attention/v_bias": Rule(".attn.c_attn.bias", "3KH", 2),
        "attention/out": Rule(".attn.c_proj.weight", "NH D"),
        "attention/out_bias": Rule(".attn.c_proj.bias", "D"),
        "feed_forward/up": Rule(".mlp.c_fc.weight", "D F"),
        "feed_forward/up_bias": Rule(".mlp.c_fc.bias", "F"),
        "feed_forward/down": Rule(".mlp.c_proj.weight", "F D"),
        "feed_forward/down_bias": Rule(".mlp.c_proj.bias", "D"),
    },
}


def rules(name: str, stored: Collection[str] = (), pairs: bool = True) -> dict[str, Rule]:
    """The table of a family.

    Args:
      name: its model_type.
      stored: names in the file, which tell how experts are stored.
      pairs: whether DeepSeek's rotated dims are stored as pairs.
    """
    found = dict(HF[name])
    if name != "gpt_oss" and any(key.endswith(FUSED["experts/down"].name) for key in stored):
        found |= FUSED
    return found if pairs else vary(found, interleaved=False)
