"""`add_prefix_space` and `legacy`, as the classes of transformers 5.23 take them."""

import json

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import pre_tokenizers

from data.errors import BadInput
from data.tokens import fast_tokenizer
from data.tokens.tokenizer import load
from tests.data.test_gguf_tokenizer import END, model_proto, write_gpt2, write_json

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


def write_byte_level(folder, split, has_space, config):
    """A tokenizer.json with a space before each text, or without."""
    write_gpt2(folder, split, **{"tokenizer_class": CLASSES[split], "eos_token": END} | config)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"]["pretokenizers"][-1]["add_prefix_space"] = has_space
    write_json(folder, "tokenizer.json", content)


def write_llama(folder, source, config):
    """A tokenizer.model, or a tokenizer.json: "prepend" by its normalizer, else by a scheme."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model_proto().SerializeToString())
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer"} | roles | config
    write_json(folder, "tokenizer_config.json", config)
    if source == "tokenizer.model":
        return
    tokenizer = fast_tokenizer.from_pieces(folder / "tokenizer.model")
    (folder / "tokenizer.model").unlink()
    content = json.loads(tokenizer.to_str())
    if source != "prepend":
        metaspace = pre_tokenizers.Metaspace("\u2581", source, split=False)
        content |= {"normalizer": None, "pre_tokenizer": json.loads(metaspace.__getstate__())}
    if source == "never":
        content["decoder"]["decoders"].pop()  # which strips the space
    write_json(folder, "tokenizer.json", content)


def encode(folder, texts):
    return load(folder).encode_batch(texts, special=True)


def frozen(family, outcome):
    rows = [[int(i) for i in row.split()] for row in FROZEN[family, outcome].split("/")]
    return rows[: len(PLAIN)], rows[len(PLAIN) :]


SOURCES = ("tokenizer.model", "prepend", "first", "always", "never")
CASES = [
    (split, has_space, key) for split in CLASSES for has_space in (False, True) for key in KEYS
]


@pytest.mark.parametrize(("split", "has_space", "key"), CASES)
def test_byte_level_classes_take_the_key_and_else_put_no_space(tmp_path, split, has_space, key):
    write_byte_level(tmp_path, split, has_space, KEYS[key])
    plain, spelled = frozen(split, key == "True")
    assert encode(tmp_path, PLAIN) == plain
    assert encode(tmp_path, SPELLED) == spelled


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("legacy", LEGACY)
def test_llama_takes_the_keys_or_its_file_and_refuses_what_contradicts_it(
    tmp_path, source, key, legacy
):
    write_llama(tmp_path, source, KEYS[key] | LEGACY[legacy])
    wanted = {"True": True, "False": False}.get(key, source != "never")
    if source != "tokenizer.model" and wanted != (source != "never"):
        with pytest.raises(BadInput, match=f"json: puts .*has add_prefix_space={wanted}; save it"):
            load(tmp_path)
        return
    outcome = source if source in ("first", "always", "never") else "always"
    if source == "tokenizer.model":
        outcome = "never" if not wanted else "first" if legacy == "false" else "always"
    plain, spelled = frozen("llama", outcome)
    assert encode(tmp_path, PLAIN) == plain
    assert encode(tmp_path, SPELLED) == spelled
    tokenizer = load(tmp_path)
    spaces = () if source in ("first", "always") else (" the dog", "  a")  # Metaspace loses one
    for text in ("the dog", "\n a", *spaces):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("key", "prefix"), [("True", True), ("False", False)])
def test_sentencepiece_is_the_reference_of_spaces_at_the_start(tmp_path, key, prefix):
    """Where transformers' class gives other ids, whatever the key."""
    model = model_proto()
    model.normalizer_spec.add_dummy_prefix = prefix
    reference = SentencePieceProcessor(model_proto=model.SerializeToString())
    texts = [" ", " the dog", "  the", "the  dog", ""]
    for source in ("tokenizer.model", "prepend") if prefix else ("tokenizer.model",):
        write_llama(tmp_path / source, source, KEYS[key])
        assert encode(tmp_path / source, texts) == reference.encode(texts)


@pytest.mark.parametrize("split", CLASSES)
def test_a_file_of_another_class_is_used_as_it_stands(tmp_path, split):
    # Llama 3 and DeepSeek V3 were published under Llama's class.
    for name in ("PreTrainedTokenizerFast", "LlamaTokenizerFast"):
        for has_space in (True, False):
            config = {"tokenizer_class": name, "add_prefix_space": not has_space}
            write_byte_level(tmp_path, split, has_space, config)
            assert encode(tmp_path, PLAIN) == frozen(split, has_space)[0]


@pytest.mark.parametrize("key", ["add_prefix_space", "legacy"])
def test_a_key_of_another_type_is_refused(tmp_path, key):
    write_llama(tmp_path / "a", "tokenizer.model", {key: "yes"})
    with pytest.raises(BadInput, match=f"tokenizer_config.json: {key}='yes': must be true, false"):
        load(tmp_path / "a")


@pytest.mark.slow
def test_transformers_gives_the_same_ids(tmp_path):
    auto = pytest.importorskip("transformers", reason="transformers is not installed").AutoTokenizer

    def theirs(folder, texts):
        return auto.from_pretrained(folder)(list(texts), add_special_tokens=False)["input_ids"]

    for number, case in enumerate(CASES):
        folder = tmp_path / str(number)
        write_byte_level(folder, *case[:2], KEYS[case[2]])
        if case[::2] == ("gpt-2", "null"):
            continue  # a TypeError of theirs
        assert theirs(folder, PLAIN + SPELLED) == encode(folder, PLAIN + SPELLED), case
    for key in KEYS:
        for legacy in LEGACY:
            folder = tmp_path / f"{key} {legacy}"
            write_llama(folder, "tokenizer.model", KEYS[key] | LEGACY[legacy])
            assert theirs(folder, PLAIN) == encode(folder, PLAIN), folder
            # Theirs takes legacy to be false where it is absent.
            if legacy != "absent":
                assert theirs(folder, SPELLED) == encode(folder, SPELLED), folder
