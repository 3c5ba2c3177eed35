"""The funnel: what was read, what each gate took and why, and what is left."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from data import dedup, sources, tasks
from data.errors import BadInput
from data.gates import chain

SHOWN = 8  # samples of each gate


def count(
    found: sources.Survey,
    parts: Sequence[tasks.Part],
    written: Sequence[Mapping],
    largest_cluster: int,
) -> dict:
    """Adds up what the parts have counted;

    Args:
        found: the sources.
        parts: what data.tasks.filter_part left.
        written: summaries of data.tasks.write, in the same order.
        largest_cluster: documents in the biggest cluster of near-duplicates.

    Returns:
        `read`, `kept`, `heldout` (part of kept), each {domain: {documents, bytes}}; `dropped`,
        {gate: {documents, bytes, reasons: {reason: documents}}}; `stages`, rows of what is left
        after each gate and deduplication, {gate, domain, dropped, documents, bytes}; `languages`,
        {domain: {language: {documents, bytes}}} of what is kept; `broken`, records skipped,
        {file, record, why}, the first of each part, and `num_broken` of all; `samples`, {gate:
        [[id, reason, detail, text], ...]}; `largest_cluster`. Bytes are of UTF-8 text.
    """
    rows = [
        (part.domain, *row)
        for part, summary in zip(parts, written, strict=True)
        for row in summary["counts"]
    ]
    broken = [row for part in parts for row in part.summary["named"]] + found.broken
    kept = [row for row in rows if not row[1]]
    read = {domain: _sum([row for row in rows if row[0] == domain], 7) for domain in found.sources}
    samples: dict[str, list] = {}
    for part, summary in zip(parts, written, strict=True):
        for gate, shown in summary["samples"].items():
            samples.setdefault(gate, []).extend((part.domain, *row) for row in shown)
    return {
        "read": read,
        "stages": _stages(rows, read, found.sources),
        "kept": _by_domain(kept, found.sources),
        "heldout": _by_domain([row for row in kept if row[4] == "heldout"], found.sources),
        "dropped": _dropped([row for row in rows if row[1]]),
        "languages": {
            domain: {
                language: _sum([row for row in kept if row[0] == domain and row[3] == language], 6)
                for language in sorted({row[3] for row in kept if row[0] == domain})
            }
            for domain in found.sources
        },
        "broken": broken,
        "num_broken": sum(part.summary["broken"] for part in parts) + len(found.broken),
        "samples": {gate: _choose(shown) for gate, shown in sorted(samples.items())},
        "largest_cluster": largest_cluster,
    }


def _choose(shown: list[tuple]) -> list[list]:
    """Of samples (domain, place, id, reason, detail, text) those placed lowest, domains in turn."""
    ranked, counts = [], {}
    for row in sorted(shown, key=lambda row: row[1:3]):
        counts[row[0]] = counts.get(row[0], 0) + 1
        ranked.append((counts[row[0]], row))
    ranked.sort(key=lambda item: (item[0], item[1][1:3]))
    return [list(row[2:]) for _, row in ranked[:SHOWN]]


def _sum(rows: list[tuple], column: int) -> dict:
    """Documents, and bytes of a column: 6 what is left, 7 as read."""
    return {"documents": sum(row[5] for row in rows), "bytes": sum(row[column] for row in rows)}


def _by_domain(rows: list[tuple], domains: Iterable[str]) -> dict:
    return {domain: _sum([row for row in rows if row[0] == domain], 6) for domain in domains}


def _dropped(rows: list[tuple]) -> dict:
    gates_hit = {
        gate: [row for row in rows if row[1] == gate] for gate in sorted({r[1] for r in rows})
    }
    return {
        gate: {
            **_sum(hit, 6),
            "reasons": {
                reason: sum(row[5] for row in hit if row[2] == reason)
                for reason in sorted({row[2] for row in hit})
            },
        }
        for gate, hit in gates_hit.items()
    }


def _stages(rows: list[tuple], read: Mapping, domains: Mapping[str, sources.SourceConfig]) -> list:
    """Counts what is left after each step, for each domain to which the step applies."""
    stages = []
    for domain, source in domains.items():
        left = dict(read[domain])
        applied = (chain.EMPTY, *chain.expand(source.gates), *dedup.WAYS, dedup.PARAGRAPHS)
        for gate in applied:
            if gate not in chain.EDITS:
                gone = _sum([row for row in rows if row[0] == domain and row[1] == gate], 7)
                left = {unit: left[unit] - gone[unit] for unit in left}
                stages.append(
                    {"gate": gate, "domain": domain, "dropped": gone["documents"], **left}
                )
    return stages


def refuse_unread(
    is_named: bool, found: sources.Survey, parts: Sequence[tasks.Part], log: Callable[[str], None]
) -> None:
    """Refuses a domain that the user named, and any corpus, in which there was no document.

    Args:
        is_named: whether the configuration names the domains, rather than one path.
        found: the sources.
        parts: what data.tasks.filter_part left.
        log: takes a line on each other such domain.

    Raises:
        BadInput: such a domain.
    """
    read = dict.fromkeys(found.sources, 0)
    for part in parts:
        read[part.domain] += part.summary["documents"]
    for domain in (domain for domain in read if not read[domain]):
        mine = [part.summary for part in parts if part.domain == domain]
        num_files = sum(unit.domain == domain for unit in found.units)
        broken = [row for summary in mine for row in summary["named"]]
        why = f"not one document in {num_files} file(s)"
        why += f"; first trouble: {name(broken[0])}" if broken else ""
        if is_named or not any(read.values()):
            source = found.sources[domain]
            key = f"data.sources.{domain}.path" if is_named else "data.sources"
            raise BadInput(
                f"{key}: {source.path}: {why}; with text_field {source.text_field!r}, a text or a "
                "text field with a string is needed"
            )
        log(f"{domain}: {why}")


def name(row: Mapping) -> str:
    """A broken record in a line."""
    return f"{row['file']} record {row['record']}: {row['why']}"


def refuse_lost(is_named: bool, counted: Mapping, out: Path, log: Callable[[str], None]) -> None:
    """Refuses a domain that the user named, and any corpus, of which nothing is left.

    Args:
        is_named: whether the configuration names the domains, rather than one path.
        counted: what `count` returns.
        out: where the tables are.
        log: takes a line on each other such domain.

    Raises:
        BadInput: such a domain.
    """
    kept = {domain: counts["documents"] for domain, counts in counted["kept"].items()}
    for domain in (domain for domain in kept if not kept[domain]):
        took = {row["gate"]: row["dropped"] for row in counted["stages"] if row["domain"] == domain}
        gate = max(took, key=took.get)
        why = f"none of its {counted['read'][domain]['documents']} documents is left"
        why += f"; {gate!r} took most of them ({took[gate]})"
        if is_named or not any(kept.values()):
            key = f"data.sources.{domain}" if is_named else f"data.sources: {domain}"
            raise BadInput(
                f"{key}: {why}; {out}/dropped has them; allowed: a threshold that lets some pass, "
                "or a source, named in a config file, whose gates do without it"
            )
        log(f"{domain}: {why}")
