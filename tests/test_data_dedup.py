"""Deduplication: planted duplicates are found, different documents are not merged."""

import random

import numpy as np
import pyarrow as pa
import pytest

from data import dedup, engine

CONFIG = dedup.DedupConfig(num_bands=14, band_rows=8, ngram_words=5, seed=1)

NUM_PAIRS = 1000
REPLACED = 0.02
# 1 - (1 - s ** 8) ** 14 is 0.966 at s = 0.825, what 2% of replaced words leave of the 5-grams on
# average, and 0.96 over their spread (measured on 4000 pairs).
MIN_NEAR_RECALL = 0.95
# The same at s = 1/3, for documents with one half in common, is 0.002.
MAX_HALF_MERGED = 0.008 * NUM_PAIRS
LETTERS = str.maketrans("0123456789", "abcdefghij")


def random_words(source, num_words):
    return [f"word{source.randrange(3000)}x".translate(LETTERS) for _ in range(num_words)]


def replace_words(words, source):
    changed = list(words)
    for place in source.sample(range(len(words)), round(REPLACED * len(words))):
        changed[place] = f"zz{place}".translate(LETTERS)
    return changed


def documents_of(texts):
    ids = [f"d{i:05d}" for i in range(len(texts))]
    digests = [dedup.digest(text) for text in texts]
    return pa.table({"id": ids, "text": texts, "digest": digests})


@pytest.mark.parametrize("num_words", [300, 1000])
def test_near_duplicates_are_recalled_and_others_left(num_words):
    source = random.Random(num_words)
    originals = [random_words(source, num_words) for _ in range(NUM_PAIRS)]
    copies = [replace_words(words, source) for words in originals]
    texts = [" ".join(words) for words in originals + copies]
    found = engine.near_duplicates(documents_of(texts), CONFIG)
    wanted = {(i, i + NUM_PAIRS) for i in range(NUM_PAIRS)}
    pairs = {tuple(sorted((int(a[1:]), int(b[1:])))) for a, b in found.items()}
    assert len(pairs & wanted) >= MIN_NEAR_RECALL * NUM_PAIRS
    assert pairs <= wanted


def test_documents_with_one_half_in_common_are_not_merged():
    source = random.Random(7)
    halves = [random_words(source, 200) for _ in range(NUM_PAIRS)]
    texts = [" ".join(half + random_words(source, 200)) for half in halves for _ in range(2)]
    assert len(engine.near_duplicates(documents_of(texts), CONFIG)) <= MAX_HALF_MERGED


def test_exact_duplicates_are_all_found_and_the_smallest_id_stays():
    source = random.Random(3)
    originals = [" ".join(random_words(source, 50)) for _ in range(200)]
    texts = originals + originals[:120] + originals[:40]
    found = engine.exact_duplicates(documents_of(texts))
    expected = {f"d{200 + i:05d}": f"d{i:05d}" for i in range(120)}
    expected |= {f"d{320 + i:05d}": f"d{i:05d}" for i in range(40)}
    assert found == expected


def test_case_punctuation_and_digits_do_not_count():
    words = random_words(random.Random(5), 100)
    plain = " ".join([*words, "in", "1984"])
    shouted = "\n".join([*words, "in", "2026"]).upper()
    other = shouted.replace(" ", ", ") + "!"
    found = engine.near_duplicates(documents_of([plain, shouted, other]), CONFIG)
    assert found == {"d00000": "d00002", "d00001": "d00002"}


def test_longest_of_a_cluster_stays_then_the_smallest_id():
    words = random_words(random.Random(6), 400)
    texts = [" ".join(words), " ".join([*words, "and", "more"]), " ".join([*words, "or", "less"])]
    found = engine.near_duplicates(documents_of(texts), CONFIG)
    assert found == {"d00000": "d00001", "d00002": "d00001"}


def test_texts_without_words_or_too_short_are_not_merged():
    texts = ["!!! ---", "???", "*", "one two", "three four", "seven", ""]
    assert engine.near_duplicates(documents_of(texts), CONFIG) == {}


def test_no_documents_have_no_duplicates():
    empty = documents_of(["x"]).slice(0, 0)
    assert engine.exact_duplicates(empty) == {}
    assert engine.near_duplicates(empty, CONFIG) == {}


def test_order_of_the_documents_does_not_matter():
    source = random.Random(9)
    originals = [random_words(source, 80) for _ in range(50)]
    texts = [" ".join(words) for words in originals for _ in range(2)]
    texts = [text + " end" * (i % 3) for i, text in enumerate(texts)]
    table = documents_of(texts)
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    found = engine.near_duplicates(table, CONFIG)
    assert len(found) == 50
    assert engine.near_duplicates(shuffled, CONFIG) == found
    assert engine.exact_duplicates(shuffled) == engine.exact_duplicates(table)


@pytest.mark.parametrize("seed", range(5))
def test_components_agree_with_a_walk(seed):
    source = np.random.default_rng(seed)
    left, right = source.integers(0, 60, (2, 40))
    labels = dedup.components(60, left, right)
    reach = np.eye(60, dtype=bool)
    reach[left, right] = reach[right, left] = True
    for _ in range(6):
        reach = reach @ reach
    np.testing.assert_array_equal(labels[:, None] == labels[None, :], reach)


def test_choose_prefers_size_then_id():
    labels = np.array([0, 1, 0, 1, 2])
    chosen = dedup.choose(labels, ["e", "d", "c", "b", "a"], np.array([5, 7, 9, 7, 1]))
    assert chosen.tolist() == [2, 3, 2, 3, 4]


def test_digest_is_stable():
    assert dedup.digest("Seedbed\n") == dedup.digest("Seedbed\n") != dedup.digest("Seedbed")
    assert dedup.digest("") == "cae66941d9efbd404e4d88758ea67670"  # BLAKE2b-128 of nothing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_bands": 0}, "num_bands: 0 must be at least 1"),
        ({"ngram_words": -1}, "ngram_words: -1 must be"),
        ({"seed": 2**32}, "seed: 4294967296 must be"),
    ],
)
def test_config_refuses(change, message):
    values = {"num_bands": 14, "band_rows": 8, "ngram_words": 5, "seed": 1} | change
    with pytest.raises(ValueError, match=message):
        dedup.DedupConfig(**values)
