"""Letters to mesh axes: the one table that says where every dim of every array lives.

Legend (README repeats it): B batch, L query length, M key length, D model, N query heads,
K kv heads, G = N/K, H head size, F feed-forward, V vocabulary, X stacked layers.
A *dim* is a letter of a tensor; an *axis* is a side of the device mesh.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# letter: (mesh axes of a weight's dim, mesh axes of an activation's dim). Two columns, because
# one map would shard x_BLD over fsdp twice: weights are stored split along D, activations along B.
TABLE: dict[str, tuple[Any, Any]] = {
    "B": (None, ("data", "fsdp")),
    "L": (None, None),
    "D": ("fsdp", None),
    "N": ("tensor", "tensor"),
    "K": ("tensor", "tensor"),
    "H": (None, None),
    "F": ("tensor", "tensor"),
    "V": ("tensor", "tensor"),
    "X": (None, None),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices used."""

    data: int
    fsdp: int
    tensor: int

    def __post_init__(self):
        for axis, size in zip(AXES, (self.data, self.fsdp, self.tensor), strict=True):
            if size < 1:
                raise ValueError(f"{axis} is {size}; it must be at least 1")


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Lays devices out along the mesh axes.

    Args:
      config: axis sizes.
      devices: the devices to use; all of them by default.

    Raises:
      ValueError: the product of the axis sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = (config.data, config.fsdp, config.tensor)
    if int(np.prod(sizes)) != len(devices):
        asked = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ValueError(
            f"mesh.{{data,fsdp,tensor}}: {asked} = {int(np.prod(sizes))} devices asked, "
            f"{len(devices)} present; the product must equal the number present"
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def weight_spec(letters: tuple[str, ...]) -> PartitionSpec:
    """PartitionSpec of a weight declared with these letters."""
    return PartitionSpec(*(TABLE[letter][0] for letter in letters))


def activation_spec(letters: str) -> PartitionSpec:
    """PartitionSpec of an activation with these letters."""
    return PartitionSpec(*(TABLE[letter][1] for letter in letters))


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """Pins an activation to the table's second column; without a mesh in context, does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(letters))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first dim is B."""
    return NamedSharding(mesh, activation_spec("B"))


def weight_shardings(declared: Any, mesh: Mesh) -> Any:
    """Shardings of every weight.

    Args:
      declared: tree of (letters, shape), from `transformer.declare`.
      mesh: the device mesh.

    Returns:
      The same tree of NamedSharding.

    Raises:
      ValueError: a dim does not divide by the axes that split it.
    """
    check_splits(declared, dict(mesh.shape))
    return jax.tree.map(
        lambda weight: NamedSharding(mesh, weight_spec(weight[0])), declared, is_leaf=_is_declared
    )


def check_splits(declared: Any, axis_sizes: Mapping[str, int]) -> None:
    """Raises ValueError, with the numbers that clash, if some weight's dim cannot be split."""
    for path, (letters, shape) in jax.tree.leaves_with_path(declared, is_leaf=_is_declared):
        for letter, size in zip(letters, shape, strict=True):
            axis = TABLE[letter][0]
            if axis and size % axis_sizes[axis]:
                raise ValueError(
                    f"mesh.{axis} is {axis_sizes[axis]}, but dim {letter} of weight "
                    f"{jax.tree_util.keystr(path, simple=True, separator='.')} is {size}; "
                    f"it must divide by mesh.{axis}"
                )


def _is_declared(node: Any) -> bool:
    return isinstance(node, tuple) and len(node) == 2 and isinstance(node[0], tuple)
