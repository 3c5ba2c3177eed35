"""WordPiece over bytes: a word is cut into the longest pieces known, and any text comes back.

The classic WordPiece loses blanks, and every word with a character that it has not seen. Here a
word is its bytes, spelled in GPT-2's alphabet, and each byte is a piece both at the beginning of a
word and, as '##' and the byte, inside it; so nothing is unknown. A digit, a line end and a tab are
words of their own, as they are to SentencePiece here; so is a '#', or '##' could mean two things.

Source: Schuster and Nakajima 2012; Devlin et al. 2019 (longest match first, '##'); Radford et al.
2019 (the alphabet of bytes). The pieces are learnt by merging the most frequent pair, as the
tokenizers library does it, not by likelihood.
"""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data.errors import BadInput
from data.tokens.encode import ALPHABET, DIGITS, LETTERS, SIGNS, Cuts, joined_in_words

PREFIX = "##"


def train(
    texts: Iterable[str], vocab_size: int, max_word_chars: int, control: Sequence[str]
) -> str:
    """Learns the pieces of texts; the result is a pure function of the arguments.

    Args:
        texts: of any Unicode text; all are read.
        vocab_size: ids, of which control tokens and bytes, twice 256, come first.
        max_word_chars: longer words and runs of blanks are cut, for looking for the longest piece
            takes time that grows with the square of a word's length. The space before a word does
            not count.
        control: what the first ids stand for; they stand for no text.

    Returns:
        The content of a tokenizer.json.

    Raises:
        BadInput: the texts do not support `vocab_size`.
    """
    fixed = [*control, *ALPHABET, *(PREFIX + byte for byte in ALPHABET)]
    tokenizer = Tokenizer(models.WordPiece())
    tokenizer.pre_tokenizer = _split_words(max_word_chars)
    # The trainer would number the bytes as it meets them, in another order every time.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=fixed, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    if len(vocab) < vocab_size:
        raise BadInput(
            f"tokenizer.vocab_size={vocab_size}: the text sampled supports at most {len(vocab)}"
        )
    unknown, longest = control[0], 1 << 30
    model = models.WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=longest)
    trained = Tokenizer(model)
    trained.pre_tokenizer = _split_words(max_word_chars)
    inside = decoders.Replace(Regex(f"^{PREFIX}"), "")
    trained.decoder = decoders.Sequence([inside, decoders.ByteLevel()])
    return trained.to_str()


def _split_words(max_chars: int) -> pre_tokenizers.PreTokenizer:
    most = f"{{1,{max_chars}}}"
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
    return pre_tokenizers.Sequence([words, spell])


class WordPieces:
    """A model that `train` gave.

    Attributes:
        vocab_size: number of ids.
    """

    def __init__(self, path: Path, control: Sequence[str]):
        """Loads a tokenizer.json.

        Raises:
            BadInput: it cannot be read, or its first ids are not `control`.
        """
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise BadInput(f"{path}: not a tokenizer.json ({error})") from error
        first = tuple(self._tokenizer.id_to_token(i) for i in range(len(control)))
        if first != tuple(control) or not isinstance(self._tokenizer.model, models.WordPiece):
            raise BadInput(f"{path}: its first pieces are {first}, must be {tuple(control)}")
        self.vocab_size = self._tokenizer.get_vocab_size()

    def encode_batch(self, texts: Sequence[str], num_threads: int) -> list[list[int]]:
        """Ids of texts; on all cores unless `num_threads` is 1."""
        if num_threads == 1:
            return [self._tokenizer.encode(text).ids for text in texts]
        return [encoded.ids for encoded in self._tokenizer.encode_batch_fast(list(texts))]

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def cuts(self) -> Cuts:
        """Where texts may be cut: at words, for no piece reaches over their ends."""
        joined = joined_in_words((), is_known=True)
        joined[np.ix_(SIGNS, LETTERS)] = False
        for alone in (*DIGITS, *b"\n\t"):
            joined[alone, :0x80] = joined[alone, 0xC0:] = False
        joined[:, list(b"\n\t")] = False
        return Cuts(joined, functools.partial(self.encode_batch, num_threads=1))
