"""The gates measured on labelled sets, run by hand.

    python -m benchmarks.gates DIR [CONFIG.py [EVAL_SETS]]

DIR holds folders of sets by the names below; one that is absent is named and left out. Prints a
JSON line a measure. Thresholds and models are those of the configuration; where it names no model,
one is trained on the part of the set that is not measured, and the line says so. EVAL_SETS, a path
as of `eval.sets`, is what decontamination looks for. Same files, same figures.
"""

import csv
import importlib.util
import io
import itertools
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from configs import web
from data import curate, dedup, ranges, sources, storage, tasks
from data.document import place
from data.gates import chain, classifier, contamination, language, pii, repair, toxicity
from data.words import Words, ngrams, split_words
from eval import sets
from launch import settings

PII, LANGUAGES = "filters/pii_presidio", {"tatoeba": "lang", "udhr2": "name"}
TWEETS, TOXIGEN, HATECHECK = (
    f"filters/{x}" for x in ("toxic_tweets", "toxigen_demos", "hatecheck")
)
VOTES, ARCHIVES = "filters/dclm_quality_votes", "web/warc"
# What copies and evaluation texts are planted into, and what people chose to keep.
PLAIN = ("pretrain", "web/c4_en")
GOOD = ("pretrain/books", "pretrain/wikipedia_sample", "pretrain/wikitext2", "web/c4_en")
TRAINING_SHARE, MAX_EXAMPLES = 0.8, 1000
# Types of the labelled set that are one of ours; the others have no form to be found by.
PII_KINDS = {
    "EMAIL_ADDRESS": "mail",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "PHONE_NUMBER": "phone",
    "IP_ADDRESS": "ip",
} | dict.fromkeys(
    (
        *("US_SSN", "US_ITIN", "UK_NHS", "UK_NINO", "ES_NIF", "ES_NIE", "IT_FISCAL_CODE"),
        *("PL_PESEL", "IN_AADHAAR", "AU_TFN"),
    ),
    "national_number",
)
NUM_ORIGINALS, MIN_WORDS, SHARES, SEEDS = 1000, 100, (0.02, 0.05, 0.10), (1, 2, 3)
NUM_HOSTS, MAX_BYTES = 500, 16_384
WORD, BETWEEN = re.compile(r"\w+"), re.compile(r"(\W+)")


def main() -> None:
    """Measures everything once."""
    root, config = Path(sys.argv[1]), web.get_config()
    if len(sys.argv) > 2:
        spec = importlib.util.spec_from_file_location("given", sys.argv[2])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
    section = settings.to_dataclass(curate.CurateConfig, config.data, "data")
    evaluation = list(sets.texts(sys.argv[3], print)) if len(sys.argv) > 3 else []
    for name, measure in (
        ("pii", lambda: measure_pii(root, section.gates.pii)),
        *(
            (f"language {name}", lambda name=name: measure_language(root, name))
            for name in LANGUAGES
        ),
        ("toxicity", lambda: measure_toxicity(root, section.gates)),
        ("quality", lambda: measure_quality(root, section.gates)),
        ("duplicates", lambda: measure_duplicates(choose(root), section.dedup)),
        ("contamination", lambda: measure_contamination(choose(root), evaluation, section.gates)),
    ):
        try:
            found = measure()
        except FileNotFoundError as error:
            found = {"absent": str(error)}
        print(json.dumps({"measure": name} | found, default=lambda x: round(float(x), 4)))


def rows(root: Path, folder: str, suffix: str) -> list[dict]:
    """The rows of a set's JSON lines or CSV files."""
    found: list[dict] = []
    for path in sorted((root / folder).rglob("*")):
        if suffix in path.suffixes and path.is_file():
            with storage.open_plain(str(path)) as stream:
                if suffix == ".csv":
                    found += csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""))
                else:
                    found += [json.loads(line) for line in stream if line.strip()]
    if not found:
        raise FileNotFoundError(f"{folder}: no row of {suffix} there")
    return found


def documents(
    root: Path, folders: Sequence[str], extract: str = "main"
) -> Iterator[tuple[str, str]]:
    """(id, text) of documents as curation reads and repairs them."""
    for folder in folders:
        if not (root / folder).is_dir():
            continue
        source = sources.SourceConfig(str(root / folder), extract=extract)
        for file in storage.find("DIR", source.path):
            if (kind := sources.kind_of(file)) in sources.KINDS and file.name != "SOURCE.txt":
                for row in sources.read(sources.Unit("", kind, file, ""), source, MAX_BYTES, []):
                    yield f"{folder}{row['id']}", repair.repair(row["text"])


def measure_pii(root: Path, kinds: tuple[str, ...]) -> dict:
    """Precision and recall of spans, by kind: overlapping by more than half, and exact."""
    gold, found = set(), set()
    for number, row in enumerate(rows(root, PII, ".jsonl")):
        for span in row["spans"]:
            kind = PII_KINDS.get(span["entity_type"])
            if kind in kinds:
                gold.add((number, kind, span["start_position"], span["end_position"]))
        spans = pii.find(row["full_text"], kinds)
        found |= {(number, span.kind, span.start, span.end) for span in spans}
    by_text: dict[tuple, list[tuple]] = {}
    for row in found:
        by_text.setdefault(row[:2], []).append(row)
    pairs = [
        (left, right)
        for left in gold
        for right in by_text.get(left[:2], ())
        if 2 * (min(left[3], right[3]) - max(left[2], right[2]))
        > max(left[3] - left[2], right[3] - right[2])
    ]
    result = {}
    for kind in ("all", *kinds):
        there, here = (sum(kind in ("all", row[1]) for row in side) for side in (gold, found))
        hits = (
            len({pair[side] for pair in pairs if kind in ("all", pair[0][1])}) for side in (1, 0)
        )
        exact = sum(kind in ("all", row[1]) for row in gold & found)
        right, recalled = hits
        result[kind] = {"gold": there, "found": here, "exact": exact}
        result[kind] |= {"precision": right / max(here, 1), "recall": recalled / max(there, 1)}
    return result


def measure_language(root: Path, name: str) -> dict:
    """Accuracy over the texts of languages that are known, mean over languages, and confusions."""
    known = set(language.languages())
    pairs = [
        (language.to_iso639_1(row[LANGUAGES[name]].partition("_")[0]), row["text"])
        for row in rows(root, f"multilingual/{name}", ".jsonl")
    ]
    pairs = [(code, text) for code, text in pairs if code in known]
    found = language.detect([text for _, text in pairs])[0]
    hits: dict[str, list[bool]] = {}
    for (code, _), one in zip(pairs, found, strict=True):
        hits.setdefault(code, []).append(code == one)
    wrong = Counter(
        f"{code} as {one}" for (code, _), one in zip(pairs, found, strict=True) if code != one
    )
    return {
        "texts": len(pairs),
        "languages": len(hits),
        "accuracy": sum(map(sum, hits.values())) / len(pairs),
        "macro": np.mean([np.mean(mine) for mine in hits.values()]),
        "confusions": dict(wrong.most_common(20)),
    }


def view_of(texts: Sequence[str]) -> chain.View:
    """Texts as gates see them."""
    return chain.View(list(texts), list(range(len(texts))))


def measure_toxicity(root: Path, gates: chain.GateConfig) -> dict:
    """AUC on tweets and HateCheck, accuracy by what a case tests, and whom false alarms hit.

    Source of HateCheck: Roettger et al. 2021, https://arxiv.org/abs/2012.15606.
    """
    config, counted = gates.toxicity, gates.classifier
    tweets = [(row["tweet"], row["class"] != "2") for row in rows(root, TWEETS, ".csv")]
    cases, how = rows(root, HATECHECK, ".csv"), "the model of the configuration"
    with tempfile.TemporaryDirectory() as folder:
        if not config.model:
            how = "trained on 80% of the tweets, and on ToxiGen's demonstrations"
            examples = [(*one, 0) for one in tweets if place(one[0]) < TRAINING_SHARE]
            for row in rows(root, TOXIGEN, ".jsonl"):
                examples.append((row["text"], row["label"] == "hate", 1))
            texts, labels, groups = zip(*examples, strict=True)
            texts = list(map(repair.repair, texts))
            model = classifier.train(texts, labels, counted, config.l2, groups)
            model.save(Path(folder) / "model")
            config = replace(config, model=str(Path(folder) / "model"))
            tweets = [one for one in tweets if place(one[0]) >= TRAINING_SHARE]
        gate = toxicity.Toxicity(config)

    def ask(texts: Sequence[str]) -> toxicity.Findings:
        view = view_of([repair.repair(text) for text in texts])
        return gate.find(view.data, view.offsets, view.words, ["en"] * len(texts))

    found = ask([row["test_case"] for row in cases])
    hateful = np.array([row["label_gold"] == "hateful" for row in cases])

    def mean_by(key: str, values: np.ndarray, chosen: np.ndarray) -> dict:
        names = np.array([row[key] or "nobody" for row in cases])
        groups = sorted(set(names[chosen]))
        return {name: values[chosen & (names == name)].mean() for name in groups}

    right = hateful == found.too_high
    return {
        "how": how,
        "tweets_auc": roc_auc_score([label for _, label in tweets], ask([t for t, _ in tweets])[2]),
        "hatecheck_auc": roc_auc_score(hateful, found.scores),
        "accuracy": right.mean(),
        "by_functionality": mean_by("functionality", right, np.ones(len(cases), bool)),
        "false_alarms": mean_by("target_ident", found.too_high, ~hateful),
    }


def measure_quality(root: Path, gates: chain.GateConfig) -> dict:
    """AUC and rank correlation with people's votes, over all texts and those they agree on."""
    config = gates.quality
    votes, how = rows(root, VOTES, ".jsonl"), "the model of the configuration"
    if config.model:
        model = classifier.load(Path(config.model), "data.gates.quality.model")
    else:
        how = "trained on what people chose to keep, and on pages as they come"
        parts = []
        for folders, extract in ((GOOD, "main"), ((ARCHIVES,), "page")):
            texts = {text for _, text in documents(root, folders, extract)}
            parts.append(sorted(texts, key=place)[:MAX_EXAMPLES])
        labels = [True] * len(parts[0]) + [False] * len(parts[1])
        model = classifier.train(parts[0] + parts[1], labels, gates.classifier, config.l2)
    view = view_of([repair.repair(row["text"]) for row in votes])
    scores = model.score(view.data, view.offsets, view.words)
    labels = np.array([row["label"] for row in votes], bool)
    agreed = np.array([row["all_annotators_agree"] for row in votes], bool)
    result: dict = {"how": how}
    for name, part in (("all", np.ones(len(votes), bool)), ("agreed", agreed)):
        result[name] = {
            "texts": part.sum(),
            "auc": roc_auc_score(labels[part], scores[part]),
            "spearman": spearmanr(scores[part], labels[part]).statistic,
        }
    return result


def choose(root: Path) -> list[tuple[str, str]]:
    """Documents that are long enough and different, those whose texts hash lowest."""
    chosen: dict[str, str] = {}
    for key, text in documents(root, PLAIN):
        if next(itertools.islice(WORD.finditer(text), MIN_WORDS - 1, None), None):
            chosen.setdefault(text, key)
    if not chosen:
        raise FileNotFoundError(f"{', '.join(PLAIN)}: no text of {MIN_WORDS} words")
    texts = sorted(chosen, key=lambda text: (place(text), text))
    return [(chosen[text], text) for text in texts[:NUM_ORIGINALS]]


def measure_duplicates(hosts: list[tuple[str, str]], config: dedup.DedupConfig) -> dict:
    """Plants a copy of every document, exact or with a share of its words replaced.

    `expected` is what DedupConfig's formula gives for the similarities that there are;
    `false_merges` are pairs of different originals in one cluster, which may be true copies.
    """
    texts = [text for _, text in hosts]
    others = sorted({word.lower() for text in texts for word in WORD.findall(text)})
    result = {"originals": len(texts)}
    for share in (0.0, *SHARES):
        found, expected, merged = [], [], set()
        for seed in SEEDS if share else SEEDS[:1]:
            copies = [_replace_words(text, others, share, random.Random(seed)) for text in texts]
            view = view_of(texts + copies)
            words = split_words(view.data, view.offsets, config.equal_digits)
            given = (view.data, view.offsets, config)
            keys = tasks.near_keys(*given) if share else tasks.exact_keys(view)
            clusters = _clusters(keys, 2 * len(texts))
            found += (clusters[: len(texts)] == clusters[len(texts) :]).tolist()
            merged |= _merged(clusters, len(texts))
            if share:
                pairs = ((i, len(texts) + i) for i in range(len(texts)))
                similar = np.array([_similarity(words, *pair, config) for pair in pairs])
                expected += (1 - (1 - similar**config.band_rows) ** config.num_bands).tolist()
        row = {"recall": np.mean(found), "false_merges": len(merged)}
        result[f"{share:.0%}"] = row | ({"expected": np.mean(expected)} if share else {})
    return result


def _replace_words(text: str, others: Sequence[str], share: float, source: random.Random) -> str:
    parts = BETWEEN.split(text)  # a word, what stands between, a word, ...; the ends may be ''
    places = range(2 * (not parts[0]), len(parts) - (not parts[-1]), 2)
    for number in source.sample(places, round(share * len(places))):
        chosen = source.randrange(len(others))
        is_same = others[chosen] == parts[number].lower()
        parts[number] = others[(chosen + is_same) % len(others)]
    return "".join(parts)


def _clusters(keys: np.ndarray, count: int) -> np.ndarray:
    """The document that stays in place of each, by what curation itself runs."""
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


def _merged(clusters: np.ndarray, num_originals: int) -> set[tuple[int, int]]:
    order = np.argsort(clusters, kind="stable")
    merged = set()
    for members in np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1):
        merged |= set(itertools.combinations(sorted({int(i) % num_originals for i in members}), 2))
    return merged


def _similarity(words: Words, left: int, right: int, config: dedup.DedupConfig) -> float:
    """Jaccard similarity of the sets of word n-grams of two texts."""
    both = []
    for text in (left, right):
        first, end = words.offsets[text : text + 2]
        one = words._replace(hashes=words.hashes[first:end], offsets=np.array([0, end - first]))
        both.append(np.unique(ngrams(one, config.ngram_words)[0]))
    shared = len(np.intersect1d(*both, assume_unique=True))
    return shared / max(len(both[0]) + len(both[1]) - shared, 1)


def _retyped(text: str) -> str:
    """The same words, typed by somebody else: in capitals, quoted, and a line each."""
    return "\u201c" + "\n".join(text.upper().split()) + "\u201d"


FORMS: dict[str, Callable[[str], str]] = {"as_it_is": str, "retyped": _retyped}


def measure_contamination(
    hosts: list[tuple[str, str]], evaluation: list[tuple[str, str]], config: chain.GateConfig
) -> dict:
    """Plants texts of evaluation sets into documents, one into each; hits before may be true."""
    if not evaluation:
        raise FileNotFoundError("no evaluation sets are given")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "evaluation.npz"
        contamination.build(evaluation, config.contamination_words).save(path)
        gates = chain.Gates(config, ("contamination",), path)

    def decide(pairs: Sequence[tuple[str, str]]) -> list[str]:
        keys = ("source", "url", "language")
        plain = [
            dict.fromkeys(keys, "") | {"markup": "plain", "id": k, "text": t} for k, t in pairs
        ]
        return gates.decide(plain).why

    before = decide(hosts)
    clean = [host for host, why in zip(hosts, before, strict=True) if not why][:NUM_HOSTS]
    texts = sorted({text for _, text in evaluation}, key=place)
    result = {"texts": len(texts), "hosts": len(hosts), "hits_before": sum(map(bool, before))}
    for form, change in FORMS.items():
        planted = []
        for (key, host), text in zip(clean, texts, strict=False):
            middle = host.find(" ", len(host) // 2) % (len(host) + 1)
            planted.append((key, f"{host[:middle]}\n\n{change(text)}\n\n{host[middle:]}"))
        result[form] = np.mean([why == "contamination" for why in decide(planted)])
    return result


if __name__ == "__main__":
    main()
