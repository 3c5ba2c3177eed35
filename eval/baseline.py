"""Bits per byte of compressors and of a byte n-gram model: the scale beside a model's own."""

import functools
import gzip
import lzma
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LARGEST_ORDER = 8  # bytes that one 64-bit word holds


class Level(NamedTuple):
    """Counts of one n-gram length, sorted, so that look-up is a binary search.

    grams: n bytes packed in a word, last byte lowest; gram_counts: their counts; contexts: the
    n - 1 bytes before; context_counts: how often each was continued; context_types: by how many
    different bytes.
    """

    grams: np.ndarray
    gram_counts: np.ndarray
    contexts: np.ndarray
    context_counts: np.ndarray
    context_types: np.ndarray


def compress_bits_per_byte(groups: Sequence[Sequence[str]], method: str) -> float:
    """Compressed size in bits for each byte of all texts.

    Args:
      groups: documents; those of a group are compressed one after the other, and each group by
        itself, so that what two groups share is not found. At least one byte in all.
      method: 'gzip' or 'xz', each at its highest level.

    Raises:
      ValueError: an unknown method, or no text.
    """
    compress = {
        "gzip": functools.partial(gzip.compress, compresslevel=9, mtime=0),
        "xz": functools.partial(lzma.compress, preset=9),
    }
    if method not in compress:
        raise ValueError(f"method {method!r}: 'gzip' or 'xz' are known")
    parts = [data for texts in groups if (data := "".join(texts).encode())]
    if not parts:
        raise ValueError("no text to compress; at least one byte is needed")
    return 8 * sum(len(compress[method](data)) for data in parts) / sum(map(len, parts))


def ngram_bits_per_byte(
    train_texts: Sequence[str], heldout_texts: Sequence[str], order: int = 5
) -> float:
    """Cross-entropy on held-out text of an interpolated Witten-Bell model over bytes.

    Args:
      train_texts: documents to count.
      heldout_texts: documents to predict; at least one byte in all.
      order: length of the n-gram in bytes, predicted byte included, 1 to 8.

    Returns:
      Bits per byte.

    Raises:
      ValueError: an order out of range, or no text in one of the two.
    """
    if not 1 <= order <= LARGEST_ORDER:
        raise ValueError(f"order is {order}; 1 to {LARGEST_ORDER} are possible")
    levels = count_levels(pack_grams(train_texts, order), order)
    return float(-np.log2(probabilities(levels, pack_grams(heldout_texts, order))).mean())


def pack_grams(texts: Sequence[str], order: int) -> np.ndarray:
    """One word for each byte: that byte lowest, the order - 1 bytes before it above.

    Before its first byte a document has zero bytes, which are context and never predicted.
    """
    packed = [_pack(np.frombuffer(text.encode(), np.uint8), order) for text in texts]
    grams = np.concatenate([np.empty(0, np.uint64), *packed])
    if not len(grams):
        raise ValueError("no text to count; at least one byte is needed")
    return grams


def count_levels(grams: np.ndarray, order: int) -> list[Level]:
    """Counts n-grams of every length from 1 to order."""
    levels = []
    for length in range(1, order + 1):
        unique, counts = np.unique(_shorten(grams, length), return_counts=True)
        contexts, starts = np.unique(_context(unique, length), return_index=True)
        totals = np.add.reduceat(counts, starts)
        types = np.diff(starts, append=len(unique))
        levels.append(Level(unique, counts, contexts, totals, types))
    return levels


def probabilities(levels: Sequence[Level], grams: np.ndarray) -> np.ndarray:
    """Probability of each gram's last byte after the bytes before it.

    P_n(byte | context) = (count(context byte) + T P_{n-1}) / (count(context) + T), where T is the
    number of different bytes seen after the context, P_0 = 1/256, and P_n = P_{n-1} after a context
    that was never seen.

    Source: Witten and Bell 1991; Chen and Goodman 1998 (TR-10-98), section 2.6, in its
    interpolated form.
    """
    probability = np.full(len(grams), 1 / 256)
    for length, level in enumerate(levels, start=1):
        short = _shorten(grams, length)
        count = _look_up(level.grams, level.gram_counts, short)
        context = _context(short, length)
        total = _look_up(level.contexts, level.context_counts, context)
        types = _look_up(level.contexts, level.context_types, context)
        backed_off = (count + types * probability) / np.maximum(total + types, 1)
        probability = np.where(total > 0, backed_off, probability)
    return probability


def _pack(data: np.ndarray, order: int) -> np.ndarray:
    padded = np.concatenate([np.zeros(order - 1, np.uint64), data.astype(np.uint64)])
    packed = np.zeros(len(data), np.uint64)
    for place in range(order):
        start = order - 1 - place
        packed |= padded[start : start + len(data)] << np.uint64(8 * place)
    return packed


def _shorten(grams: np.ndarray, length: int) -> np.ndarray:
    return grams & np.uint64(2 ** (8 * length) - 1)


def _context(grams: np.ndarray, length: int) -> np.ndarray:
    """The bytes before the last; a gram of one byte has the empty context, 0."""
    return grams >> np.uint64(8) if length > 1 else np.zeros_like(grams)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Values at the sorted keys; 0 where a key is missing."""
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[found] == wanted, values[found], 0)
