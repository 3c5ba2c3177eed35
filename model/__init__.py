"""Maths on arrays: the transformer, its sharding table, decoding, losses and FLOP counts."""
