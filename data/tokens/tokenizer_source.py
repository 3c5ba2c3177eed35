"""A tokenizer that exists already, from whatever file it is kept in, for a corpus of our own."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from data import storage
from data.errors import BadInput
from data.tokens import byte_level
from data.tokens.encode import ALPHABET
from data.tokens.gguf_tokenizer import from_gguf
from data.tokens.tokenizer_files import (
    ADDED_TOKENS,
    CONFIG,
    FILES,
    SPECIAL_TOKENS,
    TEMPLATE,
    blame,
    copy_tokenizer,
    write,
)

# What may stand beside a vocabulary and says which token has which role.
BESIDE = (CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, TEMPLATE)
MERGES = "merges.txt"
RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
# A rank file has neither its split nor its special tokens: those of the one that is known.
LLAMA_3_RANKS, LLAMA_3_SPECIAL = 128_000, 256
LLAMA_3_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}


def take(path: Path, out: Path, read_gguf: Callable[[Path], dict[str, Any]]) -> None:
    """Writes a tokenizer as files that pretrained reads, or tokenizer if it is our own.

    Args:
        path: a folder with some of tokenizer_files.FILES, or one file, known by its content:
            a tokenizer.json, a SentencePiece model, a vocab.json (merges.txt stands beside it),
            Llama 3's file of ranks, or a GGUF. What stands beside a file and names roles is taken
            with it.
        out: the folder to write to, made if it is not there.
        read_gguf: gives the metadata of a GGUF file.

    Raises:
        BadInput: nothing there, nothing of these kinds, or damaged.
    """
    path, out = Path(path), Path(out)
    if path.is_dir():
        model = path / "tokenizer.model"
        if (path / "tokenizer.json").is_file() or not model.is_file():
            copy_tokenizer(path, out)
            return
        path = model
    if not path.is_file():
        raise BadInput(f"tokenizer.path={path}: must be a folder or file of a tokenizer")
    head = _read_head(path)
    out.mkdir(parents=True, exist_ok=True)
    if head.startswith(b"GGUF"):
        from_gguf(path, read_gguf(path), out)
    elif RANK_LINE.match(head):
        with blame(path):
            _write_ranks(path.read_bytes(), out)
    else:
        for name, content in _read_vocabulary(path, head).items():
            write(out / name, content)
        for name in BESIDE:
            if path.with_name(name).is_file():
                write(out / name, path.with_name(name).read_bytes())


def fingerprint(key: str, path: Path) -> dict[str, str]:
    """Hash of every file that `take` reads at a path, by name.

    Args:
        key: the setting that `path` is of, for messages.
        path: as of `take`.

    Raises:
        BadInput: there is none, or one cannot be read.
    """
    folder, names = (path, FILES) if path.is_dir() else (path.parent, (path.name,))
    if path.is_file() and not _is_alone(head := _read_head(path)):
        names += BESIDE + tuple({MERGES} & _read_vocabulary(path, head).keys())
    found = {name for name in names if (folder / name).is_file()}
    if not found:
        raise BadInput(f"{key}={path}: must be a folder or file of a tokenizer")
    with blame(path):
        return {name: storage.hash_content(str(folder / name)) for name in sorted(found)}


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 12)


def _is_alone(head: bytes) -> bool:
    """Whether nothing is read beside a file: a GGUF, or ranks."""
    return head.startswith(b"GGUF") or RANK_LINE.match(head) is not None


def _read_vocabulary(path: Path, head: bytes) -> dict[str, bytes]:
    """The files that hold the vocabulary, under the names by which they are known."""
    content = path.read_bytes()
    if not head.lstrip().startswith(b"{"):
        return {"tokenizer.model": content}
    with blame(path):
        if "model" in json.loads(content):
            return {"tokenizer.json": content}
    merges = path.with_name(MERGES)
    if not merges.is_file():
        raise BadInput(f"{path}: a vocabulary alone; {MERGES} must stand beside it")
    return {"vocab.json": content, merges.name: merges.read_bytes()}


def _write_ranks(content: bytes, out: Path) -> None:
    ranks = _read_ranks(content)
    if len(ranks) != LLAMA_3_RANKS:
        raise ValueError(
            f"holds {len(ranks)} ranks; only Llama 3's file, of {LLAMA_3_RANKS}, is known well "
            "enough to be read without a tokenizer.json"
        )
    unnamed = iter(range(LLAMA_3_SPECIAL))
    special = [
        LLAMA_3_NAMED.get(i) or f"<|reserved_special_token_{next(unnamed)}|>"
        for i in range(LLAMA_3_SPECIAL)
    ]
    roles = {"bos_token": special[0], "eos_token": special[1]}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True} | roles
    write(out / "tokenizer.json", _from_ranks(ranks, "llama3", special).encode())
    write(out / CONFIG, json.dumps(config, indent=2).encode())


def _read_ranks(content: bytes) -> dict[bytes, int]:
    """tiktoken's form: on each line the bytes of a token in base 64, and its rank."""
    ranks = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ValueError(f"line {number}: {line[:40]!r} is no token and rank") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError("its ranks are not 0, 1, 2 and so on")
    return ranks


def _from_ranks(ranks: dict[bytes, int], split: str, special: list[str]) -> str:
    """The tokenizer.json: any two neighbours merge whose union has a rank, the lowest first."""
    spelled = {token: _spell(token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [(spelled[a], spelled[b]) for _, _, a, b in sorted(known)]
    vocab = {spelled[token]: rank for token, rank in ranks.items()}
    vocab |= {token: len(ranks) + i for i, token in enumerate(special)}
    added = [AddedToken(token, special=True, normalized=False) for token in special]
    return byte_level.build(vocab, merges, split, added).to_str()


def _spell(token: bytes) -> str:
    return "".join(ALPHABET[byte] for byte in token)
