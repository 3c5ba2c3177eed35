"""Byte-level BPE: how each family cuts a text before it merges bytes, and the tokenizer of it.

Source: Radford et al. 2019 (GPT-2). The patterns are those of the tokenizers that the models were
published with, under the names that GGUF gives them (tokenizer.ggml.pre).
"""

from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# From the third generation on, a word takes one leading sign, signs take the line ends after them.
BREAKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + BREAKS
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN_35 = (
    CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    + BREAKS
)
# Words are cut where lower case is followed by upper case.
LOWER_END = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + BREAKS
TEKKEN = "|".join((*LOWER_END, r"\p{N}", SIGNS))
GPT_4O = "|".join((*(word + CONTRACTIONS + "?" for word in LOWER_END), r"\p{N}{1,3}", SIGNS))
DEEPSEEK_3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r""" ?[\p{P}\p{S}]+[\r\n]*|""" + BREAKS,
)


@dataclass(frozen=True)
class Split:
    """What happens to a text before its bytes are merged.

    Attributes:
        patterns: each cuts what those before it have left into its matches and the rest.
        nfc: whether the text is first brought to Unicode's composed form.
        whole_first: whether a part that is in the vocabulary is taken as it is, whatever merges
            lead to it (tiktoken's way, which matters where the merges were recovered from ranks).
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_first: bool = False


SPLITS = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "phi-2"), Split((GPT_2,))),
    **dict.fromkeys(("smollm", "starcoder"), Split((r"\p{N}", GPT_2))),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"),
        Split((LLAMA_3,), whole_first=True),
    ),
    "dbrx": Split((LLAMA_3,)),
    "qwen2": Split((QWEN_2,), nfc=True),
    "deepseek-r1-qwen": Split((QWEN_2,)),
    "qwen35": Split((QWEN_35,), nfc=True),
    "tekken": Split((TEKKEN,), whole_first=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Split((GPT_4O,), whole_first=True)),
    "deepseek-v3": Split(DEEPSEEK_3),
}


def build(
    vocab: dict[str, int], merges: list[tuple[str, str]], split: str, added: list[AddedToken]
) -> Tokenizer:
    """A byte-level BPE tokenizer.

    Args:
        vocab: token, spelled in GPT-2's alphabet of bytes, to id.
        merges: pairs of tokens, the first to be merged first.
        split: a key of SPLITS.
        added: tokens of the vocabulary that are found in a text before anything else.
    """
    chosen = SPLITS[split]
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=chosen.whole_first))
    if chosen.nfc:
        tokenizer.normalizer = normalizers.NFC()
    # GPT-2's own pattern is left to the library's step, which would put a prefix space before it.
    *others, last = chosen.patterns
    patterns = others if last == GPT_2 else chosen.patterns
    cuts = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in patterns]
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=last == GPT_2)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, spell])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added)
    return tokenizer
