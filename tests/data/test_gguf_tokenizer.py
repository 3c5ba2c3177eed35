"""The tokenizer inside a GGUF: the ids of the tokenizer it was made from, plain errors."""

import json

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from data.errors import BadInput
from data.tokens.gguf_tokenizer import PREFIX, SPLITS, byte_level, from_gguf
from data.tokens.tokenizer import load

# A small vocabulary, trained on many languages, and some merges that cross where some splits cut.
MERGES = """
Ġ+t Ġ+a i+n Ġ+s h+e à+¤ Ġ+d a+n Ġ+m r+e i+s e+r o+u Ġ+w e+n o+n o+m a+t Ġ+b Ġ+Ð Ġ+n Ġ+h Ġ+p Ð+°
Ġ+c Ġ+l a+r e+s o+r a+s Ġ+y i+t Ġ+f Ġt+he Ġt+o in+g Ð+µ á+ĥ Ð+¾ l+l Ġ+g Ġ+o Ġ+k à+¦ e+d Ġy+ou Ġ+is
à+¸ T+om à+¥ Ø+§ à+´ Ġ+Ñ e+t a+l Ġt+h Ġ+v Ð+¸ Ð+½ á+ŀ Ġ+e v+e Ġ+in Ġ+à¤ u+n Ñ+Ĥ ã+ģ Ġa+n i+d o+t
Ġ+Ø a+d a+k a+m i+m i+c l+e u+s Ð+» Ġd+o a+y Ġ+he o+s Ñ+Ģ i+r Ù+ħ Ġ+× Ð+¼ '+t i+k Ġo+f o+w Ñ+ĭ Ġ+j
Ġm+e r+a Ġh+a e+l à+® i+l u+r i+g o+l en+t Ð+´ Ù+Ħ Ù+Ĩ a+c Ã+¡ Ġb+e u+t T+he Ñ+ģ à+µ Ñ+ĥ Ġ+re es+t
à¤+¾ '+s Ġ+I 1+2 3+4 12+34 '+L 'L+L .+Ċ Ċ+Ċ Ġ+Ġ
"""
END, BEGIN, TURN, THINK = "<|endoftext|>", "<|begin|>", "<|turn|>", "<think>"
TEMPLATE = "{{ messages }}"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_vocab():
    """Token to id, and merges."""
    merges = [tuple(merge.split("+")) for merge in MERGES.split()]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    return {token: i for i, token in enumerate(tokens)}, merges


def write_json(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def write_gpt2(folder, split="gpt-2", **config):
    """A tokenizer.json, as GPT-2 and Qwen 2 were published."""
    vocab, merges = byte_vocab()
    end = [AddedToken(END, special=True)]
    tokenizer = byte_level({**vocab, END: len(vocab)}, merges, split, end)
    write_json(folder, "tokenizer.json", json.loads(tokenizer.to_str()))
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"} | config)


def write_qwen2(folder):
    write_gpt2(folder, "qwen2", tokenizer_class="Qwen2Tokenizer")


def write_llama3(folder):
    vocab, merges = byte_vocab()
    tokenizer = Tokenizer(models.BPE(vocab | {"street": len(vocab)}, merges, ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, spell])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BEGIN, END, TURN])
    tokenizer.add_tokens([THINK])
    start = [(BEGIN, tokenizer.token_to_id(BEGIN))]
    tokenizer.post_processor = processors.TemplateProcessing(f"{BEGIN} $A", special_tokens=start)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(END), pad_token=END)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN}
    config |= {"eos_token": {"content": TURN, "__type": "AddedToken"}, "chat_template": TEMPLATE}
    write_json(folder, "tokenizer_config.json", config)


# A small vocabulary, trained on languages of Latin and Cyrillic script.
PIECES = """
▁t ▁a in ▁s he ▁d re an ▁m is er ou ▁w en on at ▁T ▁I om ▁b ▁h ▁n ▁p ▁l ar ▁c es or as ▁y ▁f it
▁the ▁to ing ll ▁o ▁g ed ▁you ▁k ▁is ▁Tom et al ▁v ▁M ▁th ▁e ve ▁in ▁an un ot ▁H ▁W ak ad id le am
ic im us ay ▁do ▁A ▁he os ▁S ir ▁of ow ▁j ik ▁me ▁ha ac el ur il ig ent ▁be ol ut ▁The ▁D ▁E ▁r
▁re est ▁ne od ▁on ▁st ie ▁N qu ▁se ▁de ▁that ag ▁Y ld ok ver hat ch ang ill ▁was um ▁L ▁P ▁go ▁He
ra st ▁ e a o t i n s r l h u . d m g y c k p w b v f T I а ' ? j е о , н z и т M м л H W с A р д
S к ы у в D á q E N Y í P L é ш ë г - п B C x K б ä й ! J ч ó з я " O š ь ж х α э G ν і ε
"""


def pieces():
    """(piece, score, type) of a SentencePiece BPE model with byte fallback."""
    head = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    head += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    return head + [(piece, -float(i), 1) for i, piece in enumerate(PIECES.split())]


def model_proto():
    model = ModelProto()
    for piece, score, kind in pieces():
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    return model


def write_llama(folder, **config):
    """tokenizer.model with two tokens beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model_proto().SerializeToString())
    size = len(pieces())
    added = {size: {"content": TURN, "special": True}, size + 1: {"content": THINK}}
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True} | config
    config = {"added_tokens_decoder": added} | config
    write_json(folder, "tokenizer_config.json", config)


def llama_metadata(**changes):
    tokens, scores, types = map(list, zip(*pieces(), strict=True))
    found = {"model": "llama", "pre": "default", "bos_token_id": 1, "eos_token_id": 2}
    found |= {"tokens": tokens, "scores": scores, "token_type": types} | changes
    return {PREFIX + key: value for key, value in found.items() if value is not None}


def byte_metadata(pre="llama-bpe", **changes):
    """The vocabulary of write_llama3."""
    vocab, merges = byte_vocab()
    tokens = [*vocab, "street", BEGIN, END, TURN, THINK]
    types = [1] * (len(vocab) + 1) + [3, 3, 3, 4]
    found = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types}
    found |= {"merges": list(map(" ".join, merges)), "padding_token_id": tokens.index(END)}
    found |= {"bos_token_id": tokens.index(BEGIN), "eos_token_id": tokens.index(TURN)} | changes
    metadata = {PREFIX + key: value for key, value in found.items() if value is not None}
    return metadata | {"tokenizer.chat_template": TEMPLATE, "llama.block_count": 2}


def reload(metadata, folder):
    from_gguf(folder / "m.gguf", metadata, folder)
    return load(folder)


def test_sentencepiece_comes_back(tmp_path):
    """The model rebuilt gives the ids, roles and pieces of the one that the file was made from."""
    tokenizer = reload(llama_metadata(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    original = SentencePieceProcessor(model_proto=model_proto().SerializeToString())
    rebuilt = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    texts = [
        "The dog's 12 friends",
        "  a  b ",
        "Привет\n\tмир",
        "\u65e5\u672c \U0001f600",
        "<s>",
        "",
    ]
    assert tokenizer.encode_batch(texts) == original.encode(texts)
    assert rebuilt.encode(texts, out_type=str) == original.encode(texts, out_type=str)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
    assert (rebuilt.bos_id(), rebuilt.eos_id(), rebuilt.unk_id(), rebuilt.pad_id()) == (1, 2, 0, -1)
    config = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert config["add_bos_token"] and config["add_prefix_space"] and config["bos_token"] == "<s>"


def test_gemma_has_no_prefix_and_spells_its_spaces_out(tmp_path):
    """It calls its unknown piece a control piece, and its pieces of spaces are user-defined."""
    tokens, scores, types = map(list, zip(*pieces(), strict=True))
    tokens, scores, types = [*tokens, "  ", "    "], [*scores, -9.0, -9.0], [*types, 4, 4]
    types[0] = 3
    tokenizer = reload(
        llama_metadata(tokens=tokens, scores=scores, token_type=types, add_space_prefix=False)
        | {PREFIX + "unknown_token_id": 0, PREFIX + "add_bos_token": False},
        tmp_path,
    )
    two, four = len(tokens) - 2, len(tokens) - 1
    x = tokens.index("x")
    assert tokenizer.encode("x" + " " * 6 + "x") == [x, four, two, x]
    assert tokenizer.decode([x, four, two, x]) == "x" + " " * 6 + "x"
    assert tokenizer.encode("<unk>", special=True) == [0]
    config = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert not config["add_bos_token"] and not config["add_prefix_space"]


@pytest.mark.parametrize("unknown", [{}, {PREFIX + "unknown_token_id": 2}])
def test_the_unknown_piece_is_found_by_type_or_by_id(tmp_path, unknown):
    types = [3, 3, 3 if unknown else 2, 1, 1]
    tokens = {"tokens": ["<s>", "</s>", "<unk>", "\u2581", "a"], "scores": [0.0] * 5}
    metadata = llama_metadata(**tokens, token_type=types, bos_token_id=0, eos_token_id=1)
    tokenizer = reload(metadata | unknown, tmp_path)
    assert tokenizer.encode("a?") == [3, 4, 2]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"tokenizer.ggml.model=None: must be one of llama, gpt2"),
        (llama_metadata(model="rwkv"), r"model='rwkv': must be one of llama, gpt2"),
        (llama_metadata(model=["llama"]), "must be one of llama, gpt2"),
        (byte_metadata("gpt-9"), r"pre='gpt-9': must be one of gpt-2, mpt, .*deepseek-v3"),
        (byte_metadata(None), r"tokenizer.ggml.pre is missing: how texts are split would be gu"),
        (byte_metadata("default"), r"tokenizer.ggml.pre is 'default': how texts are split would"),
        (llama_metadata(tokens=None), "tokens: must be an array"),
        (llama_metadata(tokens=[]), "tokens: must be an array"),
        (llama_metadata(tokens=["a", 3]), r"tokens\[1\]=3: must be str"),
        (
            llama_metadata(tokens=["a", "b", "c"]),
            "scores has 469 items, tokenizer.ggml.tokens has 3",
        ),
        (llama_metadata(scores=None), "scores: must be an array"),
        (llama_metadata(scores=[1.0]), "scores has 1 items"),
        (llama_metadata(scores=["x"] * 469), r"scores\[0\]='x': must be float"),
        (llama_metadata(scores=[float("nan")] * 469), "'<unk>' has the score nan"),
        (llama_metadata(token_type=[1, 2]), "token_type has 2 items"),
        (llama_metadata(token_type=[99] * 469), "99"),
        (llama_metadata(token_type=[6] * 469), "GGUF file: RuntimeError"),
        (llama_metadata(tokens=["<unk>"] * 469), "already defined"),
        (llama_metadata(bos_token_id=469), "bos_token_id=469: must be an id below 469"),
        (llama_metadata(eos_token_id=-1), "eos_token_id=-1: must be an id"),
        (llama_metadata(eos_token_id="x"), "eos_token_id='x': must be an id"),
        (byte_metadata(merges=None), "merges: must be an array"),
        (byte_metadata(merges=["a"]), "GGUF file"),
        (byte_metadata(merges=["a qqq"]), "GGUF file"),
        (byte_metadata(tokens=["a"] * 389), "'a' is there twice"),
        (byte_metadata() | {"tokenizer.chat_template": 5}, "chat_template is a int, must be text"),
    ],
)
def test_bad_metadata(tmp_path, metadata, message):
    with pytest.raises(BadInput, match=f"^{tmp_path}/m.gguf: .*{message}"):
        from_gguf(tmp_path / "m.gguf", metadata, tmp_path / "out")
    assert not (tmp_path / "out").exists()


SAMPLE = (
    "It's HTTPServer's 12345 you'LL Nai\u0308ve हिन्दी 日本語カナABC  foo(x)!=\n\n  bar/\nend \t."
)
# "^" where the published tokenizers cut, by their own tokenizer.json: GPT-2 (the library's
# pattern), Llama 3, Qwen 3, gpt-oss, DeepSeek V3. For the last three: what these patterns give.
CUTS = {
    "gpt-2": "It^'s^ HTTPServer^'s^ 12345^ you^'^LL^ Nai^̈^ve^ ह^ि^न^्^द^ी^ 日本語カナABC"
    "^ ^ foo^(^x^)!=^\n\n ^ bar^/^\n^end^ ^\t^.",
    "llama-bpe": "It^'s^ HTTPServer^'s^ ^123^45^ you^'LL^ Nai^̈ve^ ह^िन^्द^ी^ 日本語カナABC"
    "^ ^ foo^(x^)!=\n\n^ ^ bar^/\n^end^ ^\t^.",
    "qwen2": "It^'s^ HTTPServer^'s^ ^1^2^3^4^5^ you^'LL^ Nai^̈ve^ ह^िन^्द^ी^ 日本語カナABC"
    "^ ^ foo^(x^)!=\n\n^ ^ bar^/\n^end^ ^\t^.",
    "gpt-4o": "It's^ HTTPServer's^ ^123^45^ you'LL^ Naïve^ हिन्दी^ 日本語カナ^ABC"
    "^ ^ foo^(x^)!=\n\n^ ^ bar^/\n^end^ ^\t^.",
    "deepseek-v3": "It^'s^ HTTPServer^'s^ ^123^45^ you^'LL^ Naïve^ हिन्दी^ ^日本語カナ^ABC"
    "^ ^ foo^(x^)!=\n\n^ ^ bar^/\n^end^ ^\t^.",
    "tekken": "It^'s^ HTTPServer^'s^ ^1^2^3^4^5^ you^'LL^ Naïve^ हिन्दी^ 日本語カナ^ABC"
    "^ ^ foo^(x^)!=\n\n^ ^ bar^/\n^end^ ^\t^.",
    "qwen35": "It^'s^ HTTPServer^'s^ ^1^2^3^4^5^ you^'LL^ Naïve^ हिन्दी^ 日本語カナABC"
    "^ ^ foo^(x^)!=\n\n^ ^ bar^/\n^end^ ^\t^.",
    "smollm": "It^'s^ HTTPServer^'s^ ^1^2^3^4^5^ you^'^LL^ Nai^̈^ve^ ह^ि^न^्^द^ी^ 日本語カナABC"
    "^ ^ foo^(^x^)!=^\n\n ^ bar^/^\n^end^ ^\t^.",
}
SAME = {
    "gpt-2": ("mpt", "olmo", "phi-2"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "pixtral", "dbrx"),
    "qwen2": ("deepseek-r1-qwen",),
    "gpt-4o": ("llama4",),
    "smollm": ("starcoder",),
}


@pytest.mark.parametrize("name", SPLITS)
def test_texts_are_cut_as_published(name):
    known = next((known for known, others in SAME.items() if name in others), name)
    cutter = byte_level({}, [], name, []).pre_tokenizer
    parts = [SAMPLE[start:end] for _, (start, end) in cutter.pre_tokenize_str(SAMPLE)]
    assert "^".join(parts) == CUTS[known]


def test_a_whole_word_comes_before_merges_where_the_family_does_so():
    vocab, merges = byte_vocab()
    vocab["street"] = len(vocab)
    for name, split in SPLITS.items():
        ids = byte_level(vocab, merges, name, []).encode("street").ids
        assert (ids == [vocab["street"]]) == split.whole_first
    assert SPLITS["llama-bpe"].whole_first and not SPLITS["gpt-2"].whole_first


def test_text_is_composed_where_the_family_does_so():
    vocab, merges = byte_vocab()
    for name, split in SPLITS.items():
        tokenizer = byte_level(vocab, merges, name, [])
        ids = tokenizer.encode("e\u0301").ids
        assert tokenizer.decode(ids) == ("\u00e9" if split.nfc else "e\u0301")
    assert SPLITS["qwen2"].nfc and not SPLITS["llama-bpe"].nfc
