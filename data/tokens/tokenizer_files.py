"""The files of an imported tokenizer: their names, what stands beside the vocabulary, copying."""

import contextlib
import json
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from data.errors import BadInput

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
TEMPLATE = "chat_template.jinja"
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    CONFIG,
    SPECIAL_TOKENS,
    ADDED_TOKENS,
    TEMPLATE,
)
ROLES = ("bos_token", "eos_token", "pad_token")
SPECIAL_KEYS = (*ROLES, "unk_token", "sep_token", "cls_token", "mask_token")
SPECIAL_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class Description:
    """What the files beside a vocabulary say of it.

    Attributes:
        roles: those of ROLES that are spoken of: the token, or None where it is said to be none.
        named: tokens by the names that a chat template has for them.
        special: tokens said to be special, in the vocabulary or not.
        max_rows: rows of the model; special tokens have their ids below it or are left out.
        added: (id, token) of tokens to be found in a text before anything else, by id.
        chat_template: Jinja source, or None.
        tokenizer_class: its name in transformers, without "Fast"; "" where it is not said.
        add_prefix_space: the key of that name, None where it is absent or null.
        legacy: the key of that name, True where it is absent or null.
        add_bos_token: the key of that name, None where it is absent or null.
    """

    roles: dict[str, str | None]
    named: dict[str, str]
    special: set[str]
    max_rows: int
    added: list[tuple[int, AddedToken]]
    chat_template: str | None
    tokenizer_class: str
    add_prefix_space: bool | None
    legacy: bool
    add_bos_token: bool | None


def describe(folder: Path, max_rows: int) -> Description:
    """Reads the files beside the vocabulary, with transformers' precedence among them.

    Raises:
        BadInput: one of them is damaged.
    """
    with blame(folder / CONFIG):
        content = read_object(folder / CONFIG)
        decoder = content.get("added_tokens_decoder")
        added = {int(i): _read_added(token) for i, token in (decoder or {}).items()}
    with blame(folder / SPECIAL_TOKENS):
        content |= read_object(folder / SPECIAL_TOKENS) if decoder is None else {}
    with blame(folder / CONFIG):
        named, listed = {key: content.get(key) for key in SPECIAL_KEYS}, []
        for key in SPECIAL_LISTS:
            tokens = content.get(key) or []
            if isinstance(tokens, dict):
                named |= tokens
            else:
                listed += tokens
        texts = {name: _read_text(token) for name, token in named.items()}
        named = {name: text for name, text in texts.items() if text is not None}
        special = {text for token in listed if (text := _read_text(token)) is not None}
        special |= set(named.values())
        roles = {role: _read_text(content[role]) for role in ROLES if role in content}
        template = content.get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if template is not None and not isinstance(template, str):
            raise ValueError(f"chat_template is a {type(template).__name__}, must be text")
        flags = ("add_prefix_space", "legacy", "add_bos_token")
        prefix, legacy, add_bos = (_read_flag(content, key) for key in flags)
    with blame(folder / ADDED_TOKENS):
        for token, i in (read_object(folder / ADDED_TOKENS) if decoder is None else {}).items():
            is_special = token in special
            added[operator.index(i)] = AddedToken(
                token, special=is_special, normalized=not is_special
            )
        by_id = sorted(added.items(), key=lambda item: item[0])
        kept = [(i, token) for i, token in by_id if i < max_rows or not token.special]
    with blame(folder / TEMPLATE):
        if (folder / TEMPLATE).is_file():
            template = (folder / TEMPLATE).read_text(encoding="utf-8")
    tokenizer_class = str(content.get("tokenizer_class") or "").removesuffix("Fast")
    return Description(
        *(roles, named, special, max_rows, kept, template, tokenizer_class),
        *(prefix, legacy is not False, add_bos),
    )


def _read_flag(content: dict[str, Any], key: str) -> bool | None:
    value = content.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key}={value!r}: must be true, false or null")
    return value


def _read_text(token: Any) -> str | None:
    """A token's text: itself, or the content of the object that describes it."""
    text = token["content"] if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise ValueError(f"token {text!r} must be text")
    return text


def _read_added(token: dict[str, Any]) -> AddedToken:
    return AddedToken(**{key: value for key, value in token.items() if key != "__type"})


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copies the tokenizer files of a folder, byte for byte, and no other file.

    Raises:
        BadInput: `source` has none of them, or one that is neither a file nor a link to one.
    """
    source, out = Path(source), Path(out)
    paths = [source / name for name in FILES]
    paths = [path for path in paths if path.exists() or path.is_symlink()]
    if not paths:
        raise BadInput(f"{source}: holds no tokenizer; its files would be {', '.join(FILES)}")
    for path in paths:
        if not path.is_file():
            raise BadInput(f"{path}: must be a file, or a link to one that is there")
    out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        write(out / path.name, path.read_bytes())


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; a link at `path` is replaced, not followed."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


@contextlib.contextmanager
def blame(origin: Path | str) -> Iterator[None]:
    """Turns whatever a damaged file brings about into one BadInput that names its origin."""
    try:
        yield
    except BadInput:
        raise
    except BaseException as error:
        # The tokenizers library raises plain Exception, and panics with a class that is not one.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        kind = "lacks " if isinstance(error, KeyError) else kind
        raise BadInput(f"{origin}: {kind}{error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object, {} where there is no such file.

    Raises:
        ValueError: not JSON, not an object, or a key that is there twice.
    """

    def unite(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        united = dict(pairs)
        if len(united) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            raise ValueError(f"{counts.most_common(1)[0][0]!r} is there twice")
        return united

    if not path.is_file():
        return {}
    content = json.loads(path.read_bytes(), object_pairs_hook=unite)
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, must be an object")
    return content
