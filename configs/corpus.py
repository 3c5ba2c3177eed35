"""Curation of many domains at once: books, papers, an encyclopedia, the web, forums, languages.

    seedbed run --config=configs/corpus.py:DIR --run=runs/corpus

DIR holds the folders pretrain, web, qa and multilingual, and eval with the evaluation sets.
`--config.stages="('curate','tokenizer','pretrain','eval','report')"` trains on it too.
"""

from ml_collections import ConfigDict

from configs import quickstart

ANYWHERE = ("blocked", "opt_out", "length", "contamination", "pii")
PROSE = (*ANYWHERE, "language", "gopher", "c4_lorem_ipsum", "toxic_words")
WEB = (*PROSE, "c4", "fineweb")
# Drama and talk repeat names and short lines; formulas and tables repeat themselves.
LOOSE = (*ANYWHERE, "gopher_word_count", "c4_lorem_ipsum")


def get_config(directory: str) -> ConfigDict:
    """Thirteen sources in nine domains, through everything to shards."""
    config = quickstart.get_config()
    config.name = "corpus"
    config.stages = ("curate", "tokenizer", "report")
    pretrain, web = f"{directory}/pretrain", f"{directory}/web"
    config.data = dict(
        sources=dict(
            books=dict(path=f"{pretrain}/books/*.gz", gates=PROSE, markup="book", weight=2.0),
            drama=dict(path=f"{pretrain}/tinyshakespeare/*.gz", gates=LOOSE, weight=0.2),
            encyclopedia=dict(
                path=f"{pretrain}/wikitext2/*.gz,{pretrain}/wikipedia_sample/*.gz", gates=PROSE
            ),
            mathematics=dict(
                path=f"{pretrain}/math_latex/*.gz", gates=LOOSE, markup="latex", weight=2.0
            ),
            speeches=dict(path=f"{pretrain}/speeches/*.gz", gates=PROSE),
            stories=dict(path=f"{pretrain}/tinystories/*.gz", gates=PROSE, weight=0.5),
            prose=dict(path=f"{pretrain}/scaling_book/*.gz", gates=LOOSE, weight=0.3),
            web=dict(path=f"{web}/warc/*.gz,{web}/warc/*.warc,{web}/c4_en/*.gz", gates=WEB),
            forum=dict(path=f"{directory}/qa/stackexchange/*.gz", gates=(*PROSE, "toxicity")),
            languages=dict(
                path=f"{directory}/multilingual/*/*.gz",
                gates=("blocked", "opt_out", "contamination", "pii"),
            ),
        ),
        gates=dict(language=dict(keep=())),
        heldout_fraction=0.02,
        max_document_bytes=16_384,  # Gopher's n-gram rules drop longer pieces of books
        dedup=dict(paragraph_chars=120),
    )
    config.mixture = dict(by_language=True, language_alpha=0.5, max_epochs=4.0)
    config.eval = dict(sets=f"{directory}/eval")
    config.tokenizer = dict(vocab_size=32_768, sample_bytes=30_000_000)
    config.pretrain.seq_len = 1024
    return config
