"""Fresh parameters: the first loss is near ln V, and what layers add is the same at any width."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import families as table
from configs import quickstart
from launch import settings
from model import transformer
from model.attention import TokenIndex
from model.config import MLAConfig, TransformerConfig, stacks
from model.loss import head_sums
from tests.tiny import replace

pytestmark = pytest.mark.usefixtures("quick_compilation")

V, B, L, HEAD_DIM = 1024, 16, 64, 16
WIDTHS = (64, 192, 512, 1024)
NUM_LAYERS = 4
LOSS_RTOL = 0.03  # from ln V
THEORY_ATOL = 0.06  # nats; three standard errors of 1024 targets whose logits have std 3^-1/2
VARIANCE_RTOL = 0.15  # of sums over a few thousand random weights
# Between the RMS that a layer adds at two widths. 16 times the width raise it by 0.09 for tied,
# scaled embeddings, whose part of the stream falls as D^-1/4, so that tokens are more alike in the
# later layers and attention averages less away; and by 0.11 for experts, of which random weights at
# width 64 make 0.07 more or less. A rule that is wrong by D^1/8 would give a factor of 1.4.
WIDTH_RTOL = 0.2


def shrink(name: str, width: int) -> TransformerConfig:
    """A family with all its switches, but few layers, heads, experts and words."""
    config = quickstart.get_config() if name == "quickstart" else table.get_config(name)
    full = settings.parse(config).model
    num_heads, moe, mla = width // HEAD_DIM, full.moe, full.mla
    if mla.kv_rank:
        mla = MLAConfig(width // 2, width // 2, rope_dim=8, value_dim=HEAD_DIM)
    if moe.num_experts:
        few = dict(num_experts=8, d_ff=64, num_dense=1, num_groups=4, top_groups=2, top_k=4)
        few |= dict(shared_d_ff=64)
        moe = dataclasses.replace(
            moe, **{key: min(value, getattr(moe, key)) for key, value in few.items()}
        )
    return dataclasses.replace(
        full,
        vocab_size=V,
        num_layers=NUM_LAYERS,
        d_model=width,
        num_heads=num_heads,
        num_kv_heads=math.gcd(num_heads, max(1, num_heads * full.num_kv_heads // full.num_heads)),
        head_dim=HEAD_DIM,
        d_ff=2 * width,
        max_positions=min(full.max_positions, L),
        window=min(full.window, L // 4),
        mla=mla,
        moe=moe,
    )


@functools.partial(jax.jit, static_argnums=0)
def measure(config: TransformerConfig, params):
    """(loss a token, variance of the stream from the embedding up, of what each layer adds)."""
    words, rows = jax.random.split(jax.random.key(1))
    tokens_BL = jax.random.randint(words, (B, L), 0, V)
    targets_BL = jax.random.randint(rows, (B, L), 0, V)
    ones_BL = jnp.ones((B, L), jnp.int32)
    tokens = TokenIndex(jnp.cumsum(ones_BL, 1) - 1, ones_BL)
    model = transformer.build(config, params)
    first = np.cumsum([0, *(len(stack.layers) * stack.repeats for stack in stacks(config))])

    def mean_square(x_BLD):
        return jnp.mean(jnp.square(x_BLD.astype(jnp.float32)))

    def body(block, where, index, carry):
        x_BLD, stream, added = carry
        number, place = where
        depth = first[number] + index * len(stacks(config)[number].layers) + place
        attend = functools.partial(transformer._attend, config, block, tokens)
        y_BLD, _ = block(x_BLD, tokens, attend)
        stream = stream.at[depth + 1].set(mean_square(y_BLD))
        return y_BLD, stream, added.at[depth].set(mean_square(y_BLD - x_BLD))

    x_BLD = model.embed(tokens_BL, tokens.positions_BL)
    stream = jnp.full(config.num_layers + 1, mean_square(x_BLD))
    x_BLD, stream, added = model.layers(body, (x_BLD, stream, jnp.zeros(config.num_layers)))
    inputs = (model.norm(x_BLD), model.head_matrix(), targets_BL, jnp.ones((B, L)))
    total, _, _ = head_sums(replace(config, chunk_tokens=L), 0.0, *inputs)
    return total / (B * L), stream, added


def added_variance(config: TransformerConfig) -> tuple[float, float]:
    """Least and greatest variance that theory lets one layer add to the stream.

    A norm after a sublayer makes what it adds 1, and two sublayers 2. Without one, inputs of unit
    variance meet weights of variance 1 / fan-in: every product keeps unit variance, and the last,
    whose weights are smaller by sqrt(2 X) with X layers, adds (mean square before it) / (2 X). That
    mean square is, for attention over values of unit variance, that of averages: between 0 and 1.
    For a feed-forward it is E[a(z)^2], here by quadrature; J experts with weights w have sum(w^2)
    of it, from sum(w)^2 / J (even) to sum(w)^2, and the gated expert that all tokens pass 0 to 1.
    """
    if config.norm_place != "pre":
        return 2.0, 2.0
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    z, p = points, weights / weights.sum()
    gelu = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    square = {
        "swiglu": p @ (z / (1 + np.exp(-z))) ** 2,
        "geglu": p @ gelu**2,
        "gelu": p @ gelu**2,
        "clamped_swiglu": 2 * (p @ (z / (1 + np.exp(-1.702 * z))) ** 2),  # E[(z + 1)^2] = 2
    }[config.mlp]
    moe, low, high = config.moe, 1.0, 1.0
    if moe.num_experts:
        low = moe.scale**2 / moe.top_k if moe.normalize else 0.0
        high = moe.scale**2 + (moe.shared_d_ff > 0)
        low, high = min(low, 1.0), max(high, 1.0)  # the first layers may have no experts
    return low * square / (2 * NUM_LAYERS), (high * square + 1) / (2 * NUM_LAYERS)


@functools.cache
def fresh(name: str, width: int):
    config, rng = shrink(name, width), jax.random.key(0, impl="rbg")  # compiles 3 times faster
    loss, stream, added = measure(config, transformer.init(config, rng))
    return config, float(loss), np.asarray(stream), np.asarray(added)


def input_variance(config: TransformerConfig) -> float:
    """Variance of the token vectors that enter the first layer, as `init` states it."""
    if config.head == "untied":
        return 1.0
    return config.d_model**-0.5 if config.scale_embedding else 1 / (3 * config.d_model)


def check_loss(name: str, width: int) -> None:
    """On random targets the loss is E[logsumexp] less a mean logit of 0.

    A head of std s on a normed input gives logits of variance s^2 D, whose logsumexp is
    ln V + s^2 D / 2. If it is tied, one of the V is the token's own: s^2 D for each unit of the
    output that its vector, scaled or not, makes up.
    """
    config, loss, stream, _ = fresh(name, width)
    scale = width if config.scale_embedding else 1
    tied_variance = input_variance(config) / scale * width
    variance = tied_variance if config.head == "tied" else 1 / width
    own = (variance * (scale / stream[-1]) ** 0.5) if config.head == "tied" else 0.0
    expected = np.log(V) + variance / 2 + (np.exp(own - variance / 2) - 1) / V
    assert abs(loss - expected) < THEORY_ATOL
    assert abs(loss / np.log(V) - 1) < LOSS_RTOL


def check_activations(name: str, width: int) -> None:
    """The stream starts and grows as theory says."""
    config, _, stream, added = fresh(name, width)
    start = input_variance(config) * (2 if config.positions == "learned" else 1)
    np.testing.assert_allclose(stream[0], start, VARIANCE_RTOL)
    low, high = added_variance(config)
    assert np.all(added > low * (1 - VARIANCE_RTOL)) and np.all(added < high * (1 + VARIANCE_RTOL))
    # Independent contributions: variances add up.
    np.testing.assert_allclose(stream, stream[0] + np.r_[0, np.cumsum(added)], VARIANCE_RTOL)


# One of each kind of head: tied to scaled vectors, tied to unscaled ones, a head of its own.
@pytest.mark.parametrize("at", [("quickstart", 512), ("gpt2", 64), ("llama2-7b", 64)])
def test_a_fresh_model_is_what_theory_says(at):
    check_loss(*at)
    check_activations(*at)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", *table.FAMILIES])
def test_no_family_starts_far_from_theory_at_any_width(name):
    for width in WIDTHS:
        check_loss(name, width)
        check_activations(name, width)
    narrow, wide = (np.sqrt(fresh(name, width)[3]) for width in (WIDTHS[0], WIDTHS[-1]))
    np.testing.assert_allclose(wide, narrow, WIDTH_RTOL)
