"""Mojibake: text whose UTF-8 was read as a one-byte encoding, found and read again.

In such a text a letter of the upper half has become a capital letter or sign and one to three
signs after it. Correct text has such pairs too (a quotation mark after a capital, the Ukrainian
capital before an i), so a line is read again as a whole only if hardly any letter in it speaks
against it; in other lines only sequences that no correct text has are.
"""

import unicodedata

import numba
import numpy as np

CODECS = ("cp1252", "cp1251", "cp1250", "mac_roman", "cp437")
WESTERN = 0  # cp1252 in CODECS
NUM_CODES = 0x2600  # code points of CODECS are below, but for three signs of mac_roman
# The UTF-8 of a whole line is believed if its letters that are not part of it are as few as this.
MAX_STRAY_RATIO = 1 / 8
MIN_WEAK = 3  # different sequences that prove a line together, if none does alone
# Signs that follow a letter, or part two, in correct text, so that they prove little.
PLAIN_SIGNS = "’”…–—»“«‘„‚‹›•™®©°²³¹ªº·\u00a0\u00ad´§†‡"
# Signs that follow a root sign, which mac_roman has for a lead byte.
ROOT_SIGNS = "π∑∏∫Ωµ"
# Blocks whose characters a text may be made of, first and last; scripts that are hardly ever
# written are left out, because wrong readings often give one of theirs.
PLAUSIBLE = (
    (0x0080, 0x017F), (0x01A0, 0x01A1), (0x01AF, 0x01B0), (0x01CD, 0x01DC), (0x0218, 0x021B),
    (0x02BB, 0x02BD), (0x02C6, 0x02DD), (0x0300, 0x045F), (0x0490, 0x04FF), (0x0531, 0x05F4),
    (0x060C, 0x06FF), (0x0900, 0x10FF), (0x1200, 0x137F), (0x1780, 0x17FF), (0x1E00, 0x1FFF),
    (0x2010, 0x27BF), (0x3000, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xFE0F, 0xFE0F),
    (0xFEFF, 0xFEFF), (0xFF01, 0xFF9F), (0xFFFD, 0xFFFD), (0x1F1E6, 0x1FAFF),
)  # fmt: skip
# Of characters below NUM_CODES.
LETTER, CAPITAL, PLAIN, ROOT = 1, 2, 4, 8
# What a sequence lacks: nothing; a byte that is gone; a byte that became a blank.
COMPLETE, CUT, BLANKED = range(3)


def _bytes_of(codec: str) -> np.ndarray:
    """The byte, from 0x80, that stands for each code point in a codec; 0 where none does."""
    bytes_C = np.zeros(NUM_CODES, np.uint8)
    for byte in range(0x80, 0x100):
        try:
            code = ord(bytes((byte,)).decode(codec))
        except UnicodeDecodeError:
            code = byte  # a gap, which lenient readers take for a control
        if code < NUM_CODES:
            bytes_C[code] = byte
        if codec == CODECS[WESTERN] and byte < 0xA0:
            bytes_C[byte] = byte  # as Latin-1 reads it
    return bytes_C


def _traits() -> np.ndarray:
    traits = np.zeros(NUM_CODES, np.uint8)
    for code in range(NUM_CODES):
        char = chr(code)
        kind = unicodedata.category(char)
        traits[code] = (
            LETTER * (kind[0] in "LM" and char not in PLAIN_SIGNS)
            | CAPITAL * (kind == "Lu")
            | PLAIN * (char in PLAIN_SIGNS)
            | ROOT * (char in ROOT_SIGNS)
        )
    return traits


BYTES = np.stack([_bytes_of(codec) for codec in CODECS])
TRAITS = _traits()
BLOCKS = np.array(PLAUSIBLE, np.int64)


def _roles() -> np.ndarray:
    """For each code point 3 x 5 bits: it continues, it leads two bytes, it leads more, by codec."""
    shifts = np.arange(len(CODECS))[:, None]
    roles = ((BYTES >= 0x80) & (BYTES < 0xC0)).astype(np.uint16) << shifts
    roles |= ((BYTES >= 0xC2) & (BYTES < 0xE0)).astype(np.uint16) << (shifts + len(CODECS))
    roles |= ((BYTES >= 0xE0) & (BYTES < 0xF5)).astype(np.uint16) << (shifts + 2 * len(CODECS))
    return np.bitwise_or.reduce(roles, axis=0).astype(np.uint16)


ROLES = _roles()


def undo(text: str) -> str:
    """Reads mojibake again as what it was, several times over where it was misread so.

    Args:
        text: without lone surrogates.

    Returns:
        The text; the very same object where nothing is to be done.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    suspects = int(_suspects(codes, ROLES))
    changed = False
    while suspects:
        for found, codec in _by_sense(codes, suspects):
            believed = _believed(codes, found, TRAITS, BLOCKS, codec == WESTERN)
            if believed.any():
                codes = _replace(codes, found[believed])
                codes.flags.writeable = False  # compiled code knows one kind of array only
                changed = True
                break
        else:
            break
        suspects = int(_suspects(codes, ROLES))
    return codes.tobytes().decode("utf-32-le") if changed else text


def _by_sense(codes: np.ndarray, suspects: int) -> list[tuple[np.ndarray, int]]:
    """The sequences found in each suspected codec, first that with the most."""
    found = [
        (_sequences(codes, BYTES[codec], codec == WESTERN), codec)
        for codec in range(len(CODECS))
        if suspects >> codec & 1
    ]
    return sorted(found, key=lambda pair: (-pair[0][:, 1].sum(), pair[1]))


@numba.njit(cache=True, nogil=True)
def _suspects(codes, roles):
    """The codecs, a bit each, in which some characters are a whole sequence of UTF-8."""
    num_codecs = len(CODECS)
    before, before_that, found = np.uint16(0), np.uint16(0), np.uint16(0)
    last = np.uint32(0)
    for code in codes:
        role = roles[code] if code < NUM_CODES else np.uint16(0)
        found |= role & ((before >> num_codecs) | (before & (before_that >> 2 * num_codecs)))
        if (code == 0x20AC and last == 0xE2) or (code == 0x20 and 0xC2 <= last <= 0xC3):
            found |= np.uint16(1)  # a byte may be lost
        before_that, before, last = before, role, code
    return found & (2**num_codecs - 1)


@numba.njit(cache=True, nogil=True)
def _sequences(codes, byte_of, western):
    """The sequences of UTF-8: where they begin, their length, what they give, what they lack."""
    num_pairs = 0
    for i in range(len(codes) - 1):
        num_pairs += _begins(codes, i, byte_of)
    found = np.empty((num_pairs, 4), np.int64)
    size, i = 0, 0
    while i < len(codes) - 1:
        length = 0
        if _begins(codes, i, byte_of):
            length, code = _complete(codes, i, byte_of)
            lack = COMPLETE
            if length == 0 and western:
                length, code, lack = _incomplete(codes, i)
        if length:
            found[size] = i, length, code, lack
            size += 1
        i += max(length, 1)
    return found[:size]


@numba.njit(cache=True, nogil=True, inline="always")
def _begins(codes, i, byte_of):
    """May a sequence begin here? Without a branch: its answer is hard to foretell."""
    lead = byte_of[min(codes[i], NUM_CODES - 1)]
    after = byte_of[min(codes[i + 1], NUM_CODES - 1)]
    blanked = (lead <= 0xC3) & (codes[i + 1] == 32)
    return (lead >= 0xC2) & (lead <= 0xF0) & ((after & 0xC0 == 0x80) | blanked)


@numba.njit(cache=True, nogil=True)
def _complete(codes, i, byte_of):
    """The length of the sequence at i and the code point it gives, or (0, 0)."""
    lead = np.int64(byte_of[codes[i]])
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    if i + length > len(codes):
        return 0, 0
    code = lead & (0xFF >> (length + 1))
    for j in range(i + 1, i + length):
        byte = np.int64(byte_of[min(codes[j], NUM_CODES - 1)])
        if byte & 0xC0 != 0x80:
            return 0, 0
        code = code << 6 | byte & 0x3F
    shortest = 0x80 if length == 2 else 0x800 if length == 3 else 0x10000
    if code < shortest or 0xD800 <= code < 0xF900:  # surrogates, private use
        return 0, 0
    return length, code


@numba.njit(cache=True, nogil=True)
def _incomplete(codes, i):
    """What a sequence of cp1252 most likely was that lost its last byte."""
    after = codes[i + 2] if i + 2 < len(codes) else np.uint32(0)
    if codes[i] == 0xE2 and codes[i + 1] == 0x20AC:
        # The one common mark whose last byte cp1252 has no character for; misread twice, it
        # leaves another sign behind.
        return 3 if after == 0xC2 else 2, 0x201D, CUT
    if codes[i] == 0xC2 and codes[i + 1] == 32:
        return 2, 0x20, BLANKED
    if codes[i] == 0xC3 and codes[i + 1] == 32:
        return 2 if after == 32 else 1, 0xE0, BLANKED
    return 0, 0, COMPLETE


@numba.njit(cache=True, nogil=True)
def _believed(codes, found, traits, blocks, western):
    """Which of the sequences are to be read again."""
    believed = np.zeros(len(found), np.bool_)
    if len(found) == 0:
        return believed
    if _is_whole(codes, 0, len(codes), found, traits, blocks):
        believed[:] = True
        return believed
    first = 0
    while first < len(found):
        start, end = found[first, 0], found[first, 0]
        while start > 0 and codes[start - 1] != 10:
            start -= 1
        while end < len(codes) and codes[end] != 10:
            end += 1
        last = first
        while last < len(found) and found[last, 0] < end:
            last += 1
        here = found[first:last]
        whole = _is_whole(codes, start, end, here, traits, blocks)
        for k in range(first, last):
            believed[k] = whole or _is_certain(codes, found[k], traits, blocks, western)
        if believed[first:last].any():
            _believe_beside(codes, here, believed[first:last], traits)
        first = last
    return believed


@numba.njit(cache=True, nogil=True)
def _believe_beside(codes, found, believed, traits):
    """Believes, in a line with believed ones, sequences right beside them, and blanks for bytes."""
    for k in range(1, len(found)):
        touches = found[k - 1, 0] + found[k - 1, 1] == found[k, 0]
        believed[k] |= believed[k - 1] and touches
    for k in range(len(found) - 1, 0, -1):
        touches = found[k - 1, 0] + found[k - 1, 1] == found[k, 0]
        believed[k - 1] |= believed[k] and touches
    for k in range(len(found)):
        capital = _trait(codes, found[k, 0] - 1, traits) & CAPITAL
        believed[k] |= found[k, 3] == BLANKED and not capital


@numba.njit(cache=True, nogil=True)
def _is_whole(codes, start, end, found, traits, blocks):
    """Is a line, or a text, mojibake throughout?"""
    weak = np.zeros(MIN_WEAK, np.int64)
    num_weak, num_inside, proven = 0, 0, False
    for k in range(len(found)):
        at, length, code, lack = found[k]
        for j in range(at, at + length):
            num_inside += _is_letter(codes[j], traits)
        if lack == COMPLETE:
            if not proven and _is_plausible(code, blocks):
                proven = _is_strong(codes, at, length, traits)
            if num_weak < MIN_WEAK and code not in weak[:num_weak]:
                weak[num_weak] = code
                num_weak += 1
    if not proven and num_weak < MIN_WEAK:
        return False
    num_letters = 0
    for i in range(start, end):
        num_letters += _is_letter(codes[i], traits)
    return num_letters - num_inside <= MAX_STRAY_RATIO * len(found)


@numba.njit(cache=True, nogil=True)
def _is_certain(codes, sequence, traits, blocks, western):
    """Is this sequence mojibake, whatever its line is?"""
    i, length, code, lack = sequence
    if lack == BLANKED:
        after_mark = i > 0 and codes[i - 1] in (0x21, 0x2C, 0x2E, 0x3F)  # ! , . ?
        return _is_small(codes, i - 1) or (code == 0x20 and after_mark)
    if lack == CUT or not _is_plausible(code, blocks):
        return lack == CUT
    for j in range(i, i + length):
        if 0x80 <= codes[j] < 0xA0:  # a control, which correct text has not
            return i == 0 or not 0x80 <= codes[i - 1] < 0xA0
    if length == 4 or _cuts_word(codes, i, length, traits):
        return True
    if length == 3:  # quotation marks, dashes, the euro, the mark of byte order or of bytes lost
        return 0x2010 <= code <= 0x203A or code in (0x20AC, 0x2122, 0xFEFF, 0xFFFD)
    if not western or codes[i] not in (0xC2, 0xC3):
        return False
    # A capital A with a hat or tilde ends words in capitals only, before a closing sign.
    after_capital = _trait(codes, i - 1, traits) & CAPITAL
    closing = codes[i + 1] in (0xA0, 0xBB, 0x2013, 0x2014, 0x2019, 0x201D, 0x2026)
    if not closing:
        return not after_capital or codes[i] == 0xC2 or _is_small(codes, i + length)
    blank = codes[i + 1] == 0xA0 or codes[i] == 0xC2
    return not after_capital and (blank or _is_small(codes, i + length))


@numba.njit(cache=True, nogil=True)
def _is_strong(codes, i, length, traits):
    """Does correct text hardly ever have these characters in this place?"""
    for j in range(i + 1, i + length):
        if not _trait(codes, j, traits) & (LETTER | PLAIN):
            return True
    return length == 4 or _cuts_word(codes, i, length, traits)


@numba.njit(cache=True, nogil=True)
def _cuts_word(codes, i, length, traits):
    """A capital or sign, and a sign, right after a small letter."""
    lead, last = _trait(codes, i, traits), _trait(codes, i + 1, traits)
    if length != 2 or not _is_small(codes, i - 1) or lead & PLAIN:
        return False
    if lead & LETTER:
        return lead & CAPITAL != 0 and last & LETTER == 0
    return last & ROOT == 0


@numba.njit(cache=True, nogil=True)
def _is_plausible(code, blocks):
    inside = False
    for first, last in blocks:
        inside |= first <= code <= last
    return inside


@numba.njit(cache=True, nogil=True)
def _trait(codes, i, traits):
    if i < 0 or i >= len(codes) or codes[i] >= NUM_CODES:
        return np.uint8(0)
    return traits[codes[i]]


@numba.njit(cache=True, nogil=True)
def _is_small(codes, i):
    """A small ASCII letter."""
    return 0 <= i < len(codes) and 97 <= codes[i] <= 122


@numba.njit(cache=True, nogil=True)
def _is_letter(code, traits):
    """A letter, control or line of a box beyond ASCII."""
    if code < NUM_CODES:
        control = 0x80 <= code < 0xA0
        return control or code >= 0x2500 or (code >= 0xA0 and traits[code] & LETTER != 0)
    return 0x2C00 <= code < 0x2E00 or 0x3040 <= code < 0xFE00


@numba.njit(cache=True, nogil=True)
def _replace(codes, found):
    """Puts what the sequences give in their place."""
    out = np.empty_like(codes)
    size, start = 0, 0
    for k in range(len(found)):
        at, length, code, _ = found[k]
        out[size : size + at - start] = codes[start:at]
        size += at - start
        out[size] = code
        size += 1
        start = at + length
    rest = len(codes) - start
    out[size : size + rest] = codes[start:]
    return out[: size + rest]
