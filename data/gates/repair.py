"""Repair: brings a text to one form, and mends what machines did to it.

`normalise` touches no visible character and is for code. `repair` is for prose: it also undoes
text that was read in a wrong encoding, and removes what no reader sees. Both are pure and
idempotent, and look first, in one pass, whether there is anything to do.
"""

import html
import re
import unicodedata
from html.entities import name2codepoint

import numba
import numpy as np

from data.gates import mojibake

# What a text may need, a bit each.
CONTROL, BLANK, SURROGATE, GAP, INVISIBLE, SPACE, REFERENCE, TOKEN = (1 << np.arange(8)).tolist()

# What ends a line in some system or other.
LINE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# C0 and C1 controls but tab and newline, and the byte order mark.
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
# What cp1252 has where Latin-1 has controls; its gaps stay, and go as controls.
GAPS = {
    byte: char for byte in range(0x80, 0xA0) if (char := bytes((byte,)).decode("cp1252", "ignore"))
}
# Soft hyphens, word joiners, invisible operators, annotation and object marks.
UNSEEN = re.compile("[\u00ad\u2060-\u2064\u206a-\u206f\ufff9-\ufffc]")
# The zero-width space parts words in the scripts of South-East Asia; elsewhere it is a leftover.
UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"
ZERO_SPACES = re.compile(f"(?<![{UNSPACED}])\u200b++(?![{UNSPACED}])")
# Joiners shape Persian, Indic scripts and emoji; between ASCII they do nothing.
JOINERS = re.compile("(?<![^\x00-\x7f])[\u200c\u200d]++(?![^\x00-\x7f])")
DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
)
LOST = re.compile("\ufffd{2,}")
SPACES = re.compile("[\u00a0\u2000-\u200a\u205f]|(?<![\u1800-\u18af])\u202f")
WIDE = "\u2e80-\u2fff\u3001-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
WIDE_SPACES = re.compile(f"(?<![{WIDE}])\u3000++(?![{WIDE}])")
# WikiText writes a hyphen, a comma or a point inside a word or number as a token of its own, and so
# every other sign; its headings stand between equals signs, and each line begins with a blank.
INNER_TOKEN = re.compile(r"(?<=[\w>]) @([-,.])@ (?=[\w<])")
TOKENS = (
    (INNER_TOKEN, r"\1"),
    (re.compile(r"(?m)^ ?(?:= )+(.+?)(?: =)+ *$"), r"\1"),
    (re.compile(r"(?m)^ (?=\S)"), ""),
    (re.compile(r" ([,.;:!?%)\]}]|'(?:s|re|ve|ll|d|m|t)\b|n't\b)"), r"\1"),
    (re.compile(r"([(\[{$£€]) "), r"\1"),
    (re.compile(r'(?<!\S)(["\']) (.+?) \1(?!\w)'), r"\1\2\1"),
)
# A character reference, with whatever number of escapes before it.
REFERENCES = re.compile(
    r"&(?:amp;|#38;|#[xX]26;)*(#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,8});(?=(.?))"
)
TAG = re.compile(r"<[A-Za-z/!?]")
# Names that code does not use after its operator &: marks of punctuation, and accented letters.
PUNCTUATION_NAMES = """
    amp lt gt quot apos nbsp ensp emsp thinsp shy zwj zwnj ndash mdash lsquo rsquo sbquo ldquo rdquo
    bdquo laquo raquo lsaquo rsaquo hellip bull middot iexcl iquest euro pound deg
"""
REFERENCE_NAMES = frozenset(PUNCTUATION_NAMES.split()) | {
    name for name, code in name2codepoint.items() if 0xC0 <= code < 0x180 and len(name) > 4
}
# Names that code does use, though not before more of the same line.
MARK_NAMES = frozenset(("copy", "reg", "trade"))


def _needs() -> np.ndarray:
    """What each character of the basic plane gives reason to look for."""
    needs = np.zeros(0x10000, np.uint8)
    plane = "".join(map(chr, range(len(needs))))
    for need, pattern in (
        (CONTROL, LINE_ENDS),
        (CONTROL, CONTROLS),
        (GAP, re.compile("[\x80-\x9f]")),
        (INVISIBLE, UNSEEN),
        (INVISIBLE, DIRECTIONS),
        (INVISIBLE, re.compile("\u200b")),
        (SPACE, re.compile("[\u00a0\u2000-\u200a\u205f\u202f\u3000]")),
        (BLANK, re.compile("\u1680")),
        (REFERENCE, re.compile("&")),
        (TOKEN, re.compile("@")),
    ):
        for match in pattern.finditer(plane):
            needs[match.start()] |= need
    needs[0xD800:0xE000] = SURROGATE
    return needs


NEEDS = _needs()


@numba.njit(cache=True, nogil=True)
def _scan(codes, needs):
    """What a text may need; some characters give reason only after some others."""
    found, before = np.uint8(0), np.int64(10)
    for code in codes:
        if code < 0x10000:
            found |= needs[code]
            if code == 10 and (before == 32 or before == 9):
                found |= np.uint8(BLANK)
            joiner = code == 0x200C or code == 0x200D
            if (joiner and before < 0x80) or (code == 0xFFFD and before == 0xFFFD):
                found |= np.uint8(INVISIBLE)
        before = np.int64(code)
    return found | np.uint8(BLANK) if before == 32 or before == 9 else found


def _look(text: str) -> int:
    if text.isascii():
        codes = np.frombuffer(text.encode("ascii"), np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return int(_scan(codes, NEEDS))


def normalise(text: str) -> str:
    """Brings a text to one form, without touching what it says.

    Args:
        text: any text.

    Returns:
        NFC; LF line ends; no control characters but tab and newline; no blanks at line ends and
        no empty lines at either end; one newline last unless nothing is left. Surrogates are
        joined, lone ones become U+FFFD.
    """
    return _normalise(text, _look(text))


def _normalise(text: str, needs: int) -> str:
    if needs & SURROGATE:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if needs & CONTROL:
        text = CONTROLS.sub("", LINE_ENDS.sub("\n", text))
    text = unicodedata.normalize("NFC", text)
    if needs & (BLANK | CONTROL | SPACE):
        text = "\n".join(line.rstrip() for line in text.split("\n"))
    if text.endswith("\n") and not text.endswith("\n\n") and not text.startswith("\n"):
        return text
    text = text.strip("\n")
    return text + "\n" if text else ""


def repair(text: str) -> str:
    """Mends prose that machines have damaged, and brings it to one form.

    Mojibake is undone, HTML's character references are resolved in texts without tags, WikiText's
    tokens joined; what cannot be seen goes, and every kind of space becomes the common one, but
    where a script needs it: joiners in Persian, Hindi and emoji, the zero-width space in Thai and
    Khmer, marks of direction beside Hebrew and Arabic, the wide space beside wide characters.

    Args:
        text: any text; code is better left to `normalise`.

    Returns:
        The text, in the form that `normalise` gives; runs of U+FFFD are one of it.
    """
    while True:
        mended = _repair_once(text)
        if mended.strip("\n") == text.strip("\n"):
            return mended
        text = mended


def _repair_once(text: str) -> str:
    needs = _look(text)
    if needs & SURROGATE:
        text = _normalise(text, SURROGATE)
    if not text.isascii():
        text = mojibake.undo(text)
    if needs & GAP:
        text = text.translate(GAPS)
    if needs & INVISIBLE:
        text = _drop_invisible(text)
    if needs & SPACE:
        text = WIDE_SPACES.sub(" ", SPACES.sub(" ", text))
    if needs & REFERENCE and REFERENCES.search(text) and not TAG.search(text):
        text = REFERENCES.sub(_resolve, text)
    # A face in a chat looks the same; a tokenised text has other marks on their own as well.
    if needs & TOKEN and (" . " in text or " , " in text) and INNER_TOKEN.search(text):
        for pattern, joined in TOKENS:
            text = pattern.sub(joined, text)
    return _normalise(text, needs)


def _drop_invisible(text: str) -> str:
    text = JOINERS.sub("", ZERO_SPACES.sub("", UNSEEN.sub("", text)))
    if not RIGHT_TO_LEFT.search(text):
        text = DIRECTIONS.sub("", text)
    return LOST.sub("\ufffd", text)


def _resolve(match: re.Match) -> str:
    name, after = match[1], match[2]
    if name[0] == "#" or name in REFERENCE_NAMES or (name in MARK_NAMES and after):
        return html.unescape(f"&{name};")
    return match[0]
