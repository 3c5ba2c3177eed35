"""Letters to mesh axes: the one table that says how every dim of every array is split.

Legend (README has the rest): B batch, L row or query length, M key length, D model, N query heads,
K kv heads, H head size, F feed-forward, V vocabulary, E experts, C slots at an expert, Z latent
rank, T learned positions, X stacked layers.
A *dim* is a letter of a tensor; an *axis* is a side of the device mesh.

A configuration may replace entries of the table. A mesh carries them in the name of an axis of
length 1: whatever needs the table has a mesh, and jax.jit, which tells meshes apart by the names of
their axes, never takes a program that was traced with other entries.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.config import require

# Slowest links first: axes that cross slices come before those inside a slice.
AXES = ("data", "stage", "fsdp", "expert", "context", "tensor")

# Size of the mesh axis that gets the devices which the others leave.
FILL = -1

# Weights are stored split over every axis that does not already split them otherwise.
_STORED = ("fsdp", "expert", "context", "stage")

# In place of a letter: the dim must be whole on each device.
UNSPLIT = "_"
# letter: (mesh axes of a weight's dim, mesh axes of an activation's dim). Two columns, because
# one map would shard x_BLD over fsdp twice: weights are stored split along D, activations along B.
# An axis splits an array once: the first of its letters takes it.
Table = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
TABLE: Table = {
    "B": ((), ("data", "fsdp", "expert")),
    "L": ((), ("context",)),
    "M": ((), ()),
    "D": (_STORED, ()),
    "N": (("tensor",), ("tensor",)),
    "K": (("tensor",), ("tensor",)),
    "H": ((), ()),
    "F": (("tensor",), ("tensor",)),
    "V": (("tensor",), ("tensor",)),
    "E": (("expert",), ("expert",)),
    "C": ((), ("context",)),  # as the tokens of a row
    "Z": (_STORED, ()),
    "T": ((), ()),
    "X": (("stage",), ()),
    UNSPLIT: ((), ()),
}
# Splits that may be left out where the numbers do not allow them: weights are then stored more
# than once, and `replicated` counts it. Any other clash is refused.
OPTIONAL = {("K", "tensor"), *((letter, axis) for letter in "DZ" for axis in _STORED[1:])}
OPTIONAL |= {("Z", "fsdp"), ("X", "stage")}
# What a configuration may split activations over. Rows never share an axis with heads, feed-forward
# or vocabulary, of which each device has a part of each row; kernels and the ring need L as it is.
CHOICES = {letter: axes for letter, (_, axes) in TABLE.items() if axes and letter != "L"}
CHOICES["D"] = ("tensor",)
RULES = "rules"  # how the name of the axis that carries replaced entries begins


@dataclasses.dataclass(frozen=True)
class Weight:
    """Letters and shape of a declared weight; a leaf of a tree."""

    letters: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis inside a slice (a pod's fast links), and slices along each axis.

    An axis is as long as the product of the two. One axis may be FILL, -1: `fill` gives it the
    devices that the others leave.
    """

    data: int = FILL  # devices that rows are split over; -1, for one axis: what the others leave
    stage: int = 1  # devices that layers are split over
    fsdp: int = 1  # devices that rows, and weights along D, are split over
    expert: int = 1  # devices that rows and experts are split over
    context: int = 1  # devices that the length of rows is split over
    tensor: int = 1  # devices that heads, feed-forward and vocabulary are split over
    # Slices (on GPUs processes) along an axis; 1 for an axis that is not named.
    slices: Mapping[str, int] = dataclasses.field(default_factory=dict)
    max_replicated: float = 0.02  # share of weight bytes that may be stored more than planned
    # Mesh axes that dims of weights are split over, by letter, in place of TABLE's.
    weight_rules: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # Mesh axes that dims of activations are split over, by letter, in place of TABLE's.
    activation_rules: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        allowed = f"at least 1, or {FILL} for the devices that the other axes leave"
        for axis, size in zip(AXES, self.sizes(), strict=True):
            require(self, **{axis: (size >= 1 or size == FILL, allowed)})
        require(self, max_replicated=(0 <= self.max_replicated <= 1, "in [0, 1]"))
        for axis, size in self.slices.items():
            if axis not in AXES or size < 1:
                raise ValueError(
                    f"slices.{axis} is {size}; it must be at least 1, of an axis of {AXES}"
                )
        if self.sizes().count(FILL) > 1:
            filled = ", ".join(axis for axis in AXES if getattr(self, axis) == FILL)
            raise ValueError(f"more than one axis is {FILL}: {filled}; allowed: one")
        weights = dict.fromkeys(TABLE.keys() - {UNSPLIT}, AXES)
        _check_rules("weight_rules", self.weight_rules, weights)
        _check_rules("activation_rules", self.activation_rules, CHOICES)
        of_n, of_k = (self.activation_rules.get(letter, TABLE[letter][1]) for letter in "NK")
        if of_n != of_k:  # a device attends with its own heads
            raise ValueError(f"activation_rules.N is {of_n!r}; it must be that of K, {of_k!r}")

    def sizes(self) -> tuple[int, ...]:
        """Devices along each axis inside a slice, in the order of AXES."""
        return (self.data, self.stage, self.fsdp, self.expert, self.context, self.tensor)

    def across(self) -> tuple[int, ...]:
        """Slices along each axis, in the order of AXES."""
        return tuple(self.slices.get(axis, 1) for axis in AXES)

    def fill(self, num_devices: int) -> "MeshConfig":
        """The same with a size for the axis that is FILL, so that the product is `num_devices`.

        Raises:
          ValueError: the sizes of the other axes do not divide the number of devices.
        """
        if FILL not in self.sizes():
            return self
        axis = AXES[self.sizes().index(FILL)]
        others = -math.prod(self.sizes()) * math.prod(self.across())
        if num_devices % others:
            raise ValueError(
                f"mesh.{axis} is {FILL}: it takes what the other axes leave of {num_devices} "
                f"devices; their product is {others}, which must divide {num_devices}"
            )
        return dataclasses.replace(self, **{axis: num_devices // others})

    def axis_sizes(self) -> dict[str, int]:
        """Length of each mesh axis, slices included; none of them may be FILL.

        Rules, if there are any, add an axis of length 1 that carries them.
        """
        if FILL in self.sizes():
            raise ValueError(f"mesh.{AXES[self.sizes().index(FILL)]} is {FILL}; fill() it first")
        pairs = zip(self.sizes(), self.across(), strict=True)
        sizes = dict(zip(AXES, (inside * across for inside, across in pairs), strict=True))
        rules = [
            f"{column}:{letter}:{','.join(rows[letter])}"
            for column, rows in enumerate((self.weight_rules, self.activation_rules))
            for letter in sorted(rows)
        ]
        return sizes | ({" ".join([RULES, *rules]): 1} if rules else {})


def _check_rules(key: str, rules: Mapping, choices: Mapping[str, tuple[str, ...]]) -> None:
    for letter, axes in rules.items():
        if letter not in choices:
            raise ValueError(f"{key} has {letter!r}; allowed: {', '.join(sorted(choices))}")
        if len(set(axes)) < len(axes) or not set(axes) <= set(choices[letter]):
            raise ValueError(
                f"{key}.{letter} is {axes!r}; it must be some of {choices[letter]}, each once"
            )


def table_of(axis_sizes: Mapping[str, int]) -> Table:
    """The table of a mesh, given the lengths of its axes: TABLE, with the entries it replaces."""
    return _table_of(next((axis for axis in axis_sizes if axis.startswith(RULES)), RULES))


@functools.cache
def _table_of(rules: str) -> Table:
    table = dict(TABLE)
    for rule in rules.split()[1:]:
        column, letter, axes = rule.split(":")
        row = [*table[letter]]
        row[int(column)] = tuple(axes.split(",")) if axes else ()
        table[letter] = tuple(row)
    return table


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices along the mesh axes, neighbours inside a slice.

    Args:
      config: axis sizes; one of them may be FILL.
      devices: the devices to use; all of them by default.

    Raises:
      ValueError: the product of the axis sizes is not the number of devices, or that of the
        slices not the number of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    config = config.fill(len(devices))
    asked = math.prod(config.axis_sizes().values())
    if asked != len(devices):
        sizes = " x ".join(f"{axis} {config.axis_sizes()[axis]}" for axis in AXES)
        raise ValueError(
            f"mesh: {sizes} = {asked} devices asked, {len(devices)} present; "
            "the product must equal the number present"
        )
    across, inside = config.across(), config.sizes()
    slices = _slices(devices) if math.prod(across) > 1 else [devices]
    if len(slices) != math.prod(across) or len({len(part) for part in slices}) > 1:
        raise ValueError(
            f"mesh.slices: {' x '.join(map(str, across))} = {math.prod(across)} slices asked; the "
            f"devices are in {len(slices)}, of {sorted({len(part) for part in slices})} devices"
        )
    laid = [
        mesh_utils.create_device_mesh(inside, part, allow_split_physical_axes=True)
        for part in slices
    ]
    grid = np.stack(laid).reshape(across + inside)
    num = len(AXES)
    grid = grid.transpose([place for axis in range(num) for place in (axis, num + axis)])
    return Mesh(grid.reshape(tuple(config.axis_sizes().values())), tuple(config.axis_sizes()))


def _slices(devices: list) -> list[list]:
    """Devices by slice or, where slices have no numbers (GPU, CPU), by process."""
    keys = [getattr(device, "slice_index", None) for device in devices]
    if len(set(keys)) == 1:
        keys = [device.process_index for device in devices]
    return [
        [d for d, k in zip(devices, keys, strict=True) if k == key] for key in sorted(set(keys))
    ]


def axis_size(axis: str) -> int:
    """Length of a mesh axis in the present context; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def weight_spec(weight: Weight, axis_sizes: Mapping[str, int]) -> PartitionSpec:
    """PartitionSpec of a weight on a mesh with these lengths of its axes."""
    return _spec(weight.letters, weight.shape, axis_sizes, 0)


def activation_spec(letters: str, shape: Sequence[int] | None = None) -> PartitionSpec:
    """PartitionSpec of an activation with these letters, on the mesh in context.

    Where `shape` is given, a dim that an axis does not divide is left whole.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    return _spec(letters, [0] * len(letters) if shape is None else shape, sizes, 1)


def _spec(letters, shape, axis_sizes, column: int) -> PartitionSpec:
    table, taken, dims = table_of(axis_sizes), set(), []
    for letter, size in zip(letters, shape, strict=True):
        chosen, parts = [], 1
        for axis in table[letter][column]:
            ways = axis_sizes.get(axis, 1)
            if ways > 1 and axis not in taken and size % (parts * ways) == 0:
                chosen.append(axis)
                parts *= ways
        taken.update(chosen)
        dims.append(tuple(chosen) if len(chosen) > 1 else chosen[0] if chosen else None)
    return PartitionSpec(*dims)


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """Splits an activation as the table's second column says; without a mesh, does nothing.

    Args:
      x: an activation.
      letters: of its dims; `_` for one that must be whole on each device.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(letters, x.shape))


def replicate(x: jax.Array) -> jax.Array:
    """Makes an array whole on each device; without a mesh in context, does nothing."""
    return constrain(x, UNSPLIT * x.ndim)


def on_each_device(run: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """shard_map over the whole mesh in context; `run` itself without one."""
    if jax.sharding.get_abstract_mesh().empty:
        return run
    # check_vma needs to know over which axes results vary, which Pallas kernels do not declare.
    return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first dim is B."""
    return NamedSharding(mesh, PartitionSpec(table_of(mesh.shape)["B"][1]))


def weight_shardings(declared: Any, mesh: Mesh, strict: bool = True) -> Any:
    """Shardings of every weight.

    Args:
      declared: tree of Weight, from `transformer.declare`.
      mesh: the device mesh.
      strict: refuse what does not divide; otherwise such dims are left whole.

    Returns:
      The same tree of NamedSharding.

    Raises:
      ValueError: a dim does not divide by the axes that split it.
    """
    if strict:
        check_splits(declared, dict(mesh.shape))
    return jax.tree.map(
        lambda weight: NamedSharding(mesh, weight_spec(weight, mesh.shape)), declared
    )


def check_splits(declared: Any, axis_sizes: Mapping[str, int]) -> None:
    """Raises ValueError, with the numbers that clash, if some weight's dim cannot be split."""
    for path, weight in jax.tree.leaves_with_path(declared):
        taken = axes_of(weight_spec(weight, axis_sizes))
        for letter, size in zip(weight.letters, weight.shape, strict=True):
            for axis in table_of(axis_sizes)[letter][0]:
                ways = axis_sizes.get(axis, 1)
                if ways > 1 and axis not in taken and (letter, axis) not in OPTIONAL:
                    hint = "; model.vocab_multiple pads it" if letter == "V" else ""
                    raise ValueError(
                        f"mesh.{axis} is {ways}, but dim {letter} of weight "
                        f"{jax.tree_util.keystr(path, simple=True, separator='.')} is {size}; "
                        f"it must divide by mesh.{axis}{hint}"
                    )


def replicated(declared: Any, axis_sizes: Mapping[str, int]) -> float:
    """Share of weight bytes that devices store beyond what the table plans.

    A weight that the table would cut into p parts and that could only be cut into q < p counts
    with 1 - q / p of its bytes; replicas over the data axis are planned.
    """
    total, extra = 0, 0.0
    for weight in jax.tree.leaves(declared):
        planned = {axis for letter in weight.letters for axis in table_of(axis_sizes)[letter][0]}
        done = set(axes_of(weight_spec(weight, axis_sizes)))
        missing = math.prod(axis_sizes.get(axis, 1) for axis in planned - done)
        total += math.prod(weight.shape)
        extra += math.prod(weight.shape) * (1 - 1 / missing)
    return extra / total


def axes_of(spec: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes that a spec splits over."""
    return tuple(axis for dim in spec if dim for axis in ((dim,) if isinstance(dim, str) else dim))
