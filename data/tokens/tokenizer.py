"""Tokenizers, trained here or by others: text to ids and back.

A `tokenizer.json` runs through the tokenizers library exactly as it stands, a `tokenizer.model`
through SentencePiece; of a folder the first is taken where both are there.

Those trained here (trainer.py) give the eight control tokens the ids 0 to 7, and any Unicode text
comes back exactly. Of others, on any text without special tokens the ids are those of
transformers' `tokenizer(text, add_special_tokens=False)`, but where transformers 5 itself leaves
what the model was trained with. Its classes of GPT-2, Qwen 2 and Llama rebuild a tokenizer.json by
their own rules: here its own splits stand, and only `add_prefix_space` is taken from the
configuration (imported.py). Its Llama class loses a text's first space, reads a tokenizer.model
that stands alone without its scores, which changes runs of spaces, takes a file without
`add_prefix_space` to have it, and one without `legacy` to have `legacy: false`, where no space is
put after a token that a text spells; here the file decides the first, and the second is true, as in
transformers 4.

transformers takes a special token that a text spells for the token itself. That lets a document
close its own turn, so it is done here only where `special=True` asks for it; False is what
transformers calls `split_special_tokens`. Two things are the same either way, there as here: added
tokens that are not special are found, and a unigram tokenizer.json, whose library does not tell
special pieces from others, gives them for their text.
"""

import copy
import functools
import itertools
import json
import re
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer as FastTokenizer

from data.errors import BadInput
from data.tokens.chat_template import ChatTemplate
from data.tokens.encode import (
    SPACE_MARK,
    Cuts,
    joined_in_pieces,
    joined_in_words,
    refuse_surrogates,
)
from data.tokens.gguf_tokenizer import GPT_2, SPLITS
from data.tokens.imported import (
    CONFIG,
    LLAMA,
    MAX_VOCAB_SIZE,
    NO_VOCABULARY,
    RANK_LINE,
    ROLES,
    Description,
    blame,
    class_roles,
    describe,
    read_object,
    set_prefix_space,
)

# Of a tokenizer trained here: its first ids, and the roles that some of them have.
CONTROL_PIECES = (
    "<|pad|>",
    "<|bos|>",
    "<|eos|>",
    "<|unk|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
OWN_ROLES = dict(zip(("pad_token", "bos_token", "eos_token"), CONTROL_PIECES, strict=False))
TURN_PIECES = CONTROL_PIECES[4:]

NORMAL, USER_DEFINED, UNUSED = 1, 4, 5  # kinds of SentencePiece's pieces


class Tokenizer:
    """Text to ids and back.

    Attributes:
        vocab_size: the highest id + 1; a model may have more rows, for padding, never fewer.
        bos_id, eos_id, pad_id: None where the tokenizer has none.
        adds_bos: whether a text that a model is to continue begins with BOS. Its configuration
            says so, or its tokenizer.json; a tokenizer.model that stands alone does (Llama, Gemma).
        chat_template: Jinja source, or None.
        date: that a chat template which asks for the day is told; None for today's.
        named: special tokens by the names that a chat template has for them.
        system_id, user_id, assistant_id, end_id: tokens that mark turns in the format of
            data/tokens/chat.py; None unless it was trained here or `load` was given some.
    """

    def __init__(
        self, backend: "_Fast | _Pieces", about: Description, path: Path, control: Sequence[str]
    ):
        """Takes what `load` and `load_own` have read of a file."""
        roles = {}
        for role in ROLES:
            token = about.roles.get(role)
            has = backend.vocab.get(token) if role in about.roles else backend.roles.get(role)
            if token is not None and has is None:
                raise BadInput(f"{path.parent / CONFIG}: {role}={token!r} is not in the vocabulary")
            roles[role] = has
        for token in control:
            if token not in backend.vocab:
                raise BadInput(f"tokenizer.control has {token!r}; {path} has no such token")
        self._backend = backend
        self.bos_id, self.eos_id, self.pad_id = (roles[role] for role in ROLES)
        adds_bos = about.add_bos_token
        if adds_bos is None:
            adds_bos = backend.begin == self.bos_id
        self.adds_bos = adds_bos and self.bos_id is not None
        # A role that only the vocabulary's file tells of has a name too.
        told = {
            role: token for token, i in backend.vocab.items() for role in ROLES if roles[role] == i
        }
        self.named, self.chat_template = told | about.named, about.chat_template
        self.date: datetime | None = None
        marks = [backend.vocab[token] for token in control] or [None] * 4
        self.system_id, self.user_id, self.assistant_id, self.end_id = marks
        self.vocab_size = max(backend.vocab.values()) + 1
        self._is_shown = np.zeros(self.vocab_size, bool)
        self._is_shown[list(backend.vocab.values())] = True
        self._is_shown[[*backend.special_ids, *(i for i in marks if i is not None)]] = False

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
        """Ids of many texts, equal to `encode` of each; encode.encode is for a corpus.

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
            refuse_surrogates(texts)
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
        """Where encode.encode may cut texts.

        Raises:
            BadInput: nowhere; the message says why.
        """
        return self._backend.cuts()


class _Fast:
    """A tokenizer of the tokenizers library.

    Attributes:
        vocab: token to id. special_ids: of tokens that no text gives. roles: ids that the file
        itself gives to some of ROLES. begin: the token that the file puts before a text, or None.
    """

    def __init__(self, path: Path, about: Description):
        content = read_object(path)
        if "model" not in content:
            raise ValueError(f"lacks 'model', as a vocab.json does; {NO_VOCABULARY}")
        vocab = content["model"]["vocab"]
        if isinstance(vocab, list) and len(dict(vocab)) < len(vocab):
            raise ValueError("a token is in the vocabulary twice")
        added = content.get("added_tokens") or []
        added = [token for token in added if token["id"] < about.max_rows or not token["special"]]
        set_prefix_space(content, about)
        tokenizer = FastTokenizer.from_str(json.dumps(content | {"added_tokens": added}))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.begin = next(iter(tokenizer.encode("").ids), None)
        tokenizer.encode_special_tokens = True  # as the text that they are
        for token in added:
            _check_id(token["content"], token["id"], tokenizer.token_to_id(token["content"]))
        for i, token in about.added:
            if tokenizer.token_to_id(token.content) is None:
                tokenizer.add_tokens([token])
            _check_id(token.content, i, tokenizer.token_to_id(token.content))
        self.vocab = tokenizer.get_vocab()
        tokenizer.add_special_tokens(sorted(about.special & self.vocab.keys()))
        known = tokenizer.get_added_tokens_decoder()
        self.special_ids = {i for i, token in known.items() if token.special}
        self.roles = {
            role: self.vocab.get(token) for role, token in class_roles(content, about).items()
        }
        self._tokenizer, self._is_own = tokenizer, about.is_own

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
        if any((token.lstrip or token.rstrip) and not token.special for token in added):
            raise BadInput("a token was added to its vocabulary that takes the blanks beside it")
        told = (token for token, i in self.vocab.items() if i not in self.special_ids)
        encode = functools.partial(self.encode_batch, special=False, num_threads=1)
        is_known = self._is_own or self._is_split_known()
        return Cuts(joined_in_words(told, is_known=is_known), encode)

    def _is_split_known(self) -> bool:
        """Whether texts are split by the patterns of SPLITS, and by nothing else."""
        steps = json.loads(self._tokenizer.to_str())["pre_tokenizer"] or {"type": "none"}
        *cuts, last = steps.get("pretokenizers", [steps])
        if last["type"] != "ByteLevel" or last["add_prefix_space"]:
            return False
        patterns = [cut.get("pattern", {}).get("Regex", "") for cut in cuts]
        patterns += [GPT_2] if last["use_regex"] else []
        # Some files hold the line ends themselves.
        spelled = tuple(text.replace("\r", r"\r").replace("\n", r"\n") for text in patterns)
        return spelled in {split.patterns for split in SPLITS.values()}


class _Pieces:
    """A SentencePiece model, and the tokens that were added beside it. Attributes as of _Fast."""

    def __init__(self, path: Path, about: Description):
        content = path.read_bytes()
        if RANK_LINE.match(content):
            raise ValueError(f"holds the ranks of tiktoken, and not how it splits; {NO_VOCABULARY}")
        try:
            self._model = model = ModelProto.FromString(content)
        except DecodeError as error:
            raise ValueError("not a SentencePiece model") from error
        if about.tokenizer_class in (LLAMA, "") and about.add_prefix_space is not None:
            model.normalizer_spec.add_dummy_prefix = about.add_prefix_space
        self._processor = _processor(model)
        # What encodes the text after a token that was found in it.
        self._later = self._processor if about.legacy else _without_prefix(model)
        num_pieces = self._processor.vocab_size()
        ids = list(range(num_pieces))
        self.vocab = dict(zip(self._processor.id_to_piece(ids), ids, strict=True))
        roles = {role: getattr(self._processor, role.replace("token", "id"))() for role in ROLES}
        self.roles = {role: i for role, i in roles.items() if i >= 0}
        self.begin = self.roles.get("bos_token")
        controls, unknown = self._processor.is_control(ids), self._processor.is_unknown(ids)
        self.special_ids = {i for i in ids if controls[i] or unknown[i]}
        for i, token in about.added:
            _check_id(token.content, i, self.vocab.setdefault(token.content, i))
            self.special_ids |= {i} if token.special else set()
        self.special_ids |= {self.vocab[token] for token in about.special & self.vocab.keys()}
        self._beside = {i: token for token, i in self.vocab.items() if i >= num_pieces}
        special = {token for token, i in self.vocab.items() if i in self.special_ids}
        # Found in a text before it is encoded: without special tokens, and with them.
        plain = set(self._beside.values()) - special
        self._found = {token: [self.vocab[token]] for token in plain | special}
        if about.is_own:  # SentencePiece would take it for a space
            self._found[SPACE_MARK] = [self.vocab.get(f"<0x{i:02X}>") for i in SPACE_MARK.encode()]
            plain = {SPACE_MARK}
        self._cuts = (_compile_cut(plain), _compile_cut(plain | special))
        self._is_cuttable = about.is_own or not plain

    def encode_batch(self, texts: list[str], special: bool, num_threads: int) -> list[list[int]]:
        # Text at even places, a token at odd ones; each stretch of text is encoded by itself.
        cuts = [self._cuts[special].split(text) for text in texts]
        first, later = [cut[0] for cut in cuts], [part for cut in cuts for part in cut[2::2]]
        rows = self._processor.encode(first, out_type=int, num_threads=num_threads)
        encoded = iter(self._later.encode(later, out_type=int, num_threads=num_threads))
        for row, cut in zip(rows, cuts, strict=True):
            for token in cut[1::2]:
                row += self._found[token]
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
        trainer, normalizer = self._model.trainer_spec, self._model.normalizer_spec
        pieces = self._model.pieces
        faults = {
            "tokens that are not special were added beside its pieces": not self._is_cuttable,
            "its sums over a whole text are rounded, as those over parts are not": (
                trainer.model_type != trainer.BPE
            ),
            "unknown characters that stand together are one token": not trainer.byte_fallback,
            "the text is normalized": normalizer.precompiled_charsmap
            or normalizer.remove_extra_whitespaces
            or not normalizer.escape_whitespaces,
            "a space is put at its end": trainer.treat_whitespace_as_suffix
            and normalizer.add_dummy_prefix,
            "some pieces are unused": any(piece.type == UNUSED for piece in pieces),
        }
        for fault, is_so in faults.items():
            if is_so:
                raise BadInput(fault)
        joined = joined_in_pieces(
            piece.piece for piece in pieces if piece.type in (NORMAL, USER_DEFINED)
        )
        if not normalizer.add_dummy_prefix:
            return Cuts(joined, functools.partial(self.encode_batch, special=False, num_threads=1))
        encode = functools.partial(_without_prefix(self._model).encode, out_type=int)
        return Cuts(joined, encode, " ")


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


# In the order in which they are preferred.
READERS: dict[str, Callable[[Path, Description], _Fast | _Pieces]] = {
    "tokenizer.json": _Fast,
    "tokenizer.model": _Pieces,
}


def load(folder: Path, vocab_size: int | None = None, control: Sequence[str] = ()) -> Tokenizer:
    """Reads the tokenizer of a folder as others have made it.

    Args:
        folder: holds some of imported.FILES.
        vocab_size: rows of the model's embedding. Special tokens with ids beyond it are left out,
            so that their text is text (Gemma 3 publishes one that its text models lack).
        control: four tokens, unused so far, to mark system, user, assistant and end of a turn.

    Raises:
        BadInput: no tokenizer there, a damaged one, or ids that the model has no rows for.
    """
    folder = Path(folder)
    path = next((folder / name for name in READERS if (folder / name).is_file()), None)
    if path is None:
        raise BadInput(f"{folder}: holds no tokenizer; {NO_VOCABULARY}")
    about = describe(folder, MAX_VOCAB_SIZE if vocab_size is None else vocab_size)
    with blame(path):
        backend = READERS[path.name](path, about)
        ids = backend.vocab.values()
        if len(set(ids)) < len(ids):
            raise ValueError("gives one id to several tokens")
        for i in (min(ids), max(ids)):
            if not 0 <= i < about.max_rows:
                whose = "" if vocab_size is None else ", the rows of the model"
                raise ValueError(f"has the id {i}; must be below {about.max_rows}{whose}")
    return Tokenizer(backend, about, path, control)


def load_for_training(folder: Path, vocab_size: int, control: Sequence[str]) -> Tokenizer:
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


def load_own(folder: Path) -> Tokenizer:
    """Reads the tokenizer that was trained into a folder, of whatever kind.

    Raises:
        BadInput: there is none, or one with other control tokens.
    """
    # An export has a tokenizer.json beside the model that was trained.
    paths = [Path(folder) / name for name in reversed(READERS)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        names = " or ".join(READERS)
        raise BadInput(f"{folder}: holds no tokenizer that was trained here; needed is {names}")
    about = Description(OWN_ROLES, special=set(CONTROL_PIECES), add_bos_token=True, is_own=True)
    with blame(path):
        backend = READERS[path.name](path, about)
        first = tuple(sorted(backend.vocab, key=backend.vocab.get)[: len(CONTROL_PIECES)])
        if first != CONTROL_PIECES:
            raise ValueError(f"its first pieces are {first}, must be {CONTROL_PIECES}")
    return Tokenizer(backend, about, path, TURN_PIECES)
