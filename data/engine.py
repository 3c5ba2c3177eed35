"""The engine seam: the only module that imports daft. Runs gates and deduplication over documents.

Tables in, tables out. The plans are executed by Daft's native runner; they are ones that its Ray
runner can execute on a cluster too. Results do not depend on the number of threads: a plan gives
sets and sums, or rows in order of their ids.
"""

import os
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from data import dedup, gates

# Documents handed to Python at once. Threads take turns at Python, so a small number costs nothing.
GATE_BATCH_DOCUMENTS = 256


def gate(
    documents: pa.Table, config: gates.GateConfig, gates_by_domain: Mapping[str, tuple[str, ...]]
) -> pa.Table:
    """Runs all gates over all documents in one pass.

    Args:
        documents: columns of data.sources.SCHEMA.
        config: thresholds.
        gates_by_domain: names of the gates that apply in each domain.

    Returns:
        Columns id, source, domain, text (normalised), why (first failing gate or ''), digest (of
        the normalised text), in order of id.
    """
    daft = _import_daft()
    string = daft.DataType.string()
    decision = daft.DataType.struct({"text": string, "why": string, "digest": string})

    # Daft also calls this with no rows at all (Daft issue 5793); every step below allows that.
    @daft.func.batch(return_dtype=decision, batch_size=GATE_BATCH_DOCUMENTS)
    def decide(domain, text):
        columns = {"domain": domain.to_arrow(), "text": text.to_arrow()}
        batch = gates.apply(pa.RecordBatch.from_pydict(columns), config, gates_by_domain)
        digests = [dedup.digest(text) for text in batch.column("text").to_pylist()]
        return pa.StructArray.from_arrays(
            [batch.column("text"), batch.column("why"), pa.array(digests, pa.string())],
            ["text", "why", "digest"],
        )

    decided = daft.functions.unnest(decide(daft.col("domain"), daft.col("text")))
    frame = daft.from_arrow(documents).select("id", "source", "domain", decided)
    return frame.sort("id").to_arrow()


def exact_duplicates(documents: pa.Table) -> dict[str, str]:
    """Finds documents with equal normalised texts.

    Args:
        documents: columns id and digest.

    Returns:
        For the id of each document to drop, the id of its equal that stays: the smallest.
    """
    daft = _import_daft()
    col = daft.col
    groups = (
        daft.from_arrow(documents.select(["id", "digest"]))
        .groupby("digest")
        .agg(col("id").min().alias("kept"), col("id").list_agg().alias("id"))
        .explode("id")
        .where(col("id") != col("kept"))
        .sort("id")
        .to_pydict()
    )
    return dict(zip(groups["id"], groups["kept"], strict=True))


def near_duplicates(documents: pa.Table, config: dedup.DedupConfig) -> dict[str, str]:
    """Finds documents that share most of their word n-grams, by MinHash and banding.

    Letters' case, punctuation and the values of digits do not count. Documents without a word
    are left alone.

    Args:
        documents: columns id and text.
        config: bands and n-grams.

    Returns:
        For the id of each document to drop, the id of the one of its cluster that stays: the
        longest in characters, then the smallest id.

    Source: Broder 1997 "On the resemblance and containment of documents"; banding as in
        Leskovec, Rajaraman, Ullman "Mining of Massive Datasets", section 3.4. A cluster is a
        connected component, so its ends may differ more than any two neighbours do.
    """
    left, right = _share_band(documents.column("text"), config)
    labels = dedup.components(len(documents), left, right)
    ids = documents.column("id").to_pylist()
    sizes = np.array([len(text) for text in documents.column("text").to_pylist()], np.int64)
    chosen = dedup.choose(labels, ids, sizes)
    return {ids[i]: ids[kept] for i, kept in enumerate(chosen) if i != kept}


def _share_band(texts: pa.ChunkedArray, config: dedup.DedupConfig) -> tuple[np.ndarray, np.ndarray]:
    """Joins every document to the first one with which it shares a band; returns both ends."""
    daft = _import_daft()
    col, functions = daft.col, daft.functions
    numbered = pa.table({"row": pa.array(range(len(texts)), pa.int64()), "text": texts})
    words = functions.normalize(
        functions.regexp_replace(col("text"), "[0-9]", "0"),
        remove_punct=True,
        lowercase=True,
        nfd_unicode=True,
        white_space=True,
    )
    signature = functions.minhash(
        col("words"),
        num_hashes=config.num_bands * config.band_rows,
        ngram_size=config.ngram_words,
        seed=config.seed,
        hash_function="xxhash",
    )
    edges = (
        daft.from_arrow(numbered)
        .select("row", words.alias("words"))
        .where(col("words") != "")  # all of these would have one signature
        .select("row", functions.chunk(signature, config.band_rows).alias("rows"))
        .with_column("band", daft.lit(list(range(config.num_bands))))
        .explode("rows", "band")
        .groupby("band", functions.hash(col("rows")).alias("hash"))
        .agg(col("row").min().alias("first"), col("row").list_agg().alias("row"))
        .explode("row")
        .where(col("row") != col("first"))
        .select("first", "row")
        .distinct()
        .to_arrow()
    )
    return edges.column("first").to_numpy(), edges.column("row").to_numpy()


def _import_daft():
    """Imports daft late, for it is slow to import, and quiet: no message home, no bar."""
    os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
    os.environ["DAFT_PROGRESS_BAR"] = "0"
    import daft
    import daft.functions

    return daft
