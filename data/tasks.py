"""What one task does to one part of the corpus: read and filter it; write what is left of it."""

import datetime
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data import dedup, minhash, sources
from data.document import SCHEMA, place
from data.gates import chain, urls
from data.words import split_words

# Read, filtered and written at once.
BATCH_BYTES = 4 << 20
BATCH_DOCUMENTS = 4096
# Dropped documents of each gate, and kept ones, that a task puts forward for the report.
SAMPLES = 3
SAMPLE_CHARS = 600
BROKEN_NAMED = 1000
UNKNOWN_DAY = -(2**31)
PERMUTATIONS = 1  # seed of MinHash

FATES = [("why", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
SCORES = [(name, pa.float32()) for name in ("language_score", "quality", "toxicity")]
FILTERED = pa.schema([*SCHEMA, *FATES, *SCORES, ("edits", pa.string()), ("bytes_read", pa.int64())])
KEPT_COLUMNS = [*SCHEMA.names, *(name for name, _ in SCORES), "edits", "split"]
DROPPED_COLUMNS = [*SCHEMA.names, *(name for name, _ in (*FATES, *SCORES)), "edits", "duplicate_of"]
# What a cluster's choice and the split go by: one a document. `group` and `own` place the hash of
# its source and of its id between 0 and 1.
FACTS = np.dtype(
    [
        ("chars", "<u4"),
        ("quality", "<f4"),
        ("day", "<i4"),
        ("alive", "?"),
        ("group", "<f8"),
        ("own", "<f8"),
    ]
)


class Part(NamedTuple):
    """What `filter_part` left of a part: domain, folder, summary, number of its first document."""

    domain: str
    folder: Path
    summary: dict
    start: int


def filter_part(
    out: Path,
    units: list[sources.Unit],
    source: sources.SourceConfig,
    config: chain.GateConfig,
    dedup_config: dedup.DedupConfig,
    max_document_bytes: int,
    evaluation: str,
) -> dict:
    """Reads files of one domain, sends their documents through its gates, and leaves keys.

    Args:
        out: gets filtered.parquet (every document, its outcome so far), facts.npy, and a
            .npy of keys for each way of deduplication.
        units: the files.
        source: their source.
        config, dedup_config, max_document_bytes: as of data.curate.CurateConfig.
        evaluation: path of a contamination index, or ''.

    Returns:
        {domain, documents, broken (how many), named (the first BROKEN_NAMED of them), keys: {way:
        count}}.

    Raises:
        BadInput: a file has changed since it was hashed; the result is cached under that hash.
    """
    gates = chain.Gates(
        config, chain.expand(source.gates), Path(evaluation) if evaluation else None
    )
    broken: list[dict] = []
    facts, keys = [], {way: [] for way in (*dedup.WAYS, dedup.PARAGRAPHS)}
    num_documents = 0
    with pq.ParquetWriter(out / "filtered.parquet", FILTERED, compression="zstd") as writer:
        for rows in _batches(units, source, max_document_bytes, broken):
            batch = gates.decide(rows)
            writer.write_table(_judged_table(batch))
            facts.append(_facts(batch))
            for way, found in _keys(batch, dedup_config).items():
                found["row"] += num_documents
                keys[way].append(found)
            num_documents += len(rows)
    sources.refuse_changed(units)
    np.save(out / "facts.npy", np.concatenate([np.empty(0, FACTS), *facts]))
    for way, found in keys.items():
        dedup.write_keys(out / f"{way}.npy", np.concatenate([np.empty(0, dedup.KEY), *found]))
    return {
        "domain": units[0].domain,
        "documents": num_documents,
        "broken": len(broken),
        "named": broken[:BROKEN_NAMED],
        "keys": {way: sum(map(len, found)) for way, found in keys.items()},
    }


def pass_over(out: Path, domain: str, path: str) -> dict:
    """Stands for a file that kills the process which reads it: no document, and one that is broken.

    Returns:
        As `filter_part` does.
    """
    pq.write_table(FILTERED.empty_table(), out / "filtered.parquet")
    np.save(out / "facts.npy", np.empty(0, FACTS))
    ways = (*dedup.WAYS, dedup.PARAGRAPHS)
    for way in ways:
        dedup.write_keys(out / f"{way}.npy", np.empty(0, dedup.KEY))
    why = "the process that read it died, of memory or a fault in compiled code; it is left out"
    return {
        "domain": domain,
        "documents": 0,
        "broken": 1,
        "named": [{"file": path, "record": 0, "why": why}],
        "keys": dict.fromkeys(ways, 0),
    }


def _batches(
    units: list[sources.Unit], source: sources.SourceConfig, max_bytes: int, broken: list[dict]
) -> Iterator[list[dict]]:
    rows, num_bytes = [], 0
    for unit in units:
        for row in sources.read(unit, source, max_bytes, broken):
            rows.append(row)
            num_bytes += len(row["text"])
            if num_bytes >= BATCH_BYTES or len(rows) == BATCH_DOCUMENTS:
                yield rows
                rows, num_bytes = [], 0
    if rows:
        yield rows


def _judged_table(batch: chain.Batch) -> pa.Table:
    columns = {name: [row[name] for row in batch.rows] for name in SCHEMA.names}
    columns |= {name: getattr(batch, name) for name in ("why", "reason", "detail")}
    columns |= {name: getattr(batch, name) for name, _ in SCORES}
    columns["language"] = batch.languages
    columns["text"] = [
        text[: chain.DROPPED_CHARS] if why else text
        for text, why in zip(batch.texts, batch.why, strict=True)
    ]
    columns["edits"] = [json.dumps(found) if found else "" for found in batch.edits]
    # With the line feed that repair puts at an end, so that no text grows.
    columns["bytes_read"] = [
        len(text.encode("utf-8", "replace")) + (not text.endswith("\n")) for text in batch.raw
    ]
    arrays = [pa.array(columns[field.name], field.type) for field in FILTERED]
    return pa.Table.from_arrays(arrays, schema=FILTERED)


def _facts(batch: chain.Batch) -> np.ndarray:
    facts = np.empty(len(batch.rows), FACTS)
    facts["chars"] = [len(text) for text in batch.texts]
    facts["quality"] = np.nan_to_num(batch.quality)
    facts["day"] = [_day(row["date"]) for row in batch.rows]
    facts["alive"] = [not why for why in batch.why]
    facts["group"] = [place(row["source"]) for row in batch.rows]
    facts["own"] = [place(row["id"]) for row in batch.rows]
    return facts


def _day(date: str) -> int:
    try:
        return datetime.date.fromisoformat(date[:10]).toordinal()
    except ValueError:
        return UNKNOWN_DAY


def _keys(batch: chain.Batch, config: dedup.DedupConfig) -> dict[str, np.ndarray]:
    """Keys of the documents that are left, by way; rows are numbered in the batch."""
    alive = batch.alive()
    view = chain.View(batch.texts, alive)
    rows = np.array(alive, np.int64)
    keys = {
        dedup.EXACT: exact_keys(view),
        dedup.NEAR: near_keys(view.data, view.offsets, config),
        dedup.URL: np.empty(0, dedup.KEY),
        dedup.PARAGRAPHS: np.empty(0, dedup.KEY),
    }
    for found in keys.values():
        found["row"] = rows[found["row"]]
    if config.urls:
        pages = [(row, urls.plain(batch.urls[row])) for row in alive if batch.urls[row]]
        # The parts of a long page have its URL, and each its own rival.
        pages = [(row, url + _part_of(batch.rows[row]["id"])) for row, url in pages if url]
        keys[dedup.URL] = _key_array(_hash_texts([url for _, url in pages]), [r for r, _ in pages])
    if config.paragraph_chars:
        keys[dedup.PARAGRAPHS] = _paragraph_keys(batch, alive, config.paragraph_chars)
    return keys


def exact_keys(view: chain.View) -> np.ndarray:
    """A key of data.dedup for the content of each text, which is its row."""
    hashes = minhash.content_hashes(view.data, view.offsets)
    return _key_array(hashes, np.arange(len(hashes)))


def near_keys(data: np.ndarray, offsets: np.ndarray, config: dedup.DedupConfig) -> np.ndarray:
    """A key of data.dedup for each band of each text that has words; texts are rows."""
    words = split_words(data, offsets, config.equal_digits)
    bands, has_words = minhash.bands(
        words, config.num_bands, config.band_rows, config.ngram_words, PERMUTATIONS
    )
    hashes = np.zeros((has_words.sum() * config.num_bands, 2), np.uint64)
    hashes[:, 0] = bands[has_words].reshape(-1)
    return _key_array(hashes, np.repeat(np.flatnonzero(has_words), config.num_bands))


def _part_of(key: str) -> str:
    """The end of the id of a document that is a part of a longer text."""
    found = re.search(r"#\d{5}$", key)
    return found[0] if found else ""


def _paragraph_keys(batch: chain.Batch, alive: list[int], min_chars: int) -> np.ndarray:
    found = [
        (row, number, len(paragraph), paragraph)
        for row in alive
        for number, paragraph in enumerate(batch.texts[row].split("\n\n"))
        if len(paragraph) >= min_chars
    ]
    keys = _key_array(_hash_texts([part.strip() for *_, part in found]), [f[0] for f in found])
    keys["part"], keys["chars"] = [f[1] for f in found], [f[2] for f in found]
    return keys


def _hash_texts(texts: list[str]) -> np.ndarray:
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return minhash.content_hashes(np.frombuffer(b"".join(encoded), np.uint8), offsets)


def _key_array(hashes: np.ndarray, rows: Any) -> np.ndarray:
    keys = np.zeros(len(hashes), dedup.KEY)
    keys["hash"], keys["check"], keys["row"] = hashes[:, 0], hashes[:, 1], rows
    return keys


def write(
    out: Path,
    filtered: str,
    start: int,
    outcomes: str,
    repeats: str,
    heldout: Mapping[str, Any],
) -> dict:
    """Writes what is left of a part of the corpus, and what is not, and counts both.

    Args:
        out: gets documents.parquet and dropped.parquet.
        filtered: the folder that `filter_part` wrote.
        start: number of its first document.
        outcomes: a parquet file of (doc, why, kept): documents that deduplication drops.
        repeats: .npy of (doc, paragraph, characters): paragraphs that it takes out.
        heldout: {column: group or own, below}: a document is held out if that fact is below.

    Returns:
        {counts: [[gate, reason, language, split, documents, bytes, bytes read], ...], samples}.
    """
    facts = np.load(Path(filtered) / "facts.npy", mmap_mode="r")
    end = start + len(facts)
    dropped_by = _read_outcomes(outcomes, start, end)
    gone = _read_repeats(repeats, start, end)
    places = facts[heldout["column"]]
    counts: Counter = Counter()
    samples: dict[str, list] = {}
    first = 0
    with (
        pq.ParquetWriter(
            out / "documents.parquet", _schema(KEPT_COLUMNS), compression="zstd"
        ) as kept,
        pq.ParquetWriter(
            out / "dropped.parquet", _schema(DROPPED_COLUMNS), compression="zstd"
        ) as lost,
    ):
        for part in pq.ParquetFile(Path(filtered) / "filtered.parquet").iter_batches(
            BATCH_DOCUMENTS
        ):
            rows = part.to_pylist()
            for number, row in enumerate(rows, first):
                row["duplicate_of"] = ""
                row["split"] = "heldout" if places[number] < heldout["below"] else "train"
                if number in dropped_by:
                    row["why"], row["duplicate_of"] = dropped_by[number]
                    row["detail"] = row["duplicate_of"]
                elif number in gone:
                    _take_out(row, gone[number])
                _tally(counts, samples, row, facts["own"][number])
            first += len(rows)
            kept.write_table(_table([row for row in rows if not row["why"]], KEPT_COLUMNS))
            lost.write_table(_table([row for row in rows if row["why"]], DROPPED_COLUMNS))
    return {"counts": [[*key, *sizes] for key, sizes in _merge(counts)], "samples": samples}


def _schema(names: list[str]) -> pa.Schema:
    known = {field.name: field for field in FILTERED}
    return pa.schema([known.get(name, pa.field(name, pa.string())) for name in names])


def _table(rows: list[dict], names: list[str]) -> pa.Table:
    cut = [
        {**row, "text": row["text"][: chain.DROPPED_CHARS]} if row["why"] else row for row in rows
    ]
    return pa.Table.from_pylist(cut, _schema(names))


def _read_outcomes(path: str, start: int, end: int) -> dict[int, tuple[str, str]]:
    filters = [("doc", ">=", start), ("doc", "<", end)]
    rows = pq.read_table(path, filters=filters).to_pylist()
    return {row["doc"] - start: (row["why"], row["kept"]) for row in rows}


def _read_repeats(path: str, start: int, end: int) -> dict[int, set[int]]:
    repeats = np.load(path, mmap_mode="r")
    low, high = np.searchsorted(repeats[:, 0], [start, end])
    gone: dict[int, set[int]] = {}
    for doc, paragraph, _ in repeats[low:high].tolist():
        gone.setdefault(doc - start, set()).add(paragraph)
    return gone


def _take_out(row: dict, paragraphs: set[int]) -> None:
    parts = row["text"].split("\n\n")
    left = [part for number, part in enumerate(parts) if number not in paragraphs]
    row["text"] = "\n\n".join(left).strip("\n") + "\n"
    edits = json.loads(row["edits"]) if row["edits"] else {}
    row["edits"] = json.dumps({**edits, dedup.PARAGRAPHS: len(paragraphs)})


def _tally(counts: Counter, samples: dict[str, list], row: dict, own: float) -> None:
    key = (row["why"], row["reason"], row["language"], "" if row["why"] else row["split"])
    num_bytes = row["bytes_read"] if row["why"] else len(row["text"].encode())
    counts[(*key, "documents")] += 1
    counts[(*key, "bytes")] += num_bytes
    counts[(*key, "bytes_read")] += row["bytes_read"]
    shown = samples.setdefault(row["why"] or "kept", [])
    shown.append([float(own), row["id"], row["reason"], row["detail"], row["text"][:SAMPLE_CHARS]])
    if len(shown) > SAMPLES:  # the same ones whatever the order
        shown.sort()
        shown.pop()


def _merge(counts: Counter) -> list[tuple[tuple, tuple]]:
    keys = sorted({key[:-1] for key in counts})
    units = ("documents", "bytes", "bytes_read")
    return [(key, tuple(counts[(*key, unit)] for unit in units)) for key in keys]
