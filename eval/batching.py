"""Prompts of any length in batches of a few fixed shapes: continued, or their continuations scored.

Rows are padded on the left, so that all end in the last column. Beside README's letters, C counts
the continuations of one row and T the tokens of the longest.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from model import decode
from model.config import TransformerConfig
from model.loss import token_logprobs
from model.transformer import Params, forward

# Rows are padded to a multiple of this, long ones to one of up to a quarter of their length, so
# that a model is compiled a few times and no more.
BUCKET_TOKENS = 32
LOG_EVERY_BATCHES = 8

Ids = Sequence[int]


def generate(
    config: TransformerConfig,
    params: Params,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
    end_id: int,
    pad_id: int,
    log: Callable[[str], None],
    top_p: float = 1.0,
) -> list[tuple[int, ...]]:
    """Continues every prompt.

    What follows a prompt greedily depends on that prompt alone; a sampled continuation depends on
    its place among the others too.

    Args:
      config: shape of the model.
      params: its parameters.
      prompts: token ids, at least one each and few enough for the model's positions.
      max_new_tokens: longest continuation, its end token included, at least 1.
      temperature: of sampling; 0 is greedy.
      seed: of sampling.
      batch_size: prompts continued together.
      end_id: a continuation stops after this token.
      pad_id: fills up rows; any token will do.
      log: takes lines of progress.
      top_p: as of `model.sampling.draw`.

    Returns:
      Token ids, the end token included if it came, in the order of the prompts.
    """
    batches = _plan([len(prompt) for prompt in prompts], batch_size)
    found: dict[int, tuple[int, ...]] = {}
    for number, (width, chosen) in enumerate(batches):
        tokens_BP, mask_BP = _pad_left([prompts[i] for i in chosen], width, batch_size, pad_id)
        generation = decode.generate(
            config,
            params,
            tokens_BP,
            mask_BP,
            jax.random.fold_in(jax.random.key(seed), number),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            end_id=end_id,
            pad_id=pad_id,
        )
        rows = zip(np.asarray(generation.tokens_BR), np.asarray(generation.mask_BR), strict=True)
        for index, (tokens_R, mask_R) in zip(chosen, rows, strict=False):
            found[index] = tuple(tokens_R[mask_R == 1].tolist())
        if _is_logged(number, batches):
            log(f"{len(found)} of {len(prompts)} answers")
    return [found[index] for index in range(len(prompts))]


def logprobs(
    config: TransformerConfig,
    params: Params,
    pairs: Sequence[tuple[Ids, Ids]],
    *,
    batch_size: int,
    pad_id: int,
    log: Callable[[str], None],
) -> list[float]:
    """The log-probability of each continuation, in nats, summed over its tokens.

    Continuations of one token after the same context cost one row together. What exceeds the
    model's positions is cut off in front.

    Args:
      config, params, batch_size, pad_id, log: as of `generate`.
      pairs: (context, continuation) as token ids; a context has at least one.

    Returns:
      A number for each pair, in their order.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        rows.setdefault((*context, *continuation)[:-1][-config.max_tokens() :], []).append(number)
    inputs, asked = list(rows), list(rows.values())
    most = max(map(len, asked), default=0)
    found = np.zeros(len(pairs))
    batches = _plan([len(row) for row in inputs], batch_size)
    for number, (width, chosen) in enumerate(batches):
        tokens_BL, mask_BL = _pad_left([inputs[i] for i in chosen], width, batch_size, pad_id)
        wanted = [[pairs[n][1] for n in asked[i]] for i in chosen]
        targets_BCT, weights_BCT = _targets(wanted, batch_size, most, width)
        sums_BC = _sum_logprobs(config, params, tokens_BL, mask_BL, targets_BCT, weights_BCT)
        for index, sums_C in zip(chosen, np.asarray(sums_BC, np.float64), strict=False):
            found[asked[index]] = sums_C[: len(asked[index])]
        if _is_logged(number, batches):
            log(f"scored {sum(len(row) for _, row in batches[: number + 1])} of {len(inputs)} rows")
    return found.tolist()


@functools.partial(jax.jit, static_argnames="config")
def _sum_logprobs(config, params, tokens_BL, mask_BL, targets_BCT, weights_BCT) -> jax.Array:
    positions_BL = (mask_BL.cumsum(-1) - 1) * mask_BL
    tail = targets_BCT.shape[-1]
    logits_BTV = forward(config, params, tokens_BL, positions_BL, mask_BL, tail=tail)
    score = jax.vmap(lambda targets_BT: token_logprobs(logits_BTV, targets_BT, 1.0), 1, 1)
    return (score(targets_BCT) * weights_BCT).sum(-1)


def _targets(
    wanted: Sequence[Sequence[Ids]], batch_size: int, most: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """targets_BCT and their weights: the continuations of each row, right-aligned."""
    longest = max(len(ids) for row in wanted for ids in row)
    shape = (batch_size, most, min(width, 1 << max(0, longest - 1).bit_length()))
    targets_BCT, weights_BCT = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for number, row in enumerate(wanted):
        for choice, ids in enumerate(row):
            start = shape[-1] - len(ids)
            targets_BCT[number, choice, start:], weights_BCT[number, choice, start:] = ids, 1
    return targets_BCT, weights_BCT


def _is_logged(number: int, batches: Sequence) -> bool:
    return number % LOG_EVERY_BATCHES == LOG_EVERY_BATCHES - 1 or number == len(batches) - 1


def _plan(lengths: Sequence[int], batch_size: int) -> list[tuple[int, list[int]]]:
    """Padded width and rows of each batch, shortest first."""
    buckets: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        step = max(BUCKET_TOKENS, 1 << max(0, lengths[index].bit_length() - 3))
        buckets.setdefault(-(-lengths[index] // step) * step, []).append(index)
    return [
        (width, indices[start : start + batch_size])
        for width, indices in buckets.items()
        for start in range(0, len(indices), batch_size)
    ]


def _pad_left(
    rows: Sequence[Ids], width: int, batch_size: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one width and their masks; the first one again where there are too few."""
    tokens_BP = np.full((batch_size, width), pad_id, np.int32)
    mask_BP = np.zeros((batch_size, width), np.int32)
    for number in range(batch_size):
        row = rows[number] if number < len(rows) else rows[0]
        tokens_BP[number, width - len(row) :] = row
        mask_BP[number, width - len(row) :] = 1
    return tokens_BP, mask_BP
