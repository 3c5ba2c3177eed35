"""Training of tokenizers on sampled text: exact round trip of any Unicode text.

Four kinds: BPE and unigram of SentencePiece, byte-level BPE and WordPiece over bytes of the
tokenizers library. Control tokens have the same ids in all, and stand for nothing that can be
typed: a text that spells '<|user|>' is encoded as those eight characters.
"""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from data.errors import BadInput
from data.tokens.encode import BYTES
from data.tokens.gguf_tokenizer import byte_level
from data.tokens.tokenizer import CONTROL_PIECES

# Their own pieces, since the trainer takes a line for a sentence and a tab for a boundary:
# it never sees the one and never learns the other.
WHITESPACE_PIECES = ("\n", "\t")
NUM_BYTES = 256
NUM_FIXED_PIECES = len(CONTROL_PIECES) + len(WHITESPACE_PIECES) + NUM_BYTES
# The file that a model of each kind is written to.
FILES = dict.fromkeys(("bpe", "unigram"), "tokenizer.model")
FILES |= dict.fromkeys(("byte_level", "wordpiece"), "tokenizer.json")
# The smallest vocabulary: WordPiece has every byte twice.
MIN_SIZES = dict.fromkeys(("bpe", "unigram"), NUM_FIXED_PIECES + 1)
MIN_SIZES["byte_level"] = len(CONTROL_PIECES) + NUM_BYTES + 1
MIN_SIZES["wordpiece"] = len(CONTROL_PIECES) + 2 * NUM_BYTES + 1
# Of byte-level BPE: Qwen 2's words, in which a digit stands alone, of text as it is.
SPLIT = "deepseek-r1-qwen"
INSIDE = "##"  # begins a piece of WordPiece that does not begin a word

# The trainer skips sentences of more than 4,192 bytes; 1,000 characters are at most 4,000.
MAX_SENTENCE_CHARS = 1000
# The trainers count places in 32 bits.
MAX_SAMPLE_BYTES = 1 << 31

SPECIAL = ("pad", "bos", "eos", "unk")
TRAINER_OPTIONS = {
    "byte_fallback": True,
    "split_digits": True,
    # The next four are what makes the round trip exact.
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    **{f"{name}_id": i for i, name in enumerate(SPECIAL)},
    **{f"{name}_piece": CONTROL_PIECES[i] for i, name in enumerate(SPECIAL)},
    "control_symbols": list(CONTROL_PIECES[len(SPECIAL) :]),
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
        max_piece_chars: longest piece, in characters; of byte_level in bytes, of wordpiece the
            longest word.
        character_coverage: share of the characters of the sample that get an id of their own, the
            rest are spelled in bytes; byte_level and wordpiece learn from bytes and do not look at
            it.
        control: four tokens of an imported tokenizer that mark system, user, assistant and end.
        kind: bpe or unigram (SentencePiece), byte_level (BPE) or wordpiece.
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
        (Touvron et al. 2023). Radford et al. 2019 (BPE over bytes); Schuster and Nakajima 2012,
        Devlin et al. 2019 (WordPiece), whose pieces are learnt here by merging the most frequent
        pair, as the tokenizers library does it, not by likelihood.
    """
    sentences = _sample_sentences(texts, config.sample_bytes)
    content = TRAINERS[config.kind](sentences, config)
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


def _train_byte_level(sentences: Iterator[str], config: TokenizerConfig) -> bytes:
    """A tokenizer.json of BPE over bytes."""
    tokenizer = byte_level({}, [], SPLIT, [])
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(CONTROL_PIECES),
        initial_alphabet=sorted(BYTES),
        max_token_length=config.max_piece_chars,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return _finish(tokenizer, config)


def _train_wordpiece(sentences: Iterator[str], config: TokenizerConfig) -> bytes:
    """A tokenizer.json of WordPiece over bytes: nothing is unknown, and no blank is lost.

    A digit, a line end and a tab are words of their own, as they are to SentencePiece here; so is
    a '#', or '##' could mean two things. Other words are cut where they are too long, for looking
    for the longest piece takes time that grows with the square of their length.
    """
    most = f"{{1,{config.max_piece_chars}}}"
    pattern = "|".join(
        (
            r"\p{N}|#|\n|\t",
            rf" ?[\p{{L}}\p{{M}}]{most}",
            rf" ?[^\s\p{{L}}\p{{M}}\p{{N}}#]{most}",
            rf"[^\S\n\t]{most}(?!\S)|\s",
        )
    )
    words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = FastTokenizer(models.WordPiece())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, spell])
    # The trainer would number the bytes as it meets them, in another order every time.
    fixed = [*CONTROL_PIECES, *BYTES, *(INSIDE + byte for byte in BYTES)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size, special_tokens=fixed, show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    # Bytes are no special tokens.
    trained = FastTokenizer(
        models.WordPiece(
            tokenizer.get_vocab(with_added_tokens=False),
            unk_token=CONTROL_PIECES[SPECIAL.index("unk")],
            max_input_chars_per_word=1 << 30,
        )
    )
    trained.pre_tokenizer = tokenizer.pre_tokenizer
    inside = decoders.Replace(Regex(f"^{INSIDE}"), "")
    trained.decoder = decoders.Sequence([inside, decoders.ByteLevel()])
    trained.add_special_tokens(list(CONTROL_PIECES))
    return _finish(trained, config)


def _finish(tokenizer: FastTokenizer, config: TokenizerConfig) -> bytes:
    if (size := tokenizer.get_vocab_size()) < config.vocab_size:
        raise BadInput(
            f"tokenizer.vocab_size={config.vocab_size}: the text sampled supports at most {size}"
        )
    return tokenizer.to_str().encode()


TRAINERS = {
    "bpe": _train_pieces,
    "unigram": _train_pieces,
    "byte_level": _train_byte_level,
    "wordpiece": _train_wordpiece,
}


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
