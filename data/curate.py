"""Curation: sources to documents that are clean, different from each other, and split for training.

filter (read, gates, keys) -> duplicates by URL, exact, near -> repeated paragraphs -> write. Each
step is a list of tasks for data.engine, and leaves files that the next one reads; texts stay on
disk. Every document that is read is in documents/ or, with the reason, in dropped/; funnel.json
counts them at every step.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data import dedup, funnel, ranges, sources, storage
from data.engine import Engine, Task, key_of
from data.gates import chain, contamination
from data.heldout import find_thresholds
from data.tasks import FACTS, Part, filter_part, pass_over, write
from data.tokens.shards import link

MIN_DOCUMENT_BYTES = 1024
# Files of one domain go into one task up to this size, as stored; a larger one has its own.
TASK_BYTES = 4 << 20


@dataclass(frozen=True)
class CurateConfig:
    """What is read, and what is dropped, masked or cut.

    Attributes:
        sources: source by domain name (letters, digits and underscores); or one path, glob or list
            of them, whose domains follow from what the files are.
        gates: thresholds of the gates.
        dedup: settings of deduplication.
        heldout_fraction: share of the documents' sources held out from training, above 0, to 0.5.
        max_document_bytes: a longer text is cut into several documents.
    """

    sources: str | Mapping[str, sources.SourceConfig]
    gates: chain.GateConfig = chain.GateConfig()
    dedup: dedup.DedupConfig = dedup.DedupConfig()
    heldout_fraction: float = 0.05
    max_document_bytes: int = 65_536

    def __post_init__(self):
        if not self.sources and self.sources != "":  # a path may be given later
            raise ValueError("sources: empty; name at least one domain, or give a path")
        for domain in self.sources if not isinstance(self.sources, str) else ():
            if not domain.isidentifier():
                allowed = "must be letters, digits and underscores, no digit first"
                raise ValueError(f"sources: domain {domain!r} {allowed}")
            if any(one.lower() == domain.lower() and one != domain for one in self.sources):
                allowed = "must differ from the others in more than capital letters"
                raise ValueError(f"sources: domain {domain!r} {allowed}")
        if not 0 < self.heldout_fraction <= 0.5:
            allowed = "must be above 0 and at most 0.5"
            raise ValueError(f"heldout_fraction: {self.heldout_fraction} {allowed}")
        if self.max_document_bytes < MIN_DOCUMENT_BYTES:
            allowed = f"must be at least {MIN_DOCUMENT_BYTES}"
            raise ValueError(f"max_document_bytes: {self.max_document_bytes} {allowed}")


class Outcomes(NamedTuple):
    """What deduplication decides over all documents.

    Attributes:
        alive: which stay, bool [documents].
        dropped: way -> (documents dropped, ascending; those that stay for them, or -1).
        repeats: (document, paragraph, characters) taken out, int64 [repeats, 3], ascending.
        largest_cluster: documents in the biggest cluster of near-duplicates.
    """

    alive: np.ndarray
    dropped: dict[str, tuple[np.ndarray, np.ndarray]]
    repeats: np.ndarray
    largest_cluster: int


def fingerprint(config: CurateConfig) -> str:
    """Hashes all files that the stage reads: sources, lists and models.

    Raises:
        BadInput: one that is missing.
    """
    return f"{sources.fingerprint(config.sources)}-{chain.fingerprint(config.gates)}"


def curate(
    config: CurateConfig,
    out: Path,
    cache: Path,
    engine: Engine,
    evaluation: Iterable[tuple[str, str]],
    log: Callable[[str], None],
) -> dict:
    """Curates all sources into tables of documents.

    Args:
        config: the stage's configuration.
        out: directory, made if missing; what it holds of the same names is replaced together.
        cache: where tasks leave their files; what is there of the same content is taken.
        engine: what does the tasks.
        evaluation: (set, text) of what is evaluated, which no document may hold.
        log: takes progress lines.

    Returns:
        The funnel, as data.funnel counts it and out/funnel.json holds it. Also written:
        out/documents/*.parquet and out/dropped/*.parquet.

    Raises:
        BadInput: a source that cannot be read; nothing is left, of all or of a domain that has a
            name in the configuration: then the tables are there all the same.
    """
    found = sources.survey(config.sources)
    count = len(found.units)
    log(f"{count} file{'s' if count > 1 else ''} in {', '.join(found.sources)}")
    if found.broken:
        log(f"skipped {len(found.broken)} files, the first {funnel.name(found.broken[0])}")
    if leaving := [unit.file for unit in found.units if unit.file.leads_to]:
        first = f"{leaving[0].path} -> {leaving[0].leads_to}"
        log(f"{len(leaving)} files are links that lead out of what was given, the first {first}")
    index = _index(config, found, cache, evaluation)
    names = [name for source in found.sources.values() for name in source.gates]
    if idle := chain.list_idle(names, config.gates, bool(index[1])):
        log(f"without a list, model or set to go by, all pass: {', '.join(idle)}")
    parts = _judge(config, found, cache, engine, index, log)
    if broken := [row for part in parts for row in part.summary["named"]]:
        count = sum(part.summary["broken"] for part in parts)
        log(f"skipped {count} broken records, the first {funnel.name(broken[0])}")
    is_named = not isinstance(config.sources, str)
    funnel.refuse_unread(is_named, found, parts, log)
    outcomes = _deduplicate(config.dedup, parts, cache, engine, log)
    written = _write(config, parts, outcomes, cache, engine, log)
    counted = funnel.count(
        found, parts, [summary for _, summary in written], outcomes.largest_cluster
    )
    _publish(out, [folder for folder, _ in written], counted)
    funnel.refuse_lost(is_named, counted, out, log)
    total = sum(counts["documents"] for counts in counted["kept"].values())
    log(f"kept {total} documents")
    return counted


def _index(
    config: CurateConfig, found: sources.Survey, cache: Path, texts: Iterable[tuple[str, str]]
) -> tuple[Path, str]:
    """Writes what decontamination looks for; its path and what it hashes to."""
    if not any("contamination" in source.gates for source in found.sources.values()):
        return Path(), ""
    index = contamination.build(texts, config.gates.contamination_words)
    if not index.names:
        return Path(), ""
    cache.mkdir(parents=True, exist_ok=True)
    part = cache / "evaluation.part.npz"
    index.save(part)
    key = storage.hash_content(str(part))
    return part.replace(cache / f"evaluation-{key}.npz"), key


def _judge(
    config: CurateConfig,
    found: sources.Survey,
    cache: Path,
    engine: Engine,
    index: tuple[Path, str],
    log: Callable[[str], None],
) -> list[Part]:
    make = partial(_judge_task, config, found.sources, chain.fingerprint(config.gates), index)
    tasks = [make(units) for units in _groups(found.units)]
    done = engine.run(cache / "filtered", tasks, lambda line: log(f"reading: {line}"))
    starts = np.cumsum([0, *(summary["documents"] for _, summary in done)]).tolist()
    return [
        Part(summary["domain"], folder, summary, start)
        for (folder, summary), start in zip(done, starts[:-1], strict=True)
    ]


def _judge_task(
    config: CurateConfig,
    found: Mapping[str, sources.SourceConfig],
    models: str,
    index: tuple[Path, str],
    units: list[sources.Unit],
) -> Task:
    """Reads files of a domain; where that kills the process, a half of them, and at last none."""
    source = found[units[0].domain]
    content = [(unit.domain, unit.kind, unit.file.name, unit.identity) for unit in units]
    plain = [dataclasses.asdict(value) for value in (source, config.gates, config.dedup)]
    del plain[0]["path"], plain[0]["weight"]
    arguments = {
        "units": units,
        "source": source,
        "config": config.gates,
        "dedup_config": config.dedup,
        "max_document_bytes": config.max_document_bytes,
        "evaluation": str(index[0]) if index[1] else "",
    }
    names = sorted({name for unit in units for name in sources.modules(unit.kind, source)})
    size = config.max_document_bytes
    key = key_of(filter_part, content, plain, size, models, index[1], modules=names)
    label = f"{units[0].domain}: {units[0].file.name}"

    def halve() -> list[Task]:
        if len(units) == 1:
            given = {"domain": units[0].domain, "path": units[0].file.path}
            return [Task(pass_over, key_of(pass_over, key), given, label)]
        middle = len(units) // 2
        parts = (units[:middle], units[middle:])
        return [_judge_task(config, found, models, index, part) for part in parts]

    return Task(filter_part, key, arguments, label, halve)


def _groups(units: list[sources.Unit]) -> Iterable[list[sources.Unit]]:
    """Files of one domain, in order, up to TASK_BYTES; never by the number of workers."""
    group: list[sources.Unit] = []
    num_bytes = 0
    for unit in units:
        if group and (
            unit.domain != group[0].domain or num_bytes + unit.file.num_bytes > TASK_BYTES
        ):
            yield group
            group, num_bytes = [], 0
        group.append(unit)
        num_bytes += unit.file.num_bytes
    if group:
        yield group


def _deduplicate(
    config: dedup.DedupConfig,
    parts: list[Part],
    cache: Path,
    engine: Engine,
    log: Callable[[str], None],
) -> Outcomes:
    facts = [np.load(part.folder / "facts.npy", mmap_mode="r") for part in parts]
    alive = np.concatenate([part["alive"] for part in facts])
    find = partial(_over_ranges, parts, cache, engine)
    dropped, largest = {}, 1
    for way in dedup.WAYS:
        links = np.concatenate(find(dedup.find_links, way, "links.npy", alive))
        prefer = ("newest",) if way == dedup.URL else config.prefer
        docs, kept = dedup.resolve(links, _facts_of(np.unique(links), parts, facts), prefer)
        alive[docs] = False
        dropped[way] = (docs, kept)
        if way == dedup.NEAR and len(kept):
            largest = 1 + int(np.unique(kept, return_counts=True)[1].max())
        log(f"{way}: {len(docs)} dropped")
    repeats = np.concatenate(find(dedup.find_repeats, dedup.PARAGRAPHS, "repeats.npy", alive))
    repeats = repeats[np.lexsort((repeats[:, 1], repeats[:, 0]))]
    chars = _facts_of(np.unique(repeats[:, 0]), parts, facts)["chars"].astype(np.int64)
    gone, docs = dedup.take_out(repeats, chars, config.min_left)
    alive[docs] = False
    if len(repeats):
        log(f"{len(gone)} repeated paragraphs taken out, {len(docs)} documents dropped for it")
    dropped[dedup.PARAGRAPHS] = (docs, np.full(len(docs), -1))
    return Outcomes(alive, dropped, gone, largest)


def _over_ranges(
    parts: list[Part],
    cache: Path,
    engine: Engine,
    body: Callable,
    way: str,
    result: str,
    alive: np.ndarray,
) -> list[np.ndarray]:
    """Runs a task of data.dedup over each range of the keys of a way."""
    num_keys = sum(part.summary["keys"][way] for part in parts)
    empty = np.empty((0, 4 if way == dedup.PARAGRAPHS else 2), np.int64)
    if not num_keys:
        return [empty]
    path, list_path = cache / f"alive-{way}.npy", cache / f"parts-{way}.json"
    np.save(path.with_suffix(".part.npy"), alive)
    path.with_suffix(".part.npy").replace(path)
    starts = [part.start for part in parts]
    dedup.write_parts(list_path, [part.folder / f"{way}.npy" for part in parts], starts)
    names = [part.folder.name for part in parts]
    content = [way, names, storage.hash_content(str(path))]
    arguments = {"parts": str(list_path), "alive": str(path)}
    tasks = [
        Task(body, key_of(body, *content, low, high), {**arguments, "low": low, "high": high}, way)
        for low, high in ranges.cut(num_keys, dedup.KEYS_PER_RANGE)
    ]
    done = engine.run(cache / way, tasks, lambda _: None)
    return [empty, *(np.load(folder / result) for folder, _ in done)]


def _facts_of(
    docs: np.ndarray, parts: list[Part], facts: list[np.ndarray]
) -> Mapping[str, np.ndarray]:
    """Facts of a few documents, in ascending order, out of all parts."""
    starts = np.array([part.start for part in parts], np.int64)
    owner = np.searchsorted(starts, docs, side="right") - 1
    found = np.empty(len(docs), FACTS)
    for part in np.unique(owner).tolist():
        mine = owner == part
        found[mine] = facts[part][docs[mine] - starts[part]]
    return found


def _write(
    config: CurateConfig,
    parts: list[Part],
    outcomes: Outcomes,
    cache: Path,
    engine: Engine,
    log: Callable[[str], None],
) -> list[tuple[Path, dict]]:
    outcomes_path, repeats_path = cache / "outcomes.parquet", cache / "repeats.npy"
    table = _outcomes_table(parts, outcomes)
    pq.write_table(table, outcomes_path)
    np.save(repeats_path, outcomes.repeats)
    heldout = find_thresholds(config.heldout_fraction, parts, outcomes.alive)
    tasks = []
    docs = table.column("doc").to_numpy()
    for part in parts:
        ends = [part.start, part.start + part.summary["documents"]]
        low, high = np.searchsorted(docs, ends)
        first, last = np.searchsorted(outcomes.repeats[:, 0], ends)
        own = table.slice(low, high - low).to_pydict()
        own["doc"] = [doc - part.start for doc in own["doc"]]
        gone = outcomes.repeats[first:last] - [part.start, 0, 0]
        key = key_of(write, part.folder.name, own, gone.tolist(), heldout[part.domain])
        arguments = {
            "filtered": str(part.folder),
            "start": part.start,
            "outcomes": str(outcomes_path),
            "repeats": str(repeats_path),
            "heldout": heldout[part.domain],
        }
        tasks.append(Task(write, key, arguments, part.domain))
    return engine.run(cache / "written", tasks, lambda line: log(f"writing: {line}"))


def _outcomes_table(parts: list[Part], outcomes: Outcomes) -> pa.Table:
    """(doc, why, kept): the id of the one that stays, by documents dropped, ascending."""
    docs, whys, kept = [np.empty(0, np.int64)], [], [np.empty(0, np.int64)]
    for way, (gone, staying) in outcomes.dropped.items():
        docs.append(gone)
        kept.append(staying)
        whys += [way] * len(gone)
    all_docs, all_kept = np.concatenate(docs), np.concatenate(kept)
    order = np.argsort(all_docs, kind="stable")
    ids = _ids(np.unique(all_kept[all_kept >= 0]), parts)
    names = [ids.get(int(doc), "") for doc in all_kept[order]]
    return pa.table(
        {
            "doc": all_docs[order],
            "why": pa.array([whys[i] for i in order], pa.string()),
            "kept": pa.array(names, pa.string()),
        }
    )


def _ids(docs: np.ndarray, parts: list[Part]) -> dict[int, str]:
    """Ids of a few documents, in ascending order."""
    ids = {}
    edges = np.searchsorted(docs, [*(part.start for part in parts), np.iinfo(np.int64).max])
    for part, low, high in zip(parts, edges, edges[1:], strict=False):
        if low < high:
            table = pq.read_table(part.folder / "filtered.parquet", columns=["id"])
            found = table.column("id").take(pa.array(docs[low:high] - part.start)).to_pylist()
            ids |= dict(zip(docs[low:high].tolist(), found, strict=True))
    return ids


def _publish(out: Path, folders: list[Path], counted: dict) -> None:
    """Makes the tables and the funnel appear together, in place of what was there."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for table in ("documents", "dropped"):
        (part / table).mkdir(parents=True)
        for number, folder in enumerate(folders):
            link(folder / f"{table}.parquet", part / table / f"part-{number:05d}.parquet")
    text = json.dumps(counted, indent=1, ensure_ascii=False) + "\n"
    (part / "funnel.json").write_text(text, encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("documents", "dropped", "funnel.json"):
        old = out / name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        (part / name).replace(old)
    part.rmdir()
