"""The stages of a run: their rows in stage.py, and the body of each in the module of its name."""
