"""Switches of a decoder that make no sense are refused by their key."""

import dataclasses
import math

import pytest

from model.config import MLAConfig, TransformerConfig
from tests.tiny import replace

CONFIG = TransformerConfig(
    vocab_size=60, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=32
)
BAD = [
    ({"num_kv_heads": 3}, r"model.num_kv_heads is 3; it must be a divisor of .* = 4"),
    ({"head_dim": 7}, "model.head_dim is 7; it must be even"),
    ({"num_layers": 0}, "model.num_layers is 0; it must be at least 1"),
    ({"d_ff": -1}, "model.d_ff is -1"),
    ({"head": "loose"}, "model.head is 'loose'; it must be one of"),
    ({"dtype": "float16"}, "model.dtype is 'float16'; it must be one of"),
    ({"chunk_tokens": 0}, "layout.chunk_tokens is 0; it must be at least 1"),
    ({"remat": "some"}, "layout.remat is 'some'; it must be one of"),
    ({"norm_eps": 0.0}, "model.norm_eps is 0.0; it must be above 0"),
    ({"attention_scale": math.inf}, "model.attention_scale is inf; it must be at least 0, finite"),
    ({"layers": ("full", "wide")}, r"model.layers is \('full', 'wide'\); it must be one of"),
    ({"mla": MLAConfig(8, 8, 2, 4)}, "model.num_kv_heads is 2; it must be num_heads with latent"),
    (
        {"mla": MLAConfig(8, 8, 2, 4), "positions": "learned", "max_positions": 8},
        "model.positions is 'learned'; it must be 'rope' with latent attention",
    ),
]


@pytest.mark.parametrize(("changes", "complaint"), BAD)
def test_bad_config_is_named(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(CONFIG, **changes)


def test_rows_fit_into_learned_positions_only():
    learned = dataclasses.replace(CONFIG, positions="learned", max_positions=8)
    learned.check_length("x", 8)
    CONFIG.check_length("x", 9)
    with pytest.raises(ValueError, match="x is 9 long; model.max_positions is 8"):
        learned.check_length("x", 9)
