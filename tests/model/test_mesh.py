"""Any mesh gives the loss, gradients and statistics of one device: meshes x families x packing.

Float32 on eight CPU devices. The layouts that split the rows' length get the balanced order that
the loader gives them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ring, sharding
from model.config import MLAConfig, MoEConfig, RopeConfig, TransformerConfig, stacks
from model.sharding import MeshConfig
from model.transformer import declare
from tests import tiny
from train.lm import lm_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")

LOSS_RTOL = 2e-6
GRAD_TOL = 1e-5  # of the largest gradient of the weight, or of any weight
B, L, V = 16, 32, 60  # 60 words are stored as 64

PLAIN = TransformerConfig(
    vocab_size=V,
    num_layers=4,
    d_model=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=48,
    vocab_multiple=8,
)
MOE = MoEConfig(num_experts=4, top_k=2, d_ff=24, aux_loss=0.3, z_loss=0.1)
replace = functools.partial(dataclasses.replace, PLAIN)
FAMILIES = {
    "llama": replace(rope=RopeConfig(scaling="llama3", factor=4.0, original_len=16, fast=4.0)),
    "gpt2": replace(
        **dict(positions="learned", max_positions=L, norm="layer", mlp="gelu", num_kv_heads=4),
        bias=("qkv", "out", "mlp"),
    ),
    "gemma": replace(  # six layers of two kinds and two more: a stack of two and a tail
        **dict(num_layers=8, layers=("sliding", "full"), window=5, norm_place="sandwich"),
        **dict(qk_norm="head", attention_softcap=5.0, logit_softcap=3.0, scale_embedding=True),
        **dict(mlp="geglu", rope=RopeConfig(local_theta=100.0, scaling="linear", factor=2.0)),
    ),
    "olmo": replace(qk_norm="whole", norm_place="post", head="untied"),
    "mqa": replace(num_kv_heads=1),
    "mixtral": replace(layers=("sliding",), window=7, moe=MOE),
    "capacity": replace(
        moe=dataclasses.replace(MOE, dispatch="capacity", capacity_factor=0.75, every=2)
    ),
    "deepseek": replace(
        **dict(num_layers=5, num_kv_heads=4, head_dim=12, mla=MLAConfig(16, 24, 4, 8)),
        moe=MoEConfig(
            **dict(num_experts=4, top_k=2, d_ff=24, aux_loss=0.3, router="sigmoid", num_dense=1),
            **dict(num_groups=2, shared_d_ff=24, balance_bias=True, bias_rate=0.01, scale=2.5),
        ),
    ),
    "gpt-oss": replace(
        **dict(layers=("sliding", "full"), window=6, sinks=True, mlp="clamped_swiglu"),
        **dict(bias=("qkv", "out", "mlp", "router"), moe=MOE),
        rope=RopeConfig(scaling="yarn", factor=4.0, original_len=16, magnitude=1.1, truncate=False),
    ),
}
# Each axis alone, and the useful products; with the switches that go with them.
RING = {"context": "ring"}
MESHES = {
    "data 8": ({"data": 8}, {}),
    "fsdp 8": ({"fsdp": 8}, {}),
    "tensor 2": ({"tensor": 2}, {}),
    "tensor 4": ({"tensor": 4}, {}),
    "context 4 gather": ({"context": 4}, {}),
    "context 4 ring": ({"context": 4}, RING),
    "expert 4": ({"expert": 4}, {}),
    "stage 2": ({"stage": 2}, {"stage_microbatches": 4}),
    "stage 2 twice round": ({"stage": 2}, {"stage_microbatches": 2, "stage_repeats": 2}),
    "data fsdp tensor": ({"data": 2, "fsdp": 2, "tensor": 2}, {}),
    "fsdp context tensor": ({"fsdp": 2, "context": 2, "tensor": 2}, RING),
    "fsdp expert tensor": ({"fsdp": 2, "expert": 2, "tensor": 2}, {}),
    "expert context": ({"expert": 2, "context": 4}, {}),
    "stage fsdp tensor": ({"stage": 2, "fsdp": 2, "tensor": 2}, {"stage_microbatches": 2}),
    "stage context expert": (
        {"stage": 2, "context": 2, "expert": 2},
        {"stage_microbatches": 2, **RING},
    ),
}
EVERY = [(mesh, family) for mesh in MESHES for family in FAMILIES]


def make_params(config, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, declared):
        around = 1.0 if path[-1].key == "scale" else 0.0
        # About 1 over the root of the width: larger weights amplify rounding from layer to layer.
        return np.float32(around + 0.15 * rng.normal(size=declared.shape))

    return jax.tree.map_with_path(draw, declare(config))


def make_batch(packed: bool, seed=0):
    """Rows of a few documents and padding, or of one document each; weights of any size."""
    rng = np.random.default_rng(seed)
    positions, segments = np.tile(np.arange(L), (B, 1)), np.ones((B, L), np.int64)
    for row in range(B if packed else 0):
        cuts = np.sort(rng.choice(np.arange(1, L), 3, replace=False))
        for number, part in enumerate(np.split(np.arange(L), cuts)):
            positions[row, part] = np.arange(len(part))
            segments[row, part] = (number + 1) % 4  # the last part is padding
    return {
        "tokens": rng.integers(0, V, (B, L)),
        "targets": rng.integers(0, V, (B, L)),
        "positions": positions,
        "segments": segments,
        "weights": np.float32(rng.uniform(0.5, 2.0, (B, L)) * (segments > 0)),
    }


def run(config, params, batch, num_microbatches):
    """(loss over weight, named sums over weight, gradients over weight), as train.step does it."""

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def sums(params, batch):
        def total(params, batch):
            sums = lm_loss(tiny.replace(config, chunk_tokens=40), 1e-3)(params, batch)
            return sums.objective, (sums.weight, {**sums.named, "loss": sums.loss})

        return jax.value_and_grad(total, has_aux=True)(params, batch)

    parts = [
        sums(params, jax.tree.map(lambda x, i=i: x[i::num_microbatches], batch))
        for i in range(num_microbatches)
    ]
    added = functools.reduce(functools.partial(jax.tree.map, jnp.add), parts)
    (loss, (weight, named)), grads = added
    return jax.tree.map(lambda x: np.asarray(x) / float(weight), (loss, named, grads))


@functools.cache
def on_one_device(config, packed):
    return run(config, make_params(config), make_batch(packed), 1)


def on_mesh(config, sizes, packed, num_microbatches):
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    mesh = sharding.make_mesh(MeshConfig(**sizes), devices)
    order = ring.balanced_order(L, sizes.get("context", 1))
    batch = jax.tree.map(lambda x: x[:, order], make_batch(packed))
    with jax.set_mesh(mesh):
        shardings = sharding.weight_shardings(declare(config), mesh)
        params = jax.device_put(make_params(config), shardings)
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        return run(config, params, batch, num_microbatches)


def assert_same(got, expected):
    (loss, named, grads), (loss_1, named_1, grads_1) = got, expected
    np.testing.assert_allclose(loss, loss_1, LOSS_RTOL)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, GRAD_TOL, 1e-6), named, named_1)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads_1))
    for path, leaf in jax.tree.leaves_with_path(grads_1):
        found = functools.reduce(lambda node, key: node[key.key], path, grads)
        limit = GRAD_TOL * max(np.abs(leaf).max(), 1e-2 * largest)
        assert np.abs(found - leaf).max() <= limit, jax.tree_util.keystr(path)


def check(mesh, family, packed, num_microbatches):
    sizes, switches = MESHES[mesh]
    plain = FAMILIES[family]
    rounds = sizes.get("stage", 1) * switches.get("stage_repeats", 1)
    if max(stack.repeats for stack in stacks(plain)) % rounds:  # too few of each kind to go round
        plain = dataclasses.replace(plain, num_layers=2 * plain.num_layers)
    config = tiny.replace(plain, **switches)
    assert_same(on_mesh(config, sizes, packed, num_microbatches), on_one_device(plain, packed))


BY_DEFAULT = (("context 4 gather", "gpt2"), ("expert 4", "llama"))
# Every pair of a mesh and a family, the four ways to cut a batch in turn; a few by default.
CASES = [
    pytest.param(
        *pair,
        number % 2 == 0,
        1 + number // 2 % 2,
        marks=() if pair in BY_DEFAULT else pytest.mark.slow,
    )
    for number, pair in enumerate(EVERY)
]


@pytest.mark.parametrize(("mesh", "family", "packed", "num_microbatches"), CASES)
def test_a_mesh_gives_what_one_device_gives(mesh, family, packed, num_microbatches):
    check(mesh, family, packed, num_microbatches)
