"""Encodings: text out of bytes that may be UTF-8, damaged UTF-8, UTF-16, or an older encoding."""

import codecs
import contextlib
import io
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

# Longer marks first: that of UTF-32 begins as one of UTF-16 does.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
ASCII, NON_ASCII = bytes(range(0x80)), bytes(range(0x80, 0x100))
# Python's codecs for what browsers do, where the name alone gives a smaller one.
# https://encoding.spec.whatwg.org/#indexes
WIDER_CODECS = {
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "big5": "big5hkscs",
}
REPLACEMENT = "\ufffd"
# What is read as damaged UTF-8, and what as another encoding: of ten characters beyond ASCII this
# many may be wrong; or of this many bytes one, where UTF-8 is borne out by something at all.
MAX_WRONG_IN_TEN, WRONG_BYTES = 1, 1000
# Text of older encodings has hardly any of these; what is packed or an image has one in ten bytes.
CONTROLS = bytes({*range(0x20), 0x7F} - set(b"\t\n\v\f\r\x1a\x1b"))
MAX_CONTROLS = 0.01
# Of recoded text, that much may be U+FFFD: of anything else in pairs of bytes, three of a hundred.
MAX_REPLACED = 0.01
# With fewer bytes beyond ASCII, a text is of Western Europe: others need more letters than that,
# and a detector guesses.
MIN_BEYOND = 0.01
WESTERN = "cp1252"
STEP_BYTES = 1 << 14


class Decoded(NamedTuple):
    """Text that was decoded.

    Attributes:
        text: '' where it cannot be.
        encoding: '' if it is UTF-8 without fault.
        replaced: how many of its U+FFFD stand for bytes that are wrong.
        why: why it cannot be decoded, '' if it can.
    """

    text: str
    encoding: str = ""
    replaced: int = 0
    why: str = ""


def decode(data: bytes, is_utf8: bool = False, declared: Iterable[str] = ()) -> Decoded:
    """Decodes bytes by what they bear out, the surest first.

    Valid UTF-8 is that. Then a declared encoding in which at most MAX_WRONG_IN_TEN of ten
    characters beyond ASCII are wrong. Then damaged UTF-8, by the same measure; or with at most one
    wrong place, or one in WRONG_BYTES bytes, where no fewer are right than wrong or the file was
    UTF-8 so far. With as many right as wrong it is no text of any encoding. Else an older one:
    WESTERN if less than MIN_BEYOND of it is beyond ASCII, or what Resiliparse's detector finds, by
    the first measure. Zero bytes, and control characters above MAX_CONTROLS, are in no text.

    Args:
        data: a whole text without a byte order mark, or as much of one as there is.
        is_utf8: whether the same file has held valid UTF-8 beyond ASCII before.
        declared: Python's names of encodings, that which is believed first first.

    Returns:
        The text and its encoding, or why there is none.
    """
    # Bytes of these are valid UTF-8, too.
    first = [codec for codec in declared if codec == "iso2022_jp"]
    for codec in (*first, "utf-8"):
        try:
            return Decoded(data.decode(codec), "" if codec == "utf-8" else codec)
        except UnicodeDecodeError as error:
            why = f"not UTF-8: {error}"
    if _is_binary(data):
        return Decoded("", why=f"{why}; and it holds control characters, as no text does")
    num_beyond = len(data) - len(data.translate(None, NON_ASCII))
    for codec in declared:
        if (found := _try(data, codec, num_beyond)) is not None:
            return found
    text = data.decode(errors="replace")
    wrong = text.count(REPLACEMENT) - data.count(REPLACEMENT.encode())
    # Bytes of ASCII stay characters whatever stands before them.
    num_chars = len(text) - len(data) + num_beyond
    is_borne_out = is_utf8 or num_chars >= 2 * wrong
    is_little = wrong * 10 <= num_chars * MAX_WRONG_IN_TEN
    if is_little or (is_borne_out and wrong <= max(1, len(data) // WRONG_BYTES)):
        return Decoded(text, "utf-8", wrong)
    if num_chars >= 2 * wrong:
        good = num_chars - wrong
        return Decoded("", why=f"{why}; {wrong} of its characters are damaged, {good} are not")
    return _decode_older(data, num_beyond, why)


def _is_binary(data: bytes) -> bool:
    num_controls = len(data) - len(data.translate(None, CONTROLS))
    return b"\0" in data or num_controls > MAX_CONTROLS * len(data)


def _try(data: bytes, codec: str, num_beyond: int) -> Decoded | None:
    codec = WIDER_CODECS.get(codec, codec)
    text = data.decode(codec, "replace")
    wrong = text.count(REPLACEMENT)
    return Decoded(text, codec, wrong) if wrong * 10 <= num_beyond * MAX_WRONG_IN_TEN else None


def _decode_older(data: bytes, num_beyond: int, why: str) -> Decoded:
    # Late, for a command that only reads its configuration answers sooner without it.
    from resiliparse.parse.encoding import detect_encoding

    if num_beyond < MIN_BEYOND * len(data):
        with contextlib.suppress(UnicodeDecodeError):
            return Decoded(data.decode(WESTERN), WESTERN)
    # Long ASCII says nothing: from the line of the first byte that says something.
    first = len(data) - len(data.lstrip(ASCII))
    name = detect_encoding(data[data.rfind(b"\n", 0, first) + 1 :], html5_compatible=False)
    try:
        codec = codecs.lookup(name or "").name
    except LookupError:
        return Decoded("", why=f"{why}; nor is it of another encoding that can be told")
    wrong = f"{why}; it looks like {codec}, and too many characters are wrong"
    return _try(data, codec, num_beyond) or Decoded("", why=wrong)


def after_mark(stream: io.BufferedReader) -> tuple[io.BufferedReader, str]:
    """A stream behind its byte order mark, as UTF-8.

    Args:
        stream: the whole file.

    Returns:
        The stream, or one that recodes it step by step, U+FFFD for what is wrong; and the encoding
        that the mark names, '' if it is UTF-8 or there is no mark.
    """
    start = stream.peek(4)
    for mark, encoding in MARKS:
        if start.startswith(mark):
            stream.read(len(mark))
            if encoding == "utf-8":
                break
            return io.BufferedReader(_Recoded(stream, encoding), 1 << 20), encoding
    return stream, ""


class _Recoded(io.RawIOBase):
    def __init__(self, stream: BinaryIO, encoding: str):
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            step = self._stream.read1(STEP_BYTES)
            self._ready = self._decoder.decode(step, final=not step).encode()
            if not step:
                break
        part = self._ready[: len(buffer)]
        self._ready = self._ready[len(part) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self):
        super().close()
        self._stream.close()


def head_as_utf8(head: bytes) -> bytes:
    """The first bytes of a file as UTF-8 without its mark, recoded if the mark says so.

    Args:
        head: the first bytes. What a mark stands before that is no text stays as it is.
    """
    stream, encoding = after_mark(io.BufferedReader(io.BytesIO(head)))
    text = stream.read()
    num_replaced = text.count(REPLACEMENT.encode()) if encoding else 0
    is_text = not encoding or not (num_replaced > MAX_REPLACED * len(head) or _is_binary(text))
    return text if is_text else head
