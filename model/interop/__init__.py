"""Checkpoints of other programs: Hugging Face directories (read, write) and GGUF files (read)."""
