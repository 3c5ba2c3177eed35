"""Encodings: text out of bytes that may be UTF-8, damaged UTF-8, UTF-16, or an older encoding."""

import codecs
import contextlib
import io
from typing import Any, BinaryIO, NamedTuple

UTF8_MARK = codecs.BOM_UTF8
# Longer marks first: that of UTF-32 begins as one of UTF-16 does.
WIDE_MARKS = (
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


def decode(data: bytes, is_utf8: bool = False) -> Decoded:
    """Decodes what is UTF-8 or should be.

    What is valid UTF-8 is that. Otherwise the sequences of UTF-8 in it are counted, which other
    encodings have by chance only, and the bytes that are wrong as UTF-8. It is damaged UTF-8, and
    each wrong place becomes U+FFFD, if at most MAX_WRONG_IN_TEN of ten characters beyond ASCII are
    wrong; or at most one place, or one in WRONG_BYTES bytes, where no fewer are right than wrong or
    the file was UTF-8 so far. With as many right as wrong, but more of them wrong than that, it is
    no text of any encoding. Else it is in an older encoding: WESTERN if it is ASCII but for less
    than MIN_BEYOND of it and all that is defined there; or the one that Resiliparse's detector
    finds, if of ten bytes beyond ASCII at most MAX_WRONG_IN_TEN are wrong in it. Zero bytes, and
    control characters above MAX_CONTROLS of it, are in no text.

    Args:
        data: a whole text without a byte order mark, or as much of one as there is.
        is_utf8: whether the same file has held valid UTF-8 beyond ASCII before.

    Returns:
        The text and its encoding, or why there is none.
    """
    try:
        return Decoded(data.decode())
    except UnicodeDecodeError as error:
        why = f"not UTF-8: {error}"
    if _is_binary(data):
        return Decoded("", why=f"{why}; and it holds control characters, as no text does")
    text = data.decode(errors="replace")
    # Bytes of ASCII stay characters whatever stands before them.
    num_beyond = len(text) - len(data.translate(None, NON_ASCII))
    wrong = text.count(REPLACEMENT) - data.count(REPLACEMENT.encode())
    right = num_beyond - wrong
    is_borne_out = is_utf8 or right >= wrong
    if wrong * 10 <= num_beyond * MAX_WRONG_IN_TEN or (
        is_borne_out and wrong <= max(1, len(data) // WRONG_BYTES)
    ):
        return Decoded(text, "utf-8", wrong)
    if right >= wrong:
        return Decoded("", why=f"{why}; {wrong} of its characters are damaged, {right} are not")
    return _decode_older(data, why)


def _is_binary(data: bytes) -> bool:
    num_controls = len(data) - len(data.translate(None, CONTROLS))
    return b"\0" in data or num_controls > MAX_CONTROLS * len(data)


def _decode_older(data: bytes, why: str) -> Decoded:
    # Late, for a command that only reads its configuration answers sooner without it.
    from resiliparse.parse.encoding import detect_encoding

    num_beyond = len(data) - len(data.translate(None, NON_ASCII))
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
    codec = WIDER_CODECS.get(codec, codec)
    text = data.decode(codec, "replace")
    wrong = text.count(REPLACEMENT)
    if wrong * 10 > num_beyond * MAX_WRONG_IN_TEN:
        return Decoded("", why=f"{why}; it looks like {codec}, and {wrong} characters are wrong")
    return Decoded(text, codec, wrong)


def recoded(stream: BinaryIO, start: bytes) -> tuple[BinaryIO, str]:
    """A stream as UTF-8 where its byte order mark says that it is UTF-16 or UTF-32.

    Args:
        stream: what is to be read.
        start: its first bytes, not taken from it.

    Returns:
        The stream, or one that recodes it step by step, U+FFFD for what is wrong, without the mark;
        and its encoding, '' where it stays as it is.
    """
    for mark, encoding in WIDE_MARKS:
        if start.startswith(mark):
            stream.read(len(mark))
            return _Recoded(stream, encoding), encoding
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
    recoding, encoding = recoded(io.BytesIO(head), head)
    if not encoding:
        return head.removeprefix(UTF8_MARK)
    text = recoding.read()
    num_replaced = text.count(REPLACEMENT.encode())
    return head if num_replaced > MAX_REPLACED * len(head) or _is_binary(text) else text
