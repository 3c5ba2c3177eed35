"""The HTML page of a run: figures, plots, template."""
