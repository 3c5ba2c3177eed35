"""What the report says of data: what was read, what each gate took and why, what that left.

Figures come from curate/funnel.json and tokenizer/shards.json; the template only lays them out.
"""

import graphlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

TOP_LANGUAGES = 15
TOP_REASONS = 6
TOP_GROUPS = 15
TOP_TROUBLES = 20
PLACES = 3  # of each kind of broken record
UNITS = ("documents", "bytes")
READ, KEPT, HELDOUT = "read", "kept", "heldout"
# Gates whose drops stay closed until they are asked for, and what to know before that.
VEILED = {
    "blocked": "The texts are from hosts on the block list, and may offend.",
    "opt_out": "The owners of these texts asked that they not be used.",
    "toxic_words": "The texts were dropped as offensive.",
    "toxicity": "The texts were dropped as offensive.",
}

Counts = Mapping[str, int]


def curation(funnel: Mapping, shards: Mapping | None) -> dict:
    """Rows of the sections on curation.

    Args:
      funnel: curate/funnel.json, described at data.curate.curate.
      shards: tokenizer/shards.json, described at data.tokens.packing.make_shards; None before that
        stage. With it, tokens left after each gate are estimated by bytes a token of each domain.

    Returns:
      domains; totals of read, kept and heldout, each {documents, bytes}; by_domain, a row a domain;
      steps, what is left after each gate that took something, the first what was read, the last
      what is kept; idle, names of the other gates; drops, a row a gate with its reasons and some
      texts; kept_samples; languages, as of `_by_language`; troubles, broken records by why;
      num_broken; largest_cluster.
    """
    domains = list(funnel["read"])
    steps = _steps(funnel, domains)
    if shards:
        rates = _tokens_per_byte(shards)
        for step in steps:
            step["tokens"] = sum(
                left["bytes"] * rates.get(domain, rates[""])
                for domain, left in step["left"].items()
            )
    idle = [step["gate"] for step in steps[1:-1] if not step["taken"]["documents"]]
    return {
        "domains": domains,
        "totals": {name: _add_up(funnel[name].values()) for name in (READ, KEPT, HELDOUT)},
        "by_domain": [
            {"domain": domain, **{name: funnel[name][domain] for name in (READ, KEPT, HELDOUT)}}
            for domain in domains
        ],
        "steps": [step for step in steps if step["gate"] not in idle],
        "idle": idle,
        "drops": _drops(funnel),
        "kept_samples": _samples(funnel, KEPT),
        "languages": _by_language(funnel["languages"], UNITS),
        "troubles": _troubles(funnel["broken"]),
        "num_broken": funnel["num_broken"],
        "largest_cluster": funnel["largest_cluster"],
    }


def tokens(shards: Mapping) -> dict:
    """Rows of the section on tokens.

    Args:
      shards: tokenizer/shards.json.

    Returns:
      rows, one a domain, {domain, documents, bytes, tokens, records, shards, fertility}; totals of
      them; languages, as of `_by_language`, each cell with its fertility in bytes a token.
    """
    units = ("documents", "bytes", "tokens", "records", "shards")
    by_domain: dict[str, list[Mapping]] = {}
    for group in shards["groups"].values():
        by_domain.setdefault(group["domain"], []).append(group)
    table: dict[str, dict] = {domain: {} for domain in by_domain}
    for domain, language, *counts in shards["fertility"]:
        table[domain][language] = dict(zip(units, counts, strict=False))
    rows = [
        {"domain": domain, **_add_up(groups, units)} for domain, groups in sorted(by_domain.items())
    ]
    totals = {"domain": "all", **_add_up(rows, units)}
    languages = _by_language(table, units[:3])
    cells = [cell for row in languages["rows"] for cell in (row, *row["cells"]) if cell]
    for counts in (*rows, totals, *cells):
        counts["fertility"] = counts["bytes"] / max(1, counts["tokens"])
    return {"rows": rows, "totals": totals, "languages": languages}


def mixture(rows: Sequence[Mapping]) -> dict:
    """Rows of the section on the mixture.

    Args:
      rows: described at data.mixture.plan.tabulate.

    Returns:
      domains; shares, which there are of asked, planned and realised; stages, the whole run last,
      each {title, tokens, rows}, a row a domain, {*shares, epochs}, or None where it is not asked
      for; groups, those of the whole run that were asked for most, and num_groups of all; none if
      every domain is one group.
    """
    shares = [name for name in ("asked", "planned", "realised") if name in rows[0]]
    domains = sorted({row["domain"] for row in rows})
    by_stage: dict[str, list[Mapping]] = {}
    for row in rows:
        by_stage.setdefault(row["stage"], []).append(row)
    whole = by_stage[""]
    stages = [
        {
            "title": stage or "the whole run",
            "tokens": sum(row["tokens"] for row in found),
            "rows": [
                _mixed([row for row in found if row["domain"] == domain], shares)
                for domain in domains
            ],
        }
        for stage, found in by_stage.items()
        if stage == "" or len(by_stage) > 2
    ]
    split = len(whole) > len({row["domain"] for row in whole})
    ranked = sorted(whole, key=lambda row: (-row["asked"], row["domain"], row["language"]))
    groups = ranked[:TOP_GROUPS] if split else []
    return {
        "domains": domains,
        "shares": shares,
        "stages": stages,
        "groups": groups,
        "num_groups": len(whole),
    }


def _mixed(groups: Sequence[Mapping], shares: Sequence[str]) -> dict | None:
    """A domain in a stage: the sums of its languages, and how often it is read as a whole."""
    if not groups:
        return None
    sizes = sum(row["tokens"] / row["epochs"] for row in groups if row["epochs"])
    epochs = sum(row["tokens"] for row in groups) / sizes if sizes else 0.0
    return {**{name: sum(row[name] for row in groups) for name in shares}, "epochs": epochs}


def _add_up(counted: Iterable[Counts], units: Sequence[str] = UNITS) -> dict[str, int]:
    counted = list(counted)
    return {unit: sum(counts[unit] for counts in counted) for unit in units}


def _steps(funnel: Mapping, domains: Sequence[str]) -> list[dict]:
    """What is left after each gate, and what it took, by the domains to which it applies.

    What the last step takes are edits: bytes of documents that are kept.
    """
    counted = {(row["gate"], row["domain"]): row for row in funnel["stages"]}
    left = {domain: _add_up([funnel[READ][domain]]) for domain in domains}
    steps = [_step(READ, left, {})]
    for gate in _order(funnel["stages"], domains):
        found = {d: _add_up([counted[gate, d]]) for d in domains if (gate, d) in counted}
        steps.append(_step(gate, {**left, **found}, left, found))
        left = {**left, **found}
    kept = {domain: _add_up([funnel[KEPT][domain]]) for domain in domains}
    return [*steps, _step(KEPT, kept, left, kept)]


def _step(gate: str, left: Mapping, before: Mapping, applied: Sequence[str] = ()) -> dict:
    by_domain = {
        domain: {unit: before[domain][unit] - left[domain][unit] for unit in UNITS}
        for domain in applied
    }
    return {
        "gate": gate,
        "left": left,
        "taken_by_domain": by_domain,
        "taken": _add_up(by_domain.values()),
        **_add_up(left.values()),
    }


def _order(stages: Sequence[Mapping], domains: Sequence[str]) -> list[str]:
    """One order of all gates that agrees with that of every domain."""
    sorter = graphlib.TopologicalSorter()
    for domain in domains:
        before: list[str] = []
        for row in stages:
            if row["domain"] == domain:
                sorter.add(row["gate"], *before)
                before = [row["gate"]]
    return list(sorter.static_order())


def _tokens_per_byte(shards: Mapping) -> dict[str, float]:
    """By domain; under '' that of all, for a domain without training documents."""
    sums: dict[str, Counter] = {"": Counter()}
    for domain, _, _, num_bytes, num_tokens in shards["fertility"]:
        for name in (domain, ""):
            sums.setdefault(name, Counter()).update(bytes=num_bytes, tokens=num_tokens)
    return {name: found["tokens"] / max(1, found["bytes"]) for name, found in sums.items()}


def _drops(funnel: Mapping) -> list[dict]:
    """Gates by documents taken, with the commonest reasons of those that name any."""
    rows = []
    for gate, found in funnel["dropped"].items():
        reasons = sorted(found["reasons"].items(), key=lambda item: (-item[1], item[0]))
        reasons = [] if [name for name, _ in reasons] == [""] else reasons
        rows.append(
            {
                "gate": gate,
                **_add_up([found]),
                "reasons": reasons[:TOP_REASONS],
                "others": (len(reasons[TOP_REASONS:]), sum(n for _, n in reasons[TOP_REASONS:])),
                "samples": _samples(funnel, gate),
                "veil": VEILED.get(gate, ""),
            }
        )
    return sorted(rows, key=lambda row: (-row["documents"], row["gate"]))


def _samples(funnel: Mapping, gate: str) -> list[dict]:
    names = ("id", "reason", "detail", "text")
    return [dict(zip(names, row, strict=True)) for row in funnel["samples"].get(gate, [])]


def _by_language(table: Mapping[str, Mapping[str, Counts]], units: Sequence[str]) -> dict:
    """The languages that have most of the last unit, a row each, and the others as one more.

    Args:
      table: domain -> language -> counts.
      units: what is counted.

    Returns:
      domains; count, of all languages; rows {language, cells: counts or None by domain, and the
      counts of all domains}; totals, by domain.
    """
    names = sorted({language for found in table.values() for language in found})
    sums = {
        name: _add_up([found[name] for found in table.values() if name in found], units)
        for name in names
    }
    ranked = sorted(names, key=lambda name: (-sums[name][units[-1]], name))
    lines = [(name or "none", [name]) for name in ranked[:TOP_LANGUAGES]]
    if rest := ranked[TOP_LANGUAGES:]:
        lines.append((f"{len(rest)} others", rest))
    rows = []
    for title, members in lines:
        cells = []
        for found in table.values():
            counted = [found[name] for name in members if name in found]
            cells.append(_add_up(counted, units) if counted else None)
        rows.append({"language": title, "cells": cells, **_add_up(filter(None, cells), units)})
    return {
        "domains": list(table),
        "count": len(names),
        "rows": rows,
        "totals": [_add_up(found.values(), units) for found in table.values()],
    }


def _troubles(broken: Sequence[Mapping]) -> dict:
    """Broken records by why, numbers and quotations aside, and where the first of each are."""
    kinds: dict[str, list[Mapping]] = {}
    for row in broken:
        kind = re.sub(r"'[^']*'|\"[^\"]*\"|\b0x[0-9a-f]+\b|\d+", "…", row["why"])
        kinds.setdefault(kind, []).append(row)
    ranked = sorted(kinds.values(), key=len, reverse=True)
    return {
        "rows": [
            {"why": rows[0]["why"], "count": len(rows), "places": rows[:PLACES]}
            for rows in ranked[:TOP_TROUBLES]
        ],
        "named": len(broken),
        "others": sum(map(len, ranked[TOP_TROUBLES:])),
    }
