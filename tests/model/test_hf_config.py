"""config.json in and out: what survives, what is refused and how, what has no family."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from model.config import MLAConfig, MoEConfig, RopeConfig, TransformerConfig
from model.interop import hf_config, hf_keys
from tests.tiny import replace

pytestmark = pytest.mark.usefixtures("quick_compilation")

CASES = json.loads((Path(__file__).parent / "hf_logits.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_config_survives_the_way_out_and_in(case):
    raw = CASES[case]["config"]
    config, name = hf_config.from_hf(raw), hf_keys.text_part(raw)[1]
    assert hf_config.nearest(config) == name
    assert hf_config.from_hf(json.loads(json.dumps(hf_config.to_hf(config, name)))) == config


def test_no_window_is_written_as_null():
    """transformers takes 0 for a window in which nothing is seen."""
    config = hf_config.from_hf(CASES["mistral unwindowed"]["config"])
    assert hf_config.to_hf(config, "mistral")["sliding_window"] is None
    assert (
        hf_config.to_hf(dataclasses.replace(config, window=5), "mistral")["sliding_window"] is None
    )


def changed(case, **changes):
    raw = json.loads(json.dumps(CASES[case]["config"])) | changes
    return {key: value for key, value in raw.items() if value is not ...}


YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("llama 2", dict(model_type="bert"), "model_type is 'bert'; it must be one of llama"),
        ("llama 2", dict(model_type=...), "model_type is None"),
        (
            "llama 2",
            dict(architectures=["LlamaForSequenceClassification"]),
            "it must hold 'LlamaForCausalLM'",
        ),
        ("llama 2", dict(hidden_size=...), "config.json lacks hidden_size"),
        ("llama 2", dict(hidden_size="24"), "hidden_size is '24'; it must be of type int"),
        ("llama 2", dict(hidden_size=True), "hidden_size is True"),
        ("llama 2", dict(hidden_size=25), "num_attention_heads is 3; it must be a divisor of"),
        ("llama 2", dict(num_hidden_layers=0), "model.num_layers is 0"),
        ("llama 2", dict(hidden_act="relu"), "hidden_act is 'relu'; it must be one of ('silu'"),
        ("llama 2", dict(sliding_window=4), "sliding_window is 4; of llama only"),
        ("llama 2", dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
        ("llama 2", dict(quantization_config=dict(quant_method="gptq")), "is 'gptq'"),
        ("llama 2", dict(num_local_experts=8), "num_local_experts is 8"),
        ("llama 2", dict(rope_scaling=dict(type="dynamic", factor=2.0)), "rope_type is 'dynamic'"),
        ("llama 2", dict(rope_scaling=dict(type="linear")), "RoPE of type linear lacks factor"),
        ("llama 2", dict(rope_scaling=dict(rope_type="linear", factor=0.5)), "model.rope.factor"),
        (
            "llama 2",
            dict(rope_scaling=dict(rope_type="llama3", factor=8.0)),
            "lacks low_freq_factor",
        ),
        (
            "llama 2",
            dict(rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=0.5)),
            "partial_rotary_factor of RoPE is 0.5",
        ),
        (
            "llama 2",
            dict(rope_parameters=dict(rope_theta="x")),
            "rope_theta of RoPE is 'x'; it must be a number",
        ),
        ("llama 2", dict(rope_parameters=dict(rope_theta=True)), "True; it must be a number"),
        ("llama 2", dict(rope_scaling=YARN | dict(truncate="x")), "it must be true or false"),
        ("mistral", dict(attention_bias=True), "attention_bias is True; of mistral only"),
        ("qwen2", dict(layer_types=["full_attention"]), "1 entries for 2 layers"),
        (
            "qwen2",
            dict(layer_types=["chunked_attention"] * 2),
            "layer_types is 'chunked_attention'",
        ),
        ("qwen2", dict(layer_types=["sliding_attention"] * 2), "model.window is 0"),
        ("qwen3 moe", dict(mlp_only_layers=[1]), "mlp_only_layers is [1]"),
        (
            "qwen3 moe",
            dict(layer_types=["full_attention", "sliding_attention"]),
            "qwen3_moe has layers of one kind",
        ),
        ("gemma", dict(use_bidirectional_attention=True), "use_bidirectional_attention is True"),
        ("gemma", dict(hidden_activation="silu"), "hidden_activation is 'silu'"),
        ("gemma3", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping is 50.0"),
        ("gemma3", dict(rope_parameters=YARN), "it must have full_attention and sliding_attention"),
        (
            "gemma3",
            dict(rope_parameters=dict(sliding_attention=YARN)),
            "only default is",
        ),
        ("gpt2", dict(activation_function="gelu"), "activation_function is 'gelu'"),
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is"),
        ("gpt2", dict(add_cross_attention=True), "add_cross_attention is True"),
        ("deepseek v3", dict(scoring_func="softmax"), "scoring_func is 'softmax'"),
        ("deepseek v3", dict(topk_method="greedy"), "topk_method is 'greedy'"),
        ("deepseek v3", dict(moe_layer_freq=2), "moe_layer_freq is 2"),
        ("deepseek v3", dict(rms_norm_eps=1e-5), "rms_norm_eps is 1e-05"),
        ("deepseek v3", dict(n_group=3), "model.moe.num_groups is 3"),
        ("deepseek v3", dict(num_key_value_heads=1), "num_kv_heads"),
        ("gpt-oss", dict(swiglu_limit=5.0), "swiglu_limit is 5.0"),
        ("gpt-oss", dict(quantization_config=dict(quant_method="fp8")), "is 'fp8'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(case, changes, words):
    with pytest.raises(ValueError) as caught:
        hf_config.from_hf(changed(case, **changes))
    message = str(caught.value)
    assert message.startswith("config.json") and words in message and "\n" not in message


WRONG = (None, "x", 1.5, -1, 0, True, [], [1], {}, {"a": 1}, 10**12, math.nan)
OPTIONAL = (
    "head_dim rope_scaling rope_parameters layer_types sliding_window architectures rope_theta"
)
OPTIONAL += " mlp_only_layers quantization_config max_window_layers sliding_window_pattern n_group"


@pytest.mark.parametrize("case", CASES)
def test_any_value_is_taken_or_refused_in_words(case):
    for key in [*CASES[case]["config"], *OPTIONAL.split()]:
        for value in WRONG:
            try:
                hf_config.from_hf(changed(case, **{key: value}))
            except ValueError as error:
                assert str(error).startswith("config.json"), (key, value)


@pytest.mark.parametrize(
    ("case", "changes", "switches"),
    [
        ("qwen2", dict(use_sliding_window=True), dict(layers=("full", "sliding"), window=4)),
        ("qwen2", dict(num_key_value_heads=None), dict(num_kv_heads=5)),
        ("qwen2 moe", dict(mlp_only_layers=[0, 1]), {"moe.num_dense": 2, "moe.every": 2}),
        ("qwen3 moe", dict(num_experts=..., num_local_experts=6), {"moe.num_experts": 6}),
        ("gpt2", dict(n_inner=None), dict(d_ff=96)),
        ("gpt2", dict(activation_function="relu2"), dict(mlp="relu2")),
        ("llama 2", dict(hidden_act="gelu_pytorch_tanh"), dict(mlp="geglu")),
        ("llama 2", dict(rope_scaling=YARN), {"rope.magnitude": 0.1 * math.log(4) + 1}),
        (
            "llama 2",
            dict(rope_scaling=YARN | dict(factor=None, original_max_position_embeddings=16)),
            {"rope.factor": 4.0},
        ),
        ("llama 2", dict(rope_scaling=YARN | dict(mscale=0.5)), {"attention_scale": 0.0}),
        (
            "llama 2",
            dict(rope_scaling=YARN, rope_parameters=dict(rope_type="linear", factor=2.0)),
            {"rope.scaling": "yarn"},
        ),
        ("gpt-oss", dict(rope_scaling=...), {"rope.factor": 32.0, "rope.original_len": 4096}),
        ("deepseek v3", dict(rope_scaling=None), {"attention_scale": 0.25, "rope.factor": 1.0}),
        ("gemma2", dict(layer_types=...), dict(layers=("sliding", "full"))),
    ],
)
def test_key_turns_its_switch(case, changes, switches):
    flat = hf_config.flatten(hf_config.from_hf(changed(case, **changes)))
    for key, value in switches.items():
        assert flat[key] == (pytest.approx(value) if isinstance(value, float) else value)


LINEAR = dict(rope_type="linear", factor=2.0)
LLAMA_3 = dict(rope_type="llama3", factor=8.0, original_max_position_embeddings=16)
LLAMA_3 |= dict(low_freq_factor=1.0, high_freq_factor=4.0)
MAGNITUDE = 0.1 * math.log(4) + 1


@pytest.mark.parametrize(
    ("scaling", "more", "magnitude", "ignored"),
    [
        (YARN, dict(attention_factor=0.5), 0.5, ""),
        (YARN, dict(attn_factor=0.5), MAGNITUDE, "attn_factor"),
        (YARN, dict(attn_factor=0.5, attention_factor=0.7), 0.7, "attn_factor"),
        (YARN, dict(mscale=0.5), MAGNITUDE, ""),
        (YARN, dict(mscale_all_dim=0.5), MAGNITUDE, ""),
        (YARN, dict(mscale=1.0, mscale_all_dim=0.5), 1.0648216253695715, ""),
        (YARN, dict(short_factor=[1.0]), MAGNITUDE, "short_factor"),
        (YARN, dict(low_freq_factor="x"), MAGNITUDE, "low_freq_factor"),
        (YARN, dict(finetuned=True), MAGNITUDE, "finetuned"),
        (LINEAR, dict(attention_factor=0.5), 1.0, "attention_factor"),
        (LLAMA_3, dict(attention_factor=0.5), 1.0, "attention_factor"),
        (LLAMA_3, dict(truncate=False), 1.0, "truncate"),
        (dict(rope_type="default"), dict(factor=4.0), 1.0, "factor"),
    ],
)
def test_keys_of_rope_that_transformers_ignores(caplog, scaling, more, magnitude, ignored):
    """The magnitudes are its `attention_scaling`, the keys those that its warnings name."""
    rope = hf_config.from_hf(changed("llama 2", rope_scaling=scaling | more)).rope
    plain = hf_config.from_hf(changed("llama 2", rope_scaling=scaling)).rope
    assert rope.magnitude == pytest.approx(magnitude, rel=1e-12)
    assert dataclasses.replace(rope, magnitude=plain.magnitude) == plain
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == bool(ignored)
    assert all(f"{ignored} of RoPE is ignored" in message for message in warned)


LLAMA = hf_config.from_hf(CASES["llama 2"]["config"])
EXPERTS = MoEConfig(num_experts=4, top_k=2, d_ff=16)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama", dict(qk_norm="head"), "model.qk_norm is 'head', llama can express 'none'"),
        ("llama", dict(norm_place="post"), "model.norm_place"),
        ("llama", dict(norm="layer"), "model.norm is 'layer'"),
        ("llama", dict(scale_embedding=True), "model.scale_embedding is True"),
        ("llama", dict(head="scalar"), "model.head is 'scalar', llama can express 'untied'"),
        ("llama", dict(mlp="relu2"), "model.mlp is 'relu2', llama can express 'swiglu'"),
        ("llama", dict(bias=("qkv",)), "model.bias is ('qkv',), llama can express ()"),
        ("llama", dict(sinks=True), "model.sinks"),
        ("llama", dict(attention_scale=0.1), "model.attention_scale is 0.1"),
        ("llama", dict(attention_softcap=5.0), "model.attention_softcap"),
        ("llama", dict(layers=("full", "sliding"), window=4), "model.window is 4"),
        ("llama", dict(moe=EXPERTS), "model.moe.num_experts is 4, llama can express 0"),
        ("llama", dict(positions="learned", max_positions=64), "model.positions is 'learned'"),
        ("llama", dict(d_model=26), "a divisor of the hidden size, 26"),
        ("gpt2", {}, "gpt2 has no such model: model.positions is 'rope'"),
        ("mistral", dict(layers=("sliding", "full"), window=4), "model.layers"),
        ("mixtral", dict(moe=EXPERTS, d_ff=24), ""),
        (
            "mixtral",
            dict(moe=dataclasses.replace(EXPERTS, num_dense=1)),
            "model.moe.num_dense is 1",
        ),
        ("mixtral", dict(moe=dataclasses.replace(EXPERTS, normalize=False)), "moe.normalize"),
        ("qwen3_moe", dict(moe=dataclasses.replace(EXPERTS, every=2), qk_norm="head"), ""),
        ("gemma3_text", dict(rope=RopeConfig(local_theta=5.0)), "model.qk_norm is 'none'"),
        ("qwen3", dict(qk_norm="head", rope=RopeConfig(local_theta=5.0)), ""),
        (
            "qwen3",
            dict(qk_norm="head", rope=RopeConfig(local_theta=5.0), layers=("sliding",), window=4),
            "model.rope.local_theta is 5.0, qwen3 can express 0.0",
        ),
        ("mamba", {}, "model_type is 'mamba'; it must be one of llama"),
    ],
)
def test_export_names_the_switch_that_a_family_lacks(name, changes, words):
    config = dataclasses.replace(LLAMA, **changes)
    if not words:
        hf_config.to_hf(config, name)
        return
    with pytest.raises(ValueError) as caught:
        hf_config.to_hf(config, name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_how_a_model_is_computed_is_no_matter_of_a_family():
    computed = dict(
        dtype="bfloat16", remat="full", vocab_multiple=128, kernel="xla", context="ring"
    )
    trained = dict(aux_loss=0.1, z_loss=0.1, dispatch="capacity", capacity_factor=2.0)
    config = dataclasses.replace(LLAMA, moe=EXPERTS, d_ff=16)
    other = replace(config, **computed, moe=dataclasses.replace(EXPERTS, **trained))
    assert hf_config.to_hf(other, "mixtral") == hf_config.to_hf(config, "mixtral")


def test_a_model_of_no_family_hears_of_the_nearest():
    latent = MLAConfig(kv_rank=8, rope_dim=4, value_dim=8)
    config = dataclasses.replace(LLAMA, mla=latent)
    with pytest.raises(ValueError, match="the nearest is llama: model.mla.kv_rank is 8, llama can"):
        hf_config.nearest(config)
    odd = dict(positions="learned", max_positions=8, head_dim=5, d_model=25, norm="layer")
    odd |= dict(mlp="gelu", bias=("qkv", "out", "mlp"))
    with pytest.raises(ValueError, match="no family of transformers has this model$"):
        hf_config.nearest(dataclasses.replace(LLAMA, **odd))


def test_plain_models_are_llamas():
    sizes = dict(vocab_size=64, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1)
    plain = TransformerConfig(**sizes, head_dim=8, d_ff=32)
    assert hf_config.nearest(plain) == "llama"
    assert hf_config.nearest(dataclasses.replace(plain, qk_norm="head")) == "qwen3"
