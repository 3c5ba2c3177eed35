"""What the class of a tokenizer in transformers decides, where its files leave it open.

That is how a vocab.json splits a text, which tokens have which roles, and `add_prefix_space`: the
classes of GPT-2, Qwen 2 and Llama override a tokenizer.json with that key. A file of any other
class is used as it stands, there as here.
"""

from collections.abc import Callable
from typing import Any

from data.tokens.tokenizer_files import Description

SPACE_MARK = "\u2581"
GPT_2, QWEN_2, LLAMA, GEMMA = "GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "GemmaTokenizer"
# Keys of byte_level.SPLITS.
SPLITS = {GPT_2: "gpt-2", QWEN_2: "qwen2"}
END_OF_TEXT = "<|endoftext|>"
# Unless the configuration says otherwise.
CLASS_ROLES = {
    GPT_2: {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT},
    QWEN_2: {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT},
    LLAMA: {"bos_token": "<s>", "eos_token": "</s>"},
    GEMMA: {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
}
PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
Step = dict[str, Any]


def set_prefix_space(content: Step, about: Description) -> None:
    """Applies `add_prefix_space`: whether a space is put before a text that begins with none.

    Without the key, the classes of GPT-2 and Qwen 2 put none, whatever the file does; of Llama's
    class, whose default in transformers 5 is another than the models were trained with, the file
    decides. Where Llama's file has the space already, its own way of adding it is kept.

    Args:
        content: a tokenizer.json, changed in place.
        about: the files beside it.
    """
    wanted, has = about.add_prefix_space, _has_prefix(content)
    if about.tokenizer_class in SPLITS:
        _change(content, "pre_tokenizer", lambda step: _set_byte_level(step, bool(wanted)))
    elif about.tokenizer_class == LLAMA and None not in (wanted, has) and wanted != has:
        _set_pieces(content, ("always" if about.legacy else "first") if wanted else "never")


def _set_byte_level(step: Step, wanted: bool) -> Step:
    return step | {"add_prefix_space": wanted} if step["type"] == "ByteLevel" else step


def _has_prefix(content: Step) -> bool | None:
    """Whether a space is put before a text, in SentencePiece's manner; None if byte-level."""
    steps = [*_steps(content, "normalizer"), *_steps(content, "pre_tokenizer")]
    if any(step["type"] == "ByteLevel" for step in steps):
        return None
    return any(
        step["type"] == "Prepend"
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _set_pieces(content: Step, scheme: str) -> None:
    """Makes a tokenizer in SentencePiece's manner put a space before a text, or none.

    Args:
        content: changed in place.
        scheme: 'never'; 'first', at the start of a text; 'always', after special tokens too.
    """
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}

    def change(step: Step) -> Step | None:
        if step["type"] == "Metaspace":
            kept = {key: step[key] for key in ("type", "replacement", "split") if key in step}
            return kept | {"prepend_scheme": scheme}
        return None if step["type"] == "Prepend" or step == strip else step

    for part in PARTS:
        _change(content, part, change)
    if scheme == "never":
        return
    types = {part: {step["type"] for step in _steps(content, part)} for part in PARTS}
    if "Metaspace" not in types["pre_tokenizer"]:
        prepend = {"type": "Prepend", "prepend": SPACE_MARK}
        _put(content, "normalizer", [prepend, *_steps(content, "normalizer")])
    if "Metaspace" not in types["decoder"]:
        _put(content, "decoder", [*_steps(content, "decoder"), strip])


def _steps(content: Step, part: str) -> list[Step]:
    """The steps of a part: one alone, or those of a sequence."""
    whole = content.get(part)
    if whole is None:
        return []
    return whole[PARTS[part]] if whole["type"] == "Sequence" else [whole]


def _put(content: Step, part: str, steps: list[Step]) -> None:
    content[part] = {"type": "Sequence", PARTS[part]: steps} if steps else None


def _change(content: Step, part: str, change: Callable[[Step], Step | None]) -> None:
    _put(content, part, [new for step in _steps(content, part) if (new := change(step))])
