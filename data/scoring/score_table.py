"""What `seedbed curate --score` measured, as a table for people."""

from collections.abc import Iterator, Sequence
from functools import partial

SHOWN = 30
KEYS = ("accuracy", "macro")
Rows = Iterator[tuple[str, str, str]]


def rows(result: dict) -> list[tuple[str, str, str]]:
    """Lays out measures.

    Args:
        result: of score.score.

    Returns:
        (measure, figure, remark), in the order of the measures; those that are absent last.
    """
    tables = {
        "pii": _pii_rows,
        "tatoeba": partial(_language_rows, "Language of sentences"),
        "udhr": partial(_language_rows, "Language of declarations"),
        "tweets": _tweet_rows,
        "hatecheck": _hatecheck_rows,
        "bad_words": _word_rows,
        "quality": _quality_rows,
        "duplicates": _duplicate_rows,
        "contamination": _contamination_rows,
        "archives": _archive_rows,
        "forums": _forum_rows,
        "papers": _paper_rows,
    }
    found = [row for name, table in tables.items() if name in result for row in table(result[name])]
    return found + [(name, "not measured", why) for name, why in result["absent"].items()]


def _rate(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _rates(row: dict, names: Sequence[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_rate(row[name])}" for name in names)


def _pii_rows(result: dict) -> Rows:
    for kind, row in result["kinds"].items():
        exact = _rates(row["exact"], ("precision", "recall"))
        remark = f"{row['gold']} there, {row['found']} found; to the character: {exact}"
        if not row["gold"] and not row["found"]:
            yield f"PII: {kind}", "none there, none found", ""
        else:
            yield f"PII: {kind}", _rates(row["overlapping"], ("precision", "recall", "f1")), remark
    others = ", ".join(f"{name} {count}" for name, count in result["others"].items())
    yield "PII: not looked for", f"{sum(result['others'].values()):,}", others


def _language_rows(title: str, result: dict) -> Rows:
    remark = f"{result['texts']:,} texts in {result['languages']} languages"
    for chars, row in result["longer"].items():
        if row["texts"] < result["texts"]:
            remark += f"; from {chars} characters {_rates(row, KEYS)}"
    yield title, _rates(result, KEYS), remark
    others = len(result["unknown"]) - SHOWN
    names = ", ".join(list(result["unknown"])[:SHOWN]) + f" and {others} more" * (others > 0)
    yield f"{title}: unknown to the model", str(len(result["unknown"])), names
    worst = ", ".join(f"{code} {_rate(rate)} of {count}" for code, rate, count in result["worst"])
    yield f"{title}: found least", "", worst
    wrong = ", ".join(f"{gold} as {name} {n}" for gold, name, n in result["confusions"])
    yield f"{title}: confused most", "", wrong


def _tweet_rows(result: dict) -> Rows:
    for name, area in result["auc"].items():
        yield f"Toxicity: {name} tweets", f"AUC {_rate(area)}", result["how"]


def _hatecheck_rows(result: dict) -> Rows:
    figure = f"AUC {_rate(result['auc'])}, {_rates(result, KEYS)}"
    remark = f"{result['cases']:,} cases, hateful above {result['max_score']}; {result['how']}"
    yield "HateCheck", figure, remark
    for name, row in result["functionalities"].items():
        kind = "hateful" if row["hateful"] else "not hateful"
        yield f"HateCheck: {name}", _rates(row, ("accuracy",)), f"{row['cases']} cases, {kind}"
    for whom, row in result["false_alarms"].items():
        remark = f"{row['cases']} cases that are not hateful"
        yield f"HateCheck: false alarms, {whom}", _rate(row["rate"]), remark


def _word_rows(result: dict) -> Rows:
    for name, row in result.items():
        yield f"Word lists: {name} tweets", _rates(row, ("hit", "too_many")), f"{row['texts']:,}"


def _quality_rows(result: dict) -> Rows:
    for name in ("all", "agreed"):
        row = result[name]
        remark = f"{row['texts']} texts, {row['good']} of them good; {result['how']}"
        yield f"Quality: votes, {name}", _rates(row, ("auc", "spearman")), remark


def _duplicate_rows(result: dict) -> Rows:
    for row in (result["exact"], *result["near"]):
        kind = f"{row['share']:.0%} of words replaced" if "share" in row else "exact"
        remark = f"{row['planted']:,} pairs, {row['false_merges']} other pairs merged"
        if "share" in row:
            remark += f"; {_rates(row, ('expected', 'similarity'))}"
        yield f"Duplicates: {kind}", f"recall {_rate(row['recall'])}", remark
    parts = (result["exact"], *result["near"])
    merged = {tuple(row["ids"]): row["similarity"] for part in parts for row in part["merged"]}
    for ids, similarity in merged.items():
        yield "Duplicates: merged", f"similarity {_rate(similarity)}", " and ".join(ids)


def _contamination_rows(result: dict) -> Rows:
    remark = f"{result['planted']} of {result['texts']:,} texts of {result['sets']} sets"
    for form, recall in result["recall"].items():
        yield f"Contamination: {form.replace('_', ' ')}", f"recall {_rate(recall)}", remark
    remark = f"in {result['unplanted']:,} documents with nothing planted"
    yield "Contamination: other hits", str(len(result["hits"])), remark
    for hit in result["hits"]:
        yield f"Contamination: {hit['set']}", hit["shared"], hit["id"]


def _archive_rows(result: dict) -> Rows:
    for name, row in result.items():
        figure = f"{row['documents']} documents of {row['records']} records"
        yield f"Archive: {name}", figure, "; ".join(row["broken"]) or "none broken"


def _forum_rows(result: dict) -> Rows:
    for name, row in result.items():
        figure = f"{row['questions']} questions, {row['answers']} answers"
        remark = f"of {row['question_rows']} and {row['answer_rows']} rows; {row['broken']} broken"
        yield f"Forum: {name}", figure, remark


def _paper_rows(result: dict) -> Rows:
    left = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in result["left"].items())
    remark = f"{result['documents']} documents, {result['chars']:,} characters: {left}"
    yield "LaTeX: documents with something left", str(sum(result["left"].values())), remark
