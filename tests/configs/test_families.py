"""The table of families: published sizes and switches, and what runs of those without a peer."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from configs import families as table
from launch import settings
from model.interop import hf_config, hf_keys
from model.transformer import declare, forward, init

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Parameters of the models that transformers 5.23.0 builds (on the meta device) from the config.json
# that `to_hf` writes; DeepSeek-V3's with its 14,848 balancing biases, which are buffers there.
NUM_PARAMS = {
    "gpt2": 124_439_808,
    "gpt3-175b": 174_604_259_328,  # has no model in transformers; arXiv 2005.14165: 175.0 B
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2-7b": 7_615_616_512,
    "qwen2-57b-a14b": 57_408_658_944,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2b": 2_506_172_416,
    "gemma2-2b": 2_614_341_888,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
    "gemma3-27b": 27_009_346_304,
    "olmo2-7b": 7_298_617_344,
    "deepseek-v3": 671_026_419_200,
    "gpt-oss-20b": 20_914_757_184,
    "gpt4-moe": 1_777_537_763_328,  # rumoured: 1.8 T
}


def sizes(vocab, layers, width, heads, kv_heads, d_ff):
    return dict(
        vocab_size=vocab,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=d_ff,
    )


# What the files on the Hub say of the maths, in the spelling of their day.
PUBLISHED = {
    "gpt2": dict(
        model_type="gpt2",
        architectures=["GPT2LMHeadModel"],
        activation_function="gelu_new",
        **dict(vocab_size=50_257, n_layer=12, n_embd=768, n_head=12, n_ctx=1024, n_positions=1024),
        layer_norm_epsilon=1e-5,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    ),
    "llama2-7b": dict(
        model_type="llama",
        **sizes(32_000, 32, 4096, 32, 32, 11_008),
        **dict(hidden_act="silu", rms_norm_eps=1e-5, pretraining_tp=1, rope_scaling=None),
        **dict(max_position_embeddings=4096, tie_word_embeddings=False),
    ),
    "llama3.1-8b": dict(
        model_type="llama",
        **sizes(128_256, 32, 4096, 32, 8, 14_336),
        **dict(attention_bias=False, mlp_bias=False, rms_norm_eps=1e-5, rope_theta=500_000.0),
        max_position_embeddings=131_072,
        rope_scaling=dict(
            factor=8.0,
            high_freq_factor=4.0,
            low_freq_factor=1.0,
            original_max_position_embeddings=8192,
            rope_type="llama3",
        ),
    ),
    "mistral-7b": dict(
        model_type="mistral",
        **sizes(32_000, 32, 4096, 32, 8, 14_336),
        **dict(rms_norm_eps=1e-5, rope_theta=10_000.0, sliding_window=4096),
    ),
    "mixtral-8x7b": dict(
        model_type="mixtral",
        **sizes(32_000, 32, 4096, 32, 8, 14_336),
        **dict(rms_norm_eps=1e-5, rope_theta=1e6, sliding_window=None),
        **dict(num_local_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.02),
    ),
    "qwen2-7b": dict(
        model_type="qwen2",
        **sizes(152_064, 28, 3584, 28, 4, 18_944),
        **dict(rms_norm_eps=1e-6, rope_theta=1e6, max_window_layers=28),
        **dict(sliding_window=131_072, use_sliding_window=False),
    ),
    "qwen2-57b-a14b": dict(
        model_type="qwen2_moe",
        **sizes(151_936, 28, 3584, 28, 4, 18_944),
        **dict(rms_norm_eps=1e-6, rope_theta=1e6, use_sliding_window=False, sliding_window=65_536),
        **dict(num_experts=64, num_experts_per_tok=8, moe_intermediate_size=2560),
        **dict(shared_expert_intermediate_size=20_480, decoder_sparse_step=1),
        norm_topk_prob=False,
    ),
    "qwen3-30b-a3b": dict(
        model_type="qwen3_moe",
        **sizes(151_936, 48, 2048, 32, 4, 6144),
        **dict(head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, attention_bias=False),
        **dict(num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768),
        **dict(
            norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], max_window_layers=48
        ),
        **dict(sliding_window=None, use_sliding_window=False),
    ),
    "gemma-2b": dict(
        model_type="gemma",
        **sizes(256_000, 18, 2048, 8, 1, 16_384),
        **dict(head_dim=256, hidden_act="gelu", hidden_activation=None, rms_norm_eps=1e-6),
    ),
    "gemma2-2b": dict(
        model_type="gemma2",
        **sizes(256_000, 26, 2304, 8, 4, 9216),
        **dict(head_dim=256, hidden_act="gelu_pytorch_tanh", sliding_window=4096),
        **dict(hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256),
        **dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0, cache_implementation="x"),
    ),
    "gemma3-27b": dict(
        model_type="gemma3",
        architectures=["Gemma3ForConditionalGeneration"],
        mm_tokens_per_image=256,
        text_config=dict(
            model_type="gemma3_text",
            **dict(head_dim=128, hidden_size=5376, intermediate_size=21_504),
            **dict(num_attention_heads=32, num_hidden_layers=62, num_key_value_heads=16),
            **dict(query_pre_attn_scalar=168, sliding_window=1024),
            rope_scaling=dict(factor=8.0, rope_type="linear"),
        ),
        vision_config=dict(model_type="siglip_vision_model"),
    ),
    "olmo2-7b": dict(
        model_type="olmo2",
        **sizes(100_352, 32, 4096, 32, 32, 11_008),
        **dict(attention_bias=False, rms_norm_eps=1e-6, rope_theta=500_000),
    ),
    "deepseek-v3": dict(
        model_type="deepseek_v3",
        **sizes(129_280, 61, 7168, 128, 128, 18_432),
        **dict(kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64),
        **dict(v_head_dim=128, rms_norm_eps=1e-6, rope_theta=10_000, moe_layer_freq=1, n_group=8),
        **dict(topk_group=4, topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True),
        **dict(n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, ep_size=1),
        **dict(moe_intermediate_size=2048, first_k_dense_replace=3, routed_scaling_factor=2.5),
        **dict(num_nextn_predict_layers=1, max_position_embeddings=163_840),
        quantization_config=dict(quant_method="fp8", fmt="e4m3", weight_block_size=[128, 128]),
        rope_scaling=dict(
            **dict(type="yarn", factor=40, original_max_position_embeddings=4096),
            **dict(beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0),
        ),
    ),
    "gpt-oss-20b": dict(
        model_type="gpt_oss",
        **sizes(201_088, 24, 2880, 64, 8, 2880),
        **dict(head_dim=64, rms_norm_eps=1e-5, rope_theta=150_000, sliding_window=128),
        **dict(attention_bias=True, num_local_experts=32, num_experts_per_tok=4, swiglu_limit=7.0),
        **dict(experts_per_token=4, initial_context_length=4096, max_position_embeddings=131_072),
        layer_types=["sliding_attention", "full_attention"] * 12,
        quantization_config=dict(quant_method="mxfp4"),
        rope_scaling=dict(
            **dict(rope_type="yarn", factor=32.0, original_max_position_embeddings=4096),
            **dict(beta_fast=32.0, beta_slow=1.0, truncate=False),
        ),
    ),
}


def model_of(name):
    return settings.parse(table.get_config(name)).model


@pytest.mark.parametrize("name", table.FAMILIES)
def test_family_has_the_published_number_of_parameters(name):
    declared = declare(model_of(name))
    weights = jax.tree.leaves(declared)
    assert sum(math.prod(weight.shape) for weight in weights) == NUM_PARAMS[name]


@pytest.mark.parametrize("name", table.FAMILIES)
def test_large_families_compute_in_bfloat16_and_recompute(name):
    config = model_of(name)
    wanted = ("bfloat16", "full") if NUM_PARAMS[name] > 9e8 else ("float32", "none")
    assert (config.dtype, config.layout.remat) == wanted


@pytest.mark.parametrize("name", table.FAMILIES)
def test_tokenizer_is_no_larger_than_the_text_supports(name):
    """The embedding keeps the published rows."""
    config = table.get_config(name)
    assert config.tokenizer.vocab_size == min(config.model.vocab_size, 32_768)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_file_is_the_family_of_the_table(name):
    ours, theirs = model_of(name), hf_config.from_hf(PUBLISHED[name])
    kind = hf_keys.text_part(PUBLISHED[name])[1]
    found = [
        hf_config.to_hf(dataclasses.replace(x, max_positions=1024), kind) for x in (ours, theirs)
    ]
    assert found[0] == found[1]
    assert hf_config.nearest(theirs) == kind


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family is 'gpt5'; it must be one of gpt2, gpt3-175b"):
        table.get_config("gpt5")


@pytest.mark.parametrize("name", ["gpt3-175b", "gpt4-moe"])
def test_families_without_a_model_elsewhere_run(name):
    """Those whose logits nothing else can vouch for."""
    full = model_of(name)
    small = dict(vocab_size=64, num_layers=4, d_model=32, num_heads=4, head_dim=8, d_ff=48)
    small |= dict(num_kv_heads=min(full.num_kv_heads, 4), max_positions=32, window=3)
    if full.moe.num_experts:
        small["moe"] = dataclasses.replace(full.moe, num_experts=4, d_ff=16)
    config = dataclasses.replace(full, **small)
    tokens = np.arange(1, 13)[None]
    logits = forward(config, init(config, jax.random.key(0)), tokens)
    assert logits.shape == (1, 12, 64) and np.isfinite(logits).all()
    with pytest.raises(ValueError, match="no family of transformers has this model; the nearest"):
        hf_config.nearest(config)
