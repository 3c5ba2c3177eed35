"""Decisions only: each file has get_config(); nothing of ours is imported."""
