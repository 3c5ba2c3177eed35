"""Bulk encoding with imported tokenizers gives their own ids."""

import numpy as np
import pytest

from data.tokens import pretrained
from data.tokens.encode import Encoder, check
from tests.data.test_pretrained import SPELLED, TEXTS, WRITERS, folders, random_texts

__all__ = ["folders"]  # the fixture

# Tokenizers whose texts cannot be cut; tokens stand beside the pieces of this one.
WHOLE = ("llama",)


@pytest.mark.parametrize("name", WRITERS)
def test_bulk_encoding_gives_the_same_ids(folders, name):
    tokenizer = pretrained.load(folders / name)
    texts = [*TEXTS, SPELLED, "", *random_texts(300)]
    why = check(tokenizer, texts)
    assert bool(why) == (name in WHOLE), why
    ids, lengths = Encoder(tokenizer, cached=not why).encode(texts)
    rows = [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]]
    assert rows == tokenizer.encode_batch(texts) == tokenizer.encode_batch(texts, 1)
