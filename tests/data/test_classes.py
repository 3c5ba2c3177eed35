"""`add_prefix_space` and `legacy`, as the classes of transformers 5.23 take them."""

import json

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from data.errors import BadInput
from data.tokens import byte_level, fast_tokenizer, pretrained
from data.tokens.encode import Encoder, check
from tests.data.test_byte_level import END, byte_vocab, write_gpt2, write_json
from tests.data.test_gguf_tokenizer import model_proto
from tests.data.test_pretrained import random_texts

KEYS = {"absent": {}, "null": {"add_prefix_space": None}} | {
    str(value): {"add_prefix_space": value} for value in (True, False)
}
LEGACY = {"absent": {}, "true": {"legacy": True}, "false": {"legacy": False}}
CLASSES = {"gpt-2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}

# No text begins with a space here: transformers' Llama class loses that one.
PLAIN = ("the dog's", "\nthe", "12 the", "a  b x")
SPELLED = (f"a{END}the x", "</s>the")
# What transformers 5.23 gives: of the byte-level ones without and with the space, then of Llama's
# class without it, with it at the start alone ("first"), and after special tokens too ("always").
FROZEN = {
    ("gpt-2", False): """
        83 260 335 70 374 / 198 83 260 / 376 289 / 64 220 274 220 87 / 64 384 83 260 220 87 / 27
        14 82 29 83 260
    """,
    ("gpt-2", True): """
        289 335 70 374 / 220 198 83 260 / 220 376 289 / 257 220 274 220 87 / 257 384 289 220 87 /
        220 27 14 82 29 83 260
    """,
    ("qwen2", False): """
        83 260 335 70 374 / 198 83 260 / 16 17 289 / 64 220 274 220 87 / 64 384 83 260 220 87 / 27
        14 82 29 83 260
    """,
    ("qwen2", True): """
        289 335 70 220 374 / 220 198 289 / 220 16 220 17 289 / 257 220 274 220 87 / 257 384 289
        220 87 / 220 27 14 259 220 29 83 260
    """,
    ("llama", "never"): """
        382 263 324 393 405 385 / 13 382 263 / 52 53 291 / 380 378 278 378 446 / 380 63 127 272
        391 381 401 382 379 446 382 127 65 382 263 378 446 / 2 382 263
    """,
    ("llama", "first"): """
        291 324 393 405 385 / 378 13 382 263 / 378 52 53 291 / 260 378 278 378 446 / 260 63 127
        272 391 381 401 382 379 446 382 127 65 382 263 378 446 / 2 382 263
    """,
    ("llama", "always"): """
        291 324 393 405 385 / 378 13 382 263 / 378 52 53 291 / 260 378 278 378 446 / 260 63 127
        272 391 381 401 382 379 446 382 127 65 382 263 378 446 / 2 291
    """,
}


def write_byte_level(folder, split, source, has_space, config):
    """A tokenizer as vocab.json with merges.txt, or as a tokenizer.json with a space or without."""
    if source == "vocab.json":
        write_gpt2(folder, tokenizer_class=CLASSES[split], **config)
        return
    vocab, merges = byte_vocab()
    end = [AddedToken(END, special=True)]
    tokenizer = byte_level.build({**vocab, END: len(vocab)}, merges, split, end)
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"]["pretokenizers"][-1]["add_prefix_space"] = has_space
    write_json(folder, "tokenizer.json", content)
    config = {"tokenizer_class": CLASSES[split], "eos_token": END} | config
    write_json(folder, "tokenizer_config.json", config)


def write_llama(folder, source, config):
    """A tokenizer.model, or a tokenizer.json: "prepend" by its normalizer, else by a scheme."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model_proto().SerializeToString())
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer"} | roles | config
    write_json(folder, "tokenizer_config.json", config)
    if source == "tokenizer.model":
        return
    tokenizer = fast_tokenizer.to_fast(folder / "tokenizer.model", None)
    (folder / "tokenizer.model").unlink()
    content = json.loads(tokenizer.to_str())
    if source != "prepend":
        metaspace = pre_tokenizers.Metaspace("\u2581", source, split=False)
        content |= {"normalizer": None, "pre_tokenizer": json.loads(metaspace.__getstate__())}
    if source == "never":
        content["decoder"]["decoders"].pop()  # which strips the space
    Tokenizer.from_str(json.dumps(content))
    write_json(folder, "tokenizer.json", content)


def encode(folder, texts):
    return pretrained.load(folder).encode_batch(texts, special=True)


def frozen(family, outcome):
    rows = [[int(i) for i in row.split()] for row in FROZEN[family, outcome].split("/")]
    return rows[: len(PLAIN)], rows[len(PLAIN) :]


def byte_level_cases():
    """(split, source, whether that source puts a space, key) of every layout."""
    sources = (("vocab.json", False), ("tokenizer.json", False), ("tokenizer.json", True))
    return [(split, *source, key) for split in CLASSES for source in sources for key in KEYS]


def llama_outcome(source, key, legacy):
    """Where a space is put: what the key says, then what the file does; 'always' by default."""
    if key == "False" or (source == "never" and key != "True"):
        return "never"
    if source in ("first", "always"):
        return source
    return "first" if legacy == "false" and source != "prepend" else "always"


SOURCES = ("tokenizer.model", "prepend", "first", "always", "never")


@pytest.mark.parametrize(("split", "source", "has_space", "key"), byte_level_cases())
def test_byte_level_classes_take_the_key_and_else_put_no_space(
    tmp_path, split, source, has_space, key
):
    write_byte_level(tmp_path / "a", split, source, has_space, KEYS[key])
    plain, spelled = frozen(split, key == "True")
    assert encode(tmp_path / "a", PLAIN) == plain
    assert encode(tmp_path / "a", SPELLED) == spelled


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("legacy", LEGACY)
def test_llama_takes_the_keys_and_else_its_file(tmp_path, source, key, legacy):
    write_llama(tmp_path / "a", source, KEYS[key] | LEGACY[legacy])
    outcome = llama_outcome(source, key, legacy)
    plain, spelled = frozen("llama", outcome)
    assert encode(tmp_path / "a", PLAIN) == plain
    assert encode(tmp_path / "a", SPELLED) == spelled
    tokenizer = pretrained.load(tmp_path / "a")
    loses = outcome != "never" and source not in ("tokenizer.model", "prepend")  # Metaspace does
    spaces = () if loses else (" the dog", "  a")
    for text in ("the dog", "\n a", *spaces):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("key", "prefix"), [("True", True), ("False", False)])
def test_sentencepiece_is_the_reference_of_spaces_at_the_start(tmp_path, key, prefix):
    """Where transformers' class gives other ids, whatever the key."""
    model = model_proto()
    model.normalizer_spec.add_dummy_prefix = prefix
    reference = SentencePieceProcessor(model_proto=model.SerializeToString())
    texts = [" ", " the dog", "  the", "the  dog", ""]
    for source in ("tokenizer.model", "prepend"):
        write_llama(tmp_path / source, source, KEYS[key])
        assert encode(tmp_path / source, texts) == reference.encode(texts)


@pytest.mark.parametrize("split", CLASSES)
def test_a_file_of_another_class_is_used_as_it_stands(tmp_path, split):
    for has_space in (True, False):
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": not has_space}
        write_byte_level(tmp_path / "a", split, "tokenizer.json", has_space, config)
        assert encode(tmp_path / "a", PLAIN) == frozen(split, has_space)[0]
        # Llama 3 and DeepSeek V3 were published under Llama's class.
        config["tokenizer_class"] = "LlamaTokenizerFast"
        write_byte_level(tmp_path / "a", split, "tokenizer.json", has_space, config)
        assert encode(tmp_path / "a", PLAIN) == frozen(split, has_space)[0]


@pytest.mark.parametrize("write", [write_byte_level, write_llama])
@pytest.mark.parametrize("key", ["True", "False"])
def test_texts_encoded_in_bulk_have_the_same_ids(tmp_path, write, key):
    arguments = (
        ("gpt-2", "vocab.json", False) if write == write_byte_level else ("tokenizer.model",)
    )
    write(tmp_path / "a", *arguments, KEYS[key] | {"legacy": False})
    tokenizer = pretrained.load(tmp_path / "a")
    texts = [*PLAIN, *SPELLED, " the dog", "  the", "", *random_texts(300)]
    assert check(tokenizer, texts) == ""
    ids, lengths = Encoder(tokenizer, cached=True).encode(texts)
    rows = [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]]
    assert rows == tokenizer.encode_batch(texts)


@pytest.mark.parametrize("key", ["add_prefix_space", "legacy"])
def test_a_key_of_another_type_is_refused(tmp_path, key):
    write_llama(tmp_path / "a", "tokenizer.model", {key: "yes"})
    with pytest.raises(BadInput, match=f"tokenizer_config.json: {key}='yes': must be true, false"):
        pretrained.load(tmp_path / "a")


@pytest.mark.slow
def test_transformers_gives_the_same_ids(tmp_path):
    auto = pytest.importorskip("transformers", reason="transformers is not installed").AutoTokenizer

    def theirs(folder, texts):
        return auto.from_pretrained(folder)(list(texts), add_special_tokens=False)["input_ids"]

    for number, case in enumerate(byte_level_cases()):
        folder = tmp_path / str(number)
        write_byte_level(folder, *case[:3], KEYS[case[3]])
        if case[::3] == ("gpt-2", "null"):
            continue  # a TypeError of theirs
        assert theirs(folder, PLAIN + SPELLED) == encode(folder, PLAIN + SPELLED), case
    for source in SOURCES:
        for key in KEYS:
            for legacy in LEGACY:
                folder = tmp_path / f"{source} {key} {legacy}"
                write_llama(folder, source, KEYS[key] | LEGACY[legacy])
                if source == "never" and key not in ("True", "False"):
                    continue  # theirs puts a space that this file does not
                assert theirs(folder, PLAIN) == encode(folder, PLAIN), folder
                # Theirs takes legacy to be false where it is absent, and overrides the file.
                if source == "tokenizer.model" and legacy != "absent":
                    assert theirs(folder, SPELLED) == encode(folder, SPELLED), folder
