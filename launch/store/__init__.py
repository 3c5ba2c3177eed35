"""Run directories and what is written in them, whole or not at all."""
