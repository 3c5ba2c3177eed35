"""GGUF files (github.com/ggml-org/ggml, docs/gguf.md): metadata and tensors, one at a time.

The gguf package knows the types and undoes their quantization. Its GGUFReader is not used: it
follows whatever size a header claims, and takes 8 s and 0.7 GB to open a file whose vocabulary has
262,144 tokens (tests/model/test_gguf.py holds this reader against it).
"""

import functools
import math
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from model.interop.safetensors import MAX_HEADER_BYTES, Stored, Tensors, need_file

VERSIONS = (2, 3)
MAX_DIMS = 4  # of GGML
MAX_ALIGNMENT = 1 << 20
SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


def open_gguf(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Opens a GGUF file.

    Returns:
      (tensors, metadata). Shapes are outermost dim first, the reverse of the file's. Metadata
      values are int, float, bool, str, or lists of one of them.

    Raises:
      ValueError: not such a file, damaged, of another byte order or version, or one of several
        parts of a model; the message names the file and the key or tensor.
    """
    with need_file(path).open("rb") as file:
        header = _Header(path, file)
        if header.take(4) != b"GGUF":
            raise ValueError(f"{path}: does not begin with GGUF")
        version = header.number("<u4")
        if version not in VERSIONS:
            raise ValueError(f"{path}: version {version}; little-endian {VERSIONS} are read")
        num_tensors, num_pairs = header.number("<u8"), header.number("<u8")
        metadata = _read_metadata(header, num_pairs)
        if metadata.get("split.count", 1) != 1:
            raise ValueError(f"{path}: one part of {metadata['split.count']}; merge them first")
        infos = [_read_info(header) for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        power = isinstance(alignment, int) and 0 < alignment <= MAX_ALIGNMENT
        if not power or alignment & (alignment - 1):
            raise ValueError(
                f"{path}: general.alignment is {alignment!r}; it must be a power of two"
            )
        base = -(-header.place // alignment) * alignment
    return Tensors(_place(path, infos, base, alignment)), metadata


class _Header:
    """The front of a file, read in order and never beyond its end."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.place = path, 0
        self._file = file
        self._end = min(path.stat().st_size, MAX_HEADER_BYTES)

    def take(self, num_bytes: int) -> bytes:
        """The next bytes."""
        if num_bytes > self._end - self.place:
            raise ValueError(
                f"{self.path}: damaged: the header asks for {num_bytes} bytes at byte "
                f"{self.place}, and may reach to {self._end}"
            )
        self.place += num_bytes
        return self._file.read(num_bytes)

    def number(self, kind: str) -> Any:
        """The next scalar."""
        return self.numbers(kind, 1)[0]

    def numbers(self, kind: str, count: int) -> list:
        """The next scalars."""
        dtype = np.dtype(kind)
        return np.frombuffer(self.take(dtype.itemsize * count), dtype).tolist()

    def string(self) -> str:
        """The next string."""
        start, raw = self.place, self.take(int.from_bytes(self.take(8), "little"))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: the string at byte {start} is not UTF-8") from error

    def kind(self) -> GGUFValueType:
        """The next type of a metadata value."""
        number = self.number("<u4")
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise ValueError(f"{self.path}: value type {number} is unknown") from error


def _read_metadata(header: _Header, num_pairs: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(num_pairs):
        key, kind = header.string(), header.kind()
        if key in found:
            raise ValueError(f"{header.path}: key {key!r} occurs twice")
        if kind != GGUFValueType.ARRAY:
            found[key] = _read_values(header, key, kind, 1)[0]
        else:
            kind, count = header.kind(), header.number("<u8")
            found[key] = _read_values(header, key, kind, count)
    return found


def _read_values(header: _Header, key: str, kind: GGUFValueType, count: int) -> list:
    if kind == GGUFValueType.STRING:
        return [header.string() for _ in range(count)]
    if kind in SCALARS:
        return header.numbers(SCALARS[kind], count)
    raise ValueError(f"{header.path}: key {key!r} holds an array of arrays, which is not read")


def _read_info(header: _Header) -> tuple[str, list[int], int, int]:
    """(name, dims innermost first, type, offset) of a tensor."""
    name, num_dims = header.string(), header.number("<u4")
    if num_dims > MAX_DIMS:
        raise ValueError(f"{header.path}: tensor {name!r} has {num_dims} dims, GGML {MAX_DIMS}")
    return name, header.numbers("<u8", num_dims), header.number("<u4"), header.number("<u8")


def _place(path: Path, infos: list, base: int, alignment: int) -> dict[str, Stored]:
    """Where each tensor lies, in the order of the file; none beyond its end or in another's."""
    size, end, found = path.stat().st_size, base, {}
    for name, dims, number, offset in sorted(infos, key=lambda info: info[3]):
        about = f"{path}: tensor {name!r}"
        if name in found:
            raise ValueError(f"{about} occurs twice")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise ValueError(f"{about} has type {number}, which is unknown") from error
        block_size, type_bytes = gguf.GGML_QUANT_SIZES[kind]
        row = dims[0] if dims else 1
        if 0 in dims or row % block_size:
            raise ValueError(f"{about} has dims {dims}; the first must divide by {block_size}")
        num_bytes = math.prod(dims) // block_size * type_bytes
        start = base + offset
        if offset % alignment or start < end or start + num_bytes > size:
            raise ValueError(
                f"{about} takes bytes {start} to {start + num_bytes}; free are those from {end} "
                f"to {size}, in steps of {alignment}"
            )
        end = start + num_bytes
        decode = functools.partial(_decode, kind=kind) if _is_known(kind) else None
        shape = tuple(reversed(dims))
        found[name] = Stored(path, start, num_bytes, shape, kind.name, type_bytes, decode)
    return found


@functools.cache
def _is_known(kind: GGMLQuantizationType) -> bool:
    """Whether the package can undo this quantization."""
    try:
        _decode(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _decode(raw: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    # One row: the package works on 16 rows at a time.
    with np.errstate(all="ignore"):
        return gguf.dequantize(raw.reshape(1, -1), kind).reshape(-1)
