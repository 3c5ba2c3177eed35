"""Pretraining on any folder of text by configuration alone: four domains with weights.

    seedbed run --config=configs/domains.py:DIR

DIR holds books/books.jsonl.gz, wikitext2/valid.txt.gz, math_latex/stacks_project.jsonl.gz and
tinystories/tinystories_a.txt.gz.
"""

from ml_collections import ConfigDict

from configs import quickstart

EXAMPLE_ARG = "text"

ALL_GATES = (
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
    config.data.sources = ConfigDict(
        dict(
            books=source(f"{directory}/books/books.jsonl.gz", 0.4),
            wikitext2=source(f"{directory}/wikitext2/valid.txt.gz", 0.2),
            stacks_project=source(
                f"{directory}/math_latex/stacks_project.jsonl.gz", 0.3, LATEX_GATES
            ),
            tinystories=source(f"{directory}/tinystories/tinystories_a.txt.gz", 0.1),
        )
    )
    config.data.heldout_fraction = 0.02
    config.data.max_document_bytes = 16_384  # Gopher's n-gram rules drop longer pieces of books
    return config


def source(path: str, weight: float, gates: tuple[str, ...] = ALL_GATES) -> ConfigDict:
    """One domain."""
    return ConfigDict(
        dict(
            path=path,
            kind="auto",
            markup="auto",
            extract="main",
            text_field="text",
            weight=weight,
            gates=gates,
        )
    )
