"""Hugging Face checkpoints, read and written, and GGUF checkpoints, read.

One tensor of a file is in memory at a time, in both directions.
"""

import dataclasses
import functools
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from model.config import TransformerConfig
from model.interop import gguf, gguf_config, hf_config, hf_keys, hf_tensors, packed, placement
from model.interop.mapping import Part, parts
from model.interop.safetensors import open_safetensors, plain_file, read_json, write_safetensors
from model.transformer import Params

# Names that stand for the same place: of a base model alone, and inside a multimodal one.
BASES = re.compile(r"^(language_model\.model|model\.language_model|model|transformer)\.")
HEADS = re.compile(r"^language_model\.(?=lm_head)")
# What says nothing that the other tensors and config.json do not: tables of rotary frequencies,
# GPT-2's masks; and what is no part of the language model.
IDLE = re.compile(
    r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|"
    r"^(model\.)?(vision_tower|multi_modal_projector)\."
)
HEAD = "lm_head.weight"
LISTED = 5  # names that an error spells out


@dataclasses.dataclass(frozen=True)
class Source:
    """A model in files.

    Attributes:
      name: model_type of its family.
      config: the model.
      parts: its tensors, all there and of the right shapes.
      read: gives a tensor's values by the name of its part.
      metadata: of a GGUF file.
    """

    name: str
    config: TransformerConfig
    parts: list[Part]
    read: Callable[[str], np.ndarray]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def open_hf(directory: Path) -> Source:
    """Opens a Hugging Face directory: config.json beside model.safetensors or its shards.

    Raises:
      ValueError: a file, key or tensor that cannot be honoured; the message names it.
    """
    raw = read_json(plain_file(directory, "config.json"))
    config = hf_config.from_hf(raw)
    raw, name = hf_keys.text_part(raw)
    tensors = packed.Unpacked(open_safetensors(directory))
    stored = {_canonical(there, base(name)): there for there in tensors.names()}
    if len(stored) < len(tensors.names()):
        raise ValueError(f"{directory}: holds tensors under two spellings of one name")
    rules = hf_tensors.rules(name, stored, raw.get("rope_interleave", True))
    wanted = parts(config, rules, layer(name))
    # Layers beyond the last, which predict several tokens ahead (DeepSeek-V3).
    more = raw.get("num_nextn_predict_layers", raw.get("num_mtp_layers")) or 0
    depths = range(config.num_layers, config.num_layers + min(more, hf_config.MAX_LAYERS))
    past = [layer(name).format(i=depth) + "." for depth in depths]
    ignored = {
        known
        for known, there in stored.items()
        if IDLE.search(there) or known.startswith(tuple(past))
    }
    ignored |= {HEAD} if config.head == "tied" else set()
    shapes = {known: tensors.shape(there) for known, there in stored.items()}
    _check(directory, wanted, shapes, ignored, stored)
    if config.head == "tied" and HEAD in stored:
        # One after the other: only one is to be in memory.
        head, embedding = (
            zlib.crc32(tensors.read(stored[known])) for known in (HEAD, wanted[0].name)
        )
        if head != embedding:
            raise ValueError(f"{directory}: {HEAD} is not the embedding that config.json makes it")
    return Source(name, config, wanted, lambda known: tensors.read(stored[known]))


def open_gguf(path: Path) -> Source:
    """Opens a GGUF file.

    Raises:
      ValueError: a key or tensor that cannot be honoured; the message names it.
    """
    tensors, metadata = gguf.open_gguf(path)
    shapes = {name: tensors.shape(name) for name in tensors.names()}
    divisors = tensors.read(gguf_config.FREQS) if gguf_config.FREQS in shapes else None
    try:
        raw = gguf_config.to_config(metadata, shapes, divisors)
        config = hf_config.from_hf(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    rules = gguf_config.rules(metadata["general.architecture"], shapes)
    wanted = parts(config, rules, gguf_config.LAYER)
    _check(path, wanted, shapes, {gguf_config.FREQS}, {})
    return Source(raw["model_type"], config, wanted, tensors.read, metadata)


def load(source: Path, mesh: Mesh | None = None, **layout: Any) -> tuple[TransformerConfig, Params]:
    """Reads a model onto devices.

    Args:
      source: a Hugging Face directory or a GGUF file.
      mesh: where the parameters go; one device by default.
      layout: fields of TransformerConfig that say how it is computed (dtype, vocab_multiple, ...).

    Returns:
      (config, parameters), float32.

    Raises:
      ValueError: a file, key or tensor that cannot be honoured; the message names it.
    """
    opened = open_hf(source) if source.is_dir() else open_gguf(source)
    config = dataclasses.replace(opened.config, **layout)
    return config, placement.fill(config, opened.parts, opened.read, mesh)


def base(name: str) -> str:
    """What names of a family begin with, but that of the head."""
    return "transformer." if name == "gpt2" else "model."


def layer(name: str) -> str:
    """What names inside a layer begin with."""
    return base(name) + ("h.{i}" if name == "gpt2" else "layers.{i}")


def _canonical(name: str, front: str) -> str:
    name = HEADS.sub("", name)
    return name if name.startswith("lm_head") else front + BASES.sub("", name)


def _check(
    source: Path,
    wanted: Iterable[Part],
    shapes: Mapping[str, tuple[int, ...]],
    ignored: Collection[str],
    spelled: Mapping[str, str],
) -> None:
    """Raises ValueError, naming them, if tensors are missing, left over or of another shape.

    `spelled` gives the names in the file where they are others.
    """
    needed = {part.name: part.shape for part in wanted}
    extra = set(shapes) - set(needed) - set(ignored)
    faults = {
        "lacks": [name for name in needed if name not in shapes],
        "has no use for": sorted(spelled.get(name, name) for name in extra),
        "has another shape for": [
            f"{spelled.get(name, name)} ({shapes[name]}, expected {shape})"
            for name, shape in needed.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    found = []
    for fault, names in faults.items():
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        found += [f"{fault} {', '.join(names[:LISTED])}{more}"] if names else []
    if found:
        raise ValueError(f"{source}: {'; '.join(found)}")


def outline(config: TransformerConfig, name: str) -> list[Part]:
    """The tensors of a model in a Hugging Face directory, as this family stores them."""
    return parts(config, hf_tensors.rules(name), layer(name))


def gather(
    part: Part, take: Callable[[tuple[str, ...], tuple[int, ...]], np.ndarray]
) -> np.ndarray:
    """A tensor of a file out of parameters.

    Args:
      part: from `outline`.
      take: gives what is in the leaf at a path, at an index into its leading dims.
    """
    tensor = np.empty(part.shape, np.float32)
    for piece in part.pieces:
        ours = take(piece.path, piece.index)
        piece.put(tensor, ours[tuple(slice(size) for size in piece.shape)])
    return tensor


def save(
    directory: Path,
    config: TransformerConfig,
    params: Params,
    name: str,
    max_shard_bytes: int = 5 * 10**9,
    dtype: str = "float32",
) -> None:
    """Writes a directory that transformers loads.

    Args:
      directory: made if need be.
      config: the model.
      params: its parameters, on any mesh.
      name: model_type of the family, as `families.nearest` finds it.
      max_shard_bytes: a longer file is split.
      dtype: 'float32', 'bfloat16' or 'float16'.

    Raises:
      ValueError: the family has no such model; the message names the switch.
    """
    written = hf_config.to_hf(config, name) | {"dtype": dtype}
    take = functools.partial(placement.take, params)
    directory.mkdir(parents=True, exist_ok=True)
    items = (
        (part.name, part.shape, functools.partial(gather, part, take))
        for part in outline(config, name)
    )
    write_safetensors(directory, items, max_shard_bytes, dtype)
    (directory / "config.json").write_text(json.dumps(written, indent=2) + "\n")
