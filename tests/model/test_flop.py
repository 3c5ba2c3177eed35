"""The FLOP counter, against every matrix product of the traced forward pass."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from model import flop
from model.config import HEADS, MLAConfig, MoEConfig, TransformerConfig
from model.transformer import declare, forward, init

CONFIG = TransformerConfig(
    vocab_size=64,
    num_layers=3,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    d_ff=40,
    head="tied",
    qk_norm="head",
    scale_embedding=True,
    norm_eps=1e-6,
    dtype="float32",
)


def count_products(jaxpr, times=1):
    """Two FLOPs for each multiply-add of each dot_general, loops multiplied out."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[dim] for dim in contracted)
            total += times * 2 * inner * math.prod(equation.outvars[0].aval.shape)
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for param in equation.params.values():
            inside = getattr(param, "jaxpr", param)
            if hasattr(inside, "eqns"):
                total += count_products(inside, times * length)
    return total


def abstract_params(config):
    return jax.tree.map(
        lambda weight: jax.ShapeDtypeStruct(weight.shape, jnp.float32),
        declare(config),
    )


@pytest.mark.parametrize("head", HEADS)
def test_forward_flops_are_the_products_of_the_forward_pass(head):
    """The counter leaves out the masked half of attention, which the program computes."""
    config, (rows, seq_len) = dataclasses.replace(CONFIG, head=head), (2, 8)
    tokens = jax.ShapeDtypeStruct((rows, seq_len), jnp.int32)
    traced = jax.make_jaxpr(forward, static_argnums=0)(
        config, abstract_params(config), tokens, tokens, tokens
    )
    masked_half = config.num_layers * 2 * config.num_heads * config.head_dim * seq_len
    counted = count_products(traced.jaxpr) / (rows * seq_len)
    assert flop.forward_flops(config, seq_len) + masked_half == counted


def test_forward_flops_by_hand():
    """Layer: 2*16*6*12 projections, 2*4*6*10 attention of 10 tokens, 6*16*40 feed-forward."""
    layer = 2304 + 480 + 3840
    assert flop.forward_flops(CONFIG, 10) == 3 * layer + 2 * 16 * 64
    assert flop.train_flops(CONFIG, 10) == 3 * flop.forward_flops(CONFIG, 10)
    longer = flop.forward_flops(CONFIG, 20) - flop.forward_flops(CONFIG, 10)
    assert longer == 3 * 480


LATENT = dataclasses.replace(
    CONFIG,
    num_kv_heads=4,
    qk_norm="none",
    mla=MLAConfig(kv_rank=10, query_rank=12, rope_dim=2, value_dim=5),
)


def test_latent_attention_is_counted_as_it_is_trained():
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    traced = jax.make_jaxpr(forward, static_argnums=0)(
        LATENT, abstract_params(LATENT), tokens, tokens, tokens
    )
    masked_half = LATENT.num_layers * LATENT.num_heads * (LATENT.head_dim + 5) * 8
    assert flop.forward_flops(LATENT, 8) + masked_half == count_products(traced.jaxpr) / 16


def test_a_window_counts_what_it_leaves():
    """Of 10 tokens, windows of 4 see 4 - 4^2 / 20 = 3.2 on average, full layers 5."""
    config = dataclasses.replace(CONFIG, layers=("sliding", "full"), window=4)
    scores = 2 * 4 * 6 * 2  # a key: N heads of H, twice, two FLOPs
    assert flop.forward_flops(CONFIG, 10) - flop.forward_flops(config, 10) == pytest.approx(
        scores * 2 * (5 - 3.2)
    )


def test_experts_count_as_far_as_they_are_chosen():
    """Layers 2 and 3: a router, 2 of 8 experts, a shared one; layer 1 dense."""
    moe = MoEConfig(num_experts=8, top_k=2, d_ff=10, shared_d_ff=20, num_dense=1)
    config = dataclasses.replace(CONFIG, moe=moe)
    layer = 16 * 8 + 3 * 16 * (2 * 10 + 20)
    extra = 2 * 2 * (layer - 3 * 16 * 40)
    assert flop.forward_flops(config, 10) == flop.forward_flops(CONFIG, 10) + extra
    idle = 2 * 3 * 16 * 10 * 6
    assert flop.num_params(config) - flop.num_active_params(config) == idle


def test_padding_of_the_vocabulary_is_no_parameter():
    padded = dataclasses.replace(CONFIG, vocab_multiple=100, head="untied")
    plain = dataclasses.replace(CONFIG, head="untied")
    assert flop.num_params(padded) == flop.num_params(plain)


@pytest.mark.parametrize(
    ("head", "num_head_params"), [("tied", 0), ("untied", 1024), ("scalar", 16)]
)
def test_num_params(head, num_head_params):
    config = dataclasses.replace(CONFIG, head=head)
    block = 16 * 6 * (4 + 2 + 2 + 4) + 3 * 16 * 40 + 2 * 16 + 2 * 6
    assert flop.num_params(config) == 64 * 16 + 3 * block + 16 + num_head_params
    params = jax.eval_shape(lambda rng: init(config, rng), jax.random.key(0))
    assert flop.num_params(config) == sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_of_an_unknown_device_is_measured(dtype):
    peak, source = flop.peak_flops(dtype)
    assert source == "measured" and peak > 1e8


def test_what_is_measured_is_a_product_on_every_device_in_the_dtype(monkeypatch):
    """Eight devices that take a second for a product each: eight products a second."""
    seen = []

    def a_second(multiply, x):
        seen.append((x.dtype, len(x.sharding.device_set), multiply(x, x)))
        return 1.0

    monkeypatch.setattr(flop, "_time", a_second)
    flop._measured_peak.cache_clear()
    try:
        assert flop.peak_flops("bfloat16") == (8 * 2 * 1024**3, "measured")
    finally:
        flop._measured_peak.cache_clear()
    for dtype, num_devices, product in seen:
        assert (dtype, num_devices, product.dtype) == (jnp.bfloat16, 8, jnp.bfloat16)
        assert product.shape == (8 * 1024, 1024) and jnp.all(product == 1024)
        assert product.addressable_shards[0].data.shape == (1024, 1024)


def test_peak_of_a_known_device_is_the_data_sheets(monkeypatch):
    monkeypatch.setitem(flop.PEAK_FLOPS, jax.devices()[0].device_kind, (1e12, 3e12))
    assert flop.peak_flops("float32") == (8e12, "data sheet")
    assert flop.peak_flops("bfloat16", "int8") == (24e12, "data sheet")
