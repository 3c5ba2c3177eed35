"""Every attention kernel against the float32 reference, and every refusal by name.

Splash runs in Pallas's interpret mode; cuDNN's call is computed by XLA and lowered for CUDA.
"""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental.pallas.ops.tpu import splash_attention

from model import kernel, ring, sharding
from model.attention import TokenIndex, attend, visible
from model.config import Layout, TransformerConfig
from tests.marks import by_default

pytestmark = pytest.mark.usefixtures("quick_compilation")

TIGHT = dict(rtol=1e-5, atol=1e-5)  # float32 sums in another order
TPU = kernel.Request(
    platform="tpu",
    hopper=False,
    has_tokamax=True,
    order="text",
    num_shards=1,
    staged=False,
    dtype="bfloat16",
    length=256,
    head_dim=128,
    value_dim=128,
    window=64,
    softcap=50.0,
    sinks=True,
)
GPU = dataclasses.replace(TPU, platform="gpu", softcap=0.0, sinks=False)


def make_config(name="auto", softcap=0.0):
    return TransformerConfig(
        vocab_size=16,
        num_layers=1,
        d_model=8,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        d_ff=8,
        layout=Layout(kernel=name),
        attention_softcap=softcap,
    )


def make_tokens(*rows):
    """Rows given as lengths of documents; a negative length is padding."""
    segments = [[i * (n > 0) for i, n in enumerate(row, 1) for _ in range(abs(n))] for row in rows]
    positions = [[p if n > 0 else 0 for n in row for p in range(abs(n))] for row in rows]
    return TokenIndex(jnp.asarray(positions), jnp.asarray(segments))


TOKENS = make_tokens((70, 130, -56), (-20, 235, 1))


def make_arrays(B=2, L=256, N=4, K=2, H=24, Hv=16, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((B, L, N, H), (B, K, L, H), (B, K, L, Hv), (N,), (B, L, N, Hv))
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def run(call, q, k, v, sink, probe, tokens):
    """Outputs of real tokens, and gradients of a weighted sum of them."""
    real = (tokens.segments_BL > 0)[..., None, None]

    def total(q, k, v, sink):
        mixed = call(q, k, v, sink)
        return (jnp.where(real, mixed, 0) * probe).sum(dtype=jnp.float32), mixed

    wanted = (0, 1, 2) if sink is None else (0, 1, 2, 3)
    gradients, mixed = jax.jit(jax.grad(total, wanted, has_aux=True))(q, k, v, sink)
    return [jnp.where(real, mixed, 0), *gradients]


def reference(q, k, v, sink, probe, tokens, window=0, softcap=0.0, scale=0.3):
    mask = visible(tokens, tokens, window)
    return run(lambda *a: attend(*a[:3], mask, scale, softcap, a[3]), q, k, v, sink, probe, tokens)


def by_kernel(config, q, k, v, sink, probe, tokens, window=0, scale=0.3):
    def call(q, k, v, sink):
        return kernel.attention(config, q, k, v, tokens, window, scale, sink)

    return run(call, q, k, v, sink, probe, tokens)


def assert_same(found, wanted, **tolerance):
    for name, a, b in zip(("mixed", "dq", "dk", "dv", "dsink"), found, wanted, strict=False):
        np.testing.assert_allclose(a, b, err_msg=name, **tolerance)
    assert len(found) == len(wanted)


@pytest.fixture
def tpu(monkeypatch):
    """Makes this machine a TPU whose splash kernel is interpreted."""
    make = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", make)
    monkeypatch.setattr(kernel, "_platform", lambda: "tpu")


@pytest.fixture
def gpu(monkeypatch):
    """Makes this machine a GPU whose cuDNN kernel is computed by XLA, in any dtype."""
    product = jax.nn.dot_product_attention

    def by_xla(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return product(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    monkeypatch.setattr(kernel, "_platform", lambda: "gpu")
    monkeypatch.setattr(kernel, "refusal", lambda name, request: None)


@pytest.fixture
def cuda(monkeypatch):
    """Makes this machine a GPU for as long as it takes to lower a program."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(kernel, "_platform", lambda: "gpu")


@pytest.mark.parametrize(
    ("window", "softcap", "sinks", "K", "Hv"),
    by_default(
        [
            *((0, 0.0, False, 4, 24), (40, 5.0, True, 2, 16)),
            *((0, 5.0, False, 1, 32), (1, 0.0, True, 2, 24)),
        ],
        *(0, 1),
    ),
)
def test_splash_is_the_reference(tpu, caplog, window, softcap, sinks, K, Hv):
    q, k, v, sink, probe = make_arrays(K=K, Hv=Hv)
    sink = sink if sinks else None
    found = by_kernel(make_config(softcap=softcap), q, k, v, sink, probe, TOKENS, window)
    wanted = reference(q, k, v, sink, probe, TOKENS, window, softcap)
    assert_same(found, wanted, **TIGHT)
    assert not caplog.records


def test_splash_in_bfloat16_is_near_the_reference_in_float32(tpu):
    arrays = make_arrays()
    narrow = [x.astype(jnp.bfloat16) for x in arrays]
    wanted = reference(*(x.astype(jnp.float32) for x in narrow), TOKENS, 40, 5.0)
    found = by_kernel(make_config(softcap=5.0), *narrow, TOKENS, 40)
    assert found[0].dtype == jnp.bfloat16
    # Sums of up to 235 products of numbers with 8 bits.
    assert_same([x.astype(jnp.float32) for x in found], wanted, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("change", [lambda row: row.at[100].set(row[99]), lambda row: 2 * row])
def test_splash_makes_rows_out_of_order_nan_and_leaves_the_others(tpu, change):
    q, k, v, _, _ = make_arrays()
    mixed_BLNH = kernel.attention(make_config(), q, k, v, TOKENS, 0, 0.3, None)
    positions = TOKENS.positions_BL
    tokens = dataclasses.replace(TOKENS, positions_BL=positions.at[1].set(change(positions[1])))
    found_BLNH = kernel.attention(make_config(), q, k, v, tokens, 0, 0.3, None)
    np.testing.assert_array_equal(found_BLNH[0], mixed_BLNH[0])
    assert jnp.isnan(found_BLNH[1]).all()


@pytest.mark.parametrize(("K", "sizes"), [(2, (2, 1, 2)), (2, (1, 1, 4)), (4, (2, 2, 2))])
def test_splash_on_a_mesh_is_the_reference(tpu, caplog, K, sizes):
    data, fsdp, tensor = sizes
    arrays = make_arrays(B=4, K=K)
    tokens = make_tokens((70, 130, -56), (-20, 235, 1), (256,), (128, 128))
    wanted = reference(*arrays, tokens, 40)
    config = sharding.MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
    mesh = sharding.make_mesh(config, jax.devices()[: data * fsdp * tensor])
    with jax.set_mesh(mesh):
        found = by_kernel(make_config(), *arrays, tokens, 40)
    assert_same(found, wanted, **TIGHT)
    assert not caplog.records


@pytest.mark.parametrize(
    ("window", "softcap", "sinks", "K", "sizes"),
    by_default(
        [
            (0, 0.0, False, 2, {"context": 2, "fsdp": 2, "tensor": 2}),
            (300, 5.0, True, 1, {"context": 4, "tensor": 2}),
        ]
    ),
)
def test_splash_over_a_context_axis_is_the_reference(tpu, caplog, window, softcap, sinks, K, sizes):
    """Queries split in the balanced order, keys gathered; a row out of that order becomes NaN."""
    q, k, v, sink, probe = make_arrays(L=1024, K=K)
    sink = sink if sinks else None
    order = ring.balanced_order(1024, sizes["context"])
    tokens = make_tokens((500, 300, -224), (-20, 1000, 4))
    laid_out = jax.tree.map(lambda x: x[:, order], tokens)
    tokens = dataclasses.replace(laid_out, balanced=True)
    wanted = reference(q, k, v, sink, probe, tokens, window, softcap)
    config = make_config(softcap=softcap)
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(**sizes))):
        found = by_kernel(config, q, k, v, sink, probe, tokens, window)
        wrong = tokens.positions_BL.at[1, 100].set(7)
        broken = dataclasses.replace(tokens, positions_BL=wrong)
        mixed_BLNH = kernel.attention(config, q, k, v, broken, window, 0.3, sink)
    assert_same(found, wanted, **TIGHT)
    assert not caplog.records
    assert jnp.isnan(mixed_BLNH[1]).all() and not jnp.isnan(mixed_BLNH[0]).any()


def test_splash_in_pipeline_stages_is_the_reference(tpu):
    q, k, v, sink, _ = make_arrays(B=4)
    tokens = make_tokens((70, 130, -56), (-20, 235, 1), (256,), (128, 128))
    wanted_BLNH = attend(q, k, v, visible(tokens, tokens, 0), 0.3, 0.0, sink)
    by_stage = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), (q, k, v, tokens))
    config = make_config()
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(stage=2, data=2, tensor=2))):
        found = jax.jit(
            jax.vmap(
                lambda q, k, v, tokens: kernel.attention(config, q, k, v, tokens, 0, 0.3, sink),
                spmd_axis_name="stage",
            )
        )(*by_stage)
    assert found.sharding.spec[0] == "stage"
    real = tokens.segments_BL > 0
    np.testing.assert_allclose(found.reshape(q.shape[:3] + (-1,))[real], wanted_BLNH[real], **TIGHT)


@pytest.mark.parametrize(("H", "Hv"), [(24, 16), (16, 24)])
@pytest.mark.parametrize("window", [0, 40])
def test_call_of_cudnn_is_the_reference(gpu, window, H, Hv):
    arrays = make_arrays(H=H, Hv=Hv)
    arrays[3] = None
    found = by_kernel(make_config("cudnn"), *arrays, TOKENS, window)
    assert_same(found, reference(*arrays, TOKENS, window), **TIGHT)


def test_call_of_cudnn_honours_rows_reordered_over_a_context_axis(gpu):
    arrays = make_arrays()
    arrays[3] = None
    order = np.random.default_rng(0).permutation(256)
    tokens = jax.tree.map(lambda x: x[:, order], TOKENS)
    wanted = reference(*arrays, tokens, 40)
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=2, context=2, tensor=2))):
        found = by_kernel(make_config("cudnn"), *arrays, tokens, 40)
    assert_same(found, wanted, **TIGHT)


def lower_for_cuda(**shape):
    """The program of one gradient of attention, as text."""
    arrays = make_arrays(dtype=jnp.bfloat16, **shape)

    def total(q, k, v):
        mixed = kernel.attention(make_config(), q, k, v, TOKENS, 40, 0.3, None)
        return mixed.sum(dtype=jnp.float32)

    traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(*arrays[:3])
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_cudnn_lowers_for_cuda_with_the_mask_as_its_bias(cuda, caplog):
    text = lower_for_cuda()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text
    assert "2x1x256x256xbf16" in text and "2x4x256x256" not in text  # one mask for all heads
    assert not caplog.records


def test_stages_are_refused_because_cudnn_cannot_batch_its_mask(cuda, monkeypatch):
    monkeypatch.setattr(kernel, "refusal", lambda name, request: None)
    q, k, v, _, _ = make_arrays(dtype=jnp.bfloat16)
    by_stage = jax.tree.map(lambda x: x[None], (q, k, v, TOKENS))
    call = functools.partial(kernel.attention, make_config("cudnn"))
    with pytest.raises(TypeError, match="cannot reshape"):
        jax.eval_shape(jax.vmap(lambda *a: call(*a, 0, 0.3, None)), *by_stage)


def test_what_the_mesh_says_reaches_the_choice(cuda, caplog):
    kernel.warn_once.cache_clear()
    q, k, v, _, _ = make_arrays(dtype=jnp.bfloat16)
    call = functools.partial(kernel.attention, make_config("splash"))
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(stage=2, context=2, tensor=2))):
        jax.eval_shape(lambda *a: call(*a, 0, 0.3, None), q, k, v, TOKENS)
    assert [record.args[0] for record in caplog.records] == ["splash", "cudnn"]
    assert "stages" in caplog.records[1].args[1]


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (40, 5.0)])
def test_tokamax_is_the_reference(window, softcap):
    pytest.importorskip("tokamax")
    arrays = make_arrays()
    arrays[3] = None
    with jax.numpy_rank_promotion("allow"):  # tokamax relies on it
        found = by_kernel(make_config("tokamax", softcap), *arrays, TOKENS, window)
    assert_same(found, reference(*arrays, TOKENS, window, softcap), **TIGHT)


@pytest.mark.parametrize(
    ("name", "base", "change", "words"),
    [
        ("splash", TPU, {}, None),
        ("splash", TPU, {"dtype": "float32", "value_dim": 72, "staged": True}, None),
        ("splash", TPU, {"platform": "gpu"}, "not on a gpu"),
        ("splash", TPU, {"order": "any", "num_shards": 2}, "order"),
        ("splash", TPU, {"order": "balanced", "num_shards": 2, "length": 512}, None),
        ("splash", TPU, {"order": "balanced", "num_shards": 2, "length": 256}, "on 2 context"),
        ("splash", TPU, {"length": 200}, "200 long"),
        ("cudnn", GPU, {}, None),
        ("cudnn", GPU, {"order": "any", "window": 0, "value_dim": 64}, None),
        ("cudnn", GPU, {"platform": "cpu"}, "not on a cpu"),
        ("cudnn", GPU, {"dtype": "float32"}, "float32"),
        ("cudnn", GPU, {"softcap": 30.0}, "softcap"),
        ("cudnn", GPU, {"sinks": True}, "sinks"),
        ("cudnn", GPU, {"staged": True}, "stages"),
        ("cudnn", GPU, {"length": 255}, "255 long"),
        ("cudnn", GPU, {"head_dim": 100, "value_dim": 100}, "100"),
        ("cudnn", GPU, {"head_dim": 192}, "192"),
        ("cudnn", GPU, {"value_dim": 192}, "192"),
        ("cudnn", GPU, {"head_dim": 192, "hopper": True}, None),
        ("cudnn", GPU, {"head_dim": 264, "hopper": True}, "264"),
        ("tokamax", GPU, {}, None),
        ("tokamax", GPU, {"order": "any", "staged": True, "length": 99}, None),
        ("tokamax", GPU, {"has_tokamax": False}, "not installed"),
        ("tokamax", TPU, {}, "TPU"),
        ("tokamax", GPU, {"sinks": True}, "sinks"),
        ("tokamax", GPU, {"dtype": "float32"}, "float32"),
        ("tokamax", GPU, {"dtype": "float32", "platform": "cpu"}, None),
        ("tokamax", GPU, {"softcap": 30.0}, "softcap"),
        ("tokamax", GPU, {"softcap": 30.0, "platform": "cpu"}, None),
        ("xla", TPU, {"order": "any", "length": 7, "head_dim": 5, "dtype": "float32"}, None),
    ],
)
def test_refusal(name, base, change, words):
    reason = kernel.refusal(name, dataclasses.replace(base, **change))
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize(
    ("wanted", "request_", "chosen", "refused"),
    [
        ("auto", TPU, "splash", []),
        ("auto", GPU, "cudnn", []),
        ("auto", dataclasses.replace(TPU, platform="cpu"), "xla", []),
        ("xla", TPU, "xla", []),
        ("tokamax", GPU, "tokamax", []),
        ("cudnn", TPU, "splash", ["cudnn"]),
        ("cudnn", dataclasses.replace(TPU, order="any"), "xla", ["cudnn", "splash"]),
        ("auto", dataclasses.replace(GPU, sinks=True), "xla", ["cudnn"]),
        ("splash", dataclasses.replace(GPU, platform="cpu"), "xla", ["splash"]),
    ],
)
def test_choice_falls_to_the_next_kernel_and_says_so_once(
    caplog, wanted, request_, chosen, refused
):
    kernel.warn_once.cache_clear()
    assert [kernel.choose(wanted, request_) for _ in range(3)] == [chosen] * 3
    assert [record.args[0] for record in caplog.records] == refused
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_kernel_of_another_platform_still_gives_the_reference(caplog):
    kernel.warn_once.cache_clear()
    arrays = make_arrays(L=256)
    found = by_kernel(make_config("splash", 5.0), *arrays, TOKENS, 40)
    assert_same(found, reference(*arrays, TOKENS, 40, 5.0), rtol=0, atol=0)
    assert "splash is not used: it runs on TPUs, not on a cpu" in caplog.text


def test_platform_is_that_of_the_mesh_a_program_is_compiled_for():
    device = jax.sharding.AbstractDevice(device_kind="TPU v5p", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=device)
    assert kernel._platform() == "cpu"
    with jax.sharding.use_abstract_mesh(mesh):
        assert kernel._platform() == "tpu"
