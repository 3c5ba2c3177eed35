"""Raw sources to packed shards and batches: numpy and Arrow out, no jax."""
