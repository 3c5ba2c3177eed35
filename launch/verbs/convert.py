"""Import of Hugging Face and GGUF models into runs, and export of runs to Hugging Face files.

A model goes through one tensor at a time, in both directions: a run on disk is read onto any mesh.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.errors import BadInput
from data.tokens import chat, imported, tokenizer
from data.tokens.gguf_tokenizer import from_gguf
from launch import load
from launch.console import Progress
from launch.schema import to_dataclass, to_dict
from launch.stages.stage import CHATS
from launch.store.atomic import atomic_directory
from launch.store.rundir import ORIGIN, RunDir, code_version, digest, write_json
from launch.verbs import export_tokenizer
from model.config import TransformerConfig
from model.interop import hf_config, huggingface
from model.interop.safetensors import WRITTEN, plain_file, read_json, write_safetensors
from model.transformer import declare
from train import checkpoint

MAX_SHARD_BYTES = 5 * 10**9
# Of a source's config.json, beside what the model is: for those who generate with it.
TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
LOG_SECS = 2.0
COMMIT = "commit_success.txt"  # Orbax's, with the time


def run_import(source_hf: str, source_gguf: str, out: Path, progress: Progress) -> dict:
    """Makes a run of a Hugging Face directory or of a GGUF file.

    Args:
      source_hf: a directory with config.json, safetensors and a tokenizer; or ''.
      source_gguf: a GGUF file; or ''.
      out: the run to make: a new or an empty directory.
      progress: where lines go.

    Returns:
      {"model_type", "parameters", "tokens"}.

    Raises:
      BadInput: anything about the source that is not supported; nothing is left at `out`.
    """
    if source_hf and source_gguf:
        raise BadInput("give one of --hf=DIR and --gguf=FILE, not both")
    if not source_hf and not source_gguf:
        raise BadInput("one of --hf=DIR and --gguf=FILE is needed")
    place = Path(source_hf or source_gguf)
    progress.stage("import")
    with atomic_directory(out, "--out", progress) as part:
        if source_hf and place.is_dir() and part.is_relative_to(place.resolve()):
            raise BadInput(f"--out={out}: inside of what is imported, {place}; give another one")
        if source_hf and place.is_dir():
            _refuse_stray_links(place)
        run = RunDir(part)
        with _as_bad_input():
            source = huggingface.open_hf(place) if source_hf else huggingface.open_gguf(place)
            described = (
                _describe_hf(place, source.config.vocab_size, progress.note)
                if source_hf
                else _describe_gguf(source.metadata)
            )
        described |= {"model_type": source.name, "source": str(place.absolute())}
        folder = run.stage("tokenizer")
        if source_hf:
            imported.copy_tokenizer(place, folder)
        else:
            from_gguf(place, source.metadata, folder)
        try:
            num_tokens = tokenizer.load(folder, source.config.vocab_size).vocab_size
        except BadInput as error:
            raise BadInput(str(error).replace(str(folder), str(place))) from error
        settings = {"model": to_dict(source.config), **described}
        leaves = _lazy(source, progress)
        checkpoint.write(run.checkpoints("import"), settings, leaves)
        written = run.hash_files("checkpoints/import/0/params")
        settings["weights_sha256"] = digest(
            {name: found for name, found in written.items() if name != COMMIT}
        )
        sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(leaves)]
        summary = {"model_type": source.name, "parameters": sum(sizes), "tokens": num_tokens}
        run.write_config(settings, f"{jax.device_count()} x {jax.devices()[0].device_kind}")
        run.begin("import", settings, code_version(), fresh=False)
        done = {"stage": "import", "inputs": digest(settings), "summary": summary}
        write_json(run.stage("import") / "done.json", done | {"products": run.products("import")})
    progress.note(f"{summary['parameters']:,} parameters of {place} are in {out}")
    return summary


def _describe_hf(directory: Path, vocab_size: int, note: Callable[[str], None]) -> dict:
    """What a run keeps of a directory beside the model: tokens, precision, how to generate."""
    path = plain_file(directory, "config.json")
    raw = read_json(path)
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    generation = {}
    if os.path.lexists(directory / "generation_config.json"):
        generation = read_json(plain_file(directory, "generation_config.json"))
    return {
        "format": "hf",
        "config_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "dtype": dtype if dtype in tuple(WRITTEN) else "float32",
        "token_ids": _token_ids(raw, vocab_size, note),
        "generation": generation,
    }


def _token_ids(
    raw: dict, vocab_size: int, note: Callable[[str], None]
) -> dict[str, int | list[int]]:
    """The ids that a config.json names, as far as the vocabulary has them.

    A class's default (50256) in a small model's file is noted and left out; -1 is none (so the
    first conversions of Llama write it).

    Raises:
      ValueError: a value that is no id, nor a list of them.
    """
    found = {}
    for key in TOKEN_KEYS:
        value = raw.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(i) is not int for i in ids):
            raise ValueError(
                f"config.json: {key} is {value!r}; it must be an id, a list of them, or null"
            )
        known = [i for i in ids if 0 <= i < vocab_size]
        beyond = [i for i in ids if i not in known and i != -1]
        if beyond:
            note(f"{key} names {beyond}, and the model has {vocab_size} ids: left out")
        if known:
            found[key] = known if isinstance(value, list) else known[0]
    return found


def _describe_gguf(metadata: dict[str, Any]) -> dict:
    theirs = ("bos_token_id", "eos_token_id", "padding_token_id")
    found = [metadata.get(f"tokenizer.ggml.{key}") for key in theirs]
    ids = {key: i for key, i in zip(TOKEN_KEYS, found, strict=True) if i is not None}
    return {
        "format": "gguf",
        "config_sha256": digest(metadata),
        "dtype": "float32",  # what quantization has left fits no shorter type
        "token_ids": ids,
        "generation": ids,
    }


def _lazy(source: Any, progress: Progress) -> dict:
    """The model's parameters as they are to be written: every part reads its tensor."""
    tell = _progress_logger(progress, sum(len(part.pieces) for part in source.parts))

    def make(part, piece) -> np.ndarray:
        tell(part.name)
        with _as_bad_input():
            taken = piece.take(source.read(part.name))
            # Not isfinite: its result would be a quarter of the largest tensor.
            if taken.size and not np.isfinite([taken.min(), taken.max()]).all():
                raise ValueError(f"{part.name}: holds NaN or infinity; weights must be finite")
            return taken

    declared, found, tree = declare(source.config), {}, {}
    for part in source.parts:
        for piece in part.pieces:
            made = (piece.index, functools.partial(make, part, piece))
            found.setdefault(piece.path, []).append(made)
    for path, made in found.items():
        *parents, last_key = path
        shape = functools.reduce(dict.__getitem__, path, declared).shape
        section = functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)
        section[last_key] = checkpoint.Lazy(shape, made)
    return tree


def run_export(run: RunDir, stage: str, out: Path, progress: Progress) -> dict:
    """Writes a stage's model and the run's tokenizer as a Hugging Face directory.

    Args:
      run: an imported run, or one of our own.
      stage: one of load.MAKERS, or '' for the last of them that is finished.
      out: the directory to make, new or empty.
      progress: where lines go.

    Returns:
      {"stage", "model_type", "dtype", "tokenizer": which files and how they were checked}.

    Raises:
      BadInput: the run has no such model, or transformers no such family; nothing is left.
    """
    described = run.read_config()
    stage = load.choose_stage(run, stage)
    progress.stage("export")

    def declared(saved: dict) -> Any:
        load.refuse_other_tokenizer(run, stage, saved)
        return declare(to_dataclass(TransformerConfig, saved["model"], "model"))

    saved, leaves = checkpoint.open_params(run.checkpoints(stage), declared)
    load.note_doubts(run, stage, progress.note)
    config = to_dataclass(TransformerConfig, saved["model"], "model")
    origin = run.stage("tokenizer") / ORIGIN
    described |= read_json(origin) if origin.exists() else {}
    dtype, folder = described.get("dtype", "float32"), run.stage("tokenizer")
    with atomic_directory(out, "--hf", progress) as part:
        with _as_bad_input():
            name, shown = _find_family(described, config)
            kind, ids = _describe_tokenizer(run, described, stage)
            written = hf_config.to_hf(shown, name) | {"dtype": dtype} | ids
            items = _items(
                huggingface.outline(shown, name), _taker(leaves, config, shown), progress
            )
        write_safetensors(part, items, MAX_SHARD_BYTES, dtype)
        (part / "config.json").write_text(json.dumps(written, indent=2) + "\n")
        generation = described.get("generation", ids)
        if generation:
            generation |= {"eos_token_id": ids["eos_token_id"]} if stage in CHATS else {}
            (part / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        checked = export_tokenizer.write(folder, kind, stage, part)
        control = described.get("tokenizer", {}).get("control")
        if control and stage in CHATS and kind != "own":
            taught = load.load_tokenizer(run)
            checked += "; " + export_tokenizer.write_control(taught, control, part)
    progress.note(f"{stage} of {run.path} is in {out} as {name}, {dtype}; tokenizer: {checked}")
    return {"stage": stage, "model_type": name, "dtype": dtype, "tokenizer": checked}


def _find_family(described: dict, config: TransformerConfig) -> tuple[str, TransformerConfig]:
    """The model_type to write, and the model as that family says it.

    Few families scale their token vectors. Another model that does is the same function with the
    scale inside its embedding and a head of its own.
    """
    if "model_type" in described:
        return described["model_type"], config
    try:
        return hf_config.nearest(config), config
    except ValueError:
        if not config.scale_embedding:
            raise
    plain = dataclasses.replace(config, scale_embedding=False, head="untied")
    return hf_config.nearest(plain), plain


def _taker(leaves: Any, config: TransformerConfig, shown: TransformerConfig) -> Callable:
    """take(path, index): what is in a leaf on disk, as the model `shown` has it."""

    def read(*path: str) -> Any:
        return functools.reduce(dict.__getitem__, path, leaves)

    def take(path: tuple[str, ...], index: tuple[int, ...]) -> np.ndarray:
        tied = path == ("head",) and config.head == "tied"
        with _as_bad_input():  # a piece that is damaged; it is named
            value = (read("embedding") if tied else read(*path)[index]).read().result()
        if tied:
            return value.T
        folded = path == ("embedding",) and shown.scale_embedding != config.scale_embedding
        return value * np.float32(config.d_model**0.5) if folded else value

    return take


def _describe_tokenizer(run: RunDir, described: dict, stage: str) -> tuple[str, dict[str, Any]]:
    """Where a run's tokenizer comes from ('own', 'hf', 'gguf'), and its special tokens' ids.

    An imported model keeps the ids that it came with; once tuned to chat, the token that ends its
    turn is a stop token as well.
    """
    folder = run.stage("tokenizer")
    if load.is_own(folder) and stage != load.IMPORTED:  # tuned from an import of ours, too
        return "own", _trained_ids(tokenizer.load_own(folder), stage)
    if "format" in described:
        ids = described["token_ids"]
        if stage in CHATS:
            stops = [
                *_listed(ids, "eos_token_id"),
                *_listed(described["generation"], "eos_token_id"),
            ]
            stop = chat.end_id(load.load_tokenizer(run))
            stops = list(dict.fromkeys(stops if stop in stops else [stop, *stops]))
            ids = ids | {"eos_token_id": stops if stops[1:] else stop}
        return described["format"], ids
    return "hf", _trained_ids(load.load_tokenizer(run), stage)


def _trained_ids(model: Any, stage: str) -> dict[str, Any]:
    """Token ids of a run's tokenizer: a model that has learnt to answer stops at its turn's end."""
    stop = [model.eos_id] if stage == "pretrain" else [chat.end_id(model), model.eos_id]
    stop = list(dict.fromkeys(stop))
    values = (model.bos_id, stop[0] if len(stop) == 1 else stop, model.pad_id)
    return dict(zip(TOKEN_KEYS, values, strict=True))


def _listed(config: dict, key: str) -> list[int]:
    """The ids that a key names: one, several or none."""
    ids = config.get(key)
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _items(parts: list, take: Callable, progress: Progress) -> Iterator[tuple]:
    """What write_safetensors wants: each tensor's name, shape and how it is read."""
    tell = _progress_logger(progress, len(parts))

    def make(part: Any) -> np.ndarray:
        tell(part.name)
        return huggingface.gather(part, take)

    for part in parts:
        yield part.name, part.shape, functools.partial(make, part)


def _progress_logger(progress: Progress, total: int) -> Callable[[str], None]:
    """A function to call with each of `total` tensor names; now and then it logs progress."""
    count, last = 0, time.perf_counter()

    def tell(name: str) -> None:
        nonlocal count, last
        count += 1
        if time.perf_counter() > last + LOG_SECS:
            last = time.perf_counter()
            progress.log(f"{count} of {total} tensors: {name}")

    return tell


@contextlib.contextmanager
def _as_bad_input() -> Iterator[None]:
    """Turns errors of model/ into BadInput: the user can fix them."""
    try:
        yield
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(str(error)) from error


def _refuse_stray_links(directory: Path) -> None:
    """Rejects symlinks that leave the model directory; those of a hub cache are followed."""
    home = directory.resolve()
    for path in sorted(directory.iterdir()):
        if path.is_symlink() and path.resolve().parent not in (home, home.parent.parent / "blobs"):
            raise BadInput(
                f"{path}: a link to {path.readlink()}, out of its directory; only those into the "
                "blobs of a hub cache are followed"
            )
