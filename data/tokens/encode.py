"""Bulk encoding: what lies between two places that no token reaches across is encoded once.

A text is cut wherever no token of the vocabulary has the two bytes side by side: about at every
word. The ids of a part are the same wherever it stands, so that they are kept and looked up. A BPE
merges across no such place, which makes the ids of the parts, one after the other, exactly those of
the text; `check` compares them all the same before they are relied on.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import BadInput

SPACE_MARK = "\u2581"
SPACE = 0x20
NORMAL, USER_DEFINED, UNUSED = 1, 4, 5

# Parts that are kept, the bytes of them, and parts found before their ids are written out: in all
# some 80 MB. A hundred megabytes of text have half a million parts.
MAX_PARTS = 1 << 20
ARENA_BYTES = 1 << 24
BLOCK_PARTS = 1 << 20
EMPTY = np.int32(-1)
FNV_START, FNV_STEP = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
MIX, S32 = np.uint64(0xD6E8FEB86659FD93), np.uint64(32)

LETTERS, DIGITS, LINE_ENDS, SIGNS = (
    np.frombuffer(kind, np.uint8)
    for kind in (
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
        b"0123456789",
        b"\t\n\r",
        b'!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~',
    )
)
# The last bytes of the characters beyond ASCII that some pattern takes for a blank.
BLANK_ENDS = (*range(0x80, 0x8B), 0x9F, 0xA0, 0xA8, 0xA9, 0xAF)
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
ALPHABET = _byte_alphabet()
BYTES = {char: byte for byte, char in enumerate(ALPHABET)}


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


def joined_in_pieces(model: Any) -> np.ndarray:
    """The bytes that stand side by side in the pieces of a SentencePiece model.

    Args:
        model: its ModelProto.

    Returns:
        `Cuts.joined`. A space of a text and a U+2581, which is how a space is written, are alike.

    Raises:
        BadInput: a model whose ids of a text are not those of its parts; the message says why.
    """
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    faults = {
        "its sums over a whole text are rounded, as those over parts are not": trainer.model_type
        != trainer.BPE,
        "unknown characters that stand together are one token": not trainer.byte_fallback,
        "the text is normalized": normalizer.precompiled_charsmap
        or normalizer.remove_extra_whitespaces
        or not normalizer.escape_whitespaces,
        "a space is put at its end": trainer.treat_whitespace_as_suffix
        and normalizer.add_dummy_prefix,
        "some pieces are unused": any(piece.type == UNUSED for piece in model.pieces),
    }
    for fault, is_so in faults.items():
        if is_so:
            raise BadInput(fault)
    joined = _inside_characters()
    for piece in model.pieces:
        if piece.type in (NORMAL, USER_DEFINED):
            _join(joined, piece.piece.encode())
            _join(joined, piece.piece.replace(SPACE_MARK, " ").encode())
    first, last = SPACE_MARK.encode()[0], SPACE_MARK.encode()[-1]
    joined[:, first] |= joined[:, SPACE]
    joined[last] |= joined[SPACE]
    return joined


def joined_in_words(
    tokens: Iterable[str], added: Iterable[str] = (), *, is_known: bool
) -> np.ndarray:
    """The bytes that a tokenizer may join which splits texts into words before anything else.

    A text is cut before a space that follows no blank, unless a token has both; and, where the way
    it is split is known, where a run of ASCII letters or digits ends and where one of digits
    begins, but not at an apostrophe. All families begin a word there, and a word's ids do not
    depend on those around it. Not where letters begin: they may take the last of several signs.

    Args:
        tokens: those that a text can give, spelled plainly, with U+2581 for a space, or in
            GPT-2's alphabet.
        added: those that are found in a text before it is split.
        is_known: whether texts are split as byte_level.SPLITS has it.

    Returns:
        `Cuts.joined`.
    """
    joined = np.ones((256, 256), bool)
    no_blank = np.setdiff1d(np.arange(SPACE + 1, 256), (0x7F, *BLANK_ENDS))
    joined[no_blank, SPACE] = False
    for token in tokens:
        plain = token.replace(ALPHABET[SPACE], " ").replace(SPACE_MARK, " ")
        for before, char in itertools.pairwise(plain):
            if char == " ":
                joined[[before.encode()[-1], BYTES.get(before, SPACE)], SPACE] = True
    if is_known:
        ends = [(kind, np.append(SIGNS, LINE_ENDS)) for kind in (LETTERS, DIGITS)]
        for kinds in (*ends, (LETTERS, DIGITS), (DIGITS, LETTERS), (SIGNS, DIGITS)):
            joined[np.ix_(*kinds)] = False
    for token in added:
        _join(joined, token.encode())
    return joined


def _inside_characters() -> np.ndarray:
    joined = np.zeros((256, 256), bool)
    joined[:, 0x80:0xC0] = True
    return joined


def _join(joined: np.ndarray, spelled: bytes) -> None:
    for first, second in itertools.pairwise(spelled):
        joined[first, second] = True


def check(tokenizer: Any, texts: Sequence[str]) -> str:
    """Compares the ids of parts with those of whole texts: texts given, and made to find faults.

    Args:
        tokenizer: tokenizer.Tokenizer or pretrained.Pretrained.
        texts: a sample of what is to be encoded.

    Returns:
        '' if all ids are the same, else why an `Encoder` must not cut this tokenizer's texts.
    """
    try:
        encoder = Encoder(tokenizer, cached=True)
    except BadInput as error:
        return str(error)
    rng = random.Random(0)
    probes = ["".join(rng.choices(PROBE_BITS, k=rng.randrange(40))) for _ in range(NUM_PROBES)]
    for batch in (probes, list(texts)):
        ids, lengths = encoder.encode(batch)
        parts = np.split(ids, np.cumsum(lengths)[:-1])
        for text, part, row in zip(batch, parts, tokenizer.encode_batch(batch), strict=True):
            if part.tolist() != row:
                return f"in parts, {text[:60]!r} has other ids than as a whole"
    return ""


class Encoder:
    """Texts to ids, in one thread; the parts of the texts so far are remembered.

    A process that encodes much keeps one of them. The ids do not depend on what came before.
    """

    def __init__(self, tokenizer: Any, cached: bool):
        """Takes a tokenizer.

        Args:
            tokenizer: tokenizer.Tokenizer or pretrained.Pretrained.
            cached: whether to cut texts and look the parts up, which `check` must have allowed;
                else the tokenizer encodes them whole.

        Raises:
            BadInput: `cached`, and the tokenizer's texts cannot be cut; the message says why.
        """
        self._tokenizer = tokenizer
        self._cuts = tokenizer.cuts() if cached else None
        if cached:
            self._arena = np.empty(ARENA_BYTES, np.uint8)
            self._slots = np.empty(2 * MAX_PARTS, np.int32)
            self._hashes = np.empty(MAX_PARTS, np.uint64)
            self._places = np.zeros(MAX_PARTS + 1, np.int64)
            self._firsts = np.zeros(MAX_PARTS + 1, np.int64)
            self._forget()

    def encode(self, texts: Sequence[str] | pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Ids of texts, equal to the tokenizer's `encode_batch`.

        Args:
            texts: strings, or an Arrow array of them without nulls.

        Returns:
            ids: int32 [tokens], of all texts, one after the other.
            lengths: int64 [texts], tokens of each.

        Raises:
            BadInput: a text has a lone surrogate; the message gives its index.
        """
        if self._cuts is None:
            texts = texts.to_pylist() if isinstance(texts, pa.Array) else texts
            return _flatten(self._tokenizer.encode_batch(texts, num_threads=1))
        data, offsets = self._as_bytes(texts)
        lengths = np.zeros(len(offsets) - 1, np.int64)
        at, rows = np.zeros(2, np.int64), []
        while at[0] < len(lengths):
            chunks, owners = np.empty((2, min(BLOCK_PARTS, len(data) + 1)), np.int32)
            known = self._fill.copy()
            table = (self._slots, self._hashes, self._places, self._arena, self._fill)
            count = _cut(data, offsets, self._cuts.joined, table, chunks, owners, at)
            self._learn(int(known[0]))
            rows.append(_emit(chunks[:count], owners[:count], self._firsts, self._ids, lengths))
            if at[0] < len(lengths) and count < len(chunks):
                if not known[0] and not count:
                    self._arena = np.empty(2 * len(self._arena), np.uint8)
                self._forget()
        return np.concatenate([np.zeros(0, np.int32), *rows]), lengths

    def _as_bytes(self, texts: Sequence[str] | pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """The texts' UTF-8 back to back, and where each begins and the last ends."""
        if not isinstance(texts, pa.Array):
            try:
                texts = pa.array(texts, pa.large_string())
            except UnicodeEncodeError:
                self._tokenizer.encode_batch(texts)  # says which
                raise
        texts = texts.cast(pa.large_string())
        if self._cuts.prefix:
            prefix, between = (
                pa.scalar(text, pa.large_string()) for text in (self._cuts.prefix, "")
            )
            begun = pc.binary_join_element_wise(prefix, texts, between)
            texts = pc.if_else(pc.equal(texts, between), texts, begun)
        _, offsets, data = texts.buffers()
        data = np.frombuffer(data or b"", np.uint8)
        offsets = np.frombuffer(offsets, np.int64)[texts.offset :][: len(texts) + 1]
        return data, offsets

    def _learn(self, num_known: int) -> None:
        """Encodes the parts that were found last."""
        places = self._places[num_known : self._fill[0] + 1].tolist()
        content = self._arena[places[0] : places[-1]].tobytes()
        parts = [
            content[first - places[0] : end - places[0]].decode()
            for first, end in itertools.pairwise(places)
        ]
        ids, lengths = _flatten(self._cuts.encode(parts))
        used = self._firsts[num_known]
        np.cumsum(lengths, out=self._firsts[num_known + 1 : self._fill[0] + 1])
        self._firsts[num_known + 1 : self._fill[0] + 1] += used
        if used + len(ids) > len(self._ids):
            self._ids = np.resize(self._ids, 2 * (used + len(ids)))
        self._ids[used : used + len(ids)] = ids

    def _forget(self) -> None:
        self._slots.fill(EMPTY)
        self._fill = np.zeros(2, np.int64)
        self._ids = np.zeros(1, np.int32)


def _flatten(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = itertools.chain.from_iterable(rows)
    return np.fromiter(ids, np.int32, int(lengths.sum())), lengths


@numba.njit(cache=True, nogil=True)
def _cut(data, offsets, joined, table, chunks, owners, at):
    """Numbers the parts from `at` on, until the texts end or something is full.

    `table` is where the parts are kept: slots of a hash table, then of each part its hash and its
    place in the arena; last how many there are and how many bytes of them.
    """
    slots, hashes, places, arena, fill = table
    mask = np.uint64(len(slots) - 1)
    count = 0
    while at[0] < len(offsets) - 1:
        text = at[0]
        i, end = max(at[1], offsets[text]), offsets[text + 1]
        while i < end:
            if count == len(chunks):
                at[1] = i
                return count
            start, mixed = i, FNV_START
            while True:
                mixed = (mixed ^ np.uint64(data[i])) * FNV_STEP
                i += 1
                if i == end or not joined[data[i - 1], data[i]]:
                    break
            mixed = (mixed ^ (mixed >> S32)) * MIX
            mixed ^= mixed >> S32
            slot = mixed & mask
            while True:
                part = slots[slot]
                if part < 0 or (
                    hashes[part] == mixed and _is_same(data, start, i, arena, places, part)
                ):
                    break
                slot = (slot + np.uint64(1)) & mask
            if part < 0:
                part, used = fill[0], fill[1]
                if part == len(hashes) or used + i - start > len(arena):
                    at[1] = start
                    return count
                arena[used : used + i - start] = data[start:i]
                slots[slot], hashes[part], places[part + 1] = part, mixed, used + i - start
                fill[0], fill[1] = part + 1, used + i - start
            chunks[count], owners[count] = part, text
            count += 1
        at[0], at[1] = text + 1, 0
    return count


@numba.njit(cache=True, nogil=True)
def _is_same(data, start, end, arena, places, part):
    place = places[part]
    if places[part + 1] - place != end - start:
        return False
    while start < end and arena[place] == data[start]:
        start, place = start + 1, place + 1
    return start == end


@numba.njit(cache=True, nogil=True)
def _emit(chunks, owners, firsts, ids, lengths):
    """The ids of the parts, one after the other; adds how many each text has."""
    total = 0
    for part in chunks:
        total += firsts[part + 1] - firsts[part]
    out = np.empty(total, np.int32)
    k = 0
    for j in range(len(chunks)):
        first, end = firsts[chunks[j]], firsts[chunks[j] + 1]
        out[k : k + end - first] = ids[first:end]
        k += end - first
        lengths[owners[j]] += end - first
    return out
