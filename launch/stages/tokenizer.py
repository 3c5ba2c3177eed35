"""Documents to a tokenizer (or an existing one) and a folder of packed shards a group."""

from collections.abc import Mapping
from pathlib import Path

from data import engine
from data.errors import BadInput
from data.tokens import imported, packing, tokenizer
from data.tokens.gguf_tokenizer import from_gguf
from launch import load, shard_plan
from launch.job import Job
from launch.settings import Settings
from launch.store.rundir import ORIGIN, ORIGIN_KEYS, read_json, write_json
from model.interop import gguf


def run(job: Job) -> dict:
    """Documents to a tokenizer (or an existing one) and a folder of packed shards a group."""
    settings, out, cache = job.settings, job.run.stage("tokenizer"), job.run.cache("tokenizer")
    documents, packed = job.run.stage("curate") / "documents", {}
    if settings.start or settings.tokenizer.path:
        take_tokenizer(settings, out)
        job.refuse_changed_files()
    if "curate" in settings.stages:
        with engine.start(job.runner) as workers:
            if not (settings.start or settings.tokenizer.path):
                packing.learn(documents, out, cache, workers, settings.tokenizer, job.progress.log)
            packed = _pack(job, workers)
    return {
        "vocab_size": job.tokenizer.vocab_size,
        load.TOKENIZER: load.tokenizer_hash(job.run),
        **packed,
    }


def _pack(job: Job, workers: engine.Engine) -> dict:
    """Packs all documents; what one epoch of them would be, unless `mixture` says how much."""
    settings, out = job.settings, job.run.stage("tokenizer")
    made = packing.make_shards(
        job.run.stage("curate") / "documents",
        out / "shards",
        job.run.cache("tokenizer"),
        workers,
        load.tokenizer_loader(job.run),
        load.tokenizer_hash(job.run),
        settings.pretrain.seq_len,
        settings.mixture.by_language,
        job.progress.log,
    )
    total = sum(group["tokens"] for group in made["groups"].values())
    planned = shard_plan.plan(settings, made["groups"], total, job.progress.note)
    write_json(out / shard_plan.SHARDS, {**made, "mixture": planned.table()})
    return _fertility(made)


def _fertility(made: Mapping) -> dict:
    """Tokens, and bytes a token, of each domain; shards.json has them by language."""
    counts: dict[str, list[int]] = {}
    for domain, _, _, num_bytes, num_tokens in made["fertility"]:
        known = counts.setdefault(domain, [0, 0])
        counts[domain] = [known[0] + num_bytes, known[1] + num_tokens]
    summary: dict[str, float] = {}
    for domain, (num_bytes, num_tokens) in counts.items():
        summary[f"{domain}_tokens"] = num_tokens
        summary[f"{domain}_bytes_per_token"] = round(num_bytes / max(1, num_tokens), 4)
    return summary


def take_tokenizer(chosen: Settings, folder: Path) -> None:
    """Copies the tokenizer of the run that `start` names, or that of `tokenizer.path`.

    Args:
      chosen: the settings.
      folder: where to.

    Raises:
      BadInput: it does not fit the configuration, or training.
    """
    config, rows = chosen.tokenizer, chosen.model.vocab_size
    if chosen.start:
        start = load.find_start(chosen.start)
        source = start.run.stage("tokenizer")
        imported.take(source, folder, _write_gguf)
        if start.stage == load.IMPORTED:
            described = start.run.read_config()
            write_json(folder / ORIGIN, {key: described[key] for key in ORIGIN_KEYS})
        elif (source / ORIGIN).exists():
            write_json(folder / ORIGIN, read_json(source / ORIGIN))
    else:
        imported.take(Path(config.path), folder, _write_gguf)
    if not load.is_own(folder):
        tokenizer.load_for_training(folder, rows, config.control)
    elif (num_ids := tokenizer.load_own(folder).vocab_size) > rows:
        named = f"start={chosen.start}" if chosen.start else f"tokenizer.path={config.path}"
        raise BadInput(
            f"model.vocab_size is {rows}; it must be at least {num_ids}, the ids of the tokenizer "
            f"of {named}"
        )


def _write_gguf(path: Path, out: Path) -> None:
    from_gguf(path, gguf.open_gguf(path)[1], out)
