"""Speed of curation, run by hand: gates, deduplication, from parquet to shards, web archives.

    python -m benchmarks.curate CORPUS OUT [WORKERS [PEER_PYTHON]]

CORPUS holds parquet/*.parquet with columns id, text and url, and raw.warc.gz. Prints a JSON line a
measure: seconds of wall time and of the parent's processor, and MB of text (or HTML) for each of
the former. Peak memory is of all processes together, shared pages counted once. PEER_PYTHON, an
interpreter that has datatrove, is measured on the same documents and workers right after.
"""

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from configs import web
from data import curate, dedup, engine, minhash, ranges, sources, storage, tasks
from data.readers import warc
from data.readers import web as pages
from data.tokens import packing, tokenizer, trainer
from data.words import split_words
from launch import settings

VOCAB_SIZE, SAMPLE_BYTES, SEQ_LEN = 16_384, 10_000_000, 1024


def main() -> None:
    """Measures everything once."""
    corpus, out = Path(sys.argv[1]), Path(sys.argv[2])
    runner = engine.Runner(workers=int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    config = settings.to_dataclass(curate.CurateConfig, web.get_config().data, "data")
    paths = sorted(map(str, (corpus / "parquet").glob("*.parquet")))
    megabytes = sum(_text_bytes(path) for path in paths) / 1e6
    shutil.rmtree(out, ignore_errors=True)
    source = f"{corpus}/parquet/*.parquet"
    # Chunks of one page share its URL in this corpus: they are no rivals.
    section = dataclasses.replace(config.dedup, urls=False)
    config = dataclasses.replace(config, sources=source, dedup=section)
    with engine.start(runner) as workers:  # compiles what has not been
        _end_to_end(dataclasses.replace(config, sources=paths[0]), out / "compiled", workers)
    with engine.start(runner) as workers:
        _warm(workers, out)
        with _measured("gates with MinHash of survivors", megabytes):
            found = sources.survey(source)
            curate._judge(config, found, out / "gates", workers, (Path(), ""), _silent)
    with engine.start(runner) as workers:
        _warm(workers, out)
        peers = dataclasses.replace(config, sources={"text": _peers_rules(source)})
        with _measured("rules of datatrove alone", megabytes):
            found = sources.survey(peers.sources)
            curate._judge(peers, found, out / "rules", workers, (Path(), ""), _silent)
    with engine.start(runner) as workers:
        _warm(workers, out)
        with _measured("whole MinHash deduplication", megabytes):
            _deduplicate(paths, config.dedup, out / "dedup", workers)
    with engine.start(runner) as workers:
        _warm(workers, out)
        with _measured("parquet to shards, tokenizer trained", megabytes):
            _end_to_end(config, out / "whole", workers)
    if (corpus / "raw.warc.gz").exists():
        html = sum(len(block.content) for block in _blocks(corpus / "raw.warc.gz")) / 1e6
        with engine.start(runner) as workers:
            _warm(workers, out)
            with _measured("web archive to text, one file a worker", html * workers.num_workers):
                tasks = [
                    engine.Task(_extract, f"warc{i}", {"path": str(corpus / "raw.warc.gz")}, "")
                    for i in range(workers.num_workers)
                ]
                workers.run(out / "warc", tasks, _silent)
    if len(sys.argv) > 4:
        peer = Path(__file__).with_name("datatrove_peer.py")
        command = [sys.argv[4], str(peer), f"{corpus}/parquet", f"{out}/peer", sys.argv[3]]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for line in map(json.loads, told.stdout.splitlines()):
            print(json.dumps({**line, "mb_per_sec": round(megabytes / line["secs"], 2)}))


def _peers_rules(path: str) -> sources.SourceConfig:
    return sources.SourceConfig(
        path, "auto", "auto", "main", "text", 1.0, ("gopher", "c4", "fineweb")
    )


def _silent(_line: str) -> None:
    pass


def _text_bytes(path: str) -> int:
    texts = pq.read_table(path, columns=["text"]).column(0)
    return sum(len(text.as_py().encode()) for text in texts)


def _blocks(path: Path):
    with storage.open_raw(str(path)) as stream:
        yield from warc.records(stream)


def _warm(workers: engine.Engine, out: Path) -> None:
    """Starts every worker and loads what it has compiled before."""
    tasks = [engine.Task(_load, f"{time.time()}-{i}", {}, "") for i in range(workers.num_workers)]
    workers.run(out / "warm", tasks, _silent)


def _load(_out: Path) -> dict:
    data = np.frombuffer(b"some words", np.uint8)
    minhash.bands(split_words(data, np.array([0, 10])), 2, 2, 2, 0)
    time.sleep(1.0)  # so that each worker gets one
    return {}


def _extract(_out: Path, path: str) -> dict:
    return {"documents": sum(1 for _ in pages.read(path))}


def _sign(out: Path, path: str, config: dedup.DedupConfig) -> dict:
    """Keys of one file: words, bands, sorted."""
    texts = pq.read_table(path, columns=["text"]).column(0).combine_chunks()
    _, offsets, data = texts.cast("large_string").buffers()
    keys = tasks.near_keys(np.frombuffer(data, np.uint8), np.frombuffer(offsets, np.int64), config)
    dedup.write_keys(out / "keys.npy", keys)
    return {"documents": len(texts), "keys": len(keys)}


def _deduplicate(
    paths: list[str], config: dedup.DedupConfig, out: Path, workers: engine.Engine
) -> None:
    tasks = [
        engine.Task(_sign, f"sign{i}", {"path": path, "config": config}, "")
        for i, path in enumerate(paths)
    ]
    signed = workers.run(out, tasks, _silent)
    starts = np.cumsum([0, *(summary["documents"] for _, summary in signed)]).tolist()
    np.save(out / "alive.npy", np.ones(starts[-1], bool))
    dedup.write_parts(out / "parts", [folder / "keys.npy" for folder, _ in signed], starts[:-1])
    shared = {"parts": str(out / "parts"), "alive": str(out / "alive.npy")}
    edges = ranges.cut(sum(summary["keys"] for _, summary in signed), dedup.KEYS_PER_RANGE)
    tasks = [
        engine.Task(dedup.find_links, f"links{i}", {**shared, "low": low, "high": high}, "")
        for i, (low, high) in enumerate(edges)
    ]
    found = [np.load(folder / "links.npy") for folder, _ in workers.run(out, tasks, _silent)]
    gone, _ = dedup.resolve(np.concatenate(found), {}, ())
    print(json.dumps({"removed": len(gone), "documents": starts[-1]}))


def _end_to_end(config: curate.CurateConfig, out: Path, workers: engine.Engine) -> None:
    curate.curate(config, out / "curate", out / "cache", workers, (), _silent)
    documents, model = out / "curate" / "documents", out / "model"
    model.mkdir(parents=True)
    kind = trainer.TokenizerConfig(VOCAB_SIZE, SAMPLE_BYTES, 16, 0.9995)
    packing.learn(documents, model, out / "cache", workers, kind, _silent)
    load = partial(tokenizer.load_own, model)
    packing.make_shards(
        documents, out / "shards", out / "cache", workers, load, "bench", SEQ_LEN, False, _silent
    )


@contextmanager
def _measured(name: str, megabytes: float):
    peak = [0]
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(peak, done))
    watch.start()
    start, cpu = time.perf_counter(), _cpu_secs()
    yield
    secs, cpu = time.perf_counter() - start, _cpu_secs() - cpu
    done.set()
    watch.join()
    line = {"measure": name, "mb": round(megabytes, 1), "secs": round(secs, 2)}
    line |= {"mb_per_sec": round(megabytes / secs, 1), "parent_cpu_secs": round(cpu, 2)}
    print(json.dumps({**line, "peak_mb": round(peak[0] / 1e6)}), flush=True)


def _cpu_secs() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _watch(peak: list[int], done: threading.Event) -> None:
    """The most memory of this process and its children, by proportional set size."""
    while not done.wait(0.2):
        total = 0
        for pid in [os.getpid(), *_children(os.getpid())]:
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += next(
                (int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0
            )
        peak[0] = max(peak[0], total * 1024)


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *_children(child)]
    return found


if __name__ == "__main__":
    main()
