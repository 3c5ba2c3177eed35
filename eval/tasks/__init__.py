"""Benchmarks, a file each: what `eval.tasks` names, made of local files."""
