"""Planted copies and planted evaluation texts: what the pipeline finds of them, and what else.

Copies are planted into documents that have nothing to do with each other, and looked for by what
curation uses: data.words, data.minhash, data.dedup and data.gates. Everything that is chosen is
chosen by hash or by a seeded generator: same input, same numbers.
"""

import itertools
import random
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from data import dedup, ranges, tasks
from data.document import place
from data.gates import chain, contamination
from data.words import Words, ngrams

NUM_ORIGINALS = 1000
# Shares of the words that are replaced in a near copy.
SHARES = (0.02, 0.05, 0.10)
# In a shorter text 2% are not a word or two.
MIN_ORIGINAL_WORDS = 100
NUM_HOSTS = 500
SHOWN = 20
WORD, BETWEEN = re.compile(r"\w+"), re.compile(r"(\W+)")
# Of the places at which words are replaced, a copy of each document for each.
SEEDS = (1, 2, 3)

Documents = Sequence[tuple[str, str]]


def choose(documents: Iterable[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Chooses documents that are long enough and different, those whose texts hash lowest.

    Args:
        documents: (id, text), repaired as the gates see them.
        count: how many, if there are so many.

    Returns:
        (id, text) in order of the hashes; of equal texts the first.
    """
    chosen: dict[str, str] = {}
    for key, text in documents:
        if next(itertools.islice(WORD.finditer(text), MIN_ORIGINAL_WORDS - 1, None), None):
            chosen.setdefault(text, key)
    texts = sorted(chosen, key=lambda text: (place(text), text))
    return [(chosen[text], text) for text in texts[:count]]


def measure_duplicates(documents: Documents, config: dedup.DedupConfig) -> dict:
    """Plants a copy of every document, again for each kind of copy, and looks for them.

    Args:
        documents: (id, text) of texts that are no copies of each other.
        config: of deduplication.

    Returns:
        {originals, exact, near}: exact has {recall}; near one such row for each of SHARES, {share
        of words replaced, recall, expected, similarity}, over a copy for each of SEEDS, where
        expected is what DedupConfig's formula gives for the similarities there are, and similarity
        their mean. Both have {planted: pairs, false_merges: pairs of different originals in one
        cluster, merged: the first SHOWN of them, {ids, similarity}}: some may be copies that were
        there before.
    """
    ids, texts = [key for key, _ in documents], [text for _, text in documents]
    others = sorted({word.lower() for text in texts for word in WORD.findall(text)})
    words, near = _seen(texts).words, []
    for share in SHARES:
        found, similar, merged = [], [], set()
        for seed in SEEDS:
            view = _seen(texts + _replace_words(texts, others, share, seed))
            found += _look(tasks.near_keys(view.data, view.offsets, config), len(texts), merged)
            both = view.words
            similar += [_similarity(both, i, len(texts) + i, config) for i in range(len(texts))]
        expected = 1 - (1 - np.array(similar) ** config.band_rows) ** config.num_bands
        row = {"share": share, "expected": _mean(expected), "similarity": _mean(similar)}
        near.append(row | _tell(found, merged, ids, words, config))
    merged = set()
    found = _look(tasks.exact_keys(_seen(texts * 2)), len(texts), merged)
    exact = _tell(found, merged, ids, words, config)
    return {"originals": len(texts), "exact": exact, "near": near}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _replace_words(
    texts: Sequence[str], others: Sequence[str], share: float, seed: int
) -> list[str]:
    """Replaces a share of the words of each text by others, at places chosen at random."""
    source = random.Random(seed)
    changed = []
    for text in texts:
        parts = BETWEEN.split(text)  # a word, what stands between, a word, ...; the ends may be ''
        places = range(2 * (not parts[0]), len(parts) - (not parts[-1]), 2)
        for number in source.sample(places, round(share * len(places))):
            chosen = source.randrange(len(others))
            is_same = others[chosen] == parts[number].lower()
            parts[number] = others[(chosen + is_same) % len(others)]
        changed.append("".join(parts))
    return changed


def _seen(texts: Sequence[str]) -> chain.View:
    return chain.View(texts, list(range(len(texts))))


def _look(keys: np.ndarray, num_originals: int, merged: set[tuple[int, int]]) -> list[bool]:
    """Whether each pair (i, i + num_originals) is one cluster; adds what else is to `merged`."""
    clusters = _stays(keys, 2 * num_originals)
    order = np.argsort(clusters, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1):
        merged |= set(itertools.combinations(sorted({int(i) % num_originals for i in members}), 2))
    originals, copies = np.split(clusters, 2)
    return (originals == copies).tolist()


def _tell(
    found: list[bool],
    merged: set[tuple[int, int]],
    ids: Sequence[str],
    words: Words,
    config: dedup.DedupConfig,
) -> dict:
    return {
        "planted": len(found),
        "recall": _mean(found),
        "false_merges": len(merged),
        "merged": [
            {"ids": [ids[a], ids[b]], "similarity": _similarity(words, a, b, config)}
            for a, b in sorted(merged)[:SHOWN]
        ],
    }


def _stays(keys: np.ndarray, count: int) -> np.ndarray:
    """The document that stays in place of each, its own number where it stays itself."""
    stays = np.arange(count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alive, parts = str(folder / "alive.npy"), folder / "parts.json"
        np.save(alive, np.ones(count, bool))
        dedup.write_keys(folder / "keys.npy", keys)
        dedup.write_parts(parts, [folder / "keys.npy"], [0])
        links = []
        for low, high in ranges.cut(len(keys), dedup.KEYS_PER_RANGE):
            dedup.find_links(folder, str(parts), low, high, alive)
            links.append(np.load(folder / "links.npy"))
    gone, kept = dedup.resolve(np.concatenate(links), {}, ())
    stays[gone] = kept
    return stays


def _similarity(words: Words, left: int, right: int, config: dedup.DedupConfig) -> float:
    """Jaccard similarity of the sets of word n-grams of two texts."""
    sets = []
    for text in (left, right):
        first, end = words.offsets[text : text + 2]
        one = words._replace(hashes=words.hashes[first:end], offsets=np.array([0, end - first]))
        sets.append(np.unique(ngrams(one, config.ngram_words)[0]))
    shared = len(np.intersect1d(*sets, assume_unique=True))
    return shared / max(len(sets[0]) + len(sets[1]) - shared, 1)


def _as_it_is(text: str) -> str:
    return text


def _retyped(text: str) -> str:
    """The same words, typed by somebody else: in capitals, quoted, and a line each."""
    return "\u201c" + "\n".join(text.translate(CAPITALS).split()) + "\u201d"


CAPITALS = {ord(char): char.upper() for char in "abcdefghijklmnopqrstuvwxyz"}
FORMS: dict[str, Callable[[str], str]] = {"as_it_is": _as_it_is, "retyped": _retyped}


def measure_contamination(
    documents: Documents, evaluation: Documents, config: chain.GateConfig
) -> dict:
    """Plants texts of evaluation sets into documents, one into each, and looks for them.

    Args:
        documents: (id, text).
        evaluation: (set, text) of all that is evaluated.
        config: of the gates.

    Returns:
        {sets, texts (of at least contamination.MIN_WORDS words), planted, recall: {form of the
        text: share found}, missed: the first SHOWN, [form, set], unplanted (documents before
        planting), hits: what was found in these, {id, set, shared}, which may be true}.
    """
    evaluation = [(name, text.encode("utf-8", "ignore").decode()) for name, text in evaluation]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "evaluation.npz"
        contamination.build(evaluation, config.contamination_words).save(path)
        gates = chain.Gates(config, ("contamination",), path)
    before = gates.decide([_row(key, text) for key, text in documents])
    hits = [
        {"id": documents[i][0], "set": before.reason[i], "shared": before.detail[i]}
        for i, why in enumerate(before.why)
        if why
    ]
    hosts = [documents[i] for i in before.alive()][:NUM_HOSTS]
    texts = _choose_texts(evaluation)
    planted = list(zip(hosts, texts, strict=False))
    recall, missed = {}, []
    for form, change in FORMS.items():
        rows = [_row(key, _plant(host, change(text))) for (key, host), (_, text) in planted]
        found = gates.decide(rows).why
        recall[form] = _mean([why == "contamination" for why in found])
        missed += [[form, pair[1][0]] for pair, why in zip(planted, found, strict=True) if not why]
    return {
        "sets": len({name for name, _ in evaluation}),
        "texts": len(texts),
        "planted": len(planted),
        "recall": recall,
        "missed": missed[:SHOWN],
        "unplanted": len(documents),
        "hits": hits,
    }


def _row(key: str, text: str) -> dict:
    return {"id": key, "source": key, "url": "", "language": "", "markup": "plain", "text": text}


def _plant(host: str, text: str) -> str:
    """Puts a text between two words near the middle of another."""
    middle = host.find(" ", len(host) // 2) % (len(host) + 1)
    return f"{host[:middle]}\n\n{text}\n\n{host[middle:]}"


def _choose_texts(evaluation: Documents) -> list[tuple[str, str]]:
    """Texts that are long enough: of each set in turn the one whose hash comes next."""
    sizes = np.diff(_seen([text for _, text in evaluation]).words.offsets)
    by_set: dict[str, list[str]] = {}
    for (name, text), size in zip(evaluation, sizes, strict=True):
        if size >= contamination.MIN_WORDS:
            by_set.setdefault(name, []).append(text)
    columns = [
        [(name, text) for text in sorted(set(texts), key=lambda text: (place(text), text))]
        for name, texts in sorted(by_set.items())
    ]
    return [one for turn in itertools.zip_longest(*columns) for one in turn if one]
