"""Parameters on devices out of a file's tensors and back, a tensor at a time and on any mesh.

Each leaf is allocated once, where model/sharding.py places it, and filled in its own memory; what
an index along a split dim means is found on each device, so that nothing is gathered.
"""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model import sharding
from model.config import TransformerConfig
from model.interop.mapping import Part
from model.transformer import Params, declare


def fill(
    config: TransformerConfig,
    wanted: Iterable[Part],
    read: Callable[[str], np.ndarray],
    mesh: Mesh | None = None,
) -> Params:
    """Parameters out of tensors.

    Args:
      config: the model.
      wanted: its parts.
      read: gives a tensor by its name.
      mesh: where the parameters go.

    Returns:
      Parameters, float32; rows that pad the vocabulary are zeros.
    """
    declared = declare(config)

    def empty():
        return jax.tree.map(lambda weight: jnp.zeros(weight.shape), declared)

    places = sharding.weight_shardings(declared, mesh) if mesh else None
    params = jax.jit(empty, out_shardings=places)()
    for part in wanted:
        tensor = read(part.name)
        for piece in part.pieces:
            *parents, last = piece.path
            section = functools.reduce(dict.__getitem__, parents, params)
            section[last] = _put(section[last], piece.index, piece.take(tensor))
    return params


def _put(leaf: jax.Array, index: tuple[int, ...], value: np.ndarray) -> jax.Array:
    """The leaf with `value` at leading indices, in the leaf's own memory."""
    rest = leaf.shape[len(index) :]
    missing = [(0, size - had) for size, had in zip(rest, value.shape, strict=True)]
    value = np.pad(value, missing) if any(size for _, size in missing) else value
    place = leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None
    if place:
        value = jax.device_put(value, NamedSharding(place.mesh, _rest(place.spec, len(index))))
    return _writer(place, len(index))(leaf, value, jnp.asarray(index, jnp.int32))


def take(params: Params, path: tuple[str, ...], index: tuple[int, ...]) -> np.ndarray:
    """What is in the leaf at a path, at an index into its leading dims; on the host."""
    leaf = functools.reduce(dict.__getitem__, path, params)
    place = leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None
    return np.asarray(_reader(place, len(index))(leaf, jnp.asarray(index, jnp.int32)))


def _rest(spec: PartitionSpec, num: int) -> PartitionSpec:
    return PartitionSpec(*spec[num:])


@functools.lru_cache(maxsize=256)
def _writer(place: NamedSharding | None, num: int) -> Callable:
    def write(leaf, value, index):
        here, start = _local(place, leaf, index, num)
        start = (*start, *(0 for _ in value.shape))
        sizes = (1,) * num + value.shape
        before = jax.lax.dynamic_slice(leaf, start, sizes)
        return jax.lax.dynamic_update_slice(
            leaf, jnp.where(here, value.reshape(sizes), before), start
        )

    if place:
        specs = (place.spec, _rest(place.spec, num), PartitionSpec())
        write = jax.shard_map(write, mesh=place.mesh, in_specs=specs, out_specs=place.spec)
    return jax.jit(write, donate_argnums=0)


@functools.lru_cache(maxsize=256)
def _reader(place: NamedSharding | None, num: int) -> Callable:
    def read(leaf, index):
        here, start = _local(place, leaf, index, num)
        sizes = (1,) * num + leaf.shape[num:]
        start = (*start, *(0 for _ in leaf.shape[num:]))
        value = jax.lax.dynamic_slice(leaf, start, sizes).reshape(leaf.shape[num:])
        axes = _axes(place, num)
        return jax.lax.psum(jnp.where(here, value, 0), axes) if axes else value

    if place:
        specs = (place.spec, PartitionSpec())
        rest = _rest(place.spec, num)
        read = jax.shard_map(read, mesh=place.mesh, in_specs=specs, out_specs=rest)
    return jax.jit(read)


def _axes(place: NamedSharding | None, num: int) -> tuple[str, ...]:
    """Mesh axes that split the leading dims."""
    split = place.spec[:num] if place else ()
    return tuple(axis for axes in split if axes for axis in np.atleast_1d(axes).tolist())


def _local(place: NamedSharding | None, leaf: jax.Array, index: jax.Array, num: int):
    """(whether the indexed entry is in this device's part of the leaf, where in it)."""
    here, start = jnp.asarray(True), []
    for dim in range(num):
        axes = place.spec[dim] if place and dim < len(place.spec) else None
        first = jax.lax.axis_index(axes) * leaf.shape[dim] if axes else 0
        offset = index[dim] - first
        here &= (offset >= 0) & (offset < leaf.shape[dim])
        start.append(jnp.clip(offset, 0, leaf.shape[dim] - 1))
    return here, start
