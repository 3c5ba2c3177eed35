"""Sends tokens to the experts that their router chose, and their results back.

Beside README's letters: Q tokens of a device, I the choices of many tokens in one list, all first
choices before all second ones, A the rows that experts compute, O the devices that rows come from.
Inside `sharding.on_each_device` a letter is the size of the local part of its dim.

'dropless' sorts choices by expert and multiplies group by group (`jax.lax.ragged_dot`). Where the
mesh splits both experts and tokens, a ragged all-to-all sends rows to the device that owns their
expert, and another one sends them back. As shapes are fixed, buffers have the worst case's size:
expert shards x local tokens x min(top_k, local experts) rows of D, and of F. Most of it is unused:
only rows that exist are sent and multiplied. 'capacity' bounds that memory: each row of the batch
has C slots at each expert, and choices beyond them are dropped.

XLA lacks some kernels of the grouped product and would multiply all rows with all experts instead:
on TPUs that of weight gradients, for which there is a Pallas kernel here, and on CPUs all of them,
which are loops over blocks of rows here.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.sharding import PartitionSpec

from model import sharding
from model.attention import TokenIndex
from model.config import TransformerConfig
from model.layer import activate

LETTERS = {"gate": "EDF", "up": "EDF", "down": "EFD", "gate_bias": "EF", "up_bias": "EF"}
CPU_BLOCK = 128  # rows that the CPU loops multiply at once
# Square blocks of the TPU kernel for weight gradients: the largest that divides the rows.
MIN_BLOCK, MAX_BLOCK = 128, 512


@jax.custom_vjp
def take_rows(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """x[index], zeros where an index is out of range; its gradient is a gather as well.

    `inverse` is the row of the result that holds each row of x, with a leading dim if several do.
    The gradient that XLA would derive is a scatter-add, slow on every accelerator.
    """
    del inverse
    return x.at[index].get(mode="fill", fill_value=0)


def _take_rows_backward(residuals, gradient: jax.Array):
    index, inverse = residuals
    flat = gradient.reshape(-1, gradient.shape[-1])
    found = flat.at[inverse].get(mode="fill", fill_value=0)
    return jnp.sum(found, range(inverse.ndim - 1)), None, None


take_rows.defvjp(lambda x, *plan: (take_rows(x, *plan), plan), _take_rows_backward)


@jax.custom_vjp
def multiply_groups(rows_AD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Rows sorted by expert, each times its expert's matrix; zeros after the last expert's rows.

    Args:
      rows_AD: those of expert 0, then those of expert 1, and so on.
      w_EDF: a matrix an expert.
      sizes_E: rows of each expert, int32, together at most A.

    Returns:
      product_AF.
    """
    return _ragged_dot(rows_AD, w_EDF, sizes_E)


def _multiply_groups_backward(residuals, gradient_AF: jax.Array):
    rows_AD, w_EDF, sizes_E = residuals
    rows_gradient_AD = _ragged_dot(gradient_AF, jnp.swapaxes(w_EDF, 1, 2), sizes_E)
    return rows_gradient_AD, _weight_gradient(rows_AD, gradient_AF, sizes_E), None


multiply_groups.defvjp(lambda *args: (_ragged_dot(*args), args), _multiply_groups_backward)


# sequential_vmap: the kernels have no batch dim, and in the pipeline's vmap each device has only
# one stage.
@sequential_vmap
def _ragged_dot(rows_AD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    rows_AF = lax.platform_dependent(
        rows_AD, w_EDF, sizes_E, cpu=ragged_dot_cpu, default=lax.ragged_dot
    )
    used_A1 = jnp.arange(len(rows_AD))[:, None] < jnp.sum(sizes_E)
    return jnp.where(used_A1, rows_AF, 0)  # the others may never have been written


@sequential_vmap
def _weight_gradient(rows_AD: jax.Array, gradient_AF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Gradient of w_EDF: each group's sum of the outer products of its rows and gradients."""
    block, xla = math.gcd(len(rows_AD), MAX_BLOCK), weight_gradient_xla
    tpu = functools.partial(weight_gradient_tpu, block) if block >= MIN_BLOCK else xla
    arrays = (rows_AD, gradient_AF, sizes_E)
    return lax.platform_dependent(*arrays, cpu=weight_gradient_cpu, tpu=tpu, default=xla)


def ragged_dot_cpu(rows_AD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """lax.ragged_dot for CPUs: product_AF, with anything after the last expert's rows."""
    padded = _pad(rows_AD)

    def step(e, start, _, rows):
        # A block may reach into the next expert's rows, whose own block overwrites them later.
        w_DF = lax.dynamic_index_in_dim(w_EDF, e, keepdims=False)
        return lax.dynamic_update_slice_in_dim(rows, _block(padded, start) @ w_DF, start, 0)

    start = jnp.zeros((len(padded), w_EDF.shape[-1]), rows_AD.dtype)
    return _loop_over_blocks(sizes_E, step, start)[: len(rows_AD)]


def weight_gradient_cpu(rows_AD, gradient_AF, sizes_E) -> jax.Array:
    """`_weight_gradient` for CPUs: sums_EDF over each expert's rows, in the dtype of rows_AD."""
    padded_D, padded_F = _pad(rows_AD), _pad(gradient_AF)

    def step(e, start, end, sums_EDF):
        inside = (start + jnp.arange(CPU_BLOCK) < end)[:, None]
        rows = jnp.where(inside, _block(padded_D, start), 0)
        product_DF = rows.T @ _block(padded_F, start)
        return sums_EDF.at[e].add(product_DF.astype(sums_EDF.dtype))

    shape = (len(sizes_E), rows_AD.shape[1], gradient_AF.shape[1])
    return _loop_over_blocks(sizes_E, step, jnp.zeros(shape)).astype(rows_AD.dtype)


def _pad(rows: jax.Array) -> jax.Array:
    return jnp.pad(rows, ((0, CPU_BLOCK), (0, 0)))


def _block(rows: jax.Array, start: jax.Array) -> jax.Array:
    return lax.dynamic_slice_in_dim(rows, start, CPU_BLOCK)


def _loop_over_blocks(sizes_E: jax.Array, step: Callable, carry: jax.Array) -> jax.Array:
    """Loops over the blocks of each expert's rows: carry = step(e, start, end of e, carry)."""
    ends_E, blocks_E = jnp.cumsum(sizes_E), -(-sizes_E // CPU_BLOCK)
    done_E = jnp.cumsum(blocks_E)

    def run(i, carry):
        e = jnp.sum(done_E <= i)
        start = ends_E[e] - sizes_E[e] + (i - done_E[e] + blocks_E[e]) * CPU_BLOCK
        return step(e, start, ends_E[e], carry)

    return lax.fori_loop(0, done_E[-1], run, carry)


def weight_gradient_xla(rows_AD, gradient_AF, sizes_E) -> jax.Array:
    """`_weight_gradient` by XLA, [E, D, F]."""
    ragged = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    return lax.ragged_dot_general(rows_AD, gradient_AF, sizes_E, ragged)


def weight_gradient_tpu(block: int, rows_AD, gradient_AF, sizes_E, interpret: bool = False):
    """The same by the Pallas kernel of megablox in square blocks, whose side divides A.

    `interpret` runs it anywhere.
    """
    tiles = (block, block, block)
    # Late: Pallas takes long to import, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    with jax.numpy_dtype_promotion("standard"):  # the kernel mixes dtypes
        return tgmm(
            rows_AD.T, gradient_AF, sizes_E, rows_AD.dtype, tiling=tiles, interpret=interpret
        )


def feed(mlp: str, kernels: dict[str, jax.Array], rows: jax.Array, multiply: Callable) -> jax.Array:
    """Each expert's feed-forward on its rows, without the last bias.

    Args:
      mlp: as `model.mlp`.
      kernels: arrays named and lettered as in LETTERS.
      rows: inputs, their last dim D; the others are those that `multiply` knows.
      multiply: (rows, w, bias or None) -> each row times its expert's w, plus its bias.

    Returns:
      An array of the shape of `rows`.
    """
    gate = None
    if "gate" in kernels:
        gate = multiply(rows, kernels["gate"], kernels.get("gate_bias"))
    up = multiply(rows, kernels["up"], kernels.get("up_bias"))
    return multiply(activate(mlp, gate, up), kernels["down"], None)


def feed_groups(mlp: str, kernels: dict[str, jax.Array], rows_AD, sizes_E) -> jax.Array:
    """`feed` for rows_AD sorted by expert, of which the first sum(sizes_E) belong to one: y_AD."""
    row_A1, end_1E = jnp.arange(len(rows_AD))[:, None], jnp.cumsum(sizes_E)[None]
    member_AE = (row_A1 < end_1E) & (row_A1 >= end_1E - sizes_E[None])

    def multiply(rows, w, bias):
        rows = multiply_groups(rows, w, sizes_E)
        return rows if bias is None else rows + member_AE.astype(rows.dtype) @ bias

    return feed(mlp, kernels, rows_AD, multiply)


def combine(z_JQD: jax.Array, weights_QJ: jax.Array) -> jax.Array:
    """Weighted sum over each token's choices, in float32: y_QD, in the dtype of z_JQD."""
    return jnp.sum(z_JQD.astype(jnp.float32) * weights_QJ.T[..., None], 0).astype(z_JQD.dtype)


def dropless(config: TransformerConfig, x_BLD, experts_BLJ, weights_BLJ, kernels):
    """Every choice is computed, as in arXiv 2211.15841, here by products of groups.

    Args:
      config: shape of the model.
      x_BLD: tokens.
      experts_BLJ: chosen experts; num_experts: none.
      weights_BLJ: of the choices, float32.
      kernels: arrays named and lettered as in LETTERS, in the dtype of x_BLD.

    Returns:
      y_BLD without the last bias, and kept_BLJ: 1.0 where a choice was computed.
    """
    spec = sharding.activation_spec("BL_", x_BLD.shape)
    letters = {name: LETTERS[name].replace("D", sharding.UNSPLIT) for name in kernels}
    specs = {name: sharding.activation_spec(letters[name], w.shape) for name, w in kernels.items()}
    axis, token_axes = specs["up"][0], set(sharding.axes_of(spec))
    # Along these axes each device computes a part of every output's sum: over F, or over experts if
    # tokens are not split along `axis` (as when few rows decode on many devices).
    partial = tuple(sorted(set(sharding.axes_of(specs["up"])) - token_axes))
    choice_spec, out_spec = PartitionSpec(*spec[:2]), PartitionSpec(partial or None, *spec)
    run = functools.partial(_run_local, config, axis, axis in token_axes)
    run = sharding.on_each_device(run, (spec, choice_spec, choice_spec, specs), out_spec)
    parts = run(x_BLD, experts_BLJ, weights_BLJ, kernels)
    # Not jnp.sum, which would convert bfloat16 to float32 before devices exchange it.
    y_BLD = lax.reduce(parts, jnp.zeros((), parts.dtype), lax.add, (0,))
    return y_BLD, (experts_BLJ < config.moe.num_experts).astype(jnp.float32)


def _run_local(config, axis, exchanges, x_BLD, experts_BLJ, weights_BLJ, kernels):
    """One device's part of `dropless`; `axis` splits experts, and with `exchanges` tokens too."""
    moe, num_local = config.moe, kernels["up"].shape[0]
    x_QD, num_tokens = x_BLD.reshape(-1, x_BLD.shape[-1]), math.prod(x_BLD.shape[:2])
    experts_I, num_groups = experts_BLJ.reshape(num_tokens, -1).T.reshape(-1), moe.num_experts
    if axis and not exchanges:
        num_groups, local_I = num_local, experts_I - lax.axis_index(axis) * num_local
        experts_I = jnp.where((local_I >= 0) & (local_I < num_local), local_I, num_local)
    order_I = jnp.argsort(experts_I)
    row_JQ = jnp.argsort(order_I).reshape(-1, num_tokens)
    sizes_E = jnp.sum(jax.nn.one_hot(experts_I, num_groups, dtype=jnp.int32), 0)
    rows_ID = take_rows(x_QD, order_I % num_tokens, row_JQ)
    if exchanges:
        send, receive, owned_E = plan_exchange(sizes_E, num_local, axis)
        num_rows = moe.num_experts // num_local * num_tokens * min(moe.top_k, num_local)
        rows_AD = ragged_exchange(axis, num_rows, rows_ID, send, receive)
        rows_AD = feed_groups(config.mlp, kernels, rows_AD, owned_E)
        rows_ID = ragged_exchange(axis, len(rows_ID), rows_AD, receive, send)
    else:
        rows_ID = feed_groups(config.mlp, kernels, rows_ID, sizes_E)
    z_JQD = take_rows(rows_ID, row_JQ, order_I)
    return combine(z_JQD, weights_BLJ.reshape(num_tokens, -1)).reshape(1, *x_BLD.shape)


def plan_exchange(sizes_E: jax.Array, num_local: int, axis: str):
    """Plans an exchange of rows sorted by expert, so that they arrive sorted by (expert, origin).

    Args:
      sizes_E: rows that this device has for each expert of all devices along `axis`.
      num_local: experts a device owns.
      axis: mesh axis.

    Returns:
      (send, receive, owned): for `ragged_exchange` in either direction, the chunks of
      `jax.lax.ragged_all_to_all`, one for each (peer, expert): (starts here, sizes, starts at the
      peer, sizes that arrive here); and the rows that arrive for each of this device's experts.
    """
    me, counts_OE = lax.axis_index(axis), lax.all_gather(sizes_E, axis)
    starts_OE = jnp.cumsum(counts_OE, 1) - counts_OE
    totals = jnp.sum(counts_OE, 0).reshape(-1, num_local)
    starts_E = (jnp.cumsum(totals, 1) - totals).reshape(-1)
    landings_OE = starts_E[None] + jnp.cumsum(counts_OE, 0) - counts_OE

    def owned(x_OE):
        return lax.dynamic_slice_in_dim(x_OE, me * num_local, num_local, 1).reshape(-1)

    send = (starts_OE[me], counts_OE[me], landings_OE[me], owned(counts_OE))
    receive = (owned(landings_OE), owned(counts_OE), owned(starts_OE), counts_OE[me])
    return send, receive, totals[me]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def ragged_exchange(axis: str, num_rows: int, rows: jax.Array, send, receive) -> jax.Array:
    """Exchanges rows along `axis` by the plan `send`; gradients are exchanged by `receive`.

    Args:
      axis: mesh axis, of a shard_map around the call.
      num_rows: of the result, enough for all that may arrive.
      rows: of this device; the plan says where they start and where they go.
      send, receive: of `plan_exchange`; swapped, they send the rows back.

    Returns:
      `num_rows` rows: those that arrived, then zeros.
    """
    del receive

    @sequential_vmap
    def go(rows, *plan):
        start = jnp.zeros((num_rows, rows.shape[-1]), rows.dtype)
        exchange = functools.partial(lax.ragged_all_to_all, axis_name=axis)
        emulate = functools.partial(_emulate, axis)
        return lax.platform_dependent(rows, start, *plan, cpu=emulate, default=exchange)

    return go(rows, *send)


def _exchange_forward(axis, num_rows, rows, send, receive):
    return ragged_exchange(axis, num_rows, rows, send, receive), (len(rows), send, receive)


def _exchange_backward(axis, _, residuals, gradient):
    num_rows, send, receive = residuals
    return ragged_exchange(axis, num_rows, gradient, receive, send), None, None


ragged_exchange.defvjp(_exchange_forward, _exchange_backward)


def _emulate(axis, rows, start, starts, sizes, landings, _):
    """ragged_all_to_all by gathering all rows: XLA's CPU backend lacks it."""
    me, per_peer = lax.axis_index(axis), len(starts) // lax.axis_size(axis)
    plan = lax.all_gather(jnp.stack([starts, sizes, landings]), axis)  # (O, 3, chunks)
    plan = lax.dynamic_slice_in_dim(plan, me * per_peer, per_peer, 2)
    first_O1 = jnp.arange(len(plan))[:, None] * len(rows)
    origins, sizes, landings = (
        x.reshape(-1, 1) for x in (plan[:, 0] + first_O1, plan[:, 1], plan[:, 2])
    )
    offset = jnp.arange(len(start))[None] - landings
    inside = (offset >= 0) & (offset < sizes)
    source = jnp.sum(jnp.where(inside, origins + offset, 0), 0)
    found = lax.all_gather(rows, axis, tiled=True)[source]
    return jnp.where(jnp.any(inside, 0)[:, None], found, start)


def limited(
    config: TransformerConfig, x_BLD, experts_BLJ, weights_BLJ, kernels, tokens: TokenIndex
):
    """Every row has C = capacity_factor L k / E slots (rounded up) at each expert.

    First choices get slots before second ones, and earlier tokens (by `tokens`) before later ones;
    a choice without a slot adds nothing. Other Args and Returns as `dropless`.
    Source: arXiv 2006.16668, algorithm 1, with one row as a group, so that neither mesh nor
    microbatches change what is dropped, and no random routing.
    """
    moe, L = config.moe, x_BLD.shape[1]
    C = min(L, math.ceil(moe.capacity_factor * L * moe.top_k / moe.num_experts))
    assign = jax.vmap(functools.partial(_assign_slots, moe.num_experts, C))
    order_BL = jnp.lexsort((tokens.positions_BL, tokens.segments_BL))
    ranks_BL = jnp.argsort(order_BL)
    slot_BJL, token_BA, item_BA = assign(jnp.swapaxes(experts_BLJ, 1, 2), ranks_BL)
    # Any slot may hold any token of its row.
    rows_BAD = jax.vmap(take_rows)(sharding.constrain(x_BLD, "B_D"), token_BA, slot_BJL)
    rows_BECD = rows_BAD.reshape(len(x_BLD), moe.num_experts, C, -1)
    # The all-to-all: the first of B and E takes the axis that both are split over.
    rows_EBCD = jnp.swapaxes(sharding.constrain(rows_BECD, "BECD"), 0, 1)
    rows_EBCD = sharding.constrain(rows_EBCD, "EBCD")
    kernels = {name: sharding.constrain(w, LETTERS[name]) for name, w in kernels.items()}

    def multiply(rows_EBCD, w, bias):
        rows = jnp.einsum("EBCD,EDF->EBCF", rows_EBCD, w)
        return rows if bias is None else rows + bias[:, None, None]

    rows_EBCD = sharding.constrain(feed(config.mlp, kernels, rows_EBCD, multiply), "EBCD")
    rows_BECD = sharding.constrain(jnp.swapaxes(rows_EBCD, 0, 1), "BECD")
    rows_BAD = rows_BECD.reshape(rows_BAD.shape)
    z_BJLD = jax.vmap(take_rows)(rows_BAD, slot_BJL, item_BA)
    kept_BLJ = jnp.swapaxes(slot_BJL < rows_BAD.shape[1], 1, 2).astype(jnp.float32)
    return jax.vmap(combine)(z_BJLD, weights_BLJ), kept_BLJ


def _assign_slots(num_experts: int, C: int, experts_JL: jax.Array, ranks_L: jax.Array):
    """Slot of each choice of a row (none: E C); token and choice in each slot (none: L, J L)."""
    experts_I, (J, L) = experts_JL.reshape(-1), experts_JL.shape
    ranks_I = (jnp.arange(J)[:, None] * L + ranks_L[None]).reshape(-1)
    order_I = jnp.lexsort((ranks_I, experts_I))
    sizes_E = jnp.sum(jax.nn.one_hot(experts_I, num_experts, dtype=jnp.int32), 0)
    starts_E = jnp.cumsum(sizes_E) - sizes_E
    rank_I = jnp.argsort(order_I) - starts_E.at[experts_I].get(mode="fill", fill_value=-C)
    slot_I = jnp.where(rank_I < C, experts_I * C + rank_I, num_experts * C)
    rank_EC = jnp.arange(C)[None]
    item_EC = order_I.at[starts_E[:, None] + rank_EC].get(mode="fill", fill_value=0)
    item_EC = jnp.where(rank_EC < sizes_E[:, None], item_EC, len(experts_I))
    token_EC = jnp.where(item_EC < len(experts_I), item_EC % L, L)
    return slot_I.reshape(experts_JL.shape), token_EC.reshape(-1), item_EC.reshape(-1)
