"""Tokenizers of all kinds: exact round trip of any text, control tokens out of reach, errors."""

import collections
import functools
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from data.errors import BadInput
from data.tokens.encode import BYTES
from data.tokens.tokenizer import CONTROL_PIECES, load_own
from data.tokens.trainer import FILES, NUM_FIXED_PIECES, TokenizerConfig, train

STEMS = ("walk", "talk", "jump", "quick", "brown", "value", "re", "under", "light", "house")
ENDS = ("", "s", "ed", "ing", "er", "ly", "ness", "able", "ful", "less")
WORDS = ("the", "def", "return", "self", *(stem + end for stem in STEMS for end in ENDS))
ROOT = Path(__file__).parents[2]
MULTILINGUAL = ROOT.parent / "shared" / "data" / "multilingual"
VOCAB_SIZE = 400
# What the text supports: WordPiece has every byte twice, a unigram needs more words for as many.
SIZES = {"bpe": VOCAB_SIZE, "unigram": 360, "byte_level": 400, "wordpiece": 650}
KINDS = tuple(SIZES)

# First and last code point of blocks of many scripts, of symbols and of private use.
SCRIPTS = (
    (0x20, 0x7E),
    (0xA0, 0x17F),
    (0x300, 0x36F),
    (0x370, 0x52F),
    (0x590, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x1100, 0x11FF),
    (0x2000, 0x206F),
    (0x2500, 0x259F),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xF8FF),
    (0xFB50, 0xFFFF),
    (0x1F300, 0x1FAFF),
    (0x10FF00, 0x10FFFF),
)
SPELLED = (*CONTROL_PIECES, "<s>", "</s>", "<unk>", "<0x41>", "<0x0A>", "\u2581", "\u2585")
BLANKS = (" ", "  ", "        ", "\t", "\t\t", "\n", "\n\n\n", "\r\n", "\x00", "\u3000", "\ufeff")


def config(**changes):
    values = {
        "vocab_size": VOCAB_SIZE,
        "sample_bytes": 1_000_000,
        "max_piece_chars": 16,
        "character_coverage": 0.9995,
    }
    return TokenizerConfig(**(values | changes))


def corpus(num_texts=200):
    rng = random.Random(0)

    def line():
        return "    " * rng.randrange(3) + " ".join(rng.choices(WORDS, k=8)) + f" {rng.random()}"

    return ["\n".join(line() for _ in range(10)) for _ in range(num_texts)]


def random_text(rng):
    def piece():
        kind = rng.randrange(4)
        if kind == 0:
            return rng.choice(SPELLED)
        if kind == 1:
            return rng.choice(BLANKS)
        if kind == 2:
            return rng.choice(WORDS)
        first, last = rng.choice(SCRIPTS)
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 5)))

    return "".join(piece() for _ in range(rng.randrange(30)))


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, kind):
    path = tmp_path_factory.mktemp("tokenizer") / FILES[kind]
    train(corpus(), config(kind=kind, vocab_size=SIZES[kind]), path)
    return path


@pytest.fixture(scope="module")
def tokenizer(model_path):
    return load_own(model_path.parent)


def test_ids_are_fixed(tokenizer, kind):
    assert tokenizer.vocab_size == SIZES[kind]
    ids = [
        tokenizer.pad_id,
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.system_id,
        tokenizer.user_id,
        tokenizer.assistant_id,
        tokenizer.end_id,
    ]
    assert ids == [0, 1, 2, 4, 5, 6, 7]


def test_round_trip_of_random_text(tokenizer):
    rng = random.Random(1)
    texts = [random_text(rng) for _ in range(3000)]
    encoded = tokenizer.encode_batch(texts)
    assert encoded[:200] == [tokenizer.encode(text) for text in texts[:200]]
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert min(min(ids) for ids in encoded if ids) >= len(CONTROL_PIECES)
    assert max(max(ids) for ids in encoded if ids) < tokenizer.vocab_size


def test_round_trip_of_every_code_point(tokenizer, kind):
    """Of WordPiece, which takes long over scripts that it has not learnt, every 17th."""
    step = 17 if kind == "wordpiece" else 1
    points = [chr(i) for i in range(0, 0x110000, step) if not 0xD800 <= i <= 0xDFFF]
    texts = ["".join(points[start : start + 4096]) for start in range(0, len(points), 4096)]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text


def test_control_tokens_survive_a_corpus_that_spells_them(tmp_path, kind):
    texts = [" ".join(SPELLED) * 3 + text for text in corpus(50)]
    train(texts, config(kind=kind, vocab_size=SIZES[kind]), tmp_path / FILES[kind])
    tokenizer = load_own(tmp_path)
    for piece in SPELLED:
        ids = tokenizer.encode(piece)
        assert min(ids) >= len(CONTROL_PIECES)
        assert tokenizer.decode(ids) == piece


def test_decode_drops_control_tokens_and_ids_of_rows_that_no_token_has(tokenizer):
    ids = tokenizer.encode("some words")
    beyond = [tokenizer.vocab_size, tokenizer.vocab_size + 1000, *ids, 1 << 31]
    assert tokenizer.decode(beyond) == "some words"
    assert tokenizer.decode([1, 5, *ids, 7, 3, 2, 0]) == "some words"


def test_newline_is_one_id_and_digits_are_split(tokenizer):
    assert len(tokenizer.encode("\n")) == 1
    assert len(tokenizer.encode("\n\n\n")) == 3
    assert len(tokenizer.encode("1234567")) == 7


def test_common_words_and_indents_are_short(tokenizer, kind):
    num_bytes = sum(len(text.encode()) for text in corpus())
    num_tokens = sum(len(ids) for ids in tokenizer.encode_batch(corpus()))
    # A tokenizer that fell back to bytes would give 1; digits, one id each, are a third here.
    assert num_bytes / num_tokens > 1.7
    # The other kinds leave the last of several blanks to the word after them.
    assert len(tokenizer.encode("        ")) == 1 or FILES[kind] == "tokenizer.json"


def test_long_unbroken_line(tmp_path):
    line = "".join(random.Random(3).choices("abcdefgh", k=200_000))
    train([line], config(), tmp_path / FILES["bpe"])
    tokenizer = load_own(tmp_path)
    ids = tokenizer.encode(line)
    assert tokenizer.decode(ids) == line
    # The line was trained on, not skipped: its pairs were learned.
    assert len(ids) < 0.6 * len(line)


TRAIN_SCRIPT = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pathlib import Path
from tests.data.test_trainer import SIZES, config, corpus
from data.tokens.trainer import train
kind = sys.argv[1]
train(corpus(), config(kind=kind, vocab_size=SIZES[kind]), Path(sys.argv[2]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_training_gives_the_same_bytes_in_another_process_on_one_core_and_is_quiet(
    model_path, tmp_path, kind
):
    other = tmp_path / FILES[kind]
    command = [sys.executable, "-c", TRAIN_SCRIPT, kind, str(other)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert other.read_bytes() == model_path.read_bytes()
    assert (done.stdout, done.stderr) == (b"", b"")


def test_sample_stops_reading_at_its_size(tmp_path):
    read = []

    def texts():
        for text in corpus():
            read.append(text)
            yield text

    train(texts(), config(sample_bytes=20_000), tmp_path / "sampled")
    assert sum(map(len, read[:-1])) <= 20_000 + len(read) * 10 < sum(map(len, corpus()))
    prefix = [text for text in read if text]
    train(prefix, config(sample_bytes=20_000), tmp_path / "prefix")
    assert (tmp_path / "sampled").read_bytes() == (tmp_path / "prefix").read_bytes()


def test_vocabulary_too_large_names_the_largest_allowed(tmp_path, kind):
    path = tmp_path / FILES[kind]
    with pytest.raises(BadInput, match=r"tokenizer\.vocab_size=60000: .* at most (\d+)") as caught:
        train(corpus(3), config(vocab_size=60_000, kind=kind), path)
    assert list(tmp_path.iterdir()) == []
    largest = int(str(caught.value).split()[-1])
    train(corpus(3), config(vocab_size=largest, kind=kind), path)
    assert load_own(tmp_path).vocab_size == largest


def test_vocabulary_too_small_for_the_characters_names_the_smallest_allowed(tmp_path):
    small = config(vocab_size=NUM_FIXED_PIECES + 1, kind="unigram")
    with pytest.raises(BadInput, match=r"tokenizer\.vocab_size=267: .* at least (\d+)"):
        train(corpus(3), small, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("texts", [[], [""], ["\n\n"]])
def test_no_text_is_bad_input(tmp_path, texts):
    with pytest.raises(BadInput, match="nothing to train on"):
        train(texts, config(), tmp_path / "m")


def test_failed_training_leaves_the_old_model(tmp_path):
    path = tmp_path / "m"
    train(corpus(20), config(), path)
    before = path.read_bytes()
    with pytest.raises(BadInput):
        train([], config(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", NUM_FIXED_PIECES),
        ("sample_bytes", 0),
        ("sample_bytes", 1 << 31),
        ("max_piece_chars", 0),
        ("character_coverage", 1.5),
    ],
)
def test_config_names_the_bad_key(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}"):
        config(**{key: value})


def test_config_names_the_bad_kind_and_its_least_vocabulary():
    with pytest.raises(ValueError, match="kind='char': must be one of bpe, unigram, byte_l"):
        config(kind="char")
    with pytest.raises(ValueError, match="vocab_size=520: must be at least 521 for kind='wordp"):
        config(kind="wordpiece", vocab_size=520)
    assert config(path="elsewhere", vocab_size=1).path == "elsewhere", "it is not trained"


def test_loading_something_else_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="holds no tokenizer that was trained here"):
        load_own(tmp_path)
    vocab = {token: i for i, token in enumerate(sorted(BYTES))}
    other = {"model": {"type": "BPE", "vocab": vocab, "merges": []}}
    for content in ("{", "{}", json.dumps(other)):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(BadInput, match=r"tokenizer\.json: (Expect|lacks|its first)"):
            load_own(tmp_path)
    (tmp_path / "tokenizer.model").write_text("not a model")
    with pytest.raises(BadInput, match="tokenizer.model: "):
        load_own(tmp_path)
    options = {"sentence_iterator": iter(corpus(5)), "vocab_size": 60, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(model_prefix=str(tmp_path / "tokenizer"), **options)
    with pytest.raises(BadInput, match="its first pieces are .*must be .*<.user.>"):
        load_own(tmp_path)


@functools.cache
def multilingual():
    """{language: texts}: 112 languages of Tatoeba, and the declaration in 388 more varieties."""

    def read(name):
        with gzip.open(MULTILINGUAL / name, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    texts = collections.defaultdict(list)
    for row in read("tatoeba/tatoeba_a.jsonl.gz")[::4]:
        texts[f"tatoeba {row['lang']}"].append(row["text"])
    for row in read("udhr2/udhr2.jsonl.gz"):
        texts[f"udhr {row['name']}"].append(row["text"][:2000])
    return texts


@pytest.mark.real
@pytest.mark.skipif(not MULTILINGUAL.is_dir(), reason="the multilingual set is not beside here")
def test_every_language_comes_back_exactly(tmp_path, kind):
    languages = multilingual()
    assert len(languages) == 112 + 388
    some = [text[:600] for texts in languages.values() for text in texts[:3]]
    train(some, config(kind=kind, vocab_size=8192, sample_bytes=400_000), tmp_path / FILES[kind])
    tokenizer = load_own(tmp_path)
    for language, texts in languages.items():
        encoded = tokenizer.encode_batch(texts)
        assert [tokenizer.decode(ids) for ids in encoded] == texts, language
        assert min(min(ids, default=99) for ids in encoded) >= len(CONTROL_PIECES), language


def trained_vocab(folder, words, kind, size):
    train(words, config(kind=kind, vocab_size=size), folder / FILES[kind])
    return json.loads((folder / FILES[kind]).read_text())["model"]["vocab"]


def test_pieces_are_the_pairs_met_most_often(tmp_path):
    """hug 10, pug 5, pun 12, bun 4, hugs 5: ug 20 times, then un 16, hug 15, pun 12, and so on.

    The example is the one of Hugging Face's course on BPE; in WordPiece 'ug' stands inside words.
    """
    words = ["hug\n"] * 10 + ["pug\n"] * 5 + ["pun\n"] * 12 + ["bun\n"] * 4 + ["hugs\n"] * 5
    for kind, fixed, learnt in (
        ("byte_level", [*CONTROL_PIECES, *sorted(BYTES)], ["ug", "un", "hug", "pun"]),
        ("wordpiece", [*CONTROL_PIECES, *BYTES, *(f"##{byte}" for byte in BYTES)], None),
    ):
        learnt = learnt or ["##ug", "##un", "hug", "pun"]
        vocab = trained_vocab(tmp_path, words, kind, len(fixed) + 4)
        assert sorted(vocab, key=vocab.get) == fixed + learnt


def test_wordpiece_takes_the_longest_piece_of_each_word(tmp_path):
    """As Devlin et al. have it, worked by hand: '#' stands alone, a long word is cut."""
    words = ["water", "wat", "#if", " water"]
    vocab = trained_vocab(tmp_path, [word for word in words for _ in range(9)], "wordpiece", 528)
    tokenizer = load_own(tmp_path)
    for text, pieces in {
        "waterwatx": ["water", "##w", "##at", "##x"],
        "watx": ["wat", "##x"],
        " water##if": ["Ġwater", "#", "#", "if"],
        "7x": ["7", "x"],
        "x" * 17: ["x", *["##x"] * 15, "x"],
    }.items():
        assert tokenizer.encode(text) == [vocab[piece] for piece in pieces], text
    bad = [vocab[{byte: char for char, byte in BYTES.items()}[0xC3]], vocab["A"]]
    assert tokenizer.decode(bad) == "\ufffdA", "bytes that are no text"
