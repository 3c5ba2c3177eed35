"""The files of a tokenizer that others have made: which are taken, and what they say of it.

What transformers decides by a tokenizer's class, where its files leave it open, is here too: which
tokens have which roles, and `add_prefix_space`.
"""

import contextlib
import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from data import storage
from data.errors import BadInput

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
TEMPLATE = "chat_template.jinja"
# What may stand beside a vocabulary and says which token has which role.
BESIDE = (CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, TEMPLATE)
FILES = ("tokenizer.json", "tokenizer.model", *BESIDE)
NO_VOCABULARY = (
    "needed is tokenizer.json or tokenizer.model (of vocab.json with merges.txt, or of tiktoken's "
    "ranks, transformers makes one: AutoTokenizer.from_pretrained(IN).save_pretrained(OUT))"
)
RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # of tiktoken
# No published vocabulary has a tenth of it; what decoding looks up is as long as the highest id.
MAX_VOCAB_SIZE = 1 << 23

ROLES = ("bos_token", "eos_token", "pad_token")
SPECIAL_KEYS = (*ROLES, "unk_token", "sep_token", "cls_token", "mask_token")
SPECIAL_LISTS = ("additional_special_tokens", "extra_special_tokens")
GPT_2, QWEN_2, LLAMA, GEMMA = "GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "GemmaTokenizer"
END_OF_TEXT = "<|endoftext|>"
# Unless the configuration says otherwise.
CLASS_ROLES = {
    GPT_2: {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT},
    QWEN_2: {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT},
    LLAMA: {"bos_token": "<s>", "eos_token": "</s>"},
    GEMMA: {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
}
Step = dict[str, Any]


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
        is_own: whether it was trained here, so that a U+2581 of a text comes back as one.
    """

    roles: Mapping[str, str | None]
    named: dict[str, str] = field(default_factory=dict)
    special: set[str] = field(default_factory=set)
    max_rows: int = MAX_VOCAB_SIZE
    added: list[tuple[int, AddedToken]] = field(default_factory=list)
    chat_template: str | None = None
    tokenizer_class: str = ""
    add_prefix_space: bool | None = None
    legacy: bool = True
    add_bos_token: bool | None = None
    is_own: bool = False


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


def class_roles(content: Step, about: Description) -> dict[str, str]:
    """Tokens of the roles that a tokenizer.json or its class fills, if its vocabulary has them."""
    name, padding = about.tokenizer_class, content.get("padding")
    splits = [step["type"] for step in _steps(content, "pre_tokenizer")]
    if not name and not about.roles and splits == ["ByteLevel"]:
        name = GPT_2  # GPT-2 itself was published without class and roles
    return CLASS_ROLES.get(name, {}) | ({"pad_token": padding["pad_token"]} if padding else {})


def set_prefix_space(content: Step, about: Description) -> None:
    """Applies `add_prefix_space`: whether a space is put before a text that begins with none.

    Without the key, the classes of GPT-2 and Qwen 2 put none, whatever the file does. Of Llama's
    class, whose default in transformers 5 is another than the models were trained with, the file
    decides.

    Args:
        content: a tokenizer.json, changed in place.
        about: the files beside it.

    Raises:
        ValueError: the key contradicts a file of Llama's class, which transformers would rebuild.
    """
    wanted, steps = about.add_prefix_space, _steps(content, "pre_tokenizer")
    if about.tokenizer_class in (GPT_2, QWEN_2):
        for step in steps:
            step |= {"add_prefix_space": bool(wanted)} if step["type"] == "ByteLevel" else {}
        return
    steps += _steps(content, "normalizer")
    is_bytes = any(step["type"] == "ByteLevel" for step in steps)
    has = any(
        step["type"] == "Prepend"
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    if about.tokenizer_class == LLAMA and not is_bytes and wanted not in (None, has):
        puts = "puts a space before a text" if has else "puts no space before a text"
        raise ValueError(
            f"{puts}, and {CONFIG} has add_prefix_space={wanted}; save it anew with transformers "
            "(AutoTokenizer.from_pretrained(IN).save_pretrained(OUT)), or take the key out"
        )


def _steps(content: Step, part: str) -> list[Step]:
    """The steps of the normalizer or pre_tokenizer: one alone, or those of a sequence."""
    whole = content.get(part)
    if whole is None:
        return []
    if whole["type"] == "Sequence":
        return list(whole.get("normalizers") or whole["pretokenizers"])
    return [whole]


def take(path: Path, out: Path, write_gguf: Callable[[Path, Path], None]) -> None:
    """Copies a tokenizer's files, byte for byte and no others, as tokenizer.load reads them.

    Args:
        path: a folder with some of FILES, or one file: a tokenizer.json, a SentencePiece model, or
            a GGUF, whose tokenizer is written as such files. What stands beside a file and names
            roles is taken with it.
        out: the folder to write to, made if it is not there.
        write_gguf: writes the tokenizer of a GGUF file to `out`.

    Raises:
        BadInput: no tokenizer is there, or a file of it is neither a file nor a link to one.
    """
    path, out = Path(path), Path(out)
    paths = _find("tokenizer.path", path)
    if _is_gguf(paths[0]):
        write_gguf(path, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    for found in paths:
        name = found.name
        if found == path:
            name = "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"
        write(out / name, found.read_bytes())


def copy_tokenizer(source: Path, out: Path) -> None:
    """As `take` of a folder."""
    paths = _find("tokenizer", Path(source))
    out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        write(out / path.name, path.read_bytes())


def fingerprint(key: str, path: Path) -> dict[str, str]:
    """Hash of every file that `take` reads at a path, by name.

    Args:
        key: the setting that `path` is of, for messages.
        path: as of `take`.

    Raises:
        BadInput: as of `take`.
    """
    with blame(path):
        return {found.name: storage.hash_content(str(found)) for found in _find(key, Path(path))}


def _find(key: str, path: Path) -> list[Path]:
    """The files of a tokenizer, the vocabulary's first."""
    if path.is_dir():
        paths = [path / name for name in FILES]
    else:
        alone = path.is_file() and _is_gguf(path)
        paths = [path, *(path.with_name(name) for name in BESIDE if not alone)]
    paths = [found for found in paths if found.exists() or found.is_symlink()]
    if not paths or paths[0].name in BESIDE:
        what = f"holds no tokenizer; {NO_VOCABULARY}" if path.is_dir() else "no such file"
        raise BadInput(f"{key}={path}: {what}")
    for found in paths:
        if not found.is_file():
            raise BadInput(f"{found}: must be a file, or a link to one that is there")
    return paths


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


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
