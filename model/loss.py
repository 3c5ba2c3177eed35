"""Log-likelihood of given tokens, with a backward pass of its own."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def cross_entropy(logits_BLV: jax.Array, targets_BL: jax.Array, z_loss: float) -> jax.Array:
    """Negative log-likelihood a token, in nats, plus z_loss * logsumexp^2.

    The backward pass is written out: d logits = g (softmax (1 + 2 z logsumexp) - onehot), one
    sweep over the logits where autodiff makes several.

    Args:
      logits_BLV: unnormalised log-probabilities, float32.
      targets_BL: token ids.
      z_loss: weight of the pull of the normaliser towards 0.

    Returns:
      One loss a token, shape (B, L), float32.

    Source: z-loss from arXiv 2204.02311, section 5.
    """
    return _cross_entropy_forward(logits_BLV, targets_BL, z_loss)[0]


def _cross_entropy_forward(logits_BLV, targets_BL, z_loss):
    top_BL = jnp.max(logits_BLV, -1)
    lse_BL = top_BL + jnp.log(jnp.sum(jnp.exp(logits_BLV - top_BL[..., None]), -1))
    chosen_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], -1)[..., 0]
    loss_BL = lse_BL - chosen_BL + z_loss * jnp.square(lse_BL)
    return loss_BL, (logits_BLV, targets_BL, lse_BL)


def _cross_entropy_backward(z_loss, residuals, grad_BL):
    logits_BLV, targets_BL, lse_BL = residuals
    pull_BL = 1.0 + 2.0 * z_loss * lse_BL
    vocab_V = jnp.arange(logits_BLV.shape[-1], dtype=targets_BL.dtype)
    onehot_BLV = targets_BL[..., None] == vocab_V[None, None, :]
    softmax_BLV = jnp.exp(logits_BLV - lse_BL[..., None]) * pull_BL[..., None]
    return grad_BL[..., None] * (softmax_BLV - onehot_BLV), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def token_logprobs(logits_BLV: jax.Array, targets_BL: jax.Array, temperature: float) -> jax.Array:
    """log softmax(logits / temperature) at the targets, shape (B, L).

    The temperature is that of sampling; 0 (greedy) reads the untempered distribution.
    """
    scale = 1.0 / temperature if temperature else 1.0
    return -cross_entropy(logits_BLV * scale, targets_BL, 0.0)
