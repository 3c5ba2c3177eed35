"""Where each weight lies among a file's tensors: rules, and the parts that follow from them.

A rule reads like an einsum: `Rule('.self_attn.q_proj.weight', 'NH D')` says that a layer's q_DNH
is the tensor of that name, whose two dims are N x H and D. It works in both directions.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from model.config import TransformerConfig, stacks
from model.transformer import declare

# Of layers times experts; Kimi K2 has 23,424.
MAX_PLACES = 100_000


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where one weight lies.

    Attributes:
      name: of the tensor; '.' first: inside a layer; {e}: one tensor an expert.
      dims: letters of its dims, a space between dims. A digit is a dim of that size of which the
        weight is the `entry`-th: several weights share the tensor.
      entry: see dims.
      half: of a dim H that holds the keys' part and then the values', which of the two.
      offset: added on load (Gemma stores a norm's scale less 1).
      interleaved: rotated dims, the last of a head, are stored as pairs, not as two halves.
    """

    name: str
    dims: str
    entry: int = 0
    half: int | None = None
    offset: float = 0.0
    interleaved: bool = False


def linear(kind: str, name: str, dims: str) -> dict[str, Rule]:
    """A weight and its bias, which has the dims of the output: all but the last."""
    bias = Rule(f"{name}.bias", " ".join(dims.split()[:-1]))
    return {kind: Rule(f"{name}.weight", dims), f"{kind}_bias": bias}


def norm(kind: str, name: str, dims: str = "D") -> dict[str, Rule]:
    """A norm's scale and bias."""
    stored = {"scale": "weight", "bias": "bias"}
    return {f"{kind}/{leaf}": Rule(f"{name}.{stored[leaf]}", dims) for leaf in stored}


def vary(rules: Mapping[str, Rule], **changes: Any) -> dict[str, Rule]:
    """The same rules with other attributes."""
    return {kind: dataclasses.replace(rule, **changes) for kind, rule in rules.items()}


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one tensor holds of one leaf: all of it, or that of a layer or an expert.

    Attributes:
      path: keys of the leaf in the parameters.
      index: of its leading dims, what is meant.
      shape: of the weight at that index, vocabulary padding left out.
      view: the tensor's shape, dims split into letters.
      select: what of the view is the weight.
      order: transposes what is selected to our letters.
      perm: index in the tensor of each entry of our last dim; None if they are in one order.
      offset: see Rule.
    """

    path: tuple[str, ...]
    index: tuple[int, ...]
    shape: tuple[int, ...]
    view: tuple[int, ...]
    select: tuple[Any, ...]
    order: tuple[int, ...]
    perm: np.ndarray | None
    offset: float

    def take(self, tensor: np.ndarray) -> np.ndarray:
        """Our weight out of a tensor."""
        ours = tensor.reshape(self.view)[self.select].transpose(self.order)
        ours = ours if self.perm is None else ours[..., self.perm]
        return ours + np.float32(self.offset) if self.offset else ours

    def put(self, tensor: np.ndarray, ours: np.ndarray) -> None:
        """Writes our weight into a tensor."""
        ours = ours - np.float32(self.offset) if self.offset else ours
        ours = ours if self.perm is None else ours[..., np.argsort(self.perm)]
        tensor.reshape(self.view)[self.select] = ours.transpose(np.argsort(self.order))


@dataclasses.dataclass(frozen=True)
class Part:
    """A tensor of a file and what it holds."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def parts(config: TransformerConfig, rules: Mapping[str, Rule], layer: str) -> list[Part]:
    """Every tensor that a model's file must hold.

    Args:
      config: the model.
      rules: for 'attention/q' and so on; weights of experts are under 'experts'.
      layer: the beginning of names inside a layer, with {i} for its place in the depth.

    Raises:
      ValueError: the rules know no place for a weight.
    """
    found: dict[str, Part] = {}
    most = config.num_layers * max(1, config.moe.num_experts)
    if most > MAX_PLACES:
        raise ValueError(f"{most} layers times experts; at most {MAX_PLACES} are looked for")
    for entries, weight in jax.tree.leaves_with_path(declare(config)):
        path, letters = tuple(entry.key for entry in entries), weight.letters
        kind, depths = _kind(config, path)
        if kind not in rules:
            raise ValueError(f"no tensor of this format holds {'.'.join(path)}")
        rule = rules[kind]
        sizes = dict(zip(letters, weight.shape, strict=True)) | {"V": config.vocab_size}
        lead = ["X"] * (letters[0] == "X") + ["E"] * ("{e}" in rule.name)
        ours = letters[len(lead) :]
        for index in np.ndindex(*(sizes[letter] for letter in lead)):
            place = dict(i=depths[index[0]] if depths else 0, e=index[-1] if index else 0)
            prefix = layer if rule.name.startswith(".") else ""
            name = (prefix + rule.name).format(**place)
            piece, whole = _piece(config, rule, path, index, ours, sizes)
            before = found[name].pieces if name in found else ()
            found[name] = Part(name, whole, (*before, piece))
    return list(found.values())


def _kind(config: TransformerConfig, path: tuple[str, ...]) -> tuple[str, list[int]]:
    """(name of a leaf's rule, depth of each of its layers)."""
    if not path[0].startswith("stack"):
        return "/".join(path), []
    number, place = int(path[0].removeprefix("stack")), int(path[1].removeprefix("layer"))
    below, stack = stacks(config)[:number], stacks(config)[number]
    first = sum(len(other.layers) * other.repeats for other in below) + place
    depths = [first + len(stack.layers) * x for x in range(stack.repeats)]
    experts = path[2] == "feed_forward" and stack.layers[place].experts
    return "/".join(["experts" if experts else path[2], *path[3:]]), depths


def _piece(config, rule: Rule, path, index, ours: str, sizes: dict[str, int]):
    """(the piece, the shape of its whole tensor)."""
    sizes_of_halves = (config.head_dim - config.mla.rope_dim, config.mla.value_dim)
    sizes = sizes | {"1": 1, "2": 2, "3": 3}
    whole = sizes | ({"H": sum(sizes_of_halves)} if rule.half is not None else {})
    flat = rule.dims.replace(" ", "")
    start = sizes_of_halves[0] * (rule.half or 0)
    half = slice(start, start + sizes.get("H", 0)) if rule.half is not None else slice(None)
    select = tuple(
        rule.entry if letter.isdigit() else half if letter == "H" else slice(None)
        for letter in flat
    )
    left = [letter for letter in flat if not letter.isdigit()]
    perm = None
    if rule.interleaved:
        count = config.mla.rope_dim or config.head_dim
        kept, pairs = np.arange(sizes[ours[-1]] - count), np.arange(count)
        perm = np.concatenate([kept, len(kept) + np.concatenate([pairs[::2], pairs[1::2]])])
    piece = Piece(
        path=path,
        index=index,
        shape=tuple(sizes[letter] for letter in ours),
        view=tuple(whole[letter] for letter in flat),
        select=select,
        order=tuple(left.index(letter) for letter in ours),
        perm=perm,
        offset=rule.offset,
    )
    return piece, tuple(math.prod(whole[x] for x in dim) for dim in rule.dims.split())
