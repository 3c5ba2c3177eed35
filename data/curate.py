"""Curation: sources to documents that are clean, different from each other, and split for training.

read -> gates -> exact duplicates -> near-duplicates -> split. Every document that is read is in
documents.parquet or, with the reason, in dropped.parquet; funnel.json counts them at every step.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import dedup, gates, sources
from data.errors import BadInput

DROPPED_CHARS = 2000
MIN_DOCUMENT_BYTES = 1024


@dataclass(frozen=True)
class CurateConfig:
    """The curation stage.

    Attributes:
        sources: source by domain name; a name is letters, digits and underscores.
        gates: thresholds of the gates.
        dedup: settings of near-duplicate detection.
        heldout_fraction: share of the documents' sources held out from training, above 0, to 0.5.
        max_document_bytes: a longer text is cut into several documents.
    """

    sources: Mapping[str, sources.SourceConfig]
    gates: gates.GateConfig
    dedup: dedup.DedupConfig
    heldout_fraction: float
    max_document_bytes: int

    def __post_init__(self):
        if not self.sources:
            raise ValueError("sources: empty; name at least one domain")
        for domain in self.sources:
            if not domain.isidentifier():
                allowed = "must be letters, digits and underscores, no digit first"
                raise ValueError(f"sources: domain {domain!r} {allowed}")
        if not 0 < self.heldout_fraction <= 0.5:
            allowed = "must be above 0 and at most 0.5"
            raise ValueError(f"heldout_fraction: {self.heldout_fraction} {allowed}")
        if self.max_document_bytes < MIN_DOCUMENT_BYTES:
            allowed = f"must be at least {MIN_DOCUMENT_BYTES}"
            raise ValueError(f"max_document_bytes: {self.max_document_bytes} {allowed}")


def curate(config: CurateConfig, out: Path, log: Callable[[str], None]) -> dict:
    """Curates all sources into one table of documents.

    Args:
        config: the stage's configuration.
        out: directory, made if missing; files there of the same names are replaced together.
        log: takes progress lines.

    Returns:
        The funnel, as written to out/funnel.json: `read`, `kept`, `heldout` (part of kept), each
        {domain: {documents, bytes}}; `stages`, rows of what is left after each gate and
        deduplication, {gate, domain, documents, bytes}; `broken`, records passed over, {file,
        record, why}; `largest_cluster`, the documents in the biggest near-duplicate cluster.
        Bytes are of UTF-8 text. Also written: out/documents.parquet (id, domain, source, split
        'train' or 'heldout', text), out/dropped.parquet (id, domain, source, why, duplicate_of,
        text: its first 2000 characters).

    Raises:
        BadInput: a source that cannot be read, or a domain of which nothing is left.
    """
    from data import engine

    raw, broken = _read(config, log)
    gates_by_domain = {domain: source.gates for domain, source in config.sources.items()}
    table = engine.gate(raw, config.gates, gates_by_domain)
    log(f"gates: {len(_left(table))} of {len(table)} documents left")
    _refuse_lost_domain(table)

    exact = engine.exact_duplicates(_left(table))
    table = _mark(table, exact, dedup.EXACT)
    log(f"exact duplicates: {len(exact)} dropped")
    near = engine.near_duplicates(_left(table), config.dedup)
    table = _mark(table, near, dedup.NEAR)
    log(f"near-duplicates: {len(near)} dropped")

    _refuse_lost_domain(table)
    documents = _split(_left(table), config.heldout_fraction)
    heldout = documents.filter(pc.equal(documents.column("split"), "heldout"))
    funnel = {
        "read": _count(raw, config.sources),
        "stages": _stages(table, gates_by_domain),
        "kept": _count(documents, config.sources),
        "heldout": _count(heldout, config.sources),
        "broken": broken,
        "largest_cluster": max(Counter(near.values()).values(), default=0) + 1,
    }
    _write(out, documents, _dropped(table, exact, near), funnel)
    log(f"kept {len(documents)} documents, {len(heldout)} of them held out")
    return funnel


def _read(config: CurateConfig, log: Callable[[str], None]) -> tuple[pa.Table, list[dict]]:
    for domain, source in config.sources.items():
        sources.list_files(domain, source)  # a wrong path is said before anything is read
    batches, broken = [], []
    for domain, source in sorted(config.sources.items()):
        num_batches = len(batches)
        batches += sources.read(domain, source, config.max_document_bytes, broken)
        num_documents = sum(len(batch) for batch in batches[num_batches:])
        log(f"read {domain}: {num_documents} documents from {source.path}")
    if broken:
        first = broken[0]
        place = f"{first['file']} record {first['record']}"
        log(f"passed over {len(broken)} broken records, the first {place}: {first['why']}")
    return pa.Table.from_batches(batches, sources.SCHEMA), broken


def _left(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table.column("why"), ""))


def _mark(table: pa.Table, duplicates: Mapping[str, str], why: str) -> pa.Table:
    ids, whys = table.column("id").to_pylist(), table.column("why").to_pylist()
    marked = [why if key in duplicates else old for key, old in zip(ids, whys, strict=True)]
    index = table.schema.get_field_index("why")
    return table.set_column(index, "why", pa.array(marked, pa.string()))


def _num_bytes(table: pa.Table) -> np.ndarray:
    return pc.binary_length(table.column("text")).to_numpy().astype(np.int64)


def _count(table: pa.Table, all_domains: Iterable[str]) -> dict:
    domains = np.array(table.column("domain").to_pylist(), object)
    num_bytes = _num_bytes(table)
    return {domain: _tally(num_bytes[domains == domain]) for domain in sorted(all_domains)}


def _tally(num_bytes: np.ndarray) -> dict:
    return {"documents": len(num_bytes), "bytes": int(num_bytes.sum())}


def _stages(table: pa.Table, gates_by_domain: Mapping[str, tuple[str, ...]]) -> list[dict]:
    """Counts what is left after each step, for each domain to which the step applies."""
    domains = np.array(table.column("domain").to_pylist(), object)
    whys = np.array(table.column("why").to_pylist(), object)
    num_bytes = _num_bytes(table)
    left, rows = np.ones(len(table), bool), []
    for gate in ("normalise", gates.EMPTY, *gates.NAMES, dedup.EXACT, dedup.NEAR):
        left &= whys != gate
        for domain, names in sorted(gates_by_domain.items()):
            if gate not in gates.NAMES or gate in names:
                tally = _tally(num_bytes[left & (domains == domain)])
                rows.append({"gate": gate, "domain": domain, **tally})
    return rows


def _refuse_lost_domain(table: pa.Table):
    whys = {}
    for domain, why in zip(
        table.column("domain").to_pylist(), table.column("why").to_pylist(), strict=True
    ):
        whys.setdefault(domain, Counter())[why] += 1
    for domain, counts in sorted(whys.items()):
        if not counts[""]:
            why, num_dropped = counts.most_common(1)[0]
            raise BadInput(
                f"sources.{domain}: none of its {counts.total()} documents is left; {why!r} took "
                f"most of them ({num_dropped}); allowed: a threshold that lets some pass, or "
                f"sources.{domain}.gates without it"
            )


def _split(documents: pa.Table, heldout_fraction: float) -> pa.Table:
    """Adds the column `split`.

    All documents of one source file or record go to the same side, in every domain: the parts of
    a book, or a module's docstrings and its code, which holds them too. Where a domain has one
    source only, its documents are parted one by one. A domain of two or more has some on each side.
    """
    ids, names, domains = (
        documents.column(column).to_pylist() for column in ("id", "source", "domain")
    )
    names_of = {}
    for domain, name in zip(domains, names, strict=True):
        names_of.setdefault(domain, set()).add(name)
    groups_of = {}
    keys = []
    for key, name, domain in zip(ids, names, domains, strict=True):
        keys.append((domain, name if len(names_of[domain]) > 1 else key))
        groups_of.setdefault(domain, set()).add(keys[-1][1])
    heldout = {
        (domain, group)
        for domain, groups in groups_of.items()
        for group in _heldout_groups(groups, heldout_fraction)
    }
    splits = ["heldout" if key in heldout else "train" for key in keys]
    table = documents.append_column("split", pa.array(splits, pa.string()))
    return table.select(["id", "domain", "source", "split", "text"])


def _heldout_groups(groups: set[str], fraction: float) -> list[str]:
    """Chooses by a hash of the name, so that a group stays on its side when others come or go."""
    by_place = sorted((_place(group), group) for group in groups)
    num_below = sum(place < fraction for place, _ in by_place)
    num_heldout = min(max(num_below, 1), len(groups) - 1)
    return [group for _, group in by_place[:num_heldout]]


def _place(group: str) -> float:
    digest = hashlib.blake2b(group.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _dropped(table: pa.Table, exact: Mapping[str, str], near: Mapping[str, str]) -> pa.Table:
    dropped = table.filter(pc.not_equal(table.column("why"), ""))
    kept_ids = []
    for key in dropped.column("id").to_pylist():
        kept = exact.get(key, key)  # which may itself have been dropped as a near-duplicate
        kept = near.get(kept, kept)
        kept_ids.append(kept if kept != key else "")
    text = pc.utf8_slice_codeunits(dropped.column("text"), 0, DROPPED_CHARS)
    return (
        dropped.select(["id", "domain", "source", "why"])
        .append_column("duplicate_of", pa.array(kept_ids, pa.string()))
        .append_column("text", text)
    )


def _write(out: Path, documents: pa.Table, dropped: pa.Table, funnel: dict):
    """Writes all files under temporary names before the first one gets its own."""
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    for name, table in (("documents", documents), ("dropped", dropped)):
        strings = pa.schema([(column, pa.string()) for column in table.column_names])
        pq.write_table(table.cast(strings), out / f"{name}.parquet.partial", compression="zstd")
    text = json.dumps(funnel, indent=1) + "\n"
    (out / "funnel.json.partial").write_text(text, encoding="utf-8")
    for name in ("documents.parquet", "dropped.parquet", "funnel.json"):
        (out / f"{name}.partial").replace(out / name)
