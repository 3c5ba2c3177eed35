"""Tokenizers of our own: trained on sampled text, exact round trip of any Unicode text.

Three kinds: SentencePiece's BPE and unigram, and WordPiece over bytes. Every model file gives the
eight control tokens the same ids, 0 to 7. They stand for nothing that can be typed: a text that
spells '<|user|>' is encoded as those eight characters.
"""

import functools
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from data.errors import BadInput
from data.tokenizers import wordpiece
from data.tokenizers.encode import Cuts, joined_in_pieces

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
# The file that a model of each kind is written to.
FILES = {"bpe": "tokenizer.model", "unigram": "tokenizer.model", "wordpiece": "tokenizer.json"}
# The smallest vocabulary: WordPiece has every byte twice, and blanks among them.
MIN_SIZES = dict.fromkeys(("bpe", "unigram"), NUM_FIXED_PIECES + 1)
MIN_SIZES["wordpiece"] = len(CONTROL_PIECES) + 2 * NUM_BYTES + 1

# SentencePiece writes a space as U+2581, so that it would decode a U+2581 of the text as a space.
SPACE_MARK = "\u2581"

# The trainer skips sentences of more than 4,192 bytes; 1,000 characters are at most 4,000.
MAX_SENTENCE_CHARS = 1000
# The trainers count places in 32 bits.
MAX_SAMPLE_BYTES = 1 << 31

TRAINER_OPTIONS = {
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
    # Written into the file, and the sums of the unigram's trainer are divided by it, so it must
    # not follow the machine.
    "num_threads": 16,
    "minloglevel": 2,
}


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer that is trained, or the one that is taken.

    Attributes:
        vocab_size: ids of the one that is trained, control tokens and bytes included.
        sample_bytes: UTF-8 bytes of text to train on, below 2 GiB. The unigram's trainer needs
            some 30 bytes of memory for each.
        max_piece_chars: longest piece, in characters; for WordPiece longest word.
        character_coverage: share of the characters of the sample that get an id of their own, the
            rest are spelled in bytes; WordPiece learns from bytes and does not look at it.
        control: four tokens of an imported tokenizer that mark system, user, assistant and end.
        kind: bpe, unigram or wordpiece.
        path: a tokenizer to import instead of training one: a Hugging Face directory, or a file
            tokenizer.json, .model or .gguf; '' to train.
    """

    vocab_size: int = 32_768
    sample_bytes: int = 100_000_000
    max_piece_chars: int = 16
    character_coverage: float = 0.9995
    control: tuple[str, ...] = ()
    kind: str = "bpe"
    path: str = ""

    def __post_init__(self):
        if self.kind not in FILES:
            raise ValueError(f"kind={self.kind!r}: must be one of {', '.join(FILES)}")
        if not self.path and self.vocab_size < MIN_SIZES[self.kind]:
            raise ValueError(
                f"vocab_size={self.vocab_size}: must be at least {MIN_SIZES[self.kind]} for "
                f"kind={self.kind!r} (control tokens, bytes, and something beside them)"
            )
        if not 1 <= self.sample_bytes < MAX_SAMPLE_BYTES:
            raise ValueError(
                f"sample_bytes={self.sample_bytes}: must be in [1, {MAX_SAMPLE_BYTES})"
            )
        if not 1 <= self.max_piece_chars <= 512:
            raise ValueError(f"max_piece_chars={self.max_piece_chars}: must be in [1, 512]")
        if len(self.control) not in (0, 4) or len(set(self.control)) < len(self.control):
            raise ValueError(f"control={self.control}: must be () or four different tokens")
        if not 0.9 <= self.character_coverage <= 1.0:
            raise ValueError(f"character_coverage={self.character_coverage}: must be in [0.9, 1.0]")


def train(texts: Iterable[str], config: TokenizerConfig, path: Path) -> None:
    """Trains a model on the first `sample_bytes` of the texts and writes it to `path`.

    The file is a pure function of (texts, config): the same bytes every time, on any number of
    cores. Nothing is left at `path` if training fails.

    Args:
        texts: documents in the order in which they are to be sampled; a caller with several
            domains interleaves them. No more is read than the sample needs.
        config: the section `tokenizer`.
        path: the model file to write, replaced if it exists; its folder must exist, and its name
            end as the one in FILES does.

    Raises:
        BadInput: there is no text, or the text does not support `vocab_size`.

    Source: Sennrich et al. 2016 (BPE); Kudo 2018 (unigram); Kudo and Richardson 2018
        (SentencePiece). Digits are split and unseen characters fall back to bytes, as in Llama
        (Touvron et al. 2023). WordPiece: data/tokenizers/wordpiece.py.
    """
    sentences = _sample_sentences(texts, config.sample_bytes)
    if config.kind == "wordpiece":
        content = wordpiece.train(
            sentences, config.vocab_size, config.max_piece_chars, CONTROL_PIECES
        ).encode()
    else:
        content = _train_pieces(sentences, config)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _train_pieces(sentences: Iterator[str], config: TokenizerConfig) -> bytes:
    """A SentencePiece model file."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            max_sentencepiece_length=config.max_piece_chars,
            **TRAINER_OPTIONS,
        )
    except RuntimeError as error:
        raise _explain(error, config) from error
    return model.getvalue()


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
        adds_bos: whether a text that a model is to continue begins with BOS: as in training.
    """

    adds_bos = True
    pad_id, bos_id, eos_id, unk_id = PAD_ID, BOS_ID, EOS_ID, UNK_ID
    system_id, user_id, assistant_id, end_id = SYSTEM_ID, USER_ID, ASSISTANT_ID, END_ID

    def __init__(self, path: Path):
        """Loads a model file that `train` wrote: tokenizer.json is WordPiece, others not.

        Raises:
            BadInput: no such file, not such a model, or one with other control tokens.
        """
        path = Path(path)
        if not path.is_file():
            raise BadInput(f"{path}: no such tokenizer model; `seedbed tokenizer` writes it")
        is_json = path.suffix == ".json"
        self._model = wordpiece.WordPieces(path, CONTROL_PIECES) if is_json else _Pieces(path)
        self.vocab_size = self._model.vocab_size

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS or EOS; control tokens never come out of a text.

        Raises:
            BadInput: the text has a lone surrogate, which is not Unicode text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """Ids of many texts, equal to `encode` of each; encode.Encoder is for a corpus.

        Args:
            texts: any Unicode text.
            num_threads: 1, or -1 for all cores.

        Raises:
            BadInput: a text has a lone surrogate; the message gives its index.
        """
        try:
            return self._model.encode_batch(texts, num_threads)
        except (RuntimeError, TypeError, ValueError):  # which of them depends on the release
            _check_unicode(texts)
            raise

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens are dropped, bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: integers, a list or a one-dimensional array; those of rows that the model has
                beyond this vocabulary are dropped.
        """
        known = range(len(CONTROL_PIECES), self.vocab_size)
        return self._model.decode([i for i in np.asarray(ids, np.int64).tolist() if i in known])

    def cuts(self) -> Cuts:
        """Where encode.Encoder may cut texts.

        Raises:
            BadInput: a unigram model: SentencePiece adds its scores up over a whole text in 32
                bits, so that a part may be cut otherwise where two ways are all but equal.
        """
        return self._model.cuts()


def load(folder: Path) -> Tokenizer:
    """The tokenizer that was trained into a folder, of whatever kind.

    Raises:
        BadInput: there is none.
    """
    names = dict.fromkeys(FILES.values())
    found = [Path(folder) / name for name in names if (Path(folder) / name).is_file()]
    if not found:
        raise BadInput(f"{folder}: holds no tokenizer of our own; needed is {' or '.join(names)}")
    return Tokenizer(found[0])


class _Pieces:
    """A SentencePiece model."""

    def __init__(self, path: Path):
        self._path = path
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.load_from_serialized_proto(path.read_bytes())
        except RuntimeError as error:
            raise BadInput(f"{path}: not a SentencePiece model ({error})") from error
        self.vocab_size = self._processor.vocab_size()
        num_pieces = min(self.vocab_size, len(CONTROL_PIECES))
        pieces = tuple(self._processor.id_to_piece(i) for i in range(num_pieces))
        if pieces != CONTROL_PIECES:
            raise BadInput(f"{path}: its first pieces are {pieces}, must be {CONTROL_PIECES}")
        mark_bytes = SPACE_MARK.encode()
        self._mark_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in mark_bytes]

    def encode_batch(self, texts: Sequence[str], num_threads: int) -> list[list[int]]:
        parts = [part for text in texts for part in text.split(SPACE_MARK)]
        encoded = iter(self._processor.encode(parts, out_type=int, num_threads=num_threads))
        if len(parts) == len(texts):
            return list(encoded)
        rows = []
        for text in texts:
            row = next(encoded)
            for _ in range(text.count(SPACE_MARK)):
                row += self._mark_ids
                row += next(encoded)
            rows.append(row)
        return rows

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def cuts(self) -> Cuts:
        model = ModelProto.FromString(self._path.read_bytes())
        encode = functools.partial(self.encode_batch, num_threads=1)
        return Cuts(joined_in_pieces(model), encode)


def _check_unicode(texts: Sequence[str]) -> None:
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadInput(
                f"text {index}: lone surrogate {text[error.start]!r} at character "
                f"{error.start}; must be valid Unicode"
            ) from error
