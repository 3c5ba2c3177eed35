"""Text to ids, by tokenizers trained here or imported."""
