"""Tokenizers taken from files of all forms: the same ids as from their own folder."""

import base64
import functools
import itertools
import json
import re
import shutil

import pytest

from data.errors import BadInput
from data.tokens import pretrained, tokenizer_source
from data.tokens.byte_level import LLAMA_3
from data.tokens.encode import ALPHABET
from data.tokens.tokenizer import FILES, TokenizerConfig, load, train
from data.tokens.tokenizer_source import take
from tests.data.test_byte_level import write_gpt2, write_llama3
from tests.data.test_gguf_tokenizer import byte_metadata, write_llama

TEXTS = ("Hello wörld, 12345 times!", "  a\n\n  b\tc ", "the dog's  end", "漢字 🙂")


def no_gguf(path):
    raise AssertionError(f"{path} is no GGUF")


def taken(path, out, read_gguf=no_gguf):
    take(path, out, read_gguf)
    return pretrained.load(out)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_gpt2, "vocab.json"),
        (write_llama3, "tokenizer.json"),
        (write_llama, "tokenizer.model"),
    ],
)
def test_a_folder_and_its_file_give_the_same(tmp_path, write, name):
    folder = tmp_path / "there"
    write(folder)
    wanted = pretrained.load(folder)
    for place in (folder, folder / name):
        found = taken(place, tmp_path / f"from_{place.name}")
        assert found.encode_batch(TEXTS) == wanted.encode_batch(TEXTS)
        roles = [(t.bos_id, t.eos_id, t.pad_id, t.vocab_size) for t in (found, wanted)]
        assert roles[0] == roles[1]


@pytest.mark.parametrize("name", ["", "vocab.json"])
def test_all_that_is_taken_is_in_the_fingerprint_and_nothing_else(tmp_path, name):
    folder = tmp_path / "there"
    write_gpt2(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    place = folder / name if name else folder
    fingerprint = functools.partial(tokenizer_source.fingerprint, "start")
    before = fingerprint(place)
    (folder / "notes.txt").write_text("of no use")
    assert fingerprint(place) == before
    for read in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        kept = (folder / read).read_bytes()
        (folder / read).write_bytes(kept + b" ")
        assert fingerprint(place) != before, read
        (folder / read).write_bytes(kept)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert fingerprint(place) != before
    with pytest.raises(BadInput, match="^start=.*: must be a folder or file of a tokenizer"):
        fingerprint(folder / "absent.json")


def test_what_is_not_read_beside_a_file_is_not_in_its_fingerprint(tmp_path):
    write_llama(tmp_path)
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF and more")
    names = {"tokenizer.model": {"tokenizer_config.json"}, "a.gguf": set()}
    for name in ("merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    for name, beside in names.items():
        assert tokenizer_source.fingerprint("start", tmp_path / name).keys() == {name} | beside


def test_a_file_is_known_by_its_content(tmp_path):
    for write, name in ((write_llama3, "tokenizer.json"), (write_llama, "tokenizer.model")):
        write(tmp_path / name[-5:])
        (tmp_path / "any name").write_bytes((tmp_path / name[-5:] / name).read_bytes())
        found = taken(tmp_path / "any name", tmp_path / f"out {name}")
        assert found.encode_batch(TEXTS) == pretrained.load(tmp_path / name[-5:]).encode_batch(
            TEXTS
        )


def test_a_gguf_is_read_by_the_function_given(tmp_path):
    metadata = byte_metadata()
    (tmp_path / "m.gguf").write_bytes(b"GGUF and so on")
    found = taken(tmp_path / "m.gguf", tmp_path / "out", lambda path: metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert found.vocab_size == len(tokens)
    assert [found.decode(ids) for ids in found.encode_batch(TEXTS)] == list(TEXTS)


def test_a_tokenizer_of_our_own_is_taken_from_another_run(tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / FILES["bpe"]
    train(["some words, some more words"] * 50, TokenizerConfig(290, 10**5, 8, 1.0), path)
    take(tmp_path / "run", tmp_path / "out", no_gguf)
    assert load(tmp_path / "out").encode_batch(TEXTS) == load(tmp_path / "run").encode_batch(TEXTS)


RANKS = [bytes([i]) for i in range(256)]
RANKS += [
    b"th",
    b"in",
    b" t",
    b"the",
    b" th",
    b" the",
    b"ing",
    b"ab",
    b"bc",
    b"abc",
    b"yz",
    b"xy",
    b"12",
    b"..",
    b"...",
    b"\n\n",
]


def write_ranks(path, tokens=RANKS):
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)]
    path.write_bytes(b"".join(lines))


def merge(word, ranks):
    """tiktoken's rule: a word that has a rank is whole; else the best neighbours merge, again."""
    parts = [word] if word in ranks else [bytes([byte]) for byte in word]
    while True:
        pairs = [
            (ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(itertools.pairwise(parts))
        ]
        best = min(pairs, default=(1 << 30, 0))
        if best[0] == 1 << 30:
            return [ranks[part] for part in parts]
        parts[best[1] : best[1] + 2] = [parts[best[1]] + parts[best[1] + 1]]


def test_ranks_merge_as_tiktoken_merges_them(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_source, "LLAMA_3_RANKS", len(RANKS))
    write_ranks(tmp_path / "tokenizer.model")
    # Found in a folder too, where Llama 3 has it under the name of a SentencePiece model.
    for place in (tmp_path / "tokenizer.model", tmp_path):
        found = taken(place, tmp_path / "out")
        ranks = {token: rank for rank, token in enumerate(RANKS)}
        for text in ("the thing, abcabc  thin", "12345 ......\n\n\n the", "abbc tthe xyzq 'Sing"):
            pattern = LLAMA_3.replace(r"\p{L}", "[a-zA-Z]").replace(r"\p{N}", "[0-9]")
            pattern = pattern.replace("[^\\r\\n[a-zA-Z][0-9]]", "[^\\r\\na-zA-Z0-9]")
            pattern = pattern.replace("[^\\s[a-zA-Z][0-9]]", "[^\\sa-zA-Z0-9]")
            words = [part[0].encode() for part in re.finditer(pattern, text)]
            assert b"".join(words).decode() == text
            assert found.encode(text) == [rank for word in words for rank in merge(word, ranks)]
        assert (found.bos_id, found.eos_id) == (len(RANKS), len(RANKS) + 1)
        assert found.vocab_size == len(RANKS) + 256
        shutil.rmtree(tmp_path / "out")


def test_llama_3_names_its_special_tokens_where_it_has_them(tmp_path, monkeypatch):
    """The ids of Meta's own table: begin 128000, end 128001, headers 128006 and 7, turn 128009."""
    monkeypatch.setattr(tokenizer_source, "LLAMA_3_RANKS", len(RANKS))
    write_ranks(tmp_path / "ranks")
    take(tmp_path / "ranks", tmp_path / "out", no_gguf)
    added = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["added_tokens"]
    names = {token["id"] - len(RANKS): token["content"] for token in added}
    assert [names[i] for i in (0, 1, 6, 7, 9)] == [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    assert names[2] == "<|reserved_special_token_0|>" and names[8] == "<|reserved_special_token_4|>"
    assert names[255] == "<|reserved_special_token_250|>" and len(names) == 256


def test_what_cannot_be_taken_is_named(tmp_path):
    def refuse(path, words):
        with pytest.raises(BadInput, match=words):
            take(path, tmp_path / "out", no_gguf)

    refuse(tmp_path / "absent", "tokenizer.path=.*absent: must be a folder or file")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "holds no tokenizer")
    write_ranks(tmp_path / "ranks")
    refuse(tmp_path / "ranks", r"ranks: holds 272 ranks; only Llama 3's file, of 128000")
    write_ranks(tmp_path / "twice", [*RANKS, b"the"])
    refuse(tmp_path / "twice", "twice: its ranks are not 0, 1, 2 and so on")
    (tmp_path / "torn").write_bytes(b"AA== 0\nAQ== one\n")
    refuse(tmp_path / "torn", "torn: line 2: b'AQ== one' is no token and rank")
    (tmp_path / "alone.json").write_text(json.dumps({ALPHABET[i]: i for i in range(256)}))
    refuse(tmp_path / "alone.json", "alone.json: a vocabulary alone; merges.txt must stand beside")
    (tmp_path / "half.json").write_text('{"model": ')
    refuse(tmp_path / "half.json", "half.json: ")
