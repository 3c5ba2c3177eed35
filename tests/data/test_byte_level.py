"""Byte-level BPE: texts are cut as the published tokenizers cut them."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from data.tokens import byte_level

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


def write_gpt2(folder, **config):
    """vocab.json and merges.txt, as GPT-2 and Qwen 2 were published."""
    vocab, merges = byte_vocab()
    write_json(folder, "vocab.json", {**vocab, END: len(vocab)})
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"} | config)


def write_qwen2(folder):
    write_gpt2(folder, tokenizer_class="Qwen2Tokenizer")


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


@pytest.mark.parametrize("name", byte_level.SPLITS)
def test_texts_are_cut_as_published(name):
    known = next((known for known, others in SAME.items() if name in others), name)
    cutter = byte_level.build({}, [], name, []).pre_tokenizer
    parts = [SAMPLE[start:end] for _, (start, end) in cutter.pre_tokenize_str(SAMPLE)]
    assert "^".join(parts) == CUTS[known]


def test_a_whole_word_comes_before_merges_where_the_family_does_so():
    vocab, merges = byte_vocab()
    vocab["street"] = len(vocab)
    for name, split in byte_level.SPLITS.items():
        ids = byte_level.build(vocab, merges, name, []).encode("street").ids
        assert (ids == [vocab["street"]]) == split.whole_first
    assert byte_level.SPLITS["llama-bpe"].whole_first and not byte_level.SPLITS["gpt-2"].whole_first


def test_text_is_composed_where_the_family_does_so():
    vocab, merges = byte_vocab()
    for name, split in byte_level.SPLITS.items():
        tokenizer = byte_level.build(vocab, merges, name, [])
        ids = tokenizer.encode("e\u0301").ids
        assert tokenizer.decode(ids) == ("\u00e9" if split.nfc else "e\u0301")
    assert byte_level.SPLITS["qwen2"].nfc and not byte_level.SPLITS["llama-bpe"].nfc
