"""Measures of the gates against labels: pure functions of texts, labels and what a gate says.

Numbers come as they are computed; None stands where there is nothing to measure. What readers make
of files is counted here too.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data import storage
from data.gates import language, pii
from data.readers import forums, latex, warc, web

# Types of the labelled set that are one of ours; the others have no form to be found by.
PII_KINDS = {
    "EMAIL_ADDRESS": "mail",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "PHONE_NUMBER": "phone",
    "IP_ADDRESS": "ip",
    "US_SSN": "national_number",
    "US_ITIN": "national_number",
    "UK_NHS": "national_number",
    "UK_NINO": "national_number",
    "ES_NIF": "national_number",
    "ES_NIE": "national_number",
    "IT_FISCAL_CODE": "national_number",
    "PL_PESEL": "national_number",
    "IN_AADHAAR": "national_number",
    "AU_TFN": "national_number",
}
# Accuracy is also given for texts of at least so many characters.
MIN_CHARS = (20, 50)
SHOWN = 10
NEITHER = "neither"
TWEETS = ("hate", "offensive", NEITHER)
# What a text made of LaTeX has nothing left of, beside lines of comments.
COMMENT = re.compile(r"^[ \t]*(%[^\n]{8,})$", re.MULTILINE)
LATEX_LEFT = {
    "labels": re.compile(r"\\label\b"),
    "preambles": re.compile(r"\\(?:documentclass|usepackage|begin\{document\}|maketitle)"),
    "headings": re.compile(r"\\(?:chapter|part|(?:sub)*section|paragraph)\b"),
    "bibliographies": re.compile(r"\\(?:bibliography|bibitem|begin\{thebibliography)"),
    "drawings": re.compile(r"\\begin\{(?:tikzpicture|figure|comment)"),
    "index_entries": re.compile(r"\\index\b"),
    "footnotes": re.compile(r"\\footnote\b"),
    "gaps": re.compile(r"\n\n\n"),
}
QUESTION_OR_ANSWER = re.compile(rb'PostTypeId="([12])"')


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Area under the ROC curve: how often a positive scores above a negative, a tie for a half.

    Args:
        scores: any numbers.
        labels: True for a positive, [scores].

    Returns:
        From 0 to 1; None without positives, or without negatives.

    Source: Mann and Whitney 1947: the sum of the positives' ranks, less the smallest it can be.
    """
    wanted = np.asarray(labels, bool)
    num_positives, num_negatives = int(wanted.sum()), int((~wanted).sum())
    if not num_positives or not num_negatives:
        return None
    above = _ranks(scores)[wanted].sum() - num_positives * (num_positives + 1) / 2
    return float(above / (num_positives * num_negatives))


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Rank correlation: Pearson's of the ranks, equals sharing theirs; None if one is constant.

    Args:
        left, right: any numbers, of one length.
    """
    ranks = [_ranks(values) for values in (left, right)]
    if any(len(np.unique(values)) < 2 for values in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1; of equal values each has their mean."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def mean(values: Iterable[float]) -> float | None:
    """The mean, None of nothing."""
    found = np.fromiter(values, np.float64)
    return float(found.mean()) if len(found) else None


def measure_pii(
    rows: Iterable[tuple[str, Sequence[tuple[str, int, int]]]], kinds: tuple[str, ...]
) -> dict:
    """Compares what is found with what is there, by kind.

    Args:
        rows: (text, its spans (type, first character, character after the last)); types are those
            of the labelled set.
        kinds: of pii.KINDS, those looked for.

    Returns:
        {texts, kinds: {kind or 'all': {gold, found, overlapping, exact}}, others: {type without a
        kind: how many}}; overlapping and exact are {precision, recall, f1}, None where nothing was
        found, or there. Two spans of one kind overlap when they share more than half of the longer
        one, which no third then does; exact ones begin and end together.
    """
    gold, found, others, texts = set(), set(), Counter(), 0
    for number, (text, spans) in enumerate(rows):
        texts = number + 1
        for name, start, end in spans:
            if PII_KINDS.get(name) in kinds:
                gold.add((PII_KINDS[name], number, start, end))
            else:
                others[name] += 1
        found |= {(span.kind, number, span.start, span.end) for span in pii.find(text, kinds)}
    names = {"all": kinds} | {kind: (kind,) for kind in kinds}
    return {
        "texts": texts,
        "kinds": {
            name: _agree(*({row for row in side if row[0] in some} for side in (gold, found)))
            for name, some in names.items()
        },
        "others": dict(sorted(others.items())),
    }


def _agree(gold: set[tuple], found: set[tuple]) -> dict:
    pairs = list(_overlaps(gold, found))
    both = len(gold & found)
    return {
        "gold": len(gold),
        "found": len(found),
        "overlapping": _rates(
            len({g for g, _ in pairs}), len({f for _, f in pairs}), len(gold), len(found)
        ),
        "exact": _rates(both, both, len(gold), len(found)),
    }


def _overlaps(gold: set[tuple], found: set[tuple]) -> Iterator[tuple[tuple, tuple]]:
    by_text: dict[tuple, list[tuple]] = {}
    for row in found:
        by_text.setdefault(row[:2], []).append(row)
    for left in gold:
        for right in by_text.get(left[:2], ()):
            shared = min(left[3], right[3]) - max(left[2], right[2])
            if 2 * shared > max(left[3] - left[2], right[3] - right[2]):
                yield left, right


def _rates(gold_right: int, found_right: int, num_gold: int, num_found: int) -> dict:
    precision = found_right / num_found if num_found else None
    recall = gold_right / num_gold if num_gold else None
    f1 = None
    if precision is not None and recall is not None:
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def measure_language(rows: Sequence[tuple[str, str]]) -> dict:
    """Compares the languages found with those of the labels.

    Args:
        rows: (ISO 639-3 or 639-1 code, text).

    Returns:
        {texts, languages} of those that the model knows, and {unknown: {code: texts}} of those that
        it does not know, which count no further; accuracy, and macro, the mean of the languages'
        accuracies; {longer: {characters at least: {texts, accuracy, macro}}}; worst, the languages
        found least, [code, accuracy, texts]; confusions, the most frequent [code, taken for,
        texts].
    """
    known = set(language.languages())
    known_rows, unknown = [], Counter()
    for code, text in rows:
        if (short := language.to_iso639_1(code)) in known:
            known_rows.append((short, text))
        else:
            unknown[code] += 1
    found = language.detect([text for _, text in known_rows])[0]
    pairs = [(code, name) for (code, _), name in zip(known_rows, found, strict=True)]
    by_code = _by_label([code for code, _ in pairs], [code == name for code, name in pairs])
    worst = sorted(by_code.items(), key=lambda item: (np.mean(item[1]), item[0]))
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    longer = {
        str(least): [
            p for p, (_, text) in zip(pairs, known_rows, strict=True) if len(text) >= least
        ]
        for least in MIN_CHARS
    }
    return {
        "languages": len(by_code),
        "unknown": dict(sorted(unknown.items())),
        **_accuracy(pairs),
        "longer": {least: _accuracy(part) for least, part in longer.items()},
        "worst": [[code, mean(hits), len(hits)] for code, hits in worst[:SHOWN]],
        "confusions": [[*pair, count] for pair, count in ranked[:SHOWN]],
    }


def _by_label(labels: Sequence[str], right: Iterable[bool]) -> dict[str, list[bool]]:
    by_label: dict[str, list[bool]] = {}
    for label, hit in zip(labels, right, strict=True):
        by_label.setdefault(label, []).append(bool(hit))
    return dict(sorted(by_label.items()))


def _accuracy(pairs: Sequence[tuple[str, str]]) -> dict:
    right = [code == name for code, name in pairs]
    by_label = _by_label([code for code, _ in pairs], right)
    macro = mean(mean(hits) for hits in by_label.values())
    return {"texts": len(pairs), "accuracy": mean(right), "macro": macro}


def measure_tweets(classes: Sequence[str], scores: Sequence[float]) -> dict:
    """How well scores part toxic texts from others.

    Args:
        classes: of TWEETS.
        scores: of toxicity.

    Returns:
        {texts, auc: {'toxic', or one class of it: against 'neither'}}.
    """
    scores, classes = np.asarray(scores), np.asarray(classes)
    harmless = classes == NEITHER
    pairs = {"toxic": ~harmless} | {name: classes == name for name in TWEETS if name != NEITHER}
    return {
        "texts": len(classes),
        "auc": {
            name: auc(scores[wanted | harmless], wanted[wanted | harmless])
            for name, wanted in pairs.items()
        },
    }


def measure_words(
    classes: Sequence[str], hit: Sequence[bool], too_many: Sequence[bool]
) -> dict[str, dict]:
    """Shares of texts in which listed words are found.

    Args:
        classes: of TWEETS.
        hit, too_many: whether any were found, and more than allowed.

    Returns:
        {class: {texts, hit, too_many}}.
    """
    by_hit, by_limit = _by_label(classes, hit), _by_label(classes, too_many)
    return {
        name: {"texts": len(by_hit[name]), "hit": mean(by_hit[name]), "too_many": mean(limit)}
        for name, limit in by_limit.items()
    }


def measure_hatecheck(
    cases: Sequence[tuple[str, bool, str]], scores: Sequence[float], flagged: Sequence[bool]
) -> dict:
    """Accuracy by what a case tests, and whom false alarms hit.

    Args:
        cases: (functionality, whether it is hateful, whom it is about or '').
        scores: of toxicity.
        flagged: whether the score is too high.

    Returns:
        {cases, auc, accuracy, macro: mean of the functionalities' accuracies, functionalities:
        {name: {cases, hateful, accuracy}}, false_alarms: {whom, or 'all': {cases that are not
        hateful, rate}}}.

    Source: Roettger et al. 2021, https://arxiv.org/abs/2012.15606.
    """
    hateful = np.array([case[1] for case in cases], bool)
    right = hateful == np.asarray(flagged, bool)
    names = [case[0] for case in cases]
    harmless = [
        (case[2], bool(hit)) for case, hit in zip(cases, flagged, strict=True) if not case[1]
    ]
    about = _by_label([whom for whom, _ in harmless], [hit for _, hit in harmless])
    about = {"all": [hit for _, hit in harmless]} | {
        whom or "nobody": about[whom] for whom in about
    }
    return {
        "cases": len(cases),
        "auc": auc(scores, hateful),
        "accuracy": mean(right),
        "macro": mean(mean(hits) for hits in _by_label(names, right).values()),
        "functionalities": {
            name: {
                "cases": len(hits),
                "hateful": bool(hateful[names.index(name)]),
                "accuracy": mean(hits),
            }
            for name, hits in _by_label(names, right).items()
        },
        "false_alarms": {
            whom: {"cases": len(hits), "rate": mean(hits)} for whom, hits in about.items()
        },
    }


def measure_votes(votes: Sequence[tuple[int, bool]], scores: Sequence[float]) -> dict:
    """Compares a quality score with what people say.

    Args:
        votes: (1 for good or 0, whether all people agree).
        scores: of quality.

    Returns:
        {'all', and 'agreed' for the texts on which all agree: {texts, good, auc, spearman}}.
    """
    labels, agreed = (np.array([vote[i] for vote in votes], bool) for i in (0, 1))
    scores = np.asarray(scores)
    parts = {"all": np.ones(len(votes), bool), "agreed": agreed}
    return {
        name: {
            "texts": int(part.sum()),
            "good": int(labels[part].sum()),
            "auc": auc(scores[part], labels[part]),
            "spearman": spearman(scores[part], labels[part]),
        }
        for name, part in parts.items()
    }


def measure_latex(sources: Iterable[str]) -> dict:
    """Counts what readable text must not hold, in the texts made of LaTeX.

    Args:
        sources: LaTeX.

    Returns:
        {documents, chars, left: {name in LATEX_LEFT, 'comments' or 'odd_dollars': documents with
        any}}.
    """
    num_documents, num_chars = 0, 0
    left = Counter(dict.fromkeys((*LATEX_LEFT, "comments", "odd_dollars"), 0))
    for source in sources:
        text = latex.to_text(source)
        num_documents, num_chars = num_documents + 1, num_chars + len(text)
        left.update(name for name, pattern in LATEX_LEFT.items() if pattern.search(text))
        left["comments"] += any(comment in text for comment in COMMENT.findall(source))
        left["odd_dollars"] += len(re.findall(r"(?<!\\)\$", text)) % 2
    return {"documents": num_documents, "chars": num_chars, "left": dict(left)}


def measure_archives(paths: Iterable[Path]) -> dict[str, dict]:
    """Counts what is read of web archives.

    Args:
        paths: WARC and WET files.

    Returns:
        {file: {records, documents, broken: [record and why]}}.
    """
    found = {}
    for path in paths:
        with storage.open_raw(str(path)) as stream:
            num_records = sum(1 for _ in warc.records(stream))
        records = list(web.read(str(path)))
        broken = [f"record {record.number}: {record.why}" for record in records if record.why]
        num_documents = len(records) - len(broken)
        found[path.name] = {"records": num_records, "documents": num_documents, "broken": broken}
    return found


def measure_forums(paths: Iterable[Path]) -> dict[str, dict]:
    """Counts the rows of dumps by what they say they are, and what was made of them.

    Args:
        paths: Posts.xml files of Stack Exchange.

    Returns:
        {file: {question_rows, answer_rows, questions, answers, broken}}.
    """
    found = {}
    for path in paths:
        with storage.open_plain(str(path)) as stream:
            rows = Counter(kind for line in stream for kind in QUESTION_OR_ANSWER.findall(line))
        records = list(forums.read_stack_exchange(str(path)))
        whole = [record for record in records if not record.why]
        found[path.name] = {
            "question_rows": rows[b"1"],
            "answer_rows": rows[b"2"],
            "questions": len(whole),
            "answers": sum(record.meta["num_answers"] for record in whole),
            "broken": len(records) - len(whole),
        }
    return found
