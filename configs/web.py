"""Curation of any raw text: crawls, books, code, papers, encyclopedias, forums, mail, tables.

    seedbed curate --config=configs/web.py --config.data.sources='dir/*.warc.gz' --out=DIR
    seedbed run --config=configs/web.py --config.data.sources=dir --run=DIR

Files are recognised by their content, and each kind becomes a domain with the gates that suit it.
`run` also trains a tokenizer and packs shards.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """The quickstart's curation, with every gate, of whatever is given."""
    config = quickstart.get_config()
    config.name = "web"
    config.stages = ("curate", "tokenizer")
    config.data = dict(
        sources="",  # files, folders, globs, with commas between; here or on a store
        heldout_fraction=0.01,
        dedup=dict(paragraph_chars=120),
    )
    config.tokenizer = dict(vocab_size=32_768, sample_bytes=100_000_000)
    config.pretrain.seq_len = 2048
    return config
