"""The gates measured on labelled sets: what `seedbed curate --score=DIR` prints.

DIR holds folders as the measures name them; a set is found by its folder and by the kind of its
files, whatever these are called and however many rows they have. A set that is absent is named, not
passed over. A model that the configuration does not name is trained within the measure, as
TOXICITY_HOW and QUALITY_HOW say. Everything is a function of configuration and files.
"""

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data import dedup, sources, storage
from data.document import place
from data.errors import BadInput
from data.gates import chain, classifier, repair, toxicity
from data.scoring import measures, planted

PII, TATOEBA, UDHR = "filters/pii_presidio", "multilingual/tatoeba", "multilingual/udhr2"
ARCHIVES, FORUMS, PAPERS = "web/warc", "qa/stackexchange", "pretrain/math_latex"
TWEETS, TOXIGEN = "filters/toxic_tweets", "filters/toxigen_demos"
HATECHECK, BAD_WORDS = "filters/hatecheck", "filters/bad_words"
VOTES = "filters/dclm_quality_votes"
# What copies and evaluation texts are planted into.
PLAIN = ("pretrain", "web/c4_en")
# What people chose to keep; the other class is the web as it comes.
GOOD = ("pretrain/books", "pretrain/wikipedia_sample", "pretrain/wikitext2", "web/c4_en")
MAX_EXAMPLES = 1000
# The rest of the tweets is what a model is tested on that was trained here.
TRAINING_SHARE = 0.8
CONFIGURED = "the model of the configuration, on every text"
TOXICITY_HOW = "trained here on the 80% of the tweets whose hash is lowest, {}tested on the others"
QUALITY_HOW = "trained here: {} pieces of {} against {} of the pages of web/warc, whole"
PACKINGS = (".gz", ".zst", ".bz2", ".xz")
MAX_DOCUMENT_BYTES = 16_384
DIGITS = 4


class _Absent(Exception):
    """What a measure needs and DIR does not have."""


def score(
    root: Path,
    config: chain.GateConfig,
    dedup_config: dedup.DedupConfig,
    evaluation: Sequence[tuple[str, str]],
    log: Callable[[str], None],
) -> dict:
    """Measures the gates on the labelled sets below a folder.

    Args:
        root: the folder.
        config: of the gates.
        dedup_config: of deduplication.
        evaluation: (set, text) of what is evaluated; empty for nothing.
        log: takes progress lines.

    Returns:
        {measure: what measures and planted give, and `how` where a model was trained},
        of JSON types, rates rounded to DIGITS; and {absent: {measure: what is missing}}.

    Raises:
        BadInput: a set that is not what it should be; a model or list that is missing.
    """
    result: dict[str, Any] = {}
    absent = {}
    for name, measure in (
        ("pii", partial(_score_pii, root, config)),
        ("tatoeba", partial(_score_language, root, TATOEBA, "lang")),
        ("udhr", partial(_score_language, root, UDHR, "name")),
        ("tweets", partial(_score_tweets, root, config)),
        ("hatecheck", partial(_score_hatecheck, root, config)),
        ("bad_words", partial(_score_words, root, config)),
        ("quality", partial(_score_quality, root, config)),
        ("duplicates", partial(_score_duplicates, root, dedup_config)),
        ("contamination", partial(_score_contamination, root, config, evaluation)),
        ("archives", lambda: measures.measure_archives(_archives(root))),
        ("forums", lambda: measures.measure_forums(_paths(root, FORUMS, ".xml"))),
        ("papers", partial(_score_papers, root)),
    ):
        log(f"score: {name}")
        try:
            result[name] = _rounded(measure())
        except _Absent as missing:
            absent[name] = str(missing)
    return {**result, "absent": absent}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def _paths(root: Path, folder: str, suffix: str = "") -> list[Path]:
    """Files of a set, sorted; what says where a set is from does not belong to it."""
    found = [
        path
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and path.name != "SOURCE.txt" and _stem(path).endswith(suffix)
    ]
    if not found:
        raise _Absent(f"{folder}: no {suffix or 'file'} there")
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(path.suffix) if path.suffix in PACKINGS else path.name


def _rows(root: Path, folder: str, suffix: str, keys: Sequence[str]) -> Iterator[dict]:
    """Rows of the JSON lines or tables of a set, each with the keys that are wanted."""
    number = 0
    for path in _paths(root, folder, suffix):
        try:
            with storage.open_plain(str(path)) as stream:
                if suffix == ".csv":
                    found = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""))
                else:
                    found = (json.loads(line) for line in stream if line.strip())
                for number, row in enumerate(found, 1):
                    given = row if isinstance(row, dict) else {}
                    if missing := [key for key in keys if given.get(key) is None]:
                        raise BadInput(f"{path}: row {number} has no {', '.join(missing)}")
                    yield row
        except (*storage.DAMAGE, ValueError, csv.Error) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{path}: cannot be read as {suffix}: {error}") from error
    if not number:
        raise _Absent(f"{folder}: no row in it")


def _archives(root: Path) -> list[Path]:
    return [
        path for path in _paths(root, ARCHIVES) if sources.kind_of(_stored(root, path)) == "warc"
    ]


def _stored(root: Path, path: Path) -> storage.File:
    return storage.File(path.relative_to(root).as_posix(), str(path), str(root), 0, 0)


def _documents(
    root: Path, folders: Iterable[str], extract: str = "main"
) -> Iterator[tuple[str, str]]:
    """(id, text) of documents as curation reads them."""
    for folder in folders:
        source = sources.SourceConfig(folder, "auto", "auto", extract, "", 1.0, ("auto",))
        for path in _paths(root, folder):
            stored = _stored(root, path)
            kind = sources.kind_of(stored)
            if kind in sources.KINDS:
                unit = sources.Unit("", kind, stored, "")
                for row in sources.read(unit, source, MAX_DOCUMENT_BYTES, []):
                    yield row["id"].removeprefix("/"), repair.repair(row["text"])


def _score_pii(root: Path, config: chain.GateConfig) -> dict:
    names = ("entity_type", "start_position", "end_position")
    rows = _rows(root, PII, ".jsonl", ("full_text", "spans"))
    try:
        texts = [
            (row["full_text"], [tuple(span[name] for name in names) for span in row["spans"]])
            for row in rows
        ]
    except (KeyError, TypeError) as error:
        raise BadInput(f"{PII}: a span needs {', '.join(names)}: {error!r}") from error
    return measures.measure_pii(texts, config.pii)


def _score_language(root: Path, folder: str, key: str) -> dict:
    """The code is all before an underscore: what follows names a script or a variant."""
    rows = _rows(root, folder, ".jsonl", (key, "text"))
    return measures.measure_language([(row[key].partition("_")[0], row["text"]) for row in rows])


def _score_tweets(root: Path, config: chain.GateConfig) -> dict:
    rows = list(_tweets(root))
    if not config.toxicity.model:
        rows = [row for row in rows if place(row[0]) >= TRAINING_SHARE]
    found, how = _judge(root, config, [text for text, _ in rows])
    return {"how": how} | measures.measure_tweets([name for _, name in rows], found.scores)


def _tweets(root: Path) -> Iterator[tuple[str, str]]:
    for row in _rows(root, TWEETS, ".csv", ("tweet", "class")):
        if row["class"] not in ("0", "1", "2"):
            raise BadInput(f"{TWEETS}: class {row['class']!r} is not 0, 1 or 2")
        yield row["tweet"], measures.TWEETS[int(row["class"])]


def _score_hatecheck(root: Path, config: chain.GateConfig) -> dict:
    keys = ("test_case", "functionality", "label_gold", "target_ident")
    rows = list(_rows(root, HATECHECK, ".csv", keys))
    cases = [
        (row["functionality"], row["label_gold"] == "hateful", row["target_ident"]) for row in rows
    ]
    found, how = _judge(root, config, [row["test_case"] for row in rows])
    result = measures.measure_hatecheck(cases, found.scores, found.too_high)
    return {"how": how, "max_score": config.toxicity.max_score} | result


def _judge(
    root: Path, config: chain.GateConfig, texts: Sequence[str]
) -> tuple[toxicity.Judgement, str]:
    """What the gate says of English texts, and with which model."""
    settings, how = config.toxicity, CONFIGURED
    with tempfile.TemporaryDirectory() as folder:
        if not settings.model:
            path = Path(folder) / "toxicity"
            how = _fit_toxicity(root, settings, path)
            settings = replace(settings, model=str(path))
        judge = toxicity.Toxicity(settings)
    view = chain.View([repair.repair(text) for text in texts], list(range(len(texts))))
    return judge.judge(view.data, view.offsets, view.words, ["en"] * len(texts)), how


def _fit_toxicity(root: Path, config: toxicity.ToxicityConfig, path: Path) -> str:
    texts = [row for row in _tweets(root) if place(row[0]) < TRAINING_SHARE]
    examples = [(text, name != measures.NEITHER, 0) for text, name in texts]
    also = ""
    if (root / TOXIGEN).is_dir():
        also = f"and on {TOXIGEN}, "
        for row in _rows(root, TOXIGEN, ".jsonl", ("text", "label")):
            examples.append((row["text"], row["label"] == "hate", 1))
    texts, labels, groups = zip(*examples, strict=True)
    texts = [repair.repair(text) for text in texts]
    _train(TWEETS, texts, labels, config.train, groups).save(path)
    return TOXICITY_HOW.format(also)


def _train(
    folder: str,
    texts: Sequence[str],
    labels: Sequence[bool],
    config: classifier.ClassifierConfig,
    groups: Sequence[int] | None = None,
) -> classifier.Model:
    try:
        return classifier.train(texts, labels, config, groups)
    except BadInput as error:
        raise _Absent(f"{folder}: too little to train from: {error}") from error


def _score_words(root: Path, config: chain.GateConfig) -> dict:
    """Share of the texts of each class in which the lists find anything, and too much."""
    settings = config.toxicity
    if not settings.lists:
        _paths(root, BAD_WORDS, ".txt")
        settings = replace(settings, lists=str(root / BAD_WORDS))
    texts, classes = zip(*_tweets(root), strict=True)
    view = chain.View([repair.repair(text) for text in texts], list(range(len(texts))))
    judge = toxicity.Toxicity(settings)
    found = judge.judge(view.data, view.offsets, view.words, ["en"] * len(texts))
    return measures.measure_words(classes, found.hits > 0, found.too_many)


def _score_quality(root: Path, config: chain.GateConfig) -> dict:
    rows = list(_rows(root, VOTES, ".jsonl", ("text", "label", "all_annotators_agree")))
    if config.quality.model:
        model, how = (
            classifier.load(
                Path(config.quality.model), "data.gates.quality.model", config.quality.label
            ),
            CONFIGURED,
        )
    else:
        model, how = _fit_quality(root, config.quality.train)
    view = chain.View([repair.repair(row["text"]) for row in rows], list(range(len(rows))))
    scores = model.score(view.data, view.offsets, view.words)
    votes = [(row["label"], row["all_annotators_agree"]) for row in rows]
    return {"how": how} | measures.measure_votes(votes, scores)


def _fit_quality(root: Path, config: classifier.ClassifierConfig) -> tuple[classifier.Model, str]:
    folders = [folder for folder in GOOD if (root / folder).is_dir()]
    found = _documents(root, folders or GOOD)
    good = sorted({text for _, text in found}, key=place)[:MAX_EXAMPLES]
    pages = _documents(root, [ARCHIVES], "page")
    bad = sorted({text for _, text in pages}, key=place)[:MAX_EXAMPLES]
    labels = [True] * len(good) + [False] * len(bad)
    model = _train(ARCHIVES, good + bad, labels, config)
    return model, QUALITY_HOW.format(len(good), ", ".join(folders), len(bad))


def _score_duplicates(root: Path, config: dedup.DedupConfig) -> dict:
    return planted.measure_duplicates(_hosts(root), config)


def _hosts(root: Path) -> list[tuple[str, str]]:
    documents = planted.choose(_documents(root, PLAIN), planted.NUM_ORIGINALS)
    if not documents:
        raise _Absent(f"{', '.join(PLAIN)}: no text of {planted.MIN_ORIGINAL_WORDS} words")
    return documents


def _score_contamination(
    root: Path, config: chain.GateConfig, evaluation: Sequence[tuple[str, str]]
) -> dict:
    if not evaluation:
        raise _Absent("no texts of evaluation sets")
    return planted.measure_contamination(_hosts(root), evaluation, config)


def _score_papers(root: Path) -> dict:
    return measures.measure_latex(row["text"] for row in _rows(root, PAPERS, ".jsonl", ("text",)))
