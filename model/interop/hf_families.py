"""Families of transformers, a row each: the keys and switches in which they differ."""

import dataclasses
from collections.abc import Mapping
from typing import Any

GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
PLAIN = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu2": "relu2"}

SIZES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
}
GPT2 = {
    "vocab_size": "vocab_size",
    "num_layers": "n_layer",
    "d_model": "n_embd",
    "num_heads": "n_head",
    "d_ff": "n_inner",
    "norm_eps": "layer_norm_epsilon",
    "max_positions": "n_positions",
}
CAPS = {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}
TOP = {"moe.top_k": "num_experts_per_tok"}
LOCAL = {"moe.num_experts": "num_local_experts|num_experts", "moe.d_ff": "intermediate_size"} | TOP
SPARSE = {
    "moe.num_experts": "num_experts|num_local_experts",
    "moe.d_ff": "moe_intermediate_size",
    "moe.normalize": "norm_topk_prob",
} | TOP
DEEPSEEK = {
    "mla.kv_rank": "kv_lora_rank",
    "mla.query_rank": "q_lora_rank",
    "mla.rope_dim": "qk_rope_head_dim",
    "mla.value_dim": "v_head_dim",
    "moe.num_experts": "n_routed_experts|num_local_experts",
    "moe.d_ff": "moe_intermediate_size",
    "moe.normalize": "norm_topk_prob",
    "moe.scale": "routed_scaling_factor",
    "moe.num_dense": "first_k_dense_replace",
    "moe.num_groups": "n_group",
    "moe.top_groups": "topk_group",
} | TOP
GEMMA = dict(scale_embedding=True)
SANDWICH = GEMMA | dict(norm_place="sandwich")

# Keys that change the maths, and the values that change nothing: all that a family which does not
# read the key may find there.
NEUTRAL = {
    **dict.fromkeys(("attention_bias", "mlp_bias", "qkv_bias", "use_sliding_window"), (False,)),
    **dict.fromkeys(("scale_attn_by_inverse_layer_idx", "add_cross_attention"), (False,)),
    **dict.fromkeys(("use_bidirectional_attention", "alibi", "use_qk_norm"), (False,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "clip_qkv"), ()),
    "original_max_position_embeddings": (),
    **dict.fromkeys(("sliding_window", "num_experts", "num_local_experts"), (0,)),
    **dict.fromkeys(("n_routed_experts", "n_shared_experts", "first_k_dense_replace"), (0,)),
    **dict.fromkeys(("moe_layer_freq", "decoder_sparse_step", "routed_scaling_factor"), (1,)),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling"), (1,)),
    **dict.fromkeys(("partial_rotary_factor", "n_group", "logit_scale"), (1,)),
    **dict.fromkeys(("mlp_only_layers", "no_rope_layers"), ([],)),
    "shared_expert_intermediate_size": (0,),
    "is_causal": (True,),
    "quantization_config": (),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A model_type of transformers.

    Attributes:
      model_class: its class.
      keys: switch of ours: key of config.json with the same value ('|' other spellings).
      fixed: switches that all its models share.
      defaults: values of keys that a file may lack, as in the class.
      act: key of the activation; '' where it is fixed.
      acts: what its names are here.
      biases: key: what it adds biases to, if true.
      slides: which layers slide: 'none', 'all', or 'listed' in layer_types.
      must: keys with the only values that are read.
      whole: hidden_size must divide by the number of heads.
    """

    model_class: str
    keys: Mapping[str, str]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    act: str = "hidden_act"
    acts: Mapping[str, str] = dataclasses.field(default_factory=lambda: GATED)
    biases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    slides: str = "none"
    must: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    whole: bool = False


ATTENTION_BIAS = {"attention_bias": ("qkv", "out")}
TIED, GEMMA_ACT = dict(tie_word_embeddings=True), "gelu_pytorch_tanh"
GEMMA3_SIZES = dict(
    vocab_size=262_208,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    sliding_window=4096,
    sliding_window_pattern=6,
    query_pre_attn_scalar=256,
    max_position_embeddings=131_072,
    hidden_activation=GEMMA_ACT,
)
GPT_OSS_ROPE = dict(
    rope_type="yarn",
    factor=32.0,
    beta_fast=32.0,
    beta_slow=1.0,
    truncate=False,
    original_max_position_embeddings=4096,
)
MODEL_TYPES = {
    "llama": Family(
        "LlamaForCausalLM",
        SIZES,
        biases=ATTENTION_BIAS | {"mlp_bias": ("mlp",)},
        whole=True,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        SIZES,
        dict(qk_norm="head"),
        dict(head_dim=128, sliding_window=4096, max_window_layers=28),
        biases=ATTENTION_BIAS,
        slides="listed",
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        SIZES | SPARSE,
        dict(qk_norm="head"),
        dict(num_key_value_heads=4, norm_topk_prob=False, sliding_window=4096),
        biases=ATTENTION_BIAS,
        slides="all",
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        GPT2,
        dict(positions="learned", norm="layer", bias=("qkv", "out", "mlp")),
        TIED | dict(layer_norm_epsilon=1e-5, activation_function="gelu_new"),
        act="activation_function",
        acts=PLAIN,
        whole=True,
    ),
    "mistral": Family(
        "MistralForCausalLM",
        SIZES,
        defaults=dict(num_key_value_heads=8, sliding_window=4096),
        slides="all",
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        SIZES | LOCAL,
        defaults=dict(num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=1e6),
        slides="all",
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        SIZES,
        dict(bias=("qkv",)),
        dict(sliding_window=4096, max_window_layers=28),
        slides="listed",
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        SIZES | SPARSE | {"moe.shared_d_ff": "shared_expert_intermediate_size"},
        {"moe.shared_gate": True},
        dict(norm_topk_prob=False, sliding_window=4096, max_window_layers=28, qkv_bias=True),
        biases={"qkv_bias": ("qkv",)},
        slides="listed",
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        SIZES,
        GEMMA,
        TIED | dict(head_dim=256, hidden_act=GEMMA_ACT),
        # Google's first files say 'gelu' and mean the approximation that they were trained with.
        acts={GEMMA_ACT: "geglu", "gelu": "geglu"} | GATED,
        biases=ATTENTION_BIAS,
        must={"hidden_activation": (GEMMA_ACT,)},
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        SIZES | CAPS,
        SANDWICH,
        TIED
        | dict(head_dim=256, hidden_activation=GEMMA_ACT, sliding_window=4096)
        | dict(query_pre_attn_scalar=256, attn_logit_softcapping=50.0)
        | dict(final_logit_softcapping=30.0, num_key_value_heads=4),
        act="hidden_activation",
        biases=ATTENTION_BIAS,
        slides="listed",
        whole=True,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        SIZES | {"logit_softcap": "final_logit_softcapping"},
        SANDWICH | dict(qk_norm="head"),
        TIED | GEMMA3_SIZES | dict(rope_theta=1e6, rope_local_base_freq=1e4),
        act="hidden_activation",
        biases=ATTENTION_BIAS,
        slides="listed",
        whole=True,
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        SIZES,
        dict(norm_place="post", qk_norm="whole"),
        dict(rms_norm_eps=1e-5),
        biases=ATTENTION_BIAS,
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        {switch: key for switch, key in SIZES.items() if switch != "head_dim"} | DEEPSEEK,
        {"moe.router": "sigmoid", "moe.balance_bias": True},
        dict(n_shared_experts=1, norm_topk_prob=True, routed_scaling_factor=2.5),
        biases=ATTENTION_BIAS,
        # The norms of its latents have 1e-6 whatever the file says.
        must=dict(
            rms_norm_eps=(1e-6,),
            scoring_func=("sigmoid",),
            topk_method=("noaux_tc",),
            moe_layer_freq=(1,),
        ),
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        SIZES | LOCAL,
        dict(mlp="clamped_swiglu", sinks=True, bias=("mlp", "router")),
        dict(head_dim=64, num_key_value_heads=8, rms_norm_eps=1e-5, sliding_window=128)
        | dict(attention_bias=True, rope_theta=150_000.0, rope_parameters=GPT_OSS_ROPE),
        act="",
        biases=ATTENTION_BIAS,
        slides="listed",
        must=dict(hidden_act=("silu",), swiglu_limit=(7.0,), swiglu_alpha=(1.702,)),
    ),
}
# Of packed weights, those that model/interop/packed.py undoes.
PACKED = {"deepseek_v3": "fp8", "gpt_oss": "mxfp4"}
