"""The pipeline schedule against one scan over all layers: values, gradients, refused splits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import layer_pipeline, sharding
from model.config import Layout, TransformerConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOL = 1e-5  # float32 products of another number of rows
B, D, X = 8, 4, 8


def make_config(repeats, microbatches):
    return TransformerConfig(
        vocab_size=8,
        num_layers=X,
        d_model=D,
        num_heads=1,
        num_kv_heads=1,
        head_dim=4,
        d_ff=4,
        layout=Layout(stage_repeats=repeats, stage_microbatches=microbatches),
    )


def step(rows, layer):
    """A layer that does not commute with the others, and a running sum over layers."""
    x_BD = jnp.tanh(rows["x"] @ layer["w"] + layer["b"][None])
    return {"x": x_BD, "sum": rows["sum"] + x_BD[:, 0] * layer["b"][1]}, None


def make_arrays():
    rng = np.random.default_rng(0)
    shapes = {"w": (X, D, D), "b": (X, D)}
    layers = {name: np.float32(0.7 * rng.normal(size=shape)) for name, shape in shapes.items()}
    carry = {"x": np.float32(rng.normal(size=(B, D))), "sum": np.float32(rng.normal(size=B))}
    return carry, layers


def measure(run, carry, layers):
    """The carry after the last layer, and gradients of a weighted sum of it."""
    probe = np.float32(np.random.default_rng(1).normal(size=(B, D)))

    def total(carry, layers):
        last = run(carry, layers)
        return jnp.sum(last["x"] * probe) + jnp.sum(last["sum"] * probe[:, 1]), last

    fast_compile = {"xla_backend_optimization_level": 0}
    gradients = jax.grad(total, (0, 1), has_aux=True)
    return jax.jit(gradients, compiler_options=fast_compile)(carry, layers)


@pytest.mark.parametrize(
    ("sizes", "repeats", "microbatches"),
    [
        (dict(stage=4), 1, 2),  # fewer microbatches than stages need repeats = 1
        (dict(stage=2), 4, 8),
        (dict(stage=2, data=2), 2, 2),
    ],
    ids=str,
)
def test_pipeline_is_one_scan_over_the_layers(sizes, repeats, microbatches):
    carry, layers = make_arrays()
    wanted = measure(lambda *x: jax.lax.scan(step, *x)[0], carry, layers)
    num_rows = set()

    def counted(rows, layer):
        num_rows.add(len(rows["x"]))
        return step(rows, layer)

    config = make_config(repeats, microbatches)
    mesh = sharding.make_mesh(
        sharding.MeshConfig(**sizes), jax.devices()[: int(np.prod(list(sizes.values())))]
    )
    with jax.set_mesh(mesh):
        got = measure(lambda *x: layer_pipeline.run(config, counted, *x), carry, layers)
    assert num_rows == {B // microbatches}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, TOL, TOL), got, wanted)


def test_layers_and_rows_are_split_over_the_stages():
    """Without that each stage would hold, and compute, all of them: the numbers are the same."""
    carry, layers = make_arrays()
    mesh = sharding.make_mesh(sharding.MeshConfig(stage=2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        run = jax.jit(lambda *x: layer_pipeline.run(make_config(2, 4), step, *x))
        compiled = run.lower(carry, layers).compile()
    shapes = set(re.findall(r"f32\[([\d,]+)\]", compiled.as_text().split("ENTRY")[0]))
    assert f"1,2,2,{D},{D}" in shapes, "one stage's of (stages, repeats, layers of a part)"


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "repeats", "microbatches", "num_rows", "complaint"),
    [
        (8, 2, 2, 2, 8, None),
        (8, 4, 1, 2, 8, None),
        (8, 4, 2, 4, 4, None),
        (6, 2, 2, 2, 8, "mesh.stage is 2 and layout.stage_repeats 2, .* has 6 repeated layers"),
        (
            8,
            4,
            2,
            3,
            6,
            "stage_microbatches is 3; with .* = 2 it must be at least mesh.stage = 4",
        ),
        (8, 2, 1, 3, 8, "stage_microbatches is 3; it must divide the 8 rows"),
    ],
)
def test_what_cannot_be_split_is_refused(
    num_layers, num_stages, repeats, microbatches, num_rows, complaint
):
    request = (make_config(repeats, microbatches), num_layers, num_stages, num_rows)
    if complaint is None:
        layer_pipeline.check(*request)
    else:
        with pytest.raises(ValueError, match=complaint):
            layer_pipeline.check(*request)
