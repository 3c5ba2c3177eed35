"""Mojibake: text whose UTF-8 was read as a one-byte encoding, found and read again.

A text, or a line of it, that is UTF-8 throughout once it is put back into the bytes of one codec
was misread in that codec: correct text hardly ever is. What is mojibake in part only, or has lost
bytes, is left to ftfy, which knows the sequences that correct text does not have.
"""

import itertools
import re

import ftfy
from ftfy.badness import is_bad

# By ftfy's names, for whose cp1252 and its like every byte is a character.
CODECS = (
    *("latin-1", "sloppy-windows-1252", "sloppy-windows-1251"),
    *("macroman", "cp437", "sloppy-windows-1250"),
)
# A text that becomes shorter by so many characters was mojibake; by fewer, if ftfy finds it odd.
MIN_JOINED = 2


def _chars(first: int, end: int) -> str:
    """The characters that any of CODECS has for bytes from `first` to before `end`."""
    pairs = itertools.product(range(first, end), CODECS)
    return re.escape("".join({bytes([byte]).decode(codec, "ignore") for byte, codec in pairs}))


# A byte that begins a character of UTF-8, and one that goes on with it, in some codec.
SUSPECT = re.compile(f"[{_chars(0xC2, 0xF5)}][{_chars(0x80, 0xC0)}]")
# The closing quotation mark ends in byte 0x9D, for which cp1252 has no character.
LOST_END = re.compile(f"â€(?![{_chars(0x80, 0xC0)}])")


def undo(text: str) -> str:
    """Reads mojibake again as what it was, several times over where it was misread so.

    Args:
        text: without lone surrogates.

    Returns:
        The text; the very same object where nothing is to be done.

    Source: ftfy (Speer 2019, https://doi.org/10.5281/zenodo.2591652), after the whole readings.
    """
    if text.isascii() or not SUSPECT.search(text):
        return text
    again = _read_whole(text)
    if again == text:
        again = "\n".join(map(_read_line, LOST_END.sub("â€\x9d", text).split("\n")))
    return text if again == text else undo(again)


def _read_line(line: str) -> str:
    if line.isascii() or not SUSPECT.search(line):
        return line
    again = _read_whole(line)
    return ftfy.fix_encoding(line) if again == line else again


def _read_whole(text: str) -> str:
    """The text that one codec has misread throughout, or the same text."""
    for codec in CODECS:
        try:
            again = text.encode(codec).decode()
        except UnicodeError:
            continue
        if len(text) - len(again) >= MIN_JOINED or (again != text and is_bad(text)):
            return again
    return text
