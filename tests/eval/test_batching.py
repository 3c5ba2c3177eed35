"""Scores of continuations: equal to one full forward pass each, whoever shares the batch."""

import jax
import numpy as np
import pytest

from eval import batching
from model import transformer
from tests.eval.test_dialog import CONFIG

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOLERANCE = 1e-4  # nats; float32 over rows padded otherwise
# (context, continuation): several of one token after the same context, several tokens, an overlap
# of one row's context with another's continuation, one far longer than the others.
PAIRS = [
    ([1, 9, 10], [11]),
    ([1, 9, 10], [12]),
    ([1, 9], [10, 11]),
    ([1], [20, 21, 22, 23, 24]),
    ([1, *range(8, 148)], [30, 31]),
    ([1, 9, 10], [13]),
    ([1, 40], []),
]


@pytest.fixture(scope="module")
def params():
    # Fresh weights attend evenly; larger ones tell prompts apart.
    return jax.tree.map(lambda weight: 4 * weight, transformer.init(CONFIG, jax.random.key(0)))


def score(params, pairs=PAIRS, batch_size=4, log=lambda line: None, config=CONFIG):
    return batching.logprobs(config, params, pairs, batch_size=batch_size, pad_id=0, log=log)


def alone(params, context, continuation):
    tokens = np.array([[*context, *continuation]])
    logits_BLV = transformer.forward(CONFIG, params, tokens)
    logprobs_LV = np.asarray(jax.nn.log_softmax(logits_BLV[0]), np.float64)
    start = len(context) - 1
    return sum(logprobs_LV[start + i, token] for i, token in enumerate(continuation))


def test_a_score_is_the_sum_over_the_continuation_after_its_context(params):
    found, wanted = score(params), [alone(params, *pair) for pair in PAIRS]
    assert len({round(x, 3) for x in wanted}) == len(PAIRS)
    assert found == pytest.approx(wanted, abs=TOLERANCE)


def test_a_continuation_may_fill_its_row(params):
    pair = ([1], [*range(8, 78)])
    assert score(params, [pair]) == pytest.approx([alone(params, *pair)], rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batch_size_and_order_change_nothing(params, batch_size):
    wanted = score(params)
    assert score(params, batch_size=batch_size) == pytest.approx(wanted, abs=TOLERANCE)
    backwards = score(params, PAIRS[::-1], batch_size)
    assert backwards[::-1] == pytest.approx(wanted, abs=TOLERANCE)


def test_single_tokens_after_one_context_share_a_row(params):
    lines = []
    score(params, [([1, 2, 3], [token]) for token in range(8, 12)], log=lines.append)
    assert lines == ["scored 1 of 1 rows"]
    assert score(params, []) == []


def test_uniform_logits_give_every_token_the_same(params):
    found = score(jax.tree.map(np.zeros_like, params))
    sizes = [len(continuation) for _, continuation in PAIRS]
    assert found == pytest.approx([-n * np.log(CONFIG.vocab_size) for n in sizes], abs=TOLERANCE)


def test_what_exceeds_learned_positions_is_cut_off_in_front(params, monkeypatch):
    wanted = score(params, [([9, 10], [11]), ([9], [10, 11])])
    monkeypatch.setattr(type(CONFIG), "max_tokens", lambda self: 2)
    found = score(params, [([1, 5, 6, 9, 10], [11]), ([1, 5, 9], [10, 11])])
    assert found == pytest.approx(wanted, abs=TOLERANCE)


def test_widths_are_few():
    rows = [width for width, _ in batching._plan(list(range(1, 4097)), 4096)]
    assert rows == [
        *(32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512),
        *(640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096),
    ]
    (batch,) = [chosen for width, chosen in batching._plan([5, 31, 32, 33], 8) if width == 32]
    assert batch == [0, 1, 2]
