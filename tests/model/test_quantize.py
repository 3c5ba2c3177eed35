"""8-bit products against numpy, gradients against those of float32."""

import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from model import sharding
from model.quantize import matmul

pytestmark = pytest.mark.usefixtures("quick_compilation")
KINDS = ["int8", "fp8"]
# Relative error (norms) of a product of Gaussians: two roundings, each half a step of 1 / 127.5
# of the largest of 64, or half of 2^-3 of the number itself; gradients in e5m2 have 2^-2.
NEAR = {"int8": 0.015, "fp8": 0.04}
NEAR_GRADIENT = {"int8": 0.015, "fp8": 0.08}


def make(shape, seed, dtype=jnp.float32):
    """Gaussian rows of very different size: one scale for all would lose the small ones.

    The largest of each is above 0: qwix rounds -127.5 to -127 or -128, as the last bit has it.
    """
    x = jax.random.normal(jax.random.key(seed), shape)
    top = jnp.abs(x).max(-1, keepdims=True)
    sizes = 10.0 ** jnp.linspace(-2, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (jnp.where(jnp.abs(x) == top, top, x) * sizes).astype(dtype)


def error(found, wanted):
    found, wanted = (np.asarray(x, np.float32) for x in (found, wanted))
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def round_by_hand(x, kind, axis):
    """8-bit values as float32 and their scales, the largest of a slice at the end of the range."""
    top = np.abs(x).max(axis, keepdims=True)
    if kind == "int8":
        scale = top / np.float32(127.5)
        return np.clip(np.rint(x / scale), -127, 127), scale
    scale = top / np.float32(448)
    return (x / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32), scale


@pytest.fixture
def qwix():
    return pytest.importorskip("qwix")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lead", [(6,), (3, 2)])
def test_forward_is_the_product_rounded_by_hand(qwix, kind, lead):
    x, w = make((*lead, 64), 0), make((5, 64), 1).T
    found = jax.jit(matmul, static_argnums=2)(x, w, kind)
    values_x, scale_x = round_by_hand(np.asarray(x), kind, -1)
    values_w, scale_w = round_by_hand(np.asarray(w), kind, 0)
    wanted = (values_x @ values_w) * scale_x * scale_w.reshape((1,) * len(lead) + (-1,))
    # Products of 8 bits are exact, their sum in float32 is not.
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6 * np.abs(wanted).max())
    assert 1e-3 < error(found, x @ w) < NEAR[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_rounded_as_if_it_were_float32(qwix, kind):
    x, w = make((6, 64), 0, jnp.bfloat16), make((5, 64), 1, jnp.bfloat16).T
    wide = matmul(x.astype(jnp.float32), w.astype(jnp.float32), kind)
    np.testing.assert_array_equal(matmul(x, w, kind, jnp.float32), wide)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_near_those_of_float32(qwix, kind, dtype):
    x, w, y_bar = make((96, 64), 0, dtype), make((5, 64), 1, dtype).T, make((5, 96), 2, dtype).T
    y_bar = y_bar * 10.0 ** jnp.linspace(-4, 4, 5).astype(dtype)[None]  # beyond the range of e5m2

    def total(kind, x, w):
        return (matmul(x, w, kind).astype(jnp.float32) * y_bar.astype(jnp.float32)).sum()

    found = jax.jit(jax.grad(total, (1, 2)), static_argnums=0)(kind, x, w)
    wanted = jax.grad(total, (1, 2))("none", *(a.astype(jnp.float32) for a in (x, w)))
    assert all(a.dtype == dtype for a in found)
    assert 1e-3 < error(found[0], wanted[0]) < NEAR_GRADIENT[kind]
    for column, wanted_column in zip(found[1].T, wanted[1].T, strict=True):  # of any size
        assert 1e-3 < error(column, wanted_column) < NEAR_GRADIENT[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_straight_through(qwix, kind):
    """Values that 8 bits hold exactly have the gradients of the plain product."""
    signs = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], (3, 32, 32)), jnp.float32)
    x, w, y_bar = signs

    def total(kind, x, w):
        return (matmul(x, w, kind) * y_bar).sum()

    found = jax.grad(total, (1, 2))(kind, x, w)
    # 1 is at the end of int8's range, 127.5 steps, and rounds to 127 of them: in both factors of
    # the one gradient and, as the weight's keeps y_bar's dtype, in one of the other.
    scales = [(127 / 127.5) ** 2, 127 / 127.5] if kind == "int8" else [1.0, 1.0]
    for a, b, scale in zip(found, jax.grad(total, (1, 2))("none", x, w), scales, strict=True):
        np.testing.assert_allclose(a, scale * b, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_of_8_bit_numbers(qwix, kind):
    x, w = make((4, 8), 0), make((8, 2), 1)
    step = jax.grad(lambda x, w: matmul(x, w, kind).sum(), (0, 1))
    dots = [e for e in jax.make_jaxpr(step)(x, w).eqns if e.primitive.name == "dot_general"]
    numbers = [sorted(v.aval.dtype.name for v in e.invars) for e in dots]
    assert (
        numbers
        == {
            "int8": [["int8"] * 2, ["int8"] * 2, ["float32"] * 2],
            "fp8": [["float8_e4m3fn"] * 2, *[["float8_e4m3fn", "float8_e5m2"]] * 2],
        }[kind]
    )


def test_none_is_the_plain_product():
    x, w = make((3, 2, 8), 0, jnp.bfloat16), make((8, 4), 1, jnp.bfloat16)
    np.testing.assert_array_equal(matmul(x, w, "none"), x @ w)
    wide = matmul(x, w, "none", jnp.float32)
    np.testing.assert_array_equal(wide, jnp.matmul(x, w, preferred_element_type=jnp.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_dtype_of_the_result(qwix, kind):
    x, w = make((3, 8), 0, jnp.bfloat16), make((8, 4), 1, jnp.bfloat16)
    assert matmul(x, w, kind).dtype == jnp.bfloat16
    assert matmul(x, w, kind, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("kind", KINDS)
def test_absent_package_is_one_clear_error(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ValueError, match=r"model.quantized .*seedbed\[quant\]"):
        matmul(jnp.ones((2, 2)), jnp.ones((2, 2)), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_give_the_same_numbers_as_one(qwix, kind):
    x, w, y_bar = make((4, 6, 32), 0), make((8, 32), 1).T, make((4, 6, 8), 2)

    def total(x, w):
        y = matmul(x, w, kind)
        return (y * y_bar).sum(), y

    step = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (x_bar, w_bar), y = step(x, w)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    split_x, split_w = (
        jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))
        for a, axes in ((x, ("data", None, "fsdp")), (w, ("fsdp", "tensor")))
    )
    found, found_y = step(split_x, split_w)
    np.testing.assert_allclose(found_y, y, rtol=2e-6, atol=1e-6 * np.abs(y).max())
    for a, b in zip(found, (x_bar, w_bar), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6 * np.abs(b).max())
