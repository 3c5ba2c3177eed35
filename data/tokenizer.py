"""The SentencePiece tokenizer: trained on sampled text, exact round trip of any Unicode text.

Every model file gives the eight control tokens the same ids, 0 to 7. They stand for nothing that
can be typed: a text that spells '<|user|>' is encoded as those eight characters.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from data.errors import BadInput

CONTROL_PIECES = (
    "<|pad|>",
    "<|bos|>",
    "<|eos|>",
    "<|unk|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
PAD_ID, BOS_ID, EOS_ID, UNK_ID, SYSTEM_ID, USER_ID, ASSISTANT_ID, END_ID = range(8)

# Their own pieces, since the trainer takes a line for a sentence and a tab for a boundary:
# it never sees the one and never learns the other.
WHITESPACE_PIECES = ("\n", "\t")
NUM_BYTES = 256
NUM_FIXED_PIECES = len(CONTROL_PIECES) + len(WHITESPACE_PIECES) + NUM_BYTES

# SentencePiece writes a space as U+2581, so that it would decode a U+2581 of the text as a space.
SPACE_MARK = "\u2581"

# The trainer skips sentences of more than 4,192 bytes; 1,000 characters are at most 4,000.
MAX_SENTENCE_CHARS = 1000


TRAINER_OPTIONS = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    # The next four are what makes the round trip exact.
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "pad_id": PAD_ID,
    "bos_id": BOS_ID,
    "eos_id": EOS_ID,
    "unk_id": UNK_ID,
    "pad_piece": CONTROL_PIECES[PAD_ID],
    "bos_piece": CONTROL_PIECES[BOS_ID],
    "eos_piece": CONTROL_PIECES[EOS_ID],
    "unk_piece": CONTROL_PIECES[UNK_ID],
    "control_symbols": list(CONTROL_PIECES[SYSTEM_ID:]),
    "user_defined_symbols": list(WHITESPACE_PIECES),
    "num_threads": 1,  # written into the file, so it must not follow the machine
    "minloglevel": 2,
}


@dataclass(frozen=True)
class TokenizerConfig:
    """What is trained. The keys are those of the config section `tokenizer`."""

    vocab_size: int
    sample_bytes: int
    max_piece_chars: int
    character_coverage: float
    control: tuple[str, ...] = ()

    def __post_init__(self):
        if self.vocab_size <= NUM_FIXED_PIECES:
            raise ValueError(
                f"vocab_size={self.vocab_size}: must be above {NUM_FIXED_PIECES} "
                "(control tokens, newline, tab and the 256 bytes)"
            )
        if self.sample_bytes < 1:
            raise ValueError(f"sample_bytes={self.sample_bytes}: must be at least 1")
        if not 1 <= self.max_piece_chars <= 512:
            raise ValueError(f"max_piece_chars={self.max_piece_chars}: must be in [1, 512]")
        if len(self.control) not in (0, 4) or len(set(self.control)) < len(self.control):
            raise ValueError(f"control={self.control}: must be () or four different tokens")
        if not 0.9 <= self.character_coverage <= 1.0:
            raise ValueError(f"character_coverage={self.character_coverage}: must be in [0.9, 1.0]")


def train(texts: Iterable[str], config: TokenizerConfig, path: Path) -> None:
    """Trains a BPE model on the first `sample_bytes` of the texts and writes it to `path`.

    The file is a pure function of (texts, config): the same bytes every time, on any number of
    cores. Nothing is left at `path` if training fails.

    Args:
        texts: documents in the order in which they are to be sampled; a caller with several
            domains interleaves them. No more is read than the sample needs.
        config: the section `tokenizer`.
        path: the model file to write, replaced if it exists; its folder must exist.

    Raises:
        BadInput: there is no text, or the text does not support `vocab_size`.

    Source: Sennrich et al. 2016 (BPE); Kudo and Richardson 2018 (SentencePiece). Digits are
        split and unseen characters fall back to bytes, as in Llama (Touvron et al. 2023).
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sample_sentences(texts, config.sample_bytes),
            model_writer=model,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            max_sentencepiece_length=config.max_piece_chars,
            **TRAINER_OPTIONS,
        )
    except RuntimeError as error:
        raise _explain(error, config) from error
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(model.getvalue())
    temporary.replace(path)


def _sample_sentences(texts: Iterable[str], sample_bytes: int) -> Iterator[str]:
    left_bytes = sample_bytes
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), MAX_SENTENCE_CHARS):
                sentence = line[start : start + MAX_SENTENCE_CHARS]
                left_bytes -= len(sentence.encode())
                if left_bytes < 0:
                    return
                yield sentence


def _explain(error: RuntimeError, config: TokenizerConfig) -> Exception:
    """Turns the trainer's message into one that names the key, or returns it as it came."""
    message = str(error)
    value = f"tokenizer.vocab_size={config.vocab_size}"
    if found := re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        return BadInput(f"{value}: the text sampled supports at most {found[1]}")
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return BadInput(
            f"{value}: the characters of the text sampled need at least {found[1]} "
            f"(or a tokenizer.character_coverage below {config.character_coverage})"
        )
    if "sentences_.empty()" in message:
        return BadInput(
            f"tokenizer.sample_bytes={config.sample_bytes}: the texts hold nothing to train on; "
            "at least one line that fits into the sample is needed"
        )
    return error


class Tokenizer:
    """A trained model: text to ids and back.

    Attributes:
        pad_id, bos_id, eos_id, unk_id, system_id, user_id, assistant_id, end_id: 0 to 7.
        vocab_size: number of ids.
    """

    pad_id, bos_id, eos_id, unk_id = PAD_ID, BOS_ID, EOS_ID, UNK_ID
    system_id, user_id, assistant_id, end_id = SYSTEM_ID, USER_ID, ASSISTANT_ID, END_ID

    def __init__(self, path: Path):
        """Loads a model file that `train` wrote.

        Raises:
            BadInput: no such file, not a SentencePiece model, or one with other control tokens.
        """
        self._processor = _load(Path(path))
        self.vocab_size = self._processor.vocab_size()
        mark_bytes = SPACE_MARK.encode()
        self._mark_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in mark_bytes]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS or EOS; control tokens never come out of a text.

        Raises:
            BadInput: the text has a lone surrogate, which is not Unicode text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, encoded on all cores; equal to `encode` of each.

        Raises:
            BadInput: a text has a lone surrogate; the message gives its index.
        """
        parts = [part for text in texts for part in text.split(SPACE_MARK)]
        try:
            encoded = iter(self._processor.encode(parts, out_type=int, num_threads=-1))
        except (RuntimeError, TypeError, ValueError):  # which of them depends on the release
            _check_unicode(texts)
            raise
        rows = []
        for text in texts:
            row = next(encoded)
            for _ in range(text.count(SPACE_MARK)):
                row += self._mark_ids
                row += next(encoded)
            rows.append(row)
        return rows

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens are dropped, bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: integers in [0, vocab_size), a list or a one-dimensional array.
        """
        plain = [i for i in np.asarray(ids, np.int64).tolist() if i >= len(CONTROL_PIECES)]
        return self._processor.decode(plain)


def _load(path: Path) -> sentencepiece.SentencePieceProcessor:
    if not path.is_file():
        raise BadInput(f"{path}: no such tokenizer model; `seedbed tokenizer` writes it")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(path.read_bytes())
    except RuntimeError as error:
        raise BadInput(f"{path}: not a SentencePiece model ({error})") from error
    num_pieces = min(processor.vocab_size(), len(CONTROL_PIECES))
    pieces = tuple(processor.id_to_piece(i) for i in range(num_pieces))
    if pieces != CONTROL_PIECES:
        raise BadInput(f"{path}: its first pieces are {pieces}, must be {CONTROL_PIECES}")
    return processor


def _check_unicode(texts: Sequence[str]) -> None:
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadInput(
                f"text {index}: lone surrogate {text[error.start]!r} at character "
                f"{error.start}; must be valid Unicode"
            ) from error
