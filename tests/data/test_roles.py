"""BOS, EOS and padding of imported tokenizers, in the layouts that families are published with."""

import json

import pytest
from tokenizers import AddedToken

from data.tokens.gguf_tokenizer import PREFIX, byte_level, from_gguf
from data.tokens.tokenizer import load as load_tokenizer
from data.tokens.tokenizer import load_for_training
from tests.data.test_gguf_tokenizer import (
    byte_vocab,
    llama_metadata,
    model_proto,
    pieces,
    write_gpt2,
    write_json,
    write_llama,
    write_llama3,
)

END = "<|endoftext|>"
# Of each layout: the split, or None for SentencePiece; special tokens, numbered after the
# vocabulary or, where "first", before it; tokenizer_config.json; model_type of its config.json.
LAYOUTS = {
    "gpt-2": ("gpt-2", [END], {}, "gpt2"),
    "qwen 2": (
        *("qwen2", [END, "<|im_start|>", "<|im_end|>"]),
        {"bos_token": None, "eos_token": END, "pad_token": END, "unk_token": None}
        | {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False},
        "qwen2",
    ),
    "qwen 2 chat": (
        *("qwen2", [END, "<|im_start|>", "<|im_end|>"]),
        {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": END}
        | {"tokenizer_class": "Qwen2Tokenizer"},
        "qwen2",
    ),
    "llama 2": (
        *(None, []),
        {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "eos_token": "</s>"}
        | {"pad_token": None, "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
        | {"legacy": False, "add_bos_token": True},
        "llama",
    ),
    "llama 3": (
        *("llama-bpe", ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
        | {"tokenizer_class": "PreTrainedTokenizerFast"},
        "llama",
    ),
    "gemma 3": (
        *("gpt-2", ["<pad>", "<eos>", "<bos>", "<unk>", "first"]),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
        | {"tokenizer_class": "PreTrainedTokenizerFast"},
        "gemma3_text",
    ),
    "olmo 2": (
        *("gpt-2", [END, "<|pad|>"]),
        {"bos_token": END, "eos_token": END, "pad_token": "<|pad|>", "unk_token": END}
        | {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False},
        "olmo2",
    ),
    "mistral": (
        *(None, []),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        | {"tokenizer_class": "LlamaTokenizer", "legacy": True},
        "mistral",
    ),
    "gpt-oss": (
        *("gpt-4o", ["<|startoftext|>", END, "<|return|>"]),
        {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": END}
        | {"tokenizer_class": "PreTrainedTokenizerFast"},
        "gpt_oss",
    ),
    "deepseek v3": (
        *("deepseek-v3", ["<\uff5cbegin\u2581of\u2581sentence\uff5c>"]),
        {"bos_token": "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "unk_token": None}
        | dict.fromkeys(("eos_token", "pad_token"), "<\uff5cend\u2581of\u2581sentence\uff5c>")
        | {"tokenizer_class": "LlamaTokenizerFast"},
        "deepseek_v3",
    ),
    "phi": (
        *("gpt-2", [END]),
        dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
        | {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": False},
        "phi",
    ),
    "phi 3": (
        *(None, [END]),
        {"bos_token": "<s>", "eos_token": END, "pad_token": END, "unk_token": "<unk>"}
        | {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": False},
        "phi3",
    ),
    "smollm": (  # the token that opens and closes a text has id 0
        *("smollm", [END, "first"]),
        dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
        | {"tokenizer_class": "GPT2Tokenizer"},
        "llama",
    ),
}
LAYOUTS["deepseek v3"][1].append("<\uff5cend\u2581of\u2581sentence\uff5c>")
# bos, eos and pad of transformers 5.23, then of load_for_training.
FROZEN = {
    "gpt-2": (384, 384, None, 384, 384, 384),
    "qwen 2": (None, 384, 384, 384, 384, 384),
    "qwen 2 chat": (None, 386, 384, 386, 386, 384),
    "llama 2": (1, 2, None, 1, 2, 2),
    "llama 3": (384, 385, None, 384, 385, 385),
    "gemma 3": (2, 1, 0, 2, 1, 0),
    "olmo 2": (384, 384, 385, 384, 384, 385),
    "mistral": (1, 2, None, 1, 2, 2),
    "gpt-oss": (384, 386, 385, 384, 386, 385),
    "deepseek v3": (384, 385, 385, 384, 385, 385),
    "phi": (384, 384, None, 384, 384, 384),
    "phi 3": (1, 469, 469, 1, 469, 469),
    "smollm": (0, 0, None, 0, 0, 0),
}


def write_layout(folder, name):
    split, special, config, model_type = LAYOUTS[name]
    write_json(folder, "config.json", {"model_type": model_type})
    if split is None:
        size = len(model_proto().pieces)
        (folder / "tokenizer.model").write_bytes(model_proto().SerializeToString())
        added = {size + i: {"content": token, "special": True} for i, token in enumerate(special)}
        config = config | ({"added_tokens_decoder": added} if added else {})
    else:
        vocab, special, merges = byte_tokens(special)
        added = [AddedToken(token, special=True, normalized=False) for token in special]
        byte_level(vocab, merges, split, added).save(str(folder / "tokenizer.json"))
    if config:
        write_json(folder, "tokenizer_config.json", config)


def byte_tokens(special):
    """(token to id, special tokens, merges)."""
    (vocab, merges), first = byte_vocab(), special[-1] == "first"
    special = special[:-1] if first else special
    tokens = [*special, *vocab] if first else [*vocab, *special]
    return {token: i for i, token in enumerate(tokens)}, special, merges


def roles(tokenizer):
    return tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id


@pytest.mark.parametrize("name", LAYOUTS)
def test_roles_are_those_of_transformers_and_training_fills_in_the_end(tmp_path, name):
    write_layout(tmp_path / "a", name)
    assert roles(load_tokenizer(tmp_path / "a")) == FROZEN[name][:3]
    size = load_tokenizer(tmp_path / "a").vocab_size
    assert roles(load_for_training(tmp_path / "a", size, ())) == FROZEN[name][3:]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_gguf_gives_the_same_roles(tmp_path, name):
    split, special, _, _ = LAYOUTS[name]
    ids = dict(
        zip(("bos_token_id", "eos_token_id", "padding_token_id"), FROZEN[name], strict=False)
    )
    if split is None:
        tokens, scores, types = zip(*pieces(), strict=True)
        arrays = {"tokens": [*tokens, *special], "scores": [*scores, *[0.0] * len(special)]}
        metadata = llama_metadata(**arrays, token_type=[*types, *[3] * len(special)], **ids)
    else:
        vocab, special, merges = byte_tokens(special)
        found = {"model": "gpt2", "pre": split, "tokens": list(vocab)} | ids
        found |= {"token_type": [3 if token in special else 1 for token in vocab]}
        found |= {"merges": list(map(" ".join, merges))}
        metadata = {PREFIX + key: value for key, value in found.items() if value is not None}
    from_gguf(tmp_path / "m.gguf", metadata, tmp_path / "a")
    assert roles(load_tokenizer(tmp_path / "a")) == FROZEN[name][:3]


@pytest.mark.slow
def test_transformers_gives_the_same_roles(tmp_path):
    auto = pytest.importorskip("transformers", reason="transformers is not installed").AutoTokenizer
    for name in LAYOUTS:
        write_layout(tmp_path / name, name)
        theirs = auto.from_pretrained(tmp_path / name)
        found = theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id
        assert found == roles(load_tokenizer(tmp_path / name)), name


@pytest.mark.parametrize(
    ("writer", "config", "wanted"),
    [
        (write_gpt2, {}, False),
        (write_gpt2, {"add_bos_token": True}, True),
        (write_llama, {}, True),
        (write_llama, {"add_bos_token": False}, False),
    ],
)
def test_bos_stands_before_a_text_where_transformers_puts_it(tmp_path, writer, config, wanted):
    writer(tmp_path, **config)
    assert load_tokenizer(tmp_path).adds_bos is wanted


def test_a_tokenizer_json_says_itself_whether_bos_stands_before_a_text(tmp_path):
    write_llama3(tmp_path)
    assert load_tokenizer(tmp_path).adds_bos
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    write_json(tmp_path, "tokenizer.json", content | {"post_processor": None})
    assert not load_tokenizer(tmp_path).adds_bos
