"""Curation of many domains at once: books, papers, an encyclopedia, the web, forums, languages.

    seedbed run --config=configs/corpus.py:DIR --run=runs/corpus
    seedbed curate --config=configs/corpus.py:DIR --score=DIR

DIR holds the folders pretrain, web, qa and multilingual, and eval, filters for what is measured.
`--config.stages="('curate','tokenizer','pretrain','eval','report')"` trains on it too.
"""

from ml_collections import ConfigDict

from configs import quickstart

EXAMPLE_ARG = "text"
ANYWHERE = ("blocked", "opt_out", "length", "contamination", "pii")
PROSE = (*ANYWHERE, "language", "gopher", "c4_lorem_ipsum", "toxic_words")
WEB = (*PROSE, "boilerplate", "c4", "fineweb")
# Drama and talk repeat names and short lines; formulas and tables repeat themselves.
LOOSE = (*ANYWHERE, "gopher_word_count", "c4_lorem_ipsum")


def get_config(directory: str) -> ConfigDict:
    """Thirteen sources in nine domains, through everything to shards."""
    config = quickstart.get_config()
    config.name = "corpus"
    config.stages = ("curate", "tokenizer", "report")
    pretrain, web = f"{directory}/pretrain", f"{directory}/web"
    config.data.sources = ConfigDict(
        dict(
            books=source(f"{pretrain}/books/*.gz", PROSE, markup="book", weight=2.0),
            drama=source(f"{pretrain}/tinyshakespeare/*.gz", LOOSE, weight=0.2),
            encyclopedia=source(
                f"{pretrain}/wikitext2/*.gz,{pretrain}/wikipedia_sample/*.gz", PROSE
            ),
            mathematics=source(f"{pretrain}/math_latex/*.gz", LOOSE, markup="latex", weight=2.0),
            speeches=source(f"{pretrain}/speeches/*.gz", PROSE),
            stories=source(f"{pretrain}/tinystories/*.gz", PROSE, weight=0.5),
            prose=source(f"{pretrain}/scaling_book/*.gz", LOOSE, weight=0.3),
            web=source(f"{web}/warc/*.gz,{web}/warc/*.warc,{web}/c4_en/*.gz", WEB),
            forum=source(f"{directory}/qa/stackexchange/*.gz", (*PROSE, "toxicity")),
            languages=source(
                f"{directory}/multilingual/*/*.gz", ("blocked", "opt_out", "contamination", "pii")
            ),
        )
    )
    config.data.gates.language.keep = ()
    config.data.heldout_fraction = 0.02
    config.data.max_document_bytes = 16_384  # Gopher's n-gram rules drop longer pieces of books
    config.data.dedup.paragraph_chars = 120
    config.mixture.by_language = True
    config.mixture.language_alpha = 0.5
    config.mixture.max_epochs = 4.0
    config.eval.sets = f"{directory}/eval"
    config.tokenizer.vocab_size = 32_768
    config.tokenizer.sample_bytes = 30_000_000
    config.pretrain.seq_len = 1024
    return config


def source(
    path: str, gates: tuple[str, ...], markup: str = "auto", weight: float = 1.0
) -> ConfigDict:
    """One domain."""
    return ConfigDict(
        dict(
            path=path,
            kind="auto",
            markup=markup,
            extract="main",
            text_field="",
            weight=weight,
            gates=gates,
        )
    )
