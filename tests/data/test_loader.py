"""Loader: epochs, mixtures, exact restart, processes, and the language-model batch."""

import itertools
import json
import time
from collections import Counter

import numpy as np
import pytest

from data.errors import BadInput
from data.mixture.loader import Loader, fixed_batches, lm_batch
from data.tokens.shards import Shards, pack_documents
from tests.data.test_shards import write_shards

PAD, BOS, EOS = 0, 1, 2
SEQ_LEN = 8
# Grain shuffles a handful of records slowly (milliseconds a row for 2, 20 microseconds for 1,000).
SIZES = (60, 150, 25)
NUM_BATCHES = 20
# A source is never two rows off its share.
MAX_ROWS_OFF = 2


def identity(batch):
    return batch


def records(first, num_records):
    return [
        {"id": np.int32(first + i), "pair": np.full(3, i, np.int16)} for i in range(num_records)
    ]


def sources(weights=(0.5, 0.3, 0.2)):
    names = ("books", "code", "docs")
    return {
        name: (records(1000 * i, size), weight)
        for i, (name, size, weight) in enumerate(zip(names, SIZES, weights, strict=True))
    }


def loader(given=None, batch_size=6, seed=3, transform=identity, **process):
    return Loader(given or sources(), batch_size, seed, transform, **process)


def ids(batches, num_batches=NUM_BATCHES):
    return [batch["id"].tolist() for batch in itertools.islice(batches, num_batches)]


def test_each_epoch_has_every_record_once_in_another_order():
    stream = np.concatenate(ids(loader({"one": (records(0, 30), 1.0)}), 25)).reshape(5, 30)
    for epoch in stream:
        assert sorted(epoch) == list(range(30))
    assert len({tuple(epoch) for epoch in stream}) == 5
    assert all(np.any(epoch != np.arange(30)) for epoch in stream)


def test_each_source_of_a_mixture_has_its_own_epochs():
    rows = np.concatenate(ids(loader(), 200))
    for i, size in enumerate(SIZES):
        of_source = rows[rows // 1000 == i] - 1000 * i
        num_epochs = len(of_source) // size
        assert num_epochs >= 2
        for epoch in of_source[: num_epochs * size].reshape(num_epochs, size):
            assert sorted(epoch) == list(range(size))


def test_single_record_source_repeats():
    assert ids(loader({"one": (records(5, 1), 1.0)}), 2) == [[5] * 6] * 2


def test_seed_and_nothing_else_decides_the_order():
    first = ids(loader())
    assert first == ids(loader())
    assert first == ids(loader(dict(reversed(sources().items()))))
    assert first != ids(loader(seed=4))


def test_sources_of_one_size_have_orders_of_their_own():
    rows = np.concatenate(ids(loader({"a": (records(0, 60), 1.0), "b": (records(1000, 60), 1.0)})))
    assert rows[rows < 1000].tolist() != (rows[rows >= 1000] - 1000).tolist()


def test_order_within_a_source_does_not_depend_on_the_others():
    alone = np.concatenate(ids(loader({"code": sources()["code"]})))
    mixed = np.concatenate(ids(loader()))
    mixed = mixed[mixed // 1000 == 1]
    assert alone[: len(mixed)].tolist() == mixed.tolist()


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (70.0, 20.0, 10.0), (1.0, 1.0, 1.0)])
def test_realised_mixture_is_the_one_asked_for(weights):
    given = loader(sources(weights))
    assert given.realised() == {"books": 0.0, "code": 0.0, "docs": 0.0}
    rows = np.concatenate(ids(given, 200))
    asked = dict(zip(("books", "code", "docs"), np.array(weights) / sum(weights), strict=True))
    realised = given.realised()
    for i, name in enumerate(asked):
        assert realised[name] == np.mean(rows // 1000 == i)
        assert abs(realised[name] - asked[name]) < MAX_ROWS_OFF / len(rows)


STAGE_ROWS = (100, 31, 170)
STAGES = {"books": (1.0, 0.0, 3.0), "code": (2.0, 2.0, 3.0), "docs": (0.0, 5.0, 0.0)}


def staged(batch_size=6, **process):
    given = {name: (records, STAGES[name]) for name, (records, _) in sources().items()}
    return loader(given, batch_size, stage_rows=STAGE_ROWS, **process)


def test_stages_have_their_own_shares_and_the_last_goes_on():
    given = staged(batch_size=1)
    rows = np.array(ids(given, 401))[:, 0] // 1000
    starts = np.cumsum((0, *STAGE_ROWS))
    for stage, (start, end) in enumerate(itertools.pairwise((*starts[:-1], 401))):
        weights = np.array([STAGES[name][stage] for name in ("books", "code", "docs")])
        asked = weights / weights.sum()
        counts = np.bincount(rows[start:end], minlength=3)
        assert np.all(np.abs(counts - asked * (end - start)) < MAX_ROWS_OFF)
        assert not np.any(counts[weights == 0])
        assert given.realised_rows()[stage] == dict(zip(STAGES, counts.tolist(), strict=True))
    assert given.realised()["docs"] == np.mean(rows == 2)


def test_a_source_goes_on_in_the_next_stage_where_it_stopped():
    """Each epoch has every record once, though epochs begin and end inside stages."""
    mixed = np.concatenate(ids(staged(), 150))
    for i, size in enumerate(SIZES):
        of_source = mixed[mixed // 1000 == i]
        alone = loader(dict(list(sources().items())[i : i + 1]))
        order = np.concatenate(ids(alone, len(of_source) // 6 + 1))[: len(of_source)]
        assert of_source.tolist() == order.tolist()
        num_epochs = len(of_source) // size
        for epoch in of_source[: num_epochs * size].reshape(num_epochs, size):
            assert sorted(epoch - 1000 * i) == list(range(size))


@pytest.mark.parametrize("num_before", [1, 16, 17, 21, 22, 60])
def test_restored_state_goes_on_across_stages(num_before):
    """Batches 16 and 21 lie in two stages: rows 96 to 101 and 126 to 131."""
    whole = staged()
    ids(whole, num_before)
    state = json.loads(json.dumps(whole.get_state()))
    fresh = staged()
    fresh.set_state(state)
    assert (fresh.get_state(), fresh.realised_rows()) == (state, whole.realised_rows())
    assert ids(fresh, 40) == ids(whole, 40)


def test_processes_together_are_the_single_process_across_stages():
    parts = [ids(staged(process_index=i, process_count=3), 60) for i in range(3)]
    assert ids(staged(), 60) == [sum(rows, []) for rows in zip(*parts, strict=True)]


def test_source_of_weight_zero_is_left_out():
    given = loader(sources((1.0, 0.0, 1.0)))
    rows = np.concatenate(ids(given))
    assert set((rows // 1000).tolist()) == {0, 2}
    assert set(given.realised()) == {"books", "docs"}


@pytest.mark.parametrize("num_before", [0, 1, 5, 37, 100])
def test_restored_state_gives_identical_batches(num_before):
    """Mid-epoch and after epochs: the smallest source has 25 records, an epoch in 21 steps."""
    whole = loader()
    ids(whole, num_before)
    state = json.loads(json.dumps(whole.get_state()))
    expected, realised = ids(whole), whole.realised()

    fresh = loader()
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert ids(fresh) == expected
    assert fresh.realised() == realised

    ids(whole, 3)
    whole.set_state(state)
    assert ids(whole) == expected


def test_state_is_that_of_the_consumer_not_of_the_readers():
    read = []

    def counted(batch):
        read.append(batch["id"])
        return batch

    given = loader(transform=counted)
    next(given)
    deadline = time.monotonic() + 10
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(read) >= 4
    state = given.get_state()
    assert state["num_batches"] == 1
    assert given.realised_rows() == [{"books": 3, "code": 2, "docs": 1}]
    fresh = loader()
    fresh.set_state(state)
    assert next(fresh)["id"].tolist() == next(given)["id"].tolist()
    given.close()


def test_processes_together_are_the_single_process():
    single = loader()
    parts = [loader(process_index=i, process_count=2) for i in range(2)]
    for batch in itertools.islice(single, NUM_BATCHES):
        halves = [next(part) for part in parts]
        assert [half["pair"].shape for half in halves] == [(3, 3), (3, 3)]
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([h[key] for h in halves]), batch[key])
    assert parts[0].get_state() == parts[1].get_state() == single.get_state()


def test_state_moves_between_process_counts():
    single = loader()
    ids(single, 9)
    parts = [loader(process_index=i, process_count=3) for i in range(3)]
    for part in parts:
        part.set_state(single.get_state())
    expected = ids(single)
    assert expected == [sum(rows, []) for rows in zip(*map(ids, parts), strict=True)]


def test_state_of_another_configuration_is_refused():
    state = loader().get_state()
    with pytest.raises(BadInput, match="seed was 3 when it was saved, must be 4"):
        loader(seed=4).set_state(state)
    with pytest.raises(BadInput, match="batch_size was 6"):
        loader(batch_size=12).set_state(state)
    with pytest.raises(BadInput, match="sources was .*books"):
        loader(sources((1.0, 1.0, 2.0))).set_state(state)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"full": (records(0, 2), 1.0), "void": ([], 1.0)}, "'void': 0 records"),
        (sources((1.0, -1.0, 1.0)), "'code': weight -1.0"),
        (sources((1.0, float("nan"), 1.0)), "'code': weight nan"),
        (sources((0.0, 0.0, 0.0)), "at least one must be above 0"),
        ({"a": (records(0, 2), (1.0, 2.0))}, "source 'a': 2 weights; must be one for each stage"),
        ({"a": (records(0, 2), 1.0), "b": ([{"id": np.int32(0)}], 1.0)}, "source 'b': records of"),
    ],
)
def test_bad_sources_are_named(given, error):
    with pytest.raises(BadInput, match=error):
        loader(given)


def test_bad_stages_are_named():
    given = {"a": (records(0, 2), (1.0, 0.0)), "b": (records(0, 2), (0.0, 0.0))}
    with pytest.raises(BadInput, match="at least one must be above 0 in stage 2"):
        loader(given, stage_rows=(5, 5))
    with pytest.raises(BadInput, match="stage 2 of the mixture has 0 rows"):
        loader({"a": (records(0, 2), 1.0)}, stage_rows=(5, 0))


def test_batches_that_cannot_be_divided_are_refused():
    with pytest.raises(BadInput, match="batch_size=6: must be a positive multiple"):
        loader(process_count=4)
    with pytest.raises(BadInput, match="batch_size=0"):
        loader(batch_size=0)
    with pytest.raises(BadInput, match="process_index=2"):
        loader(process_index=2, process_count=2)


def row(tokens, segments, mask):
    types = {"tokens": np.uint16, "segments": np.uint16, "mask": np.uint8}
    values = zip(types, (tokens, segments, mask), strict=True)
    return {name: np.array([value], types[name]) for name, value in values}


# Ids mean nothing here: the same batch from tokens that are all different and from tokens all 0.
@pytest.mark.parametrize("tokens", [[11, 12, 2, 1, 13, 2, 1, 14, 0], [1] * 9, [0] * 9])
def test_lm_batch_worked_example(tokens):
    batch = lm_batch(row(tokens, [1, 1, 1, 2, 2, 2, 3, 3, 0], [0, 1, 1, 0, 0, 1, 0, 1, 0]))
    assert {key: value.tolist()[0] for key, value in batch.items()} == {
        "tokens": tokens[:-1],
        "targets": tokens[1:],
        "weights": [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0],
        "segments": [1, 1, 1, 2, 2, 2, 3, 3],
        "positions": [0, 1, 2, 0, 1, 2, 0, 1],
    }
    types = {key: str(value.dtype) for key, value in batch.items()}
    assert types.pop("weights") == "float32"
    assert set(types.values()) == {"int32"}


def test_lm_batch_row_that_ends_in_padding():
    batch = lm_batch(
        row([1, 11, 2, 1, 12, 0, 0, 0, 0], [1, 1, 1, 2, 2, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0, 0, 0, 0])
    )
    assert batch["segments"].tolist() == [[1, 1, 1, 2, 2, 0, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 0, 1, 0, 0, 0, 0]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = np.random.default_rng(0)
    docs = [rng.integers(10, 5000, size).tolist() for size in rng.integers(0, 30, 60)]
    directory = tmp_path_factory.mktemp("loader") / "shards"
    write_shards(pack_documents(docs, SEQ_LEN, BOS, EOS), directory, SEQ_LEN, np.uint16, 30)
    return docs, Shards(directory)


def test_weights_never_cross_segments(corpus):
    _, opened = corpus
    given = Loader({"docs": (opened, 1.0)}, 4, 0, lm_batch)
    for batch in itertools.islice(given, 50):
        assert {value.shape for value in batch.values()} == {(4, SEQ_LEN)}
        segments = np.pad(batch["segments"], ((0, 0), (0, 1)))
        same = segments[:, 1:] == segments[:, :-1]
        inside = batch["weights"][:, :-1] == 1
        # The segment of a target is known for all but the last column.
        assert np.all(same[:, :-1][inside])
        assert not np.any(batch["weights"][batch["targets"] == BOS])
        assert not np.any(batch["weights"][batch["targets"] == PAD])
        assert not np.any(batch["segments"][batch["tokens"] == PAD])


def test_every_supervised_token_of_the_corpus_is_a_target_once_an_epoch(corpus):
    docs, opened = corpus
    given = Loader({"docs": (opened, 1.0)}, 1, 0, lm_batch)
    targets = Counter()
    for batch in itertools.islice(given, len(opened)):
        targets.update(batch["targets"][batch["weights"] == 1].tolist())
    assert targets == Counter(token for doc in docs for token in (*doc, EOS))


def test_shards_and_lists_give_the_same_batches(corpus):
    _, opened = corpus
    listed = [opened[i] for i in range(len(opened))]
    from_shards = Loader({"docs": (opened, 1.0)}, 4, 7, lm_batch)
    from_list = Loader({"docs": (listed, 1.0)}, 4, 7, lm_batch)
    for one, other in itertools.islice(zip(from_shards, from_list, strict=True), NUM_BATCHES):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_fixed_batches_keep_the_order_and_fill_up_the_last():
    rows = [{"x": np.array([i, i + 1], np.int32), "weight": np.float32(1)} for i in range(5)]
    batches = list(fixed_batches(rows, 2))
    assert [batch["x"][:, 0].tolist() for batch in batches] == [[0, 1], [2, 3], [4, 0]]
    assert [batch["weight"].tolist() for batch in batches] == [[1, 1], [1, 1], [1, 0]]
    assert all(batch["x"].dtype == np.int32 and batch["x"].shape == (2, 2) for batch in batches)
    assert batches[-1]["x"][1].tolist() == [0, 0]
    *_, last = fixed_batches(rows, 3, filler=rows[1])
    assert last["x"].tolist() == [[3, 4], [4, 5], [1, 2]] and last["weight"].tolist() == [1, 1, 1]
