"""A session on a tiny model: a line that cannot be answered costs that line alone."""

import jax
import pytest

from data.errors import BadInput
from data.tokens import tokenizer, trainer
from launch.verbs import chat
from model.config import TransformerConfig
from model.transformer import init

pytestmark = pytest.mark.usefixtures("quick_compilation")
TOO_LONG = "word " * 400


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(config, params, tokenizer) of an untrained model."""
    path = tmp_path_factory.mktemp("chat") / "tokenizer.model"
    texts = [f"word{number} and more words" for number in range(99)]
    trainer.train(texts, trainer.TokenizerConfig(288, 10**6, 16, 0.9995), path)
    sizes = dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32)
    # Rows beyond the tokenizer's ids, which an untrained model gives too.
    config = TransformerConfig(vocab_size=400, **sizes)
    return config, init(config, jax.random.key(0)), tokenizer.load_own(path.parent)


def converse(parts):
    return chat._Conversation(*parts, 8, 64, {"temperature": 0.0, "seed": 0})


def test_a_line_that_is_too_long_is_refused_and_the_session_goes_on(parts, capsys):
    lines = ["one word", TOO_LONG, "and more"]
    turns = list(chat._answer_lines(lines, converse(parts), as_json=False))
    assert [turn["prompt"] for turn in turns] == lines
    assert "at most 56 fit" in turns[1]["error"] and "answer" not in turns[1]
    out, err = capsys.readouterr()
    assert err.startswith("seedbed: conversation 0: its prompt has ") and err.count("\n") == 1
    assert out == f"{turns[0]['answer']}\n{turns[2]['answer']}\n"


def test_a_line_that_is_not_utf_8_is_named_and_the_session_goes_on(capsys):
    turns = list(chat._answer_lines(["one", "\udcff bad", "two"], str.upper, as_json=True))
    why = r"a line is not UTF-8: \udcff bad"
    assert turns == [
        {"prompt": "one", "answer": "ONE"},
        {"prompt": r"\udcff bad", "error": why},
        {"prompt": "two", "answer": "TWO"},
    ]
    assert capsys.readouterr().err == f"seedbed: {why}\n"


def test_a_refused_line_leaves_the_conversation_as_it_was(parts):
    disturbed, undisturbed = converse(parts), converse(parts)
    assert disturbed("one word") == undisturbed("one word")
    with pytest.raises(BadInput, match="at most 56 fit"):
        disturbed(TOO_LONG)
    assert disturbed._messages == undisturbed._messages
    assert disturbed("and more") == undisturbed("and more")
