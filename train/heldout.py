"""The loss of a training stage over rows that it never trains on."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from data.mixture.loader import Batch, fixed_batches
from model.transformer import Params
from train.loop import place
from train.step import LossFn


def heldout_loss(
    loss_fn: LossFn,
    rows: Sequence[Batch],
    batch_size: int,
    transform: Callable[[Batch], Batch],
    mesh: Mesh,
) -> Callable[[Params], dict[str, float]]:
    """An evaluator for `train.loop.run`: the stage's own loss, over all rows, divided once.

    Args:
      loss_fn: the stage's.
      rows: records like those it trains on, at least one; those of zeros must carry no weight.
      batch_size: rows at a time; the mesh must divide it.
      transform: as of the stage's loader.
      mesh: where batches go; the caller has set it.

    Returns:
      evaluate(params) -> {"loss", and each named sum that is a number, over the weight}.
    """
    batches = [transform(batch) for batch in fixed_batches(rows, batch_size)]

    @jax.jit
    def compute(params: Params, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        sums = loss_fn(params, batch)
        loss = sums.objective if sums.loss is None else sums.loss
        numbers = {name: x for name, x in sums.named.items() if not x.ndim}
        return sums.weight, {"loss": loss, **numbers}

    def evaluate(params: Params) -> dict[str, float]:
        # Read at the end: the device goes on while the next batch is placed.
        found = jax.device_get([compute(params, place(batch, mesh)) for batch in batches])
        weight = np.sum([weight for weight, _ in found], dtype=np.float64)
        return {
            name: float(np.sum([sums[name] for _, sums in found], dtype=np.float64) / weight)
            for name in found[0][1]
        }

    return evaluate
