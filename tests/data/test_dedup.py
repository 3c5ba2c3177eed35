"""Deduplication: planted duplicates are found, different documents are not merged."""

import dataclasses
import random

import numpy as np
import pytest

from data import dedup, tasks
from data.gates import chain

NUM_PAIRS = 1000
REPLACED = 0.02
# 1 - (1 - s ** 8) ** 14 is 0.966 at s = 0.825, what 2% of replaced words leave of the 5-grams on
# average, and 0.96 over their spread (measured on 4000 pairs).
MIN_NEAR_RECALL = 0.95
# The same at s = 1/3, for documents with one half in common, is 0.002.
MAX_HALF_MERGED = 0.008 * NUM_PAIRS
LETTERS = str.maketrans("0123456789", "abcdefghij")
CONFIG = dedup.DedupConfig(
    num_bands=14,
    band_rows=8,
    ngram_words=5,
    urls=True,
    paragraph_chars=0,
    min_left=0.5,
    prefer=("longest",),
)


def random_words(source, num_words):
    return [f"word{source.randrange(3000)}x".translate(LETTERS) for _ in range(num_words)]


def replace_words(words, source):
    changed = list(words)
    for place in source.sample(range(len(words)), round(REPLACED * len(words))):
        changed[place] = f"zz{place}".translate(LETTERS)
    return changed


def view(texts):
    return chain.View(texts, list(range(len(texts))))


def near_keys(texts):
    return tasks.near_keys(view(texts).data, view(texts).offsets, CONFIG)


def exact_keys(texts):
    return tasks.exact_keys(view(texts))


def find(folder, texts, keys_from, num_parts=1, num_ranges=1, prefer=("longest",)):
    """{dropped: the one that stays} by index, over files of several parts and several ranges."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "alive.npy", np.ones(len(texts), bool))
    starts = [len(texts) * i // num_parts for i in range(num_parts)]
    paths = []
    for number, (first, last) in enumerate(zip(starts, [*starts[1:], len(texts)], strict=True)):
        paths.append(folder / f"{number}.npy")
        dedup.write_keys(paths[-1], keys_from(texts[first:last]))
    dedup.write_parts(folder / "parts.json", paths, starts)
    edges = [2**64 * i // num_ranges for i in range(num_ranges + 1)]
    links = [np.empty((0, 2), np.int64)]
    for low, high in zip(edges, edges[1:], strict=False):
        dedup.find_links(folder, str(folder / "parts.json"), low, high, str(folder / "alive.npy"))
        links.append(np.load(folder / "links.npy"))
    links = np.concatenate(links)
    docs = np.unique(links)
    facts = {"chars": np.array([len(texts[i]) for i in docs], np.int64)}
    gone, kept = dedup.resolve(links, facts, prefer)
    return dict(zip(gone.tolist(), kept.tolist(), strict=True))


@pytest.mark.parametrize("num_words", [300, 1000])
def test_near_duplicates_are_recalled_and_others_left(tmp_path, num_words):
    source = random.Random(num_words)
    originals = [random_words(source, num_words) for _ in range(NUM_PAIRS)]
    copies = [replace_words(words, source) for words in originals]
    texts = [" ".join(words) for words in originals + copies]
    pairs = {tuple(sorted(pair)) for pair in find(tmp_path, texts, near_keys).items()}
    wanted = {(i, i + NUM_PAIRS) for i in range(NUM_PAIRS)}
    assert len(pairs & wanted) >= MIN_NEAR_RECALL * NUM_PAIRS
    assert pairs <= wanted


def test_documents_with_one_half_in_common_are_not_merged(tmp_path):
    source = random.Random(7)
    halves = [random_words(source, 200) for _ in range(NUM_PAIRS)]
    texts = [" ".join(half + random_words(source, 200)) for half in halves for _ in range(2)]
    assert len(find(tmp_path, texts, near_keys)) <= MAX_HALF_MERGED


def test_exact_duplicates_are_all_found_and_the_first_stays(tmp_path):
    source = random.Random(3)
    originals = [" ".join(random_words(source, 50)) for _ in range(200)]
    texts = originals + originals[:120] + originals[:40]
    expected = {200 + i: i for i in range(120)} | {320 + i: i for i in range(40)}
    assert find(tmp_path, texts, exact_keys) == expected


def test_case_punctuation_and_digits_do_not_count(tmp_path):
    words = random_words(random.Random(5), 100)
    plain = " ".join([*words, "in", "1984"])
    shouted = "\n".join([*words, "in", "2026"]).upper()
    other = shouted.replace(" ", ", ") + "!"
    assert find(tmp_path, [plain, shouted, other], near_keys) == {0: 2, 1: 2}


def test_chinese_is_compared_by_its_characters(tmp_path):
    source = random.Random(11)
    characters = [chr(source.randrange(0x4E00, 0x9FFF)) for _ in range(400)]
    changed = characters[:200] + ["\u4e2d"] + characters[201:]
    other = [chr(source.randrange(0x4E00, 0x9FFF)) for _ in range(400)]
    texts = ["".join(part) for part in (characters, changed, other)]
    assert find(tmp_path, texts, near_keys) == {1: 0}


def test_longest_of_a_cluster_stays_then_the_first(tmp_path):
    words = random_words(random.Random(6), 400)
    texts = [" ".join(words), " ".join([*words, "and", "more"]), " ".join([*words, "or", "less"])]
    assert find(tmp_path, texts, near_keys) == {0: 1, 2: 1}


def test_texts_without_words_or_too_short_are_not_merged(tmp_path):
    texts = ["!!! ---", "???", "*", "one two", "three four", "seven", ""]
    assert find(tmp_path, texts, near_keys) == {}
    assert find(tmp_path, [], near_keys) == find(tmp_path, [], exact_keys) == {}


@pytest.mark.parametrize("keys_from", [near_keys, exact_keys])
def test_parts_and_ranges_do_not_show(tmp_path, keys_from):
    source = random.Random(9)
    originals = [random_words(source, 80) for _ in range(60)]
    texts = [" ".join(words) for words in originals for _ in range(2)]
    texts += [text + " end" for text in texts[:30]]
    whole = find(tmp_path / "whole", texts, keys_from)
    assert len(whole) >= 60
    for parts, ranges in ((3, 1), (1, 7), (5, 4)):
        found = find(tmp_path / f"{parts}-{ranges}", texts, keys_from, parts, ranges)
        assert found == whole


def test_the_dead_do_not_count(tmp_path):
    texts = ["one", "two", "one", "one"]
    dedup.write_keys(tmp_path / "keys.npy", exact_keys(texts))
    np.save(tmp_path / "alive.npy", np.array([False, True, True, True]))
    dedup.write_parts(tmp_path / "parts", [tmp_path / "keys.npy"], [0])
    parts, alive = str(tmp_path / "parts"), str(tmp_path / "alive.npy")
    dedup.find_links(tmp_path, parts, 0, 2**64, alive)
    assert np.load(tmp_path / "links.npy").tolist() == [[2, 3]]


def test_paragraphs_in_several_places_are_found_and_share_a_number(tmp_path):
    paragraphs = ["b", "a", "b", "c", "a", "a"]
    keys = exact_keys(paragraphs)
    keys["row"], keys["part"], keys["chars"] = [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1], 9
    dedup.write_keys(tmp_path / "keys.npy", keys)
    np.save(tmp_path / "alive.npy", np.ones(13, bool))
    dedup.write_parts(tmp_path / "parts", [tmp_path / "keys.npy"], [10])
    parts, alive = str(tmp_path / "parts"), str(tmp_path / "alive.npy")
    found = []
    for low, high in ((0, 2**63), (2**63, 2**64)):
        dedup.find_repeats(tmp_path, parts, low, high, alive)
        found += np.load(tmp_path / "repeats.npy").tolist()
    places = {}
    for doc, part, chars, shared in sorted(found):
        assert chars == 9
        places.setdefault(shared, []).append((doc, part))
    assert sorted(places.values()) == [[(10, 0), (11, 0)], [(10, 1), (12, 0), (12, 1)]]


def take_out_by_hand(docs, min_left):
    """What `take_out` says, document by document, of {document: paragraphs}, all of 10 letters."""
    seen, gone, dropped = set(), [], []
    for doc, paragraphs in docs.items():
        mine = [n for n, p in enumerate(paragraphs) if p in seen or p in paragraphs[:n]]
        if 10 * (len(paragraphs) - len(mine)) < max(1, min_left * 10 * len(paragraphs)):
            dropped.append(doc)
        else:
            seen |= set(paragraphs)
            gone += [[doc, n, 10] for n in mine]
    return gone, dropped


@pytest.mark.parametrize("min_left", [0.0, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_a_paragraph_goes_only_for_a_copy_that_stays(seed, min_left):
    source = np.random.default_rng(seed)
    docs = {int(doc): source.integers(0, 25, source.integers(1, 7)).tolist() for doc in range(20)}
    repeats = np.array([[d, n, 10, p] for d, ps in docs.items() for n, p in enumerate(ps)])
    chars = np.array([10 * len(paragraphs) for paragraphs in docs.values()])
    gone, dropped = dedup.take_out(repeats, chars, min_left)
    assert (gone.tolist(), dropped.tolist()) == take_out_by_hand(docs, min_left)
    assert min_left == 0 or (len(gone) < len(repeats) and len(dropped))


def test_a_copy_in_a_document_that_is_dropped_takes_none_from_others():
    """d0 = A B, d1 = A B C, d2 = C N: d1 has too little left, so C stays in d2."""
    repeats = np.array([[0, 0, 5, 1], [0, 1, 5, 2], [1, 0, 5, 1], [1, 1, 5, 2], [1, 2, 5, 3]])
    repeats = np.concatenate([repeats, [[2, 0, 5, 3]]])
    gone, dropped = dedup.take_out(repeats, np.array([10, 15, 10]), 0.5)
    assert (gone.tolist(), dropped.tolist()) == ([], [1])


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


def test_preferences_come_in_their_order():
    links = np.array([[3, 5], [5, 8], [3, 9], [20, 21]])
    facts = {
        "quality": np.array([0.5, 0.9, 0.9, 0.9, 0.0, 0.0]),
        "chars": np.array([900, 10, 20, 20, 7, 7], np.uint32),
        "day": np.array([1, 5, 2, 3, 0, 0], np.int32),
    }

    def stays(*prefer):
        gone, kept = dedup.resolve(links, facts, prefer)
        assert gone.tolist() == sorted(gone.tolist())
        return dict(zip(gone.tolist(), kept.tolist(), strict=True))

    assert stays() == {5: 3, 8: 3, 9: 3, 21: 20}
    assert stays("longest") == {5: 3, 8: 3, 9: 3, 21: 20}
    assert stays("quality", "longest") == {3: 8, 5: 8, 9: 8, 21: 20}
    assert stays("quality", "longest", "newest") == {3: 9, 5: 9, 8: 9, 21: 20}
    assert stays("newest") == {3: 5, 8: 5, 9: 5, 21: 20}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_bands": 0}, "num_bands: 0 must be at least 1"),
        ({"ngram_words": -1}, "ngram_words: -1 must be"),
        ({"paragraph_chars": -1}, "paragraph_chars: -1 must be"),
        ({"min_left": 1.5}, "min_left: 1.5 must be"),
        ({"prefer": ("oldest",)}, "prefer: 'oldest' must be one of quality, longest, newest"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
