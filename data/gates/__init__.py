"""What a document must pass, and what is repaired or masked in it: one module a gate."""
