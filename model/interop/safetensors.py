"""safetensors directories, read and written one tensor at a time.

Nothing read stays: memory holds the tensor asked for and a block. The files are strangers', so
that every name and size in them is checked before anything is allocated or opened.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

# Bytes that are converted at a time.
BLOCK_BYTES = 1 << 20
# Of a header or an index. That of Kimi K2, 140,000 tensors, has about 13 MB.
MAX_HEADER_BYTES = 1 << 25
# Of a number in one, about what float32 holds.
MAX_NUMBER = 1e38
# The names that safetensors gives to types, those that are read. U8 is packed data: it stays as
# it is, everything else becomes float32.
TYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "U8": np.uint8,
}
WRITTEN = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

Item = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file: consecutive units of `unit_bytes`, each decoded alone.

    `type` names its encoding; `decode` turns whole units of raw bytes into flat values, and is
    None where nothing here can.
    """

    path: Path
    start: int
    num_bytes: int
    shape: tuple[int, ...]
    type: str
    unit_bytes: int
    decode: Callable[[np.ndarray], np.ndarray] | None


class Tensors:
    """Named tensors in files."""

    def __init__(self, stored: dict[str, Stored]):
        self._stored = stored

    def names(self) -> list[str]:
        """All names, in the order of the files."""
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, outermost dim first."""
        return self._stored[name].shape

    def read(self, name: str) -> np.ndarray:
        """A tensor's values: float32, or uint8 as they lie there.

        Raises:
          ValueError: its type is not one that is read, or the file has become shorter.
        """
        stored = self._stored[name]
        if stored.decode is None:
            raise ValueError(f"{stored.path}: tensor {name!r} has type {stored.type}, not read yet")
        out = np.empty(stored.shape, np.uint8 if stored.type == "U8" else np.float32)
        flat, done = out.reshape(-1), 0
        for raw in _blocks(stored):
            values = stored.decode(raw)
            flat[done : done + values.size] = values
            done += values.size
        return out


def _blocks(stored: Stored) -> Iterator[np.ndarray]:
    """The raw bytes in whole units, about BLOCK_BYTES at a time; read, never mapped."""
    step = max(1, BLOCK_BYTES // stored.unit_bytes) * stored.unit_bytes
    with stored.path.open("rb", buffering=0) as file:
        file.seek(stored.start)
        for start in range(0, stored.num_bytes, step):
            count = min(step, stored.num_bytes - start)
            raw = np.fromfile(file, np.uint8, count)
            if raw.size < count:
                raise ValueError(f"{stored.path}: ends at byte {stored.start + start + raw.size}")
            yield raw


def plain_file(directory: Path, name: str) -> Path:
    """The path of a file that stands in a directory under a plain name.

    The name may be a stranger's, so that it must not lead elsewhere. The directory is the user's:
    its links are followed, since in the Hub's cache every file is one.

    Raises:
      ValueError: the name leads elsewhere, or no file stands there.
    """
    if not re.fullmatch(r"[^/\\\0]+", name) or name in (".", ".."):
        raise ValueError(f"{directory}: file name {name!r} must name a file of this directory")
    return need_file(directory / name)


def need_file(path: Path) -> Path:
    """The path itself, if it is that of a file or of a link to one.

    Raises:
      ValueError: it is not; the message says what is there instead.
    """
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(f"{path}: is a directory; it must be a file")
    if path.exists():
        raise ValueError(f"{path}: is no regular file")
    if path.is_symlink():
        raise ValueError(f"{path}: a link to {path.readlink()}, which is not there")
    raise ValueError(f"{path}: no such file")


def read_json(path: Path) -> dict:
    """A JSON file's object.

    Raises:
      ValueError: it is too large, no JSON, no object, or names a key twice.
    """
    size = path.stat().st_size
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"{path}: {size} bytes; at most {MAX_HEADER_BYTES} are read")
    return _parse_json(path, path.read_bytes())


def _parse_json(path: Path, text: bytes) -> dict:
    try:
        value = json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_int=functools.partial(_number, int),
            parse_float=functools.partial(_number, float),
            parse_constant=functools.partial(_number, float),
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON that can be used ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, holds {type(value).__name__}")
    return value


def _number(kind: type, text: str) -> float:
    """A number that float32 holds: no infinity, which JSON does not have either."""
    if not abs(float(text)) < MAX_NUMBER:
        raise ValueError(f"the number {text[:20]} is none that can be used")
    return kind(text)


def _distinct(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice!r} occurs twice")
    return found


def open_safetensors(directory: Path) -> Tensors:
    """Opens model.safetensors, or the shards that model.safetensors.index.json names.

    As in transformers, all tensors of these shards are there, also those that the index leaves out
    or places in another shard. Unlike there, a tensor that is named and lacking is refused, and so
    is one that two shards hold.

    Raises:
      ValueError: neither is there, a file is damaged or lies elsewhere, or index and shards
        disagree; the message names the file and the tensor.
    """
    if os.path.lexists(directory / WHOLE):
        return Tensors(_read_header(plain_file(directory, WHOLE)))
    if not os.path.lexists(directory / INDEX):
        raise ValueError(f"{directory}: holds neither {WHOLE} nor {INDEX}")
    index = plain_file(directory, INDEX)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
        raise ValueError(f"{index}: weight_map must give the file of each tensor")
    found: dict[str, Stored] = {}
    for shard in dict.fromkeys(places.values()):
        stored = _read_header(plain_file(directory, shard))
        for name in stored.keys() & found.keys():
            raise ValueError(
                f"{directory / shard}: holds {name!r}, as {found[name].path.name} does"
            )
        found |= stored
    for name, shard in places.items():
        if name not in found:
            raise ValueError(f"{directory / shard}: lacks {name!r}, which {INDEX} places there")
    return Tensors(found)


def _read_header(path: Path) -> dict[str, Stored]:
    """What a safetensors file holds.

    The library refuses headers and offsets that do not add up to the file. It lets pass keys that
    occur twice and absurd numbers of dims, and maps the file, which would stay in memory as it is
    read: so the bytes are read here.
    """
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        if num_bytes > MAX_HEADER_BYTES:
            raise ValueError(
                f"{path}: a header of {num_bytes} bytes; at most {MAX_HEADER_BYTES} are read"
            )
        header = file.read(num_bytes)
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    return {
        name: _stored(path, name, entry, 8 + num_bytes)
        for name, entry in _parse_json(path, header).items()
        if name != "__metadata__"
    }


def _stored(path: Path, name: str, entry: dict, base: int) -> Stored:
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    if len(shape) > 8:
        raise ValueError(f"{path}: tensor {name!r} has {len(shape)} dims; at most 8 are read")
    kind = TYPES.get(entry["dtype"])
    decode = (lambda raw: raw.view(kind)) if kind else None
    unit_bytes = np.dtype(kind).itemsize if kind else 1
    return Stored(path, base + start, end - start, shape, entry["dtype"], unit_bytes, decode)


def write_safetensors(
    directory: Path, items: Iterable[Item], max_shard_bytes: int, dtype: str
) -> None:
    """Writes tensors as Hugging Face does: one file, or shards and their index.

    The safetensors library writes only what is in memory all at once; here each tensor is made
    when its place in the file has come.

    Args:
      directory: where the files go; it must exist.
      items: (name, shape, function that gives the values), written in this order.
      max_shard_bytes: a shard is closed before it grows beyond, unless one tensor alone does.
      dtype: 'float32', 'bfloat16' or 'float16'.

    Raises:
      ValueError: a tensor has another shape than was announced.
    """
    kind = np.dtype(TYPES[WRITTEN[dtype]])
    shards: list[list[Item]] = [[]]
    total, filled = 0, 0
    for item in items:
        num_bytes = kind.itemsize * int(np.prod(item[1], dtype=np.int64))
        if shards[-1] and filled + num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        total, filled = total + num_bytes, filled + num_bytes
    if len(shards) == 1:
        return _write_file(directory / WHOLE, shards[0], dtype)
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(directory / file, shard, dtype)
        places |= {name: file for name, _, _ in shard}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return None


def _write_file(path: Path, items: list[Item], dtype: str) -> None:
    kind = np.dtype(TYPES[WRITTEN[dtype]])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape, _ in items:
        end = start + kind.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": WRITTEN[dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, make in items:
            # Nothing here may hold a tensor while the next is made.
            _append(file, f"{path}: {name!r}", tuple(shape), make(), kind)


def _append(
    file: BinaryIO, about: str, shape: tuple[int, ...], array: np.ndarray, kind: np.dtype
) -> None:
    if array.shape != shape:
        raise ValueError(f"{about} has shape {array.shape}, not {shape}")
    for rows in _slabs(array):
        np.ascontiguousarray(rows, kind).tofile(file)


def _slabs(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in pieces along its first dim, of about BLOCK_BYTES where rows are smaller."""
    if array.ndim == 0:
        array = array.reshape(1)
    row_bytes = array.nbytes // max(1, len(array))
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]
