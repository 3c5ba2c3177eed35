"""Shards: every training document once, in an order that only their ids decide."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.engine import Runner, start
from data.errors import BadInput
from data.tokens import packing, shards
from data.tokens.trainer import TokenizerConfig

SEQ_LEN = 16
TINY = {
    "vocab_size": 290,
    "sample_bytes": 10_000,
    "max_piece_chars": 8,
    "character_coverage": 1.0,
}


class Letters:
    """A tokenizer of single characters."""

    vocab_size, bos_id, eos_id = 300, 1, 2

    def cuts(self):
        raise BadInput("letters are encoded one by one")

    def encode_batch(self, texts, num_threads=1):
        return [[3 + ord(letter) % 256 for letter in text] for text in texts]


def load():
    return Letters()


def silent(_line):
    pass


def rows_of(count, seed=0):
    source = random.Random(seed)
    return [
        {
            "id": f"d{i}",
            "domain": ("web", "Books")[i % 2],
            "language": ("en", "de", "zh-x")[i % 3],
            "split": "heldout" if i % 10 == 0 else "train",
            "text": "".join(source.choices("abcdefgh ", k=source.randrange(40))) + f"#{i};",
        }
        for i in range(count)
    ]


def write_parts(folder, rows, num_parts):
    folder.mkdir(parents=True)
    edges = [len(rows) * i // num_parts for i in range(num_parts + 1)]
    for number, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
        table = pa.Table.from_pylist(rows[first:last])
        pq.write_table(table, folder / f"part-{number:05d}.parquet")


def make(folder, rows, num_parts=3, workers=1, by_language=False):
    write_parts(folder / "documents", rows, num_parts)
    with start(Runner(workers=workers)) as engine:
        return packing.make_shards(
            folder / "documents",
            folder / "shards",
            folder / "cache",
            engine,
            load,
            "letters",
            SEQ_LEN,
            by_language,
            silent,
        )


def texts_of(folder):
    """Texts of a group, in the order of its rows, put together again from its tokens."""
    opened = shards.Shards(folder)
    stream = []
    for row in (opened[i] for i in range(len(opened))):
        # The first token of a row is the last of the row before, but at a shard's beginning.
        first = 0 if row["tokens"][0] == Letters.bos_id and not row["mask"][0] and not stream else 1
        stream += row["tokens"][first:].tolist()
    texts, text = [], None
    for token in stream:
        if token == Letters.bos_id:
            text = ""
        elif token == Letters.eos_id:
            texts.append(text)
        elif token > 2:
            text += chr(token - 3)
    return texts


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.mark.parametrize("batch_chars", [1, 99, 1 << 23])
def test_every_training_document_is_there_once_and_shuffled(tmp_path, monkeypatch, batch_chars):
    monkeypatch.setattr(packing, "READ_DOCUMENTS", 7)
    monkeypatch.setattr(packing, "BATCH_CHARS", batch_chars)
    rows = rows_of(200)
    made = make(tmp_path, rows)
    for name, domain in (("web", "web"), ("books", "Books")):
        wanted = [r["text"] for r in rows if r["domain"] == domain and r["split"] == "train"]
        found = texts_of(tmp_path / "shards" / name)
        assert sorted(found) == sorted(wanted)
        assert found != wanted
        group = made["groups"][name]
        assert group["documents"] == len(wanted)
        assert group["bytes"] == group["tokens"] == sum(map(len, wanted))
    total = sum(len(row["text"]) for row in rows if row["split"] == "train")
    assert sum(row[3] for row in made["fertility"]) == total
    assert [row[:2] for row in made["fertility"]] == sorted(
        [d, language] for d in ("Books", "web") for language in ("de", "en", "zh-x")
    )


def test_parts_workers_and_their_order_do_not_show(tmp_path):
    rows = rows_of(150)
    make(tmp_path / "one", rows, num_parts=1)
    make(tmp_path / "five", rows, num_parts=5, workers=2)
    make(tmp_path / "back", rows[::-1], num_parts=4)
    expected = digests(tmp_path / "one" / "shards")
    assert expected == digests(tmp_path / "five" / "shards") == digests(tmp_path / "back/shards")


def test_several_shards_hold_the_same_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SHARD_TOKENS", 400)
    rows = rows_of(150)
    made = make(tmp_path, rows)
    assert made["groups"]["web"]["shards"] > 3
    opened = shards.Shards(tmp_path / "shards" / "web")
    tokens = [token for i in range(len(opened)) for token in opened[i]["tokens"].tolist()]
    wanted = [row for row in rows if row["domain"] == "web" and row["split"] == "train"]
    assert tokens.count(Letters.bos_id) >= len(wanted)
    supervised = sum(int(opened[i]["mask"].sum()) for i in range(len(opened)))
    assert supervised == sum(len(row["text"]) + 1 for row in wanted)  # each token, and its end


def test_languages_are_groups_of_their_own_when_asked(tmp_path):
    rows = rows_of(90)
    made = make(tmp_path, rows, by_language=True)
    assert sorted(made["groups"]) == [
        f"{domain}_{language}" for domain in ("books", "web") for language in ("de", "en", "zh_x")
    ]
    found = texts_of(tmp_path / "shards" / "web_zh_x")
    wanted = [r for r in rows if (r["domain"], r["language"]) == ("web", "zh-x")]
    assert sorted(found) == sorted(r["text"] for r in wanted if r["split"] == "train")


def test_encoded_parts_are_taken_again_and_changed_ones_are_not(tmp_path):
    rows = rows_of(60)
    make(tmp_path / "a", rows)
    before = {path.name for path in (tmp_path / "a/cache/encoded").iterdir()}
    rows[-1] = {**rows[-1], "text": "changed"}
    documents = tmp_path / "a" / "documents"
    for path in documents.iterdir():
        path.unlink()
    documents.rmdir()
    make(tmp_path / "a", rows)
    after = {path.name for path in (tmp_path / "a/cache/encoded").iterdir()}
    assert len(after - before) == 1
    assert any("changed" in text for text in texts_of(tmp_path / "a/shards/books")) or any(
        "changed" in text for text in texts_of(tmp_path / "a/shards/web")
    )


def test_a_group_may_be_missing_in_a_part_and_one_without_tokens_is_left_out(tmp_path):
    rows = rows_of(60)
    rows[-1] |= {"domain": "late", "split": "train"}
    rows[0] |= {"domain": "silent", "split": "train", "text": ""}
    made = make(tmp_path, rows)
    assert sorted(made["groups"]) == ["books", "late", "web"]
    assert texts_of(tmp_path / "shards" / "late") == [rows[-1]["text"]]
    assert not (tmp_path / "shards" / "silent").exists()


def learn(folder, out, **fields):
    config = TokenizerConfig(**{**TINY, **fields})
    with start(Runner(workers=1)) as engine:
        packing.learn(folder / "documents", out, folder / "cache", engine, config, silent)
    return digests(out)


def test_a_tokenizer_is_trained_once_for_documents_and_keys(tmp_path, monkeypatch):
    write_parts(tmp_path / "documents", rows_of(300), 3)
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *args: iter(sorted(listed(*args))))
    first = learn(tmp_path, tmp_path)
    cached = digests(tmp_path / "cache")
    # Folders are listed in no certain order; a tokenizer may be learnt into a folder that has one.
    monkeypatch.setattr(Path, "glob", lambda *args: iter(sorted(listed(*args), reverse=True)))
    assert learn(tmp_path, tmp_path) == first
    assert digests(tmp_path / "cache") == cached
    other = learn(tmp_path, tmp_path, vocab_size=TINY["vocab_size"] + 1)
    assert other["tokenizer.model"] != first["tokenizer.model"]
    assert cached.items() <= digests(tmp_path / "cache").items()


@pytest.mark.parametrize(
    ("domain", "language", "name"),
    [("Web", "", "web"), ("a_b", "zh-Hant", "a_b_zh_hant"), ("x", "en", "x_en")],
)
def test_group_names_are_plain(domain, language, name):
    assert packing.group_name(domain, language) == name


def test_dtype_follows_the_vocabulary(tmp_path):
    make(tmp_path, rows_of(20))
    assert shards.Shards(tmp_path / "shards" / "web").dtype == np.uint16
