"""The tokenizer inside a GGUF file: from its metadata to files that tokenizer.load reads.

A GGUF keeps the vocabulary and, of all that is done to a text before, one name. What is rebuilt
here gives the ids of the tokenizer that the model was published with, where that name tells enough
(SPLITS). A SentencePiece model is rebuilt as one, so that its own library runs it.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from data.errors import BadInput
from data.tokens.encode import SPACE_MARK
from data.tokens.imported import CONFIG, blame, write

PREFIX = "tokenizer.ggml."
# tokenizer.ggml.token_type; the numbers are those of SentencePiece.
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
ROLE_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

# How each family cuts a text before it merges bytes (Radford et al. 2019): the patterns of the
# tokenizers that the models were published with.
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


# By the names that GGUF gives them (tokenizer.ggml.pre).
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


def from_gguf(source: Path, metadata: dict[str, Any], out: Path) -> None:
    """Writes the tokenizer of a GGUF file as files.

    Args:
        source: the file; errors begin with it.
        metadata: the file's pairs of key and value; arrays are lists. Other keys than those of
            the tokenizer are not looked at.
        out: the folder to write to, made if it is not there.

    Raises:
        BadInput: a key is missing or its value damaged, or the tokenizer is of another kind.

    Source: github.com/ggml-org/ggml, docs/gguf.md.
    """
    try:
        files = _build(metadata)
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from error
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write(out / name, content)


def _build(metadata: dict[str, Any]) -> dict[str, bytes]:
    """The files of the tokenizer, by name."""
    kind = metadata.get(PREFIX + "model")
    if not isinstance(kind, str) or kind not in BUILDERS:
        raise BadInput(f"{PREFIX}model={kind!r}: must be one of {', '.join(BUILDERS)}")
    tokens = _read_array(metadata, "tokens", str)
    config = {"add_bos_token": bool(metadata.get(PREFIX + "add_bos_token", kind == "llama"))}
    config |= {role: tokens[i] for role, i in _read_roles(metadata, tokens).items()}
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        if not isinstance(template, str):
            raise BadInput(f"tokenizer.chat_template is a {type(template).__name__}, must be text")
        config["chat_template"] = template
    with blame(f"{PREFIX}* of the GGUF file"):
        name, content = BUILDERS[kind](metadata, tokens, config)
    return {name: content, CONFIG: json.dumps(config, indent=2).encode()}


def _read_array(metadata: dict[str, Any], name: str, kind: type, length: int = 0) -> list:
    """An array whose items are all of a kind; of a length, unless that is 0."""
    values = metadata.get(PREFIX + name)
    if not isinstance(values, list) or not values:
        raise BadInput(f"{PREFIX}{name}: must be an array with something in it")
    if length and len(values) != length:
        raise BadInput(f"{PREFIX}{name} has {len(values)} items, {PREFIX}tokens has {length}")
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            raise BadInput(f"{PREFIX}{name}[{i}]={value!r}: must be {kind.__name__}")
    return values


def _read_roles(metadata: dict[str, Any], tokens: list[str]) -> dict[str, int]:
    """The ids of the roles that the file fills."""
    roles = {}
    for role, key in ROLE_KEYS.items():
        i = metadata.get(PREFIX + key)
        if i is not None:
            if not isinstance(i, int) or not 0 <= i < len(tokens):
                raise BadInput(f"{PREFIX}{key}={i!r}: must be an id below {len(tokens)}")
            roles[role] = i
    return roles


def _build_pieces(
    metadata: dict[str, Any], tokens: list[str], config: dict[str, Any]
) -> tuple[str, bytes]:
    """SentencePiece BPE (Llama, Mistral, Gemma): (file name, content)."""
    scores = _read_array(metadata, "scores", float, len(tokens))
    types = _read_array(metadata, "token_type", int, len(tokens))
    has_prefix = bool(metadata.get(PREFIX + "add_space_prefix", True))
    config |= {"tokenizer_class": "LlamaTokenizer", "legacy": True}
    config["add_prefix_space"] = has_prefix
    model = ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"token {token!r} has the score {score}")
        # llama.cpp's converter spells the spaces of user-defined pieces out.
        model.pieces.add(piece=token.replace(" ", SPACE_MARK), score=score, type=kind)
    # Some files call the unknown piece a control one; SentencePiece must have exactly one.
    unk_id = types.index(UNKNOWN) if UNKNOWN in types else 0
    unk_id = metadata.get(PREFIX + "unknown_token_id", unk_id)
    model.pieces[unk_id].type = UNKNOWN
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = BYTE in types
    for role, i in {**_read_roles(metadata, tokens), "unk_token": unk_id}.items():
        setattr(trainer, role.replace("token", "id"), i)
        setattr(trainer, role.replace("token", "piece"), model.pieces[i].piece)
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = has_prefix
    normalizer.remove_extra_whitespaces = False
    content = model.SerializeToString()
    SentencePieceProcessor(model_proto=content)
    return "tokenizer.model", content


def _build_byte_level(
    metadata: dict[str, Any], tokens: list[str], config: dict[str, Any]
) -> tuple[str, bytes]:
    """Byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek): (file name, content)."""
    split = metadata.get(PREFIX + "pre")
    if split in (None, "default"):
        there = "is missing" if split is None else "is 'default'"
        raise BadInput(
            f"{PREFIX}pre {there}: how texts are split would be guessed, and ids be wrong; convert "
            "the model with a newer llama.cpp, or import its Hugging Face directory"
        )
    if split not in SPLITS:
        known = ", ".join(SPLITS)
        raise BadInput(f"{PREFIX}pre={split!r}: must be one of {known}")
    types = _read_array(metadata, "token_type", int, len(tokens))
    merges = [tuple(merge.split(" ")) for merge in _read_array(metadata, "merges", str)]
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise ValueError(f"token {Counter(tokens).most_common(1)[0][0]!r} is there twice")
    added = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer = byte_level(vocab, merges, split, added)
    return "tokenizer.json", tokenizer.to_str().encode()


def byte_level(
    vocab: dict[str, int], merges: list[tuple[str, str]], split: str, added: list[AddedToken]
) -> Tokenizer:
    """A byte-level BPE tokenizer, which cuts texts as a family does.

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


BUILDERS = {"llama": _build_pieces, "gpt2": _build_byte_level}
