"""Packed weights, as gpt-oss and DeepSeek-V3 are published, against values worked out by hand."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from model.interop import huggingface, packed
from model.interop.safetensors import open_safetensors
from tests.model.test_huggingface import CASES, same, write


def pack_mxfp4(codes_EOI, scales_EOB):
    """4-bit codes to bytes, the even one in the low half; blocks of 32 share a scale."""
    blocks = codes_EOI.reshape(*codes_EOI.shape[:2], -1, 16, 2).astype(np.uint8)
    return blocks[..., 0] | blocks[..., 1] << 4, scales_EOB


def test_mxfp4_is_undone(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (2, 6, 64))
    blocks, scales = pack_mxfp4(codes, rng.integers(120, 132, (2, 6, 2), np.uint8))
    save_file(
        {"w_blocks": blocks, "w_scales": scales, "b": np.ones(3, np.float32)},
        tmp_path / "model.safetensors",
    )
    tensors = packed.Unpacked(open_safetensors(tmp_path))
    assert sorted(tensors.names()) == ["b", "w"]
    assert tensors.shape("w") == (2, 64, 6) and tensors.shape("b") == (3,)
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    got = tensors.read("w")
    for e, o, i in np.ndindex(codes.shape):
        expected = values[codes[e, o, i]] * 2.0 ** (int(scales[e, o, i // 32]) - 127)
        assert got[e, i, o] == expected
    np.testing.assert_array_equal(tensors.read("b"), np.ones(3))


def test_fp8_is_undone(tmp_path):
    rng = np.random.default_rng(0)
    value = rng.normal(size=(200, 130)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.5, 2, (2, 2)).astype(np.float32)
    save_file({"w": value, "w_scale_inv": scale}, tmp_path / "model.safetensors")
    tensors = packed.Unpacked(open_safetensors(tmp_path))
    assert tensors.names() == ["w"] and tensors.shape("w") == (200, 130)
    got = tensors.read("w")
    for row, column in ((0, 0), (127, 129), (128, 5), (199, 128)):
        expected = np.float32(value[row, column]) * scale[row // 128, column // 128]
        assert got[row, column] == expected


@pytest.mark.parametrize("case", ["gpt-oss", "deepseek v3"])
def test_published_directory_is_read(case, tmp_path):
    """The directory of a model whose packed weights are what the plain one holds."""
    kind = "mxfp4" if case == "gpt-oss" else "fp8"
    raw = CASES[case]["config"] | {"quantization_config": {"quant_method": kind}}
    if case == "gpt-oss":
        raw |= dict(hidden_size=32, intermediate_size=32)
    plain, rng, stored = write(tmp_path / "plain", raw), np.random.default_rng(0), {}
    for name, value in plain.items():
        if case == "gpt-oss" and name.endswith("experts.down_proj"):
            codes = rng.integers(0, 16, value.swapaxes(1, 2).shape)
            scales = np.full((*codes.shape[:2], codes.shape[2] // 32), 125, np.uint8)
            stored[name + "_blocks"], stored[name + "_scales"] = pack_mxfp4(codes, scales)
            plain[name] = np.ascontiguousarray(packed.FP4[codes].swapaxes(1, 2)) / 4
        elif case != "gpt-oss" and name.endswith("q_a_proj.weight"):
            stored[name] = value.astype(ml_dtypes.float8_e4m3fn)
            stored[name + "_scale_inv"] = np.full((1, 1), 0.5, np.float32)
            plain[name] = np.float32(stored[name]) / 2
        else:
            stored[name] = value
    write(tmp_path / "plain", raw, plain)
    write(tmp_path / "packed", raw, stored)
    same(huggingface.load(tmp_path / "packed")[1], huggingface.load(tmp_path / "plain")[1])
    other = json.loads(json.dumps(raw)) | {"quantization_config": {"quant_method": "awq"}}
    write(tmp_path / "packed", other, stored)
    with pytest.raises(ValueError, match="quantization_config is 'awq'"):
        huggingface.load(tmp_path / "packed")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (dict(w=np.ones((4, 4), np.uint8)), "w holds uint8; how these are packed is not known"),
        (
            dict(w=np.ones((4, 4), np.float32), w_scale_inv=np.ones((2, 1), np.float32)),
            "w_scale_inv has shape (2, 1), expected (1, 1)",
        ),
        (
            dict(w_blocks=np.ones((1, 2, 1, 16), np.uint8), w_scales=np.ones((1, 2, 2), np.uint8)),
            "w_scales has shape (1, 2, 2) for blocks (1, 2, 1, 16)",
        ),
    ],
)
def test_scales_that_do_not_fit_are_named(tensors, words, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    unpacked = packed.Unpacked(open_safetensors(tmp_path))
    with pytest.raises(ValueError) as caught:
        unpacked.read("w")
    assert words in str(caught.value)
