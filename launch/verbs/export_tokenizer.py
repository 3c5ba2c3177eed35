"""The tokenizer of an exported model: its files, checked, and its chat format."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import processors

from data.errors import BadInput
from data.tokens import chat, fast_tokenizer, imported, tokenizer
from launch.store.rundir import write_json

# The format of data/tokens/chat.py, for a BOS and the tokens of roles and of a turn's end, as JSON.
CHAT_TEMPLATE = (
    "{{ %s }}{%% for message in messages %%}{{ {'system': %s, 'user': %s, 'assistant': %s}"
    "[message['role']] + %s + %s }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ %s }}{%% endif %%}"
)
# Training encodes each message by itself. A tokenizer that puts a blank before a text but not after
# a special token, needs the blank in the template.
CONTENTS = ("message['content']", "' ' + message['content']")
# Of our own tokenizers.
BOS, CONTROL = tokenizer.CONTROL_PIECES[1], tokenizer.TURN_PIECES
# Encoded both ways before a converted tokenizer is exported.
SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces,   three,\ttab\n\n\nlines \n end  ",
    "def f(x):\n    return {'a': [1, 22, 333]}  # 4,444.5\r\n",
    "Zwölf Boxkämpfer; Œuvre; ¿qué?; żółć; Привет, мир; שלום; مرحبا; नमस्ते",
    "你好，世界。こんにちは 안녕하세요 👩‍👩‍👧 🇫🇷 e\u0301 \u00a0\u200b\ufeff \x00\x1f",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 9,
    "<0x41> <|user| > < /s> \\n",
    "",
)


def write(folder: Path, kind: str, stage: str, out: Path) -> str:
    """Copies the tokenizer's files; one that was made here gets what transformers reads as well.

    Returns:
      Which file is to be used, and how it was checked.
    """
    imported.copy_tokenizer(folder, out)
    model = next(out / name for name in reversed(tokenizer.READERS) if (out / name).exists())
    if kind == "hf" or (kind == "gguf" and model.suffix == ".json"):
        return "as it was imported"
    config = imported.read_object(out / imported.CONFIG)
    if kind == "own":
        roles = ("pad_token", "bos_token", "eos_token", "unk_token")
        config = dict(zip(roles, tokenizer.CONTROL_PIECES, strict=False))
        config |= {"add_bos_token": True}
        if stage != "pretrain":
            config["chat_template"] = _chat_template(BOS, CONTROL, CONTENTS[0])
        encode = tokenizer.load_own(folder).encode_batch
    else:
        encode = SentencePieceProcessor(model_file=str(model)).encode
    try:
        fast = _read_fast(model)
    except BadInput as error:
        return f"as it was imported; {error}"
    if config.get("add_bos_token"):
        bos = config["bos_token"]
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, fast.token_to_id(bos))],
        )
    fast.save(str(out / "tokenizer.json"))
    # Llama's class of transformers 5 would rebuild what is in tokenizer.json.
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(out / imported.CONFIG, config)
    ids = encode(list(SAMPLES))
    found = [fast.encode(text, add_special_tokens=False).ids for text in SAMPLES]
    same = sum(a == b for a, b in zip(ids, found, strict=True))
    return f"tokenizer.json made of {model.name}, same ids for {same} of {len(ids)} samples"


def _read_fast(model: Path) -> FastTokenizer:
    if model.suffix == ".json":
        return FastTokenizer.from_file(str(model))
    return fast_tokenizer.from_pieces(model)


def write_control(model: tokenizer.Tokenizer, control: Sequence[str], out: Path) -> str:
    """Writes the chat template of `tokenizer.control`, and lists its tokens as special.

    It replaces a template that was imported, which training did not use. transformers prefers the
    template's file to tokenizer_config.json, and `extra_special_tokens`, where that is a list, to
    `additional_special_tokens`.

    Args:
      model: as in training, with `tokenizer.control`.
      control: tokens of system, user, assistant and the end of a turn.
      out: holds the exported tokenizer.

    Returns:
      How the template was checked.
    """
    config = imported.read_object(out / imported.CONFIG)
    listed, place = config.pop("additional_special_tokens", None) or [], "additional_special_tokens"
    if isinstance(config.get("extra_special_tokens"), list):
        listed, place = listed + config["extra_special_tokens"], "extra_special_tokens"
    config[place] = listed + [token for token in control if token not in listed]
    write_json(out / imported.CONFIG, config)
    talks = [[{"role": "user", "content": text}] for text in SAMPLES if text]
    wanted = [_render(lambda talk: chat.render_prompt(model, talk), talk) for talk in talks]
    bos, counts = model.named.get("bos_token", model.named["eos_token"]), {}
    for content in CONTENTS:
        template = _chat_template(bos, control, content)
        (out / imported.TEMPLATE).write_text(template, encoding="utf-8")
        render = tokenizer.load(out).template.render_prompt
        found = [_render(render, talk) for talk in talks]
        counts[template] = sum(a is not None and a == b for a, b in zip(found, wanted, strict=True))
    best = max(counts, key=counts.get)
    (out / imported.TEMPLATE).write_text(best, encoding="utf-8")
    return f"chat template as trained, same ids for {counts[best]} of {len(talks)} messages"


def _render(render: Callable, talk: list[chat.Message]) -> list[int] | None:
    try:
        return render(talk).tolist()
    except BadInput:  # a character that the tokenizer does not know
        return None


def _chat_template(bos: str, control: Sequence[str], content: str) -> str:
    """CHAT_TEMPLATE for these tokens: of system, user, assistant and the end of a turn."""
    bos, system, user, assistant, end = (
        json.dumps(token, ensure_ascii=False) for token in (bos, *control)
    )
    return CHAT_TEMPLATE % (bos, system, user, assistant, content, end, assistant)
