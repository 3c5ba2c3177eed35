"""The next token of each row, from its logits: greedy, by temperature, by top-p."""

import functools

import jax
import jax.numpy as jnp


def draw(
    keys_B: jax.Array,
    counts_B: jax.Array,
    logits_BV: jax.Array,
    temperature_B: jax.Array,
    top_p_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One token of each row, and its log-probability under the distribution it is drawn from.

    Args:
      keys_B: a jax key of each row's stream.
      counts_B: how many tokens each row has drawn from it.
      logits_BV: float32.
      temperature_B: divides the logits; 0 takes the most likely token.
      top_p_B: above 0; tokens are drawn from the fewest whose probability, after the temperature,
        reaches it. 1 leaves all. Source: arXiv 1904.09751, section 3.1.

    Returns:
      token_B, logprob_B.
    """
    is_drawn_B = temperature_B > 0

    def choose(logits_BV, scores_BV):
        token_B = jnp.argmax(scores_BV, -1)
        chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], -1)[:, 0]
        return token_B, chosen_B - jax.nn.logsumexp(logits_BV, -1)

    def sample(is_cut: bool):
        tempered_BV = logits_BV / jnp.where(is_drawn_B, temperature_B, 1.0)[:, None]
        if is_cut:
            tempered_BV = _cut(tempered_BV, jnp.where(is_drawn_B, top_p_B, 1.0))
        # As jax.random.categorical, but that rows of temperature 0 have no noise.
        now_keys_B = jax.vmap(jax.random.fold_in)(keys_B, counts_B)
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(now_keys_B)
        return choose(tempered_BV, tempered_BV + jnp.where(is_drawn_B[:, None], noise_BV, 0.0))

    # Noise, and a sort of the vocabulary, are made only where some row needs them.
    needs = jnp.stack([is_drawn_B.any(), (is_drawn_B & (top_p_B < 1)).any()])
    case = jnp.sum(needs, dtype=jnp.int32)
    greedy = functools.partial(choose, logits_BV, logits_BV)
    drawn, cut = (functools.partial(sample, is_cut) for is_cut in (False, True))
    return jax.lax.switch(case, (greedy, drawn, cut))


def _cut(logits_BV: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """-inf for all but the fewest tokens that reach top_p; of equal ones the lower ids stay."""
    sorted_BV = jnp.sort(logits_BV, -1, descending=True)
    prob_BV = jax.nn.softmax(sorted_BV, -1)
    above_BV = jnp.cumsum(prob_BV, -1) - prob_BV
    num_kept_B1 = jnp.maximum(jnp.sum(above_BV < top_p_B[:, None], -1, keepdims=True), 1)
    least_B1 = jnp.take_along_axis(sorted_BV, num_kept_B1 - 1, -1)
    more_BV, equal_BV = logits_BV > least_B1, logits_BV == least_B1
    num_equal_B1 = num_kept_B1 - jnp.sum(more_BV, -1, keepdims=True)
    kept_BV = more_BV | (equal_BV & (jnp.cumsum(equal_BV, -1) <= num_equal_B1))
    # Sums of probabilities may reach 1 before the last token does.
    return jnp.where(kept_BV | (top_p_B >= 1)[:, None], logits_BV, -jnp.inf)
