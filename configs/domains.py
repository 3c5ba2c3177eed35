"""Pretraining on four domains of text with weights, by configuration alone.

    seedbed run --config=configs/domains.py:DIR

DIR holds books/books.jsonl.gz, wikitext2/valid.txt.gz, math_latex/stacks_project.jsonl.gz and
tinystories/tinystories_a.txt.gz.
"""

from ml_collections import ConfigDict

from configs import quickstart

GATES = (
    "length",
    "language",
    "gopher",
    "c4_lorem_ipsum",
    "c4_javascript_lines",
    "c4_policy_lines",
)
LATEX_GATES = ("length", "language", "gopher_word_count", "c4_lorem_ipsum")  # LaTeX repeats itself


def get_config(directory: str) -> ConfigDict:
    """The quickstart's pretraining on other text."""
    config = quickstart.get_config()
    config.name = "domains"
    config.stages = ("curate", "tokenizer", "pretrain", "eval", "report")
    config.data = dict(
        sources=dict(
            books=dict(path=f"{directory}/books/books.jsonl.gz", weight=0.4, gates=GATES),
            wikitext2=dict(path=f"{directory}/wikitext2/valid.txt.gz", weight=0.2, gates=GATES),
            stacks_project=dict(
                path=f"{directory}/math_latex/stacks_project.jsonl.gz",
                weight=0.3,
                gates=LATEX_GATES,
            ),
            tinystories=dict(
                path=f"{directory}/tinystories/tinystories_a.txt.gz", weight=0.1, gates=GATES
            ),
        ),
        heldout_fraction=0.02,
        max_document_bytes=16_384,  # Gopher's n-gram rules drop longer pieces of books
    )
    return config
