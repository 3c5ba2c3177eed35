"""Log-likelihood of given tokens, with backward passes of its own."""

import functools

import jax
import jax.numpy as jnp

from model import sharding
from model.attention import softcap
from model.config import TransformerConfig


def token_logprobs(logits_BLV: jax.Array, targets_BL: jax.Array, temperature: float) -> jax.Array:
    """log softmax(logits / temperature) at the targets.

    Args:
      logits_BLV: raw logits, float32.
      targets_BL: token ids, in [0, V).
      temperature: of sampling; 0 (greedy) reads the untempered distribution.

    Returns:
      logp_BL, float32, in nats.
    """
    scale = 1.0 / temperature if temperature else 1.0
    return -_nats(logits_BLV * scale, targets_BL)


@jax.custom_vjp
def _nats(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
    """Negative log-likelihood a token.

    The backward pass is written out: d logits = g (softmax - onehot), one sweep over the logits
    where autodiff makes several.
    """
    return _nats_forward(logits_BLV, targets_BL)[0]


def _nats_forward(logits_BLV, targets_BL):
    top_BL = jnp.max(logits_BLV, -1)
    lse_BL = top_BL + jnp.log(jnp.sum(jnp.exp(logits_BLV - top_BL[..., None]), -1))
    chosen_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], -1)[..., 0]
    return lse_BL - chosen_BL, (logits_BLV, targets_BL, lse_BL)


def _nats_backward(residuals, grad_BL):
    logits_BLV, targets_BL, lse_BL = residuals
    vocab_V = jnp.arange(logits_BLV.shape[-1], dtype=targets_BL.dtype)
    onehot_BLV = (targets_BL[..., None] == vocab_V[None, None, :]).astype(lse_BL.dtype)
    softmax_BLV = jnp.exp(logits_BLV - lse_BL[..., None])
    return grad_BL[..., None] * (softmax_BLV - onehot_BLV), None


_nats.defvjp(_nats_forward, _nats_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def head_sums(
    config: TransformerConfig,
    z_loss: float,
    x_BLD: jax.Array,
    head_DV: jax.Array,
    targets_BL: jax.Array,
    weights_BL: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weighted cross-entropy of a batch, with z-loss; its logits are never all in memory.

    Each device takes `layout.chunk_tokens` of its tokens at a time through the head. As the loss is
    one sum with known weights, its gradients are made in the same sweep: no product is done twice.
    Gradients flow from the total to x_BLD and head_DV only; its two parts are for reporting.

    Args:
      config: vocab_size, which hides the padding of the vocabulary, logit_softcap and layout.
      z_loss: weight of logsumexp^2, the pull of the normaliser towards 0.
      x_BLD: activations after the final norm.
      head_DV: output embedding, vocabulary padded.
      targets_BL: token ids.
      weights_BL: weight of each token's loss.

    Returns:
      (total, nats, squares), float32 weighted sums over the tokens of all devices: `nats` of the
      negative log-likelihood, `squares` of logsumexp^2, and total = nats + z_loss * squares.

    Source: z-loss from arXiv 2204.02311, section 5.
    """
    inputs = (x_BLD, head_DV, targets_BL, weights_BL)
    return _head_sums(config, z_loss, False, *inputs)[0]


def _head_sums_forward(config, z_loss, *inputs):
    sums, x_grad, head_grad = _head_sums(config, z_loss, True, *inputs)
    return sums, (x_grad, head_grad)


def _head_sums_backward(_config, _z_loss, residuals, grads):
    (x_grad, head_grad), grad = residuals, grads[0]
    return x_grad * grad.astype(x_grad.dtype), head_grad * grad, None, None


head_sums.defvjp(_head_sums_forward, _head_sums_backward)


def _head_sums(config, z_loss, with_grads, x_BLD, head_DV, targets_BL, weights_BL):
    """(sums, gradient of x_BLD, gradient of head_DV); each device works on its own tokens."""
    x_spec = sharding.activation_spec("BL_", x_BLD.shape)
    head_spec = sharding.activation_spec("_V", head_DV.shape)
    rows = jax.sharding.PartitionSpec(*x_spec[:2])
    shared = (config, z_loss, with_grads, sharding.axes_of(rows), sharding.axes_of(head_spec))
    in_specs = (x_spec, head_spec, rows, rows)
    out_specs = ((jax.sharding.PartitionSpec(),) * 3, x_spec, head_spec)
    local = functools.partial(_local_head_sums, *shared)
    run = sharding.on_each_device(local, in_specs, out_specs)
    return run(x_BLD, head_DV, targets_BL, weights_BL)


def _local_head_sums(
    config, z_loss, with_grads, row_axes, vocab_axes, x_BLD, head_DV, targets_BL, weights_BL
):
    """One device's tokens and its part of the vocabulary; sums over the axes that split them."""
    (B, L, D), V = x_BLD.shape, head_DV.shape[1]
    num_chunks = -(-B * L // config.layout.chunk_tokens)
    size = -(-B * L // num_chunks)
    vocab_V = jnp.arange(V) + (jax.lax.axis_index(vocab_axes) * V if vocab_axes else 0)
    head = head_DV.astype(x_BLD.dtype)

    def cut(x):
        flat = x.reshape(B * L, *x.shape[2:])
        padding = [(0, num_chunks * size - B * L), *[(0, 0)] * (flat.ndim - 1)]
        return jnp.pad(flat, padding).reshape(num_chunks, size, *flat.shape[1:])

    def total(x, axes):
        return jax.lax.psum(x, axes) if axes else x

    def visit(carry, chunk):
        (nats, squares, head_grad), (x_LD, target_L, weight_L) = carry, chunk
        raw_LV = jnp.matmul(x_LD, head, preferred_element_type=jnp.float32)
        logits_LV = softcap(raw_LV, config.logit_softcap)
        logits_LV = jnp.where((vocab_V < config.vocab_size)[None], logits_LV, -jnp.inf)
        top_L = jnp.max(logits_LV, -1)
        top_L = jax.lax.pmax(top_L, vocab_axes) if vocab_axes else top_L
        lse_L = top_L + jnp.log(total(jnp.exp(logits_LV - top_L[:, None]).sum(-1), vocab_axes))
        hit_LV = target_L[:, None] == vocab_V[None]
        chosen_L = total(jnp.where(hit_LV, logits_LV, 0.0).sum(-1), vocab_axes)
        nats += jnp.sum((lse_L - chosen_L) * weight_L)
        squares += jnp.sum(jnp.square(lse_L) * weight_L)
        if not with_grads:
            return (nats, squares, head_grad), None
        pull_L = weight_L * (1.0 + 2.0 * z_loss * lse_L)
        grad_LV = jnp.exp(logits_LV - lse_L[:, None]) * pull_L[:, None]
        grad_LV -= jnp.where(hit_LV, weight_L[:, None], 0.0)
        if config.logit_softcap:
            grad_LV *= 1.0 - jnp.square(jnp.tanh(raw_LV / config.logit_softcap))
        grad_LV = grad_LV.astype(x_LD.dtype)
        x_grad_LD = jnp.matmul(grad_LV, head.T, preferred_element_type=jnp.float32)
        head_grad += jnp.matmul(x_LD.T, grad_LV, preferred_element_type=jnp.float32)
        return (nats, squares, head_grad), x_grad_LD.astype(x_LD.dtype)

    start = (jnp.zeros(()), jnp.zeros(()), jnp.zeros((D, V)) if with_grads else None)
    chunks = tuple(cut(x) for x in (x_BLD, targets_BL, weights_BL))
    (nats, squares, head_grad), x_grad = jax.lax.scan(visit, start, chunks)
    nats, squares = total(nats, row_axes), total(squares, row_axes)
    sums = (nats + z_loss * squares, nats, squares)
    if not with_grads:
        return sums, x_BLD, head_DV
    x_grad = total(x_grad.reshape(-1, D)[: B * L].reshape(B, L, D), vocab_axes)
    return sums, x_grad, total(head_grad, row_axes)
