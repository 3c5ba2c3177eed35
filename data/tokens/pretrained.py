"""Imported tokenizers: what others have trained, to ids and back, id for id as they do it.

A folder's `tokenizer.json` runs through the tokenizers library exactly as it stands, a
`tokenizer.model` through SentencePiece, `vocab.json` with `merges.txt` through the tokenizers
library; the first of them that is there is taken. On any text without special tokens the ids are
those of transformers' `tokenizer(text, add_special_tokens=False)`, but where transformers 5 itself
leaves what the model was trained with. Its classes of GPT-2, Qwen 2 and Llama rebuild a
tokenizer.json by their own rules: here its own splits stand, and only `add_prefix_space` is taken
from the configuration (classes.py). Its Llama class loses a text's first space, reads a
tokenizer.model that stands alone without its scores, which changes runs of spaces, takes a file
without `add_prefix_space` to have it, and one without `legacy` to have `legacy: false`, where no
space is put after a token that a text spells; here the file decides the first, and the second is
true, as in transformers 4.

transformers takes a special token that a text spells for the token itself. That lets a document
close its own turn, so it is done here only where `special=True` asks for it; False is what
transformers calls `split_special_tokens`. Two things are the same either way, there as here: added
tokens that are not special are found, and a unigram tokenizer.json, whose library does not tell
special pieces from others, gives them for their text.
"""

import copy
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from data.errors import BadInput
from data.tokens import byte_level
from data.tokens.chat_template import ChatTemplate
from data.tokens.classes import CLASS_ROLES, END_OF_TEXT, GPT_2, LLAMA, SPLITS, set_prefix_space
from data.tokens.encode import Cuts, joined_in_pieces, joined_in_words
from data.tokens.tokenizer_files import CONFIG, ROLES, Description, blame, describe, read_object

# No published vocabulary has a tenth of it; what decoding looks up is as long as the highest id.
MAX_VOCAB_SIZE = 1 << 23


class Pretrained:
    """A tokenizer that others have trained; it stands where tokenizer.Tokenizer does.

    Attributes:
        vocab_size: the highest id + 1; a model may have more rows, for padding, never fewer.
        bos_id, eos_id, pad_id: None where the tokenizer has none.
        adds_bos: whether transformers puts BOS before a text. Its configuration says so, or its
            tokenizer.json; a tokenizer.model that stands alone does (Llama, Gemma).
        chat_template: Jinja source, or None.
        date: that a chat template which asks for the day is told; None for today's.
        named: special tokens by the names that a chat template has for them.
        system_id, user_id, assistant_id, end_id: tokens that mark turns in the format of
            data/tokens/chat.py; None unless `load` was given some.
    """

    def __init__(
        self,
        backend: "_Fast | _Pieces",
        roles: dict[str, int | None],
        named: dict[str, str],
        chat_template: str | None,
        control: Sequence[str] = (),
        adds_bos: bool = False,
    ):
        """Takes what `load` has read and checked."""
        self._backend = backend
        self.bos_id, self.eos_id, self.pad_id = (roles[role] for role in ROLES)
        self.adds_bos = adds_bos and self.bos_id is not None
        self.named, self.chat_template = named, chat_template
        self.date: datetime | None = None
        self.vocab_size = max(backend.vocab.values()) + 1
        self._is_shown = np.zeros(self.vocab_size, bool)
        self._is_shown[list(backend.vocab.values())] = True
        self._is_shown[list(backend.special_ids)] = False
        marks = [backend.vocab[token] for token in control] or [None] * 4
        self.system_id, self.user_id, self.assistant_id, self.end_id = marks
        self._is_shown[[i for i in marks if i is not None]] = False

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template, to be rendered; None where there is none."""
        if self.chat_template is None:
            return None
        special = {*self._backend.special_ids, *(i for i in [self.eos_id] if i is not None)}
        tokens = {token: i for token, i in self._backend.vocab.items() if i in special}
        return ChatTemplate(self.chat_template, self.named, tokens, self, self.date)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text, to which none is added. See `encode_batch`."""
        return self.encode_batch([text], special=special)[0]

    def encode_batch(
        self, texts: Sequence[str], num_threads: int = -1, *, special: bool = False
    ) -> list[list[int]]:
        """Ids of many texts, equal to `encode` of each; encode.Encoder is for a corpus.

        Args:
            texts: any Unicode text.
            num_threads: 1, or -1 for all cores.
            special: whether special tokens spelled in a text become their ids (a rendered chat
                template wants it, a document or a user's message never does).

        Raises:
            BadInput: a text has a lone surrogate (the message gives its index), or a character
                for which the tokenizer has neither an id nor an unknown token.
        """
        try:
            with blame("this tokenizer cannot encode the text"):
                return self._backend.encode_batch(list(texts), special, num_threads)
        except BadInput:
            for index, text in enumerate(texts):
                if found := re.search("[\ud800-\udfff]", text):
                    raise BadInput(
                        f"text {index}: lone surrogate {found[0]!r} at character "
                        f"{found.start()}; must be valid Unicode"
                    ) from None
            raise

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens and ids without a token (padding rows) are dropped.

        Args:
            ids: integers, a list or a one-dimensional array.
        """
        ids = np.asarray(ids, np.int64)
        ids = ids[(ids >= 0) & (ids < self.vocab_size)]
        return self._backend.decode(ids[self._is_shown[ids]].tolist())

    def cuts(self) -> Cuts:
        """Where encode.Encoder may cut texts.

        Raises:
            BadInput: nowhere; the message says why.
        """
        return self._backend.cuts()


class _Fast:
    """A tokenizer of the tokenizers library."""

    def __init__(self, tokenizer: FastTokenizer, about: Description, roles: dict[str, int | None]):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # What the file itself puts before a text.
        self.begin = next(iter(tokenizer.encode("").ids), None)
        tokenizer.encode_special_tokens = True  # as the text that they are
        for i, token in about.added:
            if tokenizer.token_to_id(token.content) is None:
                tokenizer.add_tokens([token])
            _check_id(token.content, i, tokenizer.token_to_id(token.content))
        self.vocab = tokenizer.get_vocab()
        tokenizer.add_special_tokens(sorted(about.special & self.vocab.keys()))
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = {i for i, token in added.items() if token.special}
        self.roles = roles
        self._tokenizer = tokenizer

    @functools.cached_property
    def _parsing(self) -> FastTokenizer:
        """A copy, since the library's switch is the tokenizer's, not the call's."""
        parsing = copy.deepcopy(self._tokenizer)
        parsing.encode_special_tokens = False
        return parsing

    def encode_batch(self, texts: list[str], special: bool, num_threads: int) -> list[list[int]]:
        tokenizer = self._parsing if special else self._tokenizer
        if num_threads == 1:
            return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def cuts(self) -> Cuts:
        added = self._tokenizer.get_added_tokens_decoder().values()
        added = [token for token in added if not token.special]
        if any(token.lstrip or token.rstrip for token in added):
            raise BadInput("a token was added to its vocabulary that takes the blanks beside it")
        told = (token for token, i in self.vocab.items() if i not in self.special_ids)
        known = {split.patterns for split in byte_level.SPLITS.values()}
        joined = joined_in_words(
            told,
            [token.content for token in added],
            is_known=_read_patterns(self._tokenizer) in known,
        )
        encode = functools.partial(self.encode_batch, special=False, num_threads=1)
        return Cuts(joined, encode)


def _read_patterns(tokenizer: FastTokenizer) -> tuple[str, ...]:
    """The patterns by which a tokenizer splits texts; () where it splits by something else too."""
    if tokenizer.pre_tokenizer is None:
        return ()
    steps = json.loads(tokenizer.pre_tokenizer.__getstate__())
    steps = steps.get("pretokenizers", [steps])
    if steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return ()
    inner = [byte_level.GPT_2] if steps[-1]["use_regex"] else []
    patterns = [step.get("pattern", {}).get("Regex", "") for step in steps[:-1]] + inner
    # Some files hold the line ends themselves.
    return tuple(pattern.replace("\r", r"\r").replace("\n", r"\n") for pattern in patterns)


class _Pieces:
    """A SentencePiece model, and the tokens that were added beside it."""

    def __init__(self, model: ModelProto, about: Description):
        self._model = model
        self._processor = _processor(model)
        # What encodes the text after a token that was found in it.
        self._later = self._processor if about.legacy else _without_prefix(model)
        num_pieces = self._processor.vocab_size()
        ids = list(range(num_pieces))
        self.vocab = dict(zip(self._processor.id_to_piece(ids), ids, strict=True))
        roles = {role: getattr(self._processor, role.replace("token", "id"))() for role in ROLES}
        self.roles = {role: i for role, i in roles.items() if i >= 0}
        self.begin = self.roles.get("bos_token")
        controls = zip(
            self._processor.is_control(ids), self._processor.is_unknown(ids), strict=True
        )
        self.special_ids = {i for i, kinds in enumerate(controls) if any(kinds)}
        for i, token in about.added:
            _check_id(token.content, i, self.vocab.setdefault(token.content, i))
            self.special_ids |= {i} if token.special else set()
        self.special_ids |= {self.vocab[token] for token in about.special & self.vocab.keys()}
        self._beside = {i: token for token, i in self.vocab.items() if i >= num_pieces}
        special = {token for token, i in self.vocab.items() if i in self.special_ids}
        beside = set(self._beside.values())
        self._cuts = (_compile_cut(beside - special), _compile_cut(beside | special))

    def encode_batch(self, texts: list[str], special: bool, num_threads: int) -> list[list[int]]:
        # Text at even places, a token at odd ones; each stretch of text is encoded by itself.
        cuts = [self._cuts[special].split(text) for text in texts]
        first, later = [cut[0] for cut in cuts], [part for cut in cuts for part in cut[2::2]]
        rows = self._processor.encode(first, out_type=int, num_threads=num_threads)
        encoded = iter(self._later.encode(later, out_type=int, num_threads=num_threads))
        for row, cut in zip(rows, cuts, strict=True):
            for token in cut[1::2]:
                row.append(self.vocab[token])
                row += next(encoded)
        return rows

    def decode(self, ids: list[int]) -> str:
        parts = []
        for is_beside, run in itertools.groupby(ids, self._beside.__contains__):
            if is_beside:
                parts += (self._beside[i] for i in run)
            else:
                processor = self._later if parts else self._processor
                parts.append(processor.decode(list(run)))
        return "".join(parts)

    def cuts(self) -> Cuts:
        if self._cuts[False] != _compile_cut(()):
            raise BadInput("tokens that are not special were added beside its pieces")
        prefix = " " * self._model.normalizer_spec.add_dummy_prefix
        encode = functools.partial(_without_prefix(self._model).encode, out_type=int)
        return Cuts(joined_in_pieces(self._model), encode, prefix)


def _without_prefix(model: ModelProto) -> sentencepiece.SentencePieceProcessor:
    """What encodes as the model does, but puts no space before a text."""
    plain = ModelProto.FromString(model.SerializeToString())
    plain.normalizer_spec.add_dummy_prefix = False
    return _processor(plain)


def _processor(model: ModelProto) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(model.SerializeToString())
    return processor


def _compile_cut(tokens: Collection[str]) -> re.Pattern:
    """The pattern that cuts a text at tokens, the longest first; it may match nowhere."""
    longest = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest))})" if longest else "(?!)")


def _check_id(token: str, told: int, has: int | None) -> None:
    if told != has:
        raise ValueError(f"added token {token!r} is said to have id {told}, but has {has}")


def load(folder: Path, vocab_size: int | None = None, control: Sequence[str] = ()) -> Pretrained:
    """Reads the tokenizer of a folder.

    Args:
        folder: holds some of tokenizer_files.FILES.
        vocab_size: rows of the model's embedding. Special tokens with ids beyond it are left out,
            so that their text is text (Gemma 3 publishes one that its text models lack).
        control: four tokens, unused so far, to mark system, user, assistant and end of a turn.

    Raises:
        BadInput: no tokenizer there, a damaged one, or ids that the model has no rows for.
    """
    folder = Path(folder)
    name = next((name for name in READERS if (folder / name).is_file()), None)
    if name is None:
        raise BadInput(f"{folder}: holds no tokenizer; needed is one of {', '.join(READERS)}")
    about = describe(folder, MAX_VOCAB_SIZE if vocab_size is None else vocab_size)
    with blame(folder / name):
        backend = READERS[name](folder / name, about)
        ids = backend.vocab.values()
        if len(set(ids)) < len(ids):
            raise ValueError("gives one id to several tokens")
        for i in (min(ids), max(ids)):
            if not 0 <= i < about.max_rows:
                whose = "" if vocab_size is None else ", the rows of the model"
                raise ValueError(f"has the id {i}; must be below {about.max_rows}{whose}")
    roles = {}
    for role in ROLES:
        token = about.roles.get(role)
        roles[role] = backend.vocab.get(token) if role in about.roles else backend.roles.get(role)
        if token is not None and roles[role] is None:
            raise BadInput(f"{folder / CONFIG}: {role}={token!r} is not in the vocabulary")
    for token in control:
        if token not in backend.vocab:
            raise BadInput(f"tokenizer.control has {token!r}; {folder / name} has no such token")
    begin, adds_bos = roles["bos_token"], about.add_bos_token
    if adds_bos is None:
        adds_bos = begin is not None and backend.begin == begin
    # A role that only the vocabulary's file tells of has a name too.
    told = {role: token for token, i in backend.vocab.items() for role in ROLES if roles[role] == i}
    named = told | about.named
    return Pretrained(backend, roles, named, about.chat_template, control, adds_bos)


def load_for_training(folder: Path, vocab_size: int, control: Sequence[str]) -> Pretrained:
    """Reads a tokenizer with every role that training needs: the end of a text fills in.

    Args: as of `load`.

    Raises:
        BadInput: as `load`, or it names no end of a text.
    """
    tokenizer = load(folder, vocab_size, control)
    if tokenizer.eos_id is None:
        raise BadInput(f"{folder}: this tokenizer names no eos_token; training needs one")
    for role in ("bos_id", "pad_id"):
        if getattr(tokenizer, role) is None:
            setattr(tokenizer, role, tokenizer.eos_id)
    return tokenizer


def _read_json(path: Path, about: Description) -> _Fast:
    content = read_object(path)
    vocab = content["model"]["vocab"]
    if isinstance(vocab, list) and len(dict(vocab)) < len(vocab):
        raise ValueError("a token is in the vocabulary twice")
    added = content.get("added_tokens") or []
    kept = [token for token in added if token["id"] < about.max_rows or not token["special"]]
    content["added_tokens"] = kept
    set_prefix_space(content, about)
    tokenizer = FastTokenizer.from_str(json.dumps(content))
    for token in kept:
        _check_id(token["content"], token["id"], tokenizer.token_to_id(token["content"]))
    padding = content.get("padding")
    roles = _class_roles(tokenizer, about)
    roles |= {"pad_token": tokenizer.token_to_id(padding["pad_token"])} if padding else {}
    return _Fast(tokenizer, about, roles)


def _class_roles(tokenizer: FastTokenizer, about: Description) -> dict[str, int | None]:
    """The roles that the tokenizer's class fills, as far as the vocabulary has their tokens."""
    name = about.tokenizer_class
    if not name and not about.roles and _read_patterns(tokenizer) == (byte_level.GPT_2,):
        name = GPT_2  # GPT-2 itself was published without class and roles
    tokens = CLASS_ROLES.get(name, {})
    return {role: tokenizer.token_to_id(token) for role, token in tokens.items()}


def _read_model(path: Path, about: Description) -> _Pieces:
    model = ModelProto.FromString(path.read_bytes())
    if about.tokenizer_class in (LLAMA, "") and about.add_prefix_space is not None:
        model.normalizer_spec.add_dummy_prefix = about.add_prefix_space
    return _Pieces(model, about)


def _read_vocab(path: Path, about: Description) -> _Fast:
    vocab = read_object(path)
    about = dataclasses.replace(about, tokenizer_class=about.tokenizer_class or GPT_2)
    if about.tokenizer_class not in SPLITS:
        raise ValueError(
            f"tokenizer_class={about.tokenizer_class} is not read from vocab.json, only "
            f"{', '.join(SPLITS)} are; needed is tokenizer.json"
        )
    with blame(path.with_name("merges.txt")):
        lines = path.with_name("merges.txt").read_text(encoding="utf-8").split("\n")
        lines = [line for line in lines if line and not line.startswith("#version")]
        merges = [tuple(line.split(" ")) for line in lines]
    end = [AddedToken(END_OF_TEXT, special=True)] if END_OF_TEXT in vocab else []
    built = byte_level.build(vocab, merges, SPLITS[about.tokenizer_class], end)
    content = json.loads(built.to_str())
    set_prefix_space(content, about)
    tokenizer = FastTokenizer.from_str(json.dumps(content))
    return _Fast(tokenizer, about, _class_roles(tokenizer, about))


# In the order in which they are preferred.
READERS: dict[str, Callable[[Path, Description], _Fast | _Pieces]] = {
    "tokenizer.json": _read_json,
    "tokenizer.model": _read_model,
    "vocab.json": _read_vocab,
}
