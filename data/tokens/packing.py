"""Documents to packed shards in one global shuffled order.

encode: a part of the documents to token ids, in the shuffled order of their hashes, one stream a
group (a domain, or a domain and a language). pack: a range of the order, out of all parts, to one
shard. The order follows from the documents' ids alone, so neither parts nor workers
show in the shards; memory is bounded by a part and by a shard.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data import ranges, storage
from data.document import order
from data.documents import sample
from data.engine import SUMMARY, Engine, Task, key_of
from data.tokens import encode as bulk
from data.tokens import shards, trainer

# Texts that are encoded at a time: documents are read so many at once until they are long enough.
READ_DOCUMENTS, BATCH_CHARS = 256, 1 << 23
# Texts on which the fast way to encode is held against the plain one, before it is taken.
CHECKED_FILES, CHECKED_DOCUMENTS = 16, 16
# A shard is packed in memory; at 2 bytes a token it is a file of about 50 MB.
SHARD_TOKENS = 1 << 25

DOC = np.dtype([("key", "<u8"), ("start", "<i8"), ("tokens", "<u4")])


def encode(
    out: Path,
    documents: str,
    load: Callable,
    cached: bool,
    by_language: bool,
    dtype: str,
) -> dict:
    """Encodes the training documents of one file; a task's body.

    Args:
        out: gets GROUP.npy (token ids, documents in shuffled order) and GROUP.docs.npy (where each
            begins) for each group.
        documents: a parquet file of curated documents.
        load: gives the tokenizer.
        cached: whether encode.check has allowed to encode like parts of texts once.
        by_language: whether languages of a domain are groups of their own.
        dtype: of the token ids.

    Returns:
        {counts: [domain, language, documents, bytes, tokens] of every language}.
    """
    model = load()
    cuts = model.cuts() if cached else None
    streams: dict[str, list[tuple[int, np.ndarray]]] = {}
    counts: dict[tuple[str, str], np.ndarray] = {}
    for rows in _batches(documents):
        texts = [row["text"] for row in rows]
        if cuts:
            ids, lengths = bulk.encode(texts, cuts)
        else:
            ids, lengths = bulk.flatten(model.encode_batch(texts, num_threads=1))
        for row, tokens in zip(rows, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
            found = (1, len(row["text"].encode()), len(tokens))
            known = counts.setdefault((row["domain"], row["language"]), np.zeros(3, np.int64))
            known += found
            name = group_name(row["domain"], row["language"] if by_language else "")
            streams.setdefault(name, []).append((order(row["id"]), tokens.astype(dtype)))
    for name, stream in streams.items():
        _write_stream(out, name, stream)
    return {"counts": [[*key, *found.tolist()] for key, found in sorted(counts.items())]}


def group_name(domain: str, language: str) -> str:
    """A group's name, and its folder's: lower-case letters, digits and underscores."""
    name = f"{domain}_{language}" if language else domain
    return re.sub(r"[^a-z0-9_]", "_", name.lower())


def _first_texts(paths: Sequence[Path]) -> list[str]:
    """A few texts of each of the first files."""
    return [
        row["text"]
        for path in paths[:CHECKED_FILES]
        for row in next(_batches(str(path)), [])[:CHECKED_DOCUMENTS]
    ]


def _batches(documents: str | Path) -> Iterator[list[dict]]:
    columns, rows, num_chars = ["id", "domain", "language", "split", "text"], [], 0
    for batch in pq.ParquetFile(documents).iter_batches(READ_DOCUMENTS, columns=columns):
        new = [row for row in batch.to_pylist() if row["split"] == "train"]
        rows += new
        num_chars += sum(len(row["text"]) for row in new)
        if num_chars >= BATCH_CHARS:
            yield rows
            rows, num_chars = [], 0
    if rows:
        yield rows


def _write_stream(out: Path, name: str, stream: list[tuple[int, np.ndarray]]) -> None:
    keys = np.array([key for key, _ in stream], np.uint64)
    order = np.argsort(keys, kind="stable")
    docs = np.empty(len(stream), DOC)
    docs["key"] = keys[order]
    docs["tokens"] = [len(stream[i][1]) for i in order]
    docs["start"] = np.cumsum(docs["tokens"]) - docs["tokens"]
    np.save(out / f"{name}.npy", np.concatenate([stream[i][1] for i in order]))
    np.save(out / f"{name}.docs.npy", docs)


def pack(
    out: Path,
    streams: Sequence[str],
    low: int,
    high: int,
    seq_len: int,
    bos_id: int,
    eos_id: int,
    dtype: str,
) -> dict:
    """Packs a range of a group's order into one shard; a task's body.

    Args:
        out: gets `shard`, an ArrayRecord file.
        streams: of the group, from `encode`, without their endings.
        low, high: the range of the order.
        seq_len, bos_id, eos_id, dtype: as data.tokens.shards takes them.

    Returns:
        {num_records, num_tokens}.
    """
    keys, texts = [], []
    for stream in streams:
        docs = np.load(f"{stream}.docs.npy", mmap_mode="r")
        ids = np.load(f"{stream}.npy", mmap_mode="r")
        first, last = ranges.find(docs["key"], low, high)
        for key, start, size in docs[first:last].tolist():
            keys.append(key)
            texts.append(np.array(ids[start : start + size]))
    order = np.argsort(np.array(keys, np.uint64), kind="stable")
    rows = shards.pack_documents((texts[i] for i in order), seq_len, bos_id, eos_id)
    return shards.write_file(rows, out / "shard", seq_len, np.dtype(dtype))


def learn(
    documents: Path,
    out: Path,
    cache: Path,
    engine: Engine,
    config: trainer.TokenizerConfig,
    log: Callable[[str], None],
) -> None:
    """Trains a tokenizer on a sample of the documents, or takes the one that was.

    Args:
        documents: folder of curated parquet files.
        out: where its files go.
        cache: where the task leaves its files.
        engine: what does it.
        config: the section `tokenizer`.
        log: takes progress lines.
    """
    content = [storage.hash_content(str(path)) for path in sorted(documents.glob("*.parquet"))]
    key = key_of(train, content, dataclasses.asdict(config))
    task = Task(train, key, {"documents": str(documents), "config": config}, "the tokenizer")
    ((folder, _),) = engine.run(cache / "trained", [task], log)
    for path in folder.iterdir():
        if path.name != SUMMARY:
            (out / path.name).unlink(missing_ok=True)
            shards.link(path, out / path.name)


def train(out: Path, documents: str, config: trainer.TokenizerConfig) -> dict:
    """Trains a tokenizer; a task's body."""
    texts = sample(Path(documents), config.sample_bytes)
    trainer.train(texts, config, out / trainer.FILES[config.kind])
    return {}


def make_shards(
    documents: Path,
    out: Path,
    cache: Path,
    engine: Engine,
    load: Callable,
    tokenizer_key: str,
    seq_len: int,
    by_language: bool,
    log: Callable[[str], None],
) -> dict:
    """Encodes, shuffles and packs all training documents.

    Args:
        documents: folder of curated parquet files.
        out: gets a folder of shards a group.
        cache: where tasks leave their files.
        engine: what does the tasks.
        load: gives the tokenizer, in any process; picklable.
        tokenizer_key: hash of its files.
        seq_len: L, targets in a row.
        by_language: whether languages of a domain are groups of their own.
        log: takes progress lines.

    Returns:
        {groups: {name: {domain, language, documents, bytes, tokens, records, shards}}, fertility:
        [domain, language, documents, bytes, tokens] of every language}; tokens are of the texts,
        without those that mark their ends.
    """
    model = load()
    dtype = shards.token_dtype(model.vocab_size).name
    paths = sorted(documents.glob("*.parquet"))
    why_not = bulk.check(model, _first_texts(paths))
    if why_not:
        log(f"encoding each text whole, which is slower: {why_not}")
    arguments = {"load": load, "cached": not why_not, "by_language": by_language, "dtype": dtype}
    work = [
        Task(
            encode,
            key_of(encode, storage.hash_content(str(path)), tokenizer_key, by_language),
            {**arguments, "documents": str(path)},
            path.name,
        )
        for path in paths
    ]
    encoded = engine.run(cache / "encoded", work, lambda line: log(f"encoding: {line}"))
    counts: dict[tuple[str, str], np.ndarray] = {}
    for _, summary in encoded:
        for domain, language, *found in summary["counts"]:
            counts[domain, language] = counts.get((domain, language), 0) + np.array(found)
    groups = _group(counts, by_language)
    for name, group in groups.items():
        streams = [folder / name for folder, _ in encoded if (folder / f"{name}.npy").exists()]
        packed = _pack_group(name, streams, group["tokens"], cache, engine, seq_len, model, dtype)
        shards.publish(packed, out / name, seq_len, dtype)
        group |= {"records": sum(count for _, count in packed), "shards": len(packed)}
        log(f"{name}: {group['tokens']} tokens in {group['records']} rows")
    fertility = [[*key, *found.tolist()] for key, found in sorted(counts.items())]
    return {"groups": groups, "fertility": fertility}


def _group(counts: Mapping[tuple[str, str], np.ndarray], by_language: bool) -> dict[str, dict]:
    """The groups, by name, that have any tokens."""
    groups: dict[str, dict] = {}
    for (domain, language), found in sorted(counts.items()):
        language = language if by_language else ""
        name = group_name(domain, language)
        group = groups.setdefault(name, {"domain": domain, "language": language})
        for unit, count in zip(("documents", "bytes", "tokens"), found.tolist(), strict=True):
            group[unit] = group.get(unit, 0) + count
    return {name: groups[name] for name in sorted(groups) if groups[name]["tokens"]}


def _pack_group(name, streams, num_tokens, cache, engine, seq_len, model, dtype):
    """Packs a group's shards; the files and the records in each."""
    content = [name, [path.parent.name for path in streams], seq_len, model.bos_id, model.eos_id]
    arguments = {
        "streams": [str(path) for path in streams],
        "seq_len": seq_len,
        "bos_id": model.bos_id,
        "eos_id": model.eos_id,
        "dtype": dtype,
    }
    work = [
        Task(pack, key_of(pack, *content, low, high), {**arguments, "low": low, "high": high}, name)
        for low, high in ranges.cut(num_tokens, SHARD_TOKENS)
    ]
    done = engine.run(cache / "packed", work, lambda _: None)
    return [(folder / "shard", summary["num_records"]) for folder, summary in done]
