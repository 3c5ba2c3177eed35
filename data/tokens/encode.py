"""Bulk encoding: what lies between two places that no token reaches across is encoded once.

A text is cut wherever no token of the vocabulary has the two bytes side by side: about at every
word. The ids of a part are the same wherever it stands, so that of many texts each different part
is encoded once. A BPE merges across no such place, which makes the ids of the parts, one after the
other, exactly those of the text; `check` compares them all the same before they are relied on.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data.errors import BadInput

SPACE_MARK = "\u2581"  # how SentencePiece writes a space
SPACE = 0x20
# Last bytes of words: not of ASCII's blanks and controls, nor of a blank beyond ASCII.
WORD_ENDS = np.setdiff1d(
    np.arange(SPACE + 1, 256), (0x7F, *range(0x80, 0x8B), 0x9F, 0xA0, 0xA8, 0xA9, 0xAF)
)
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DIGITS, LINE_ENDS, SIGNS = b"0123456789", b"\t\n\r", b'!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'
# What tokenizers treat each in its way: blanks of all kinds, marks of their own, signs, scripts.
PROBE_BITS = (
    *("   ", "  ", " ", " ", " ", "\n", "\n\n", "\r\n", "\t", "\v", "\x1c", "\x85", "\xa0", "\x00"),
    *("\u1680", "\u2003", "\u2028", "\u205f", "\u3000", "\u200b", "\ufeff", SPACE_MARK, "\u0120"),
    *("a", "the", "Then", "'s", "'LL", "don't", "x_1", "1", "23", "4567", ".", ",", "...", "!?"),
    *("(", ");", "{}", "-", "##", "//", "</s>", "<0x41>", "<|user|>", "\u0301", "e\u0301", "é"),
    *("Straße", "мир", "नमस्ते", "ไทย", "漢字", "。", "かな", "한", "ال", "👩\u200d👧"),
)
NUM_PROBES = 1000


def _byte_alphabet() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


# How GPT-2 spells each byte: a printable one as itself, the others as U+0100 and so on.
BYTES = {char: byte for byte, char in enumerate(_byte_alphabet())}


class Cuts(NamedTuple):
    """Where the texts of a tokenizer may be cut, and how their parts are encoded.

    Attributes:
        joined: bool [256, 256]: whether a token may hold the first byte and then the second. A
            text is cut where it is false, and never inside a character.
        encode: the ids of each part.
        prefix: what the tokenizer puts before every text that is not empty, and `encode` does not.
    """

    joined: np.ndarray
    encode: Callable[[list[str]], list[list[int]]]
    prefix: str = ""


def joined_in_pieces(pieces: Iterable[str]) -> np.ndarray:
    """`Cuts.joined` of SentencePiece's BPE, whose pieces are cut from a whole text.

    Args:
        pieces: those that a text can give. A space of a text and a U+2581 are alike.
    """
    pieces = list(pieces)
    joined = _joined([*pieces, *(piece.replace(SPACE_MARK, " ") for piece in pieces)])
    first, last = SPACE_MARK.encode()[0], SPACE_MARK.encode()[-1]
    joined[:, first] |= joined[:, SPACE]
    joined[last] |= joined[SPACE]
    return joined


def joined_in_words(tokens: Iterable[str], *, is_known: bool) -> np.ndarray:
    """`Cuts.joined` of a tokenizer that splits texts into words before anything else.

    All families begin a word at a space that follows no blank, and a word's ids do not depend on
    those around it. Where the way it splits is known, words also end where a run of ASCII letters
    or digits ends, but at an apostrophe, and where one of digits begins. Not where letters begin:
    they may take the last of several signs.

    Args:
        tokens: those that a text can give, spelled plainly, with U+2581 for a space, or in
            GPT-2's alphabet.
        is_known: whether texts are split as gguf_tokenizer.SPLITS or trainer.py has it.
    """
    joined = np.ones((256, 256), bool)
    joined[WORD_ENDS, SPACE] = False
    if is_known:
        for before, after in (
            (LETTERS + DIGITS, SIGNS + LINE_ENDS),
            (LETTERS, DIGITS),
            (DIGITS, LETTERS),
            (SIGNS, DIGITS),
        ):
            joined[np.ix_([*before], [*after])] = False
    tokens = list(tokens)
    spelled = (bytes(map(BYTES.get, token)) for token in tokens if BYTES.keys() >= set(token))
    # A token that was added is found before words are, and may hold what words never do.
    plain = [token.replace(SPACE_MARK, " ") for token in tokens]
    return joined | _joined([*plain, *spelled])


def _joined(tokens: Iterable[str | bytes]) -> np.ndarray:
    joined = np.zeros((256, 256), bool)
    joined[:, 0x80:0xC0] = True  # inside a character
    for token in tokens:
        spelled = token.encode() if isinstance(token, str) else token
        joined[list(spelled[:-1]), list(spelled[1:])] = True
    return joined


def encode(texts: Sequence[str], cuts: Cuts) -> tuple[np.ndarray, np.ndarray]:
    """Ids of texts, equal to the `encode_batch` of the tokenizer that gave the cuts.

    Args:
        texts: any Unicode text.
        cuts: what `check` has allowed.

    Returns:
        ids: int32 [tokens], of all texts, one after the other.
        lengths: int64 [texts], tokens of each.

    Raises:
        BadInput: a text has a lone surrogate; the message gives its index.
    """
    texts = [cuts.prefix + text if text else text for text in texts]
    try:
        array = pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        refuse_surrogates(texts)
        raise
    _, offsets, data = array.buffers()
    data = np.frombuffer(data or b"", np.uint8)
    offsets = np.frombuffer(offsets, np.int64)[: len(texts) + 1]
    is_start = np.zeros(len(data) + 1, bool)
    pairs = data[:-1].astype(np.uint16) << 8 | data[1:]
    is_start[1:-1] = ~cuts.joined.ravel()[pairs]
    is_start[offsets] = True
    starts = np.flatnonzero(is_start)
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(data)]
    parts = pa.Array.from_buffers(pa.large_string(), len(starts) - 1, buffers).dictionary_encode()
    known_ids, known_lengths = flatten(cuts.encode(parts.dictionary.to_pylist()))
    firsts = np.cumsum(known_lengths) - known_lengths
    which = parts.indices.to_numpy()
    part_lengths = known_lengths[which]
    ends = np.append(0, np.cumsum(part_lengths))
    places = np.repeat(firsts[which] - ends[:-1], part_lengths) + np.arange(ends[-1])
    return known_ids[places], np.diff(ends[np.searchsorted(starts, offsets)])


def flatten(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as `encode` gives them."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = itertools.chain.from_iterable(rows)
    return np.fromiter(ids, np.int32, int(lengths.sum())), lengths


def check(tokenizer: Any, texts: Sequence[str]) -> str:
    """Compares the ids of parts with those of whole texts: texts given, and made to find faults.

    Args:
        tokenizer: tokenizer.Tokenizer.
        texts: a sample of what is to be encoded.

    Returns:
        '' if all ids are the same, else why this tokenizer's texts must not be cut.
    """
    try:
        cuts = tokenizer.cuts()
    except BadInput as error:
        return str(error)
    rng = random.Random(0)
    probes = ["".join(rng.choices(PROBE_BITS, k=rng.randrange(40))) for _ in range(NUM_PROBES)]
    for batch in (probes, list(texts)):
        ids, lengths = encode(batch, cuts)
        parts = np.split(ids, np.cumsum(lengths)[:-1])
        for text, part, row in zip(batch, parts, tokenizer.encode_batch(batch), strict=True):
            if part.tolist() != row:
                return f"in parts, {text[:60]!r} has other ids than as a whole"
    return ""


def refuse_surrogates(texts: Sequence[str]) -> None:
    """Raises BadInput where a text is not valid Unicode."""
    for index, text in enumerate(texts):
        if not text.isascii() and (found := re.search("[\ud800-\udfff]", text)):
            raise BadInput(
                f"text {index}: lone surrogate {found[0]!r} at character {found.start()}; must be "
                "valid Unicode"
            )
