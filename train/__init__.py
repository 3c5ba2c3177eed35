"""From batches to a better state: optimizer, step, loop, checkpoints, metrics."""
