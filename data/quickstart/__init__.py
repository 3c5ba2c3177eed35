"""The text and the instructions that the quickstart makes from the Python at hand."""
