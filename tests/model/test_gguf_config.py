"""GGUF files of every architecture give the model that the Hugging Face directory gives.

gguf_models.json holds what llama.cpp's convert_hf_to_gguf.py (of llama-cpp-python 0.3.36) made of
tiny models with the weights of `test_huggingface.draw`: metadata, and a hash over names, shapes and
values. `convert` below stands in for it, and is held to the hash.
"""

import contextlib
import hashlib
import json
import math
from pathlib import Path

import gguf
import numpy as np
import pytest

from model import sharding
from model.interop import gguf_config, hf_config, huggingface
from tests.model.test_huggingface import LAST_BIT, expected_tensors, same, write

MODELS = json.loads((Path(__file__).parent / "gguf_models.json").read_text())


def pairs(value, num_heads):
    """Two halves of each head become pairs, as llama.cpp's Llama turns them."""
    rest = value.shape[1:]
    return value.reshape(num_heads, 2, -1, *rest).swapaxes(1, 2).reshape(value.shape)


def llama3_divisors(raw):
    scaling, dim = raw["rope_scaling"], raw["hidden_size"] // raw["num_attention_heads"]
    frequencies = 1.0 / raw["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float32) / dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = [scaling["original_max_position_embeddings"] * f / 2 / math.pi for f in frequencies]
    smooth = [min(max((t - low) / (high - low), 0.0), 1.0) for t in turns]
    return np.float32([1 / ((1 - s) / scaling["factor"] + s) for s in smooth])


def convert(arch, raw, tensors):
    """What llama.cpp's converter does to names and values."""
    count = raw.get("num_hidden_layers", raw.get("n_layer"))
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names, out, experts = gguf.get_tensor_name_map(kind, count), {}, {}
    heads, kv_heads = raw.get("num_attention_heads"), raw.get("num_key_value_heads")

    def put(name, value):
        name = name.replace(".sinks", ".sinks.weight").replace("_correction_bias", "_correction")
        stem, _, suffix = name.rpartition(".")
        if name.endswith("e_score_correction"):
            stem, suffix = name, "bias"
        out[f"{names.get_name(stem)}.{suffix}"] = value

    for name, value in tensors.items():
        if "gemma" in arch and name.endswith("norm.weight"):
            value = value + np.float32(1)
        if arch == "llama" and "q_proj" in name:
            value = pairs(value, heads)
        if arch == "llama" and "k_proj" in name:
            value = pairs(value, kv_heads)
        if arch == "gpt2" and name.endswith(("attn.weight", "c_proj.weight", "c_fc.weight")):
            value = value.T
        front, found, rest = name.partition(".experts.")
        if found and arch == "gpt-oss":
            bias, rest = rest.endswith("_bias"), rest.removesuffix("_bias")
            value = value if bias else value.swapaxes(1, 2)
            suffix = "bias" if bias else "weight"
            both = rest == "gate_up_proj"
            parts = (
                {"gate_proj": value[:, ::2], "up_proj": value[:, 1::2]} if both else {rest: value}
            )
            for part, one in parts.items():
                put(f"{front}.experts.{part}.{suffix}", one)
        elif found:
            expert, _, which = rest.partition(".")
            experts.setdefault(f"{front}.experts.{which}", {})[int(expert)] = value
        elif "kv_b_proj" in name:
            plain = raw["qk_nope_head_dim"]
            both = value.reshape(heads, plain + raw["v_head_dim"], -1)
            put(name.replace("kv_b", "k_b"), both[:, :plain].swapaxes(1, 2))
            put(name.replace("kv_b", "v_b"), both[:, plain:])
        else:
            put(name, value)
    for name, stacked in experts.items():
        put(name, np.stack([stacked[e] for e in range(len(stacked))]))
    if (raw.get("rope_scaling") or {}).get("rope_type") == "llama3":
        out["rope_freqs.weight"] = llama3_divisors(raw)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in out.items()}


def digest(tensors):
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name}{tensors[name].shape}".encode() + tensors[name].tobytes())
    return found.hexdigest()


def write_gguf(path, metadata, tensors):
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    adders |= {str: writer.add_string, list: writer.add_array}
    for key, value in metadata.items():
        if key != "general.architecture":
            adders[type(value)](key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(name, directory):
    """(config.json, metadata, tensors of the GGUF file) of a model, its HF directory written."""
    raw, metadata = MODELS[name]["config"], MODELS[name]["metadata"]
    stored = write(directory, raw)
    assert stored.keys() == expected_tensors(raw).keys()
    return raw, dict(metadata), convert(metadata["general.architecture"], raw, stored)


@pytest.mark.parametrize("name", MODELS)
def test_file_of_llama_cpp_is_the_same_model(name, tmp_path):
    _, metadata, tensors = make(name, tmp_path / "hf")
    assert digest(tensors) == MODELS[name]["sha256"]
    write_gguf(tmp_path / "model.gguf", metadata, tensors)
    source = huggingface.open_gguf(tmp_path / "model.gguf")
    config, params = huggingface.load(tmp_path / "hf")
    assert source.config == config and source.metadata["general.architecture"]
    assert hf_config.nearest(config) == source.name
    same(
        huggingface.load(tmp_path / "model.gguf")[1],
        params,
        LAST_BIT * name.startswith("gemma"),
    )


def test_any_mesh_holds_the_same_model(tmp_path):
    _, metadata, tensors = make("mixtral", tmp_path / "hf")
    write_gguf(tmp_path / "model.gguf", metadata, tensors)
    mesh = sharding.make_mesh(sharding.MeshConfig(expert=2, tensor=2, fsdp=2))
    placed = huggingface.load(tmp_path / "model.gguf", mesh, vocab_multiple=2)[1]
    same(placed, huggingface.load(tmp_path / "hf", vocab_multiple=2)[1])


def test_older_spellings_are_read(tmp_path):
    """Keys and values of DeepSeek in one tensor; a vector for Qwen's gate of the shared expert."""
    raw, metadata, tensors = make("deepseek2", tmp_path / "hf")
    together = {}
    for name, value in tensors.items():
        if "attn_k_b" in name:
            values = tensors[name.replace("_k_b", "_v_b")]
            both = np.concatenate([value.swapaxes(1, 2), values], 1)
            together[name.replace("_k_b", "_kv_b")] = both.reshape(-1, both.shape[-1])
        elif "attn_v_b" not in name:
            together[name] = value
    plain = raw["qk_nope_head_dim"] + raw["qk_rope_head_dim"]
    metadata |= {"deepseek2.attention.key_length": plain}
    metadata |= {"deepseek2.attention.value_length": raw["v_head_dim"]}
    metadata = {key: value for key, value in metadata.items() if not key.endswith("_mla")}
    write_gguf(tmp_path / "old.gguf", metadata, together)
    assert (
        huggingface.open_gguf(tmp_path / "old.gguf").config
        == huggingface.open_hf(tmp_path / "hf").config
    )
    same(huggingface.load(tmp_path / "old.gguf")[1], huggingface.load(tmp_path / "hf")[1])
    _, metadata, tensors = make("qwen2moe", tmp_path / "qwen")
    flat = {name: x[0] if "inp_shexp" in name else x for name, x in tensors.items()}
    write_gguf(tmp_path / "flat.gguf", metadata, flat)
    same(huggingface.load(tmp_path / "flat.gguf")[1], huggingface.load(tmp_path / "qwen")[1])


@pytest.mark.parametrize(
    ("name", "changes", "switches"),
    [
        (
            "gemma3",
            {"gemma3.attention.sliding_window_pattern": 2},
            dict(layers=("sliding", "full")),
        ),
        (
            "gemma3",
            {"gemma3.attention.sliding_window_pattern": [False] + [True] * 7},
            dict(layers=("full",) + ("sliding",) * 7),
        ),
        ("gemma2", {"gemma2.block_count": 46}, dict(attention_scale=8**-0.5)),
        ("gemma2", {}, dict(attention_scale=16**-0.5)),
        ("mistral", {"llama.attention.sliding_window": 7}, dict(layers=("sliding",), window=7)),
        ("qwen2", {"qwen2.rope.scaling.yarn_attn_factor": 0.5}, {"rope.magnitude": 0.5}),
        ("deepseek2", {"deepseek2.expert_weights_norm": None}, {"moe.normalize": False}),
    ],
)
def test_metadata_turn_switches(name, changes, switches, tmp_path):
    _, metadata, tensors = make(name, tmp_path)
    metadata = {key: x for key, x in (metadata | changes).items() if x is not None}
    shapes = {key: value.shape for key, value in tensors.items()}
    flat = hf_config.flatten(hf_config.from_hf(gguf_config.to_config(metadata, shapes, None)))
    assert {key: flat[key] for key in switches} == switches


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama", {"general.architecture": "rwkv6"}, "'rwkv6'; it must be one of llama, qwen2"),
        ("llama", {"llama.block_count": None}, "llama.block_count is None"),
        ("llama", {"llama.attention.head_count": [4, 2]}, "head_count is [4, 2]; a number for all"),
        ("llama", {"llama.attention.head_count_kv": [2, 2]}, "num_key_value_heads is [2, 2]"),
        ("llama", {"llama.rope.dimension_count": 8}, "must be the size of a head, 16"),
        ("llama", {"llama.logit_scale": 0.5}, "llama.logit_scale is 0.5; it is not read"),
        ("llama", {"llama.rope.scaling.type": "longrope"}, "rope_type is 'longrope'"),
        ("qwen2", {"qwen2.rope.scaling.attn_factor": 2.0}, "rope.scaling.attn_factor is not read"),
        ("qwen3moe", {"qwen3moe.expert_gating_func": 2}, "expert_gating_func is 2; only 1"),
        ("deepseek2", {"deepseek2.expert_gating_func": None}, "expert_gating_func is 1; only 2"),
        ("olmo2", {"olmo2.attention.sliding_window": 8}, "sliding_window is 8; of olmo2 only"),
        ("qwen3", {"qwen3.embedding_length": 31}, "has another shape for"),
        ("llama 3.1", {"llama.rope.freq_base": 1e4}, "other divisors than Llama 3's"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(name, changes, words, tmp_path):
    _, metadata, tensors = make(name, tmp_path / "hf")
    metadata = {key: x for key, x in (metadata | changes).items() if x is not None}
    write_gguf(tmp_path / "model.gguf", metadata, tensors)
    with pytest.raises(ValueError) as caught:
        huggingface.open_gguf(tmp_path / "model.gguf")
    message = str(caught.value)
    assert str(tmp_path) in message and words in message and "\n" not in message


@pytest.mark.parametrize("name", MODELS)
def test_any_value_is_taken_or_refused_in_words(name):
    metadata = MODELS[name]["metadata"]
    arch = metadata["general.architecture"]
    keys = [*metadata, *(f"{arch}.{key}" for key in (*gguf_config.KEYS, *gguf_config.SEEN))]
    for key in dict.fromkeys(keys):
        for value in (None, "x", 1.5, -1, 0, True, [], [1], 10**12, math.nan):
            given = {k: x for k, x in (metadata | {key: value}).items() if x is not None}
            for divisors in (None, np.zeros((3, 3), np.float32)):
                with contextlib.suppress(ValueError):
                    shapes = {"token_embd.weight": (67, 32)}
                    hf_config.from_hf(gguf_config.to_config(given, shapes, divisors))


def test_missing_and_foreign_tensors_are_named(tmp_path):
    _, metadata, tensors = make("qwen3", tmp_path / "hf")
    more = {key: x for key, x in tensors.items() if key != "blk.1.attn_q.weight"}
    write_gguf(tmp_path / "a.gguf", metadata, more | {"blk.0.adapter.weight": np.ones(32, "f")})
    with pytest.raises(ValueError) as caught:
        huggingface.open_gguf(tmp_path / "a.gguf")
    assert "lacks blk.1.attn_q.weight; has no use for blk.0.adapter.weight" in str(caught.value)
