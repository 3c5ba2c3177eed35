"""WordPiece over bytes: the longest match by hand, pieces learnt by hand, nothing unknown."""

import json
import random
import unicodedata

import pytest

from data.errors import BadInput
from data.tokens.encode import ALPHABET, BYTES
from data.tokens.wordpiece import PREFIX, WordPieces, train

CONTROL = ("<|pad|>", "<|unk|>")
NUM_FIXED = len(CONTROL) + 2 * 256
MAX_WORD_CHARS = 8


def spell(text):
    return "".join(ALPHABET[byte] for byte in text.encode())


def trained(tmp_path, texts, num_pieces, max_word_chars=MAX_WORD_CHARS):
    content = train(texts, NUM_FIXED + num_pieces, max_word_chars, CONTROL)
    (tmp_path / "tokenizer.json").write_text(content)
    return WordPieces(tmp_path / "tokenizer.json", CONTROL), json.loads(content)["model"]["vocab"]


def kind_of(char):
    if unicodedata.category(char)[0] == "N" or char in "#\n\t":
        return "alone"
    if char.isspace():
        return "blank"
    return "word" if unicodedata.category(char)[0] in "LM" else "sign"


def split_words(text):
    """The words of a text, a character at a time."""
    words = []
    for char in text:
        kind, last = kind_of(char), words[-1] if words else ("none", "")
        if last[0] == "blank" and not char.isspace() and len(last[1]) > 1:
            # The last of several blanks is kept for what follows.
            words[-1:] = [("blank", last[1][:-1]), ("blank", last[1][-1])]
            last = words[-1]
        length = len(last[1]) - (last[0] != "blank" and last[1].startswith(" "))
        if kind in ("word", "sign") and last == ("blank", " "):
            words[-1] = (kind, " " + char)
        elif kind != "alone" and kind == last[0] and length < MAX_WORD_CHARS:
            words[-1] = (kind, last[1] + char)
        else:
            words.append((kind, char))
    return [word for _, word in words]


def encode(text, vocab):
    """Longest match first, as Devlin et al. have it."""
    ids = []
    for word in map(spell, split_words(text)):
        start = 0
        while start < len(word):
            prefix = PREFIX if start else ""
            ends = range(len(word), start, -1)
            end = next(end for end in ends if prefix + word[start:end] in vocab)
            ids.append(vocab[prefix + word[start:end]])
            start = end
    return ids


def test_pieces_are_the_pairs_met_most_often(tmp_path):
    """hug 10, pug 5, pun 12, bun 4, hugs 5: ug 20 times, then un 16, hug 15, pun 12, and so on.

    The example is the one of Hugging Face's course on BPE; 'ug' stands inside its words here.
    """
    words = ["hug\n"] * 10 + ["pug\n"] * 5 + ["pun\n"] * 12 + ["bun\n"] * 4 + ["hugs\n"] * 5
    _, vocab = trained(tmp_path, words, 4)
    learnt = sorted(vocab, key=vocab.get)[NUM_FIXED:]
    assert learnt == ["##ug", "##un", "hug", "pun"]


def test_first_ids_are_control_tokens_and_bytes(tmp_path):
    _, vocab = trained(tmp_path, ["some words"] * 9, 3)
    names = sorted(vocab, key=vocab.get)
    assert names[: len(CONTROL)] == list(CONTROL)
    assert names[len(CONTROL) : NUM_FIXED] == ALPHABET + [PREFIX + char for char in ALPHABET]
    assert bytes(BYTES[char] for char in spell("é x")) == "é x".encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    rng = random.Random(0)
    stems = ("über", "water", "light", "мир", "house", "#if", "**", "//=", "漢字")
    texts = [" ".join(rng.choices(stems, k=12)) + "  \n\tend" for _ in range(99)]
    return trained(tmp_path_factory.mktemp("wordpiece"), texts, 45)


BITS = (
    *(
        "water",
        "lights",
        "house-",
        "über",
        "мирмирмир",
        "漢字漢字",
        "#",
        "##if",
        "//=",
        "**",
        "1",
        "23",
    ),
    *(
        " ",
        " ",
        "  ",
        "   ",
        "\n",
        "\t",
        "\r\n",
        "\u3000",
        "e\u0301",
        "👩\u200d👧",
        "\x00",
        "'s",
        "_",
    ),
)


def test_ids_are_those_of_the_longest_match(model):
    tokenizer, vocab = model
    rng = random.Random(1)
    texts = ["".join(rng.choices(BITS, k=rng.randrange(30))) for _ in range(500)]
    texts += [" " * k + end for k in range(30) for end in ("", "x", "\n", ".")]
    rows = tokenizer.encode_batch(texts, num_threads=-1)
    for text, ids in zip(texts, rows, strict=True):
        assert ids == encode(text, vocab), repr(text)
        assert tokenizer.decode(ids) == text
    assert rows == tokenizer.encode_batch(texts, num_threads=1)
    learnt = {i for ids in rows for i in ids if i >= NUM_FIXED}
    assert len(learnt) > 20, "the texts must be made of what was learnt too"


def test_bytes_that_are_no_text_become_the_replacement_character(model):
    tokenizer, vocab = model
    assert tokenizer.decode([vocab[ALPHABET[0xC3]], vocab[ALPHABET[0x41]]]) == "\ufffdA"


def test_text_too_small_names_the_largest_vocabulary(tmp_path):
    with pytest.raises(BadInput, match=r"vocab_size=9999: .* at most (\d+)") as caught:
        train(["aa ab"], 9999, MAX_WORD_CHARS, CONTROL)
    largest = int(str(caught.value).split()[-1])
    assert len(trained(tmp_path, ["aa ab"], largest - NUM_FIXED)[1]) == largest


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("no json")
    with pytest.raises(BadInput, match=r"tokenizer\.json: not a tokenizer\.json"):
        WordPieces(path, CONTROL)
    trained(tmp_path, ["some words"] * 9, 3)
    with pytest.raises(BadInput, match="its first pieces are .*pad.*must be"):
        WordPieces(path, ("<|bos|>",))
