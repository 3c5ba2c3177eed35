"""A model of our own, or of SentencePiece, as the tokenizer.json that transformers reads.

The ids are the same. SentencePiece's BPE merges the neighbours whose union has the best score; the
tokenizers library the pair that stands first in a list. The list here holds every cut of every
piece, best score first. Three texts differ: a spelled-out special token becomes that token, as
transformers has it everywhere; a U+2581, which SentencePiece writes for a space, becomes one; and
of a unigram model long ones in which two ways to cut are all but equal, for SentencePiece adds up
in 32 bits and the library in 64.
"""

from pathlib import Path

from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE, Unigram

from data.errors import BadInput
from data.tokens.tokenizer import CONTROL_PIECES

SPACE_MARK = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
# The library's unigram would take a text that spells a piece for a byte for that piece.
SPELLED_BYTE = Regex("<(?=0x[0-9A-F]{2}>)")


def to_fast(path: Path, bos: str | None) -> Tokenizer:
    """Turns a model over.

    Args:
        path: a SentencePiece BPE or unigram model that leaves text as it is but for spaces, or a
            tokenizer.json that wordpiece gave.
        bos: a token that transformers is to put before every text, or None.

    Raises:
        BadInput: a model of another kind.
    """
    if path.suffix == ".json":
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.add_special_tokens(list(CONTROL_PIECES))
    else:
        tokenizer = _from_pieces(path, ModelProto.FromString(path.read_bytes()))
    if bos is not None:
        special = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=special
        )
    return tokenizer


def _from_pieces(path: Path, model: ModelProto) -> Tokenizer:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    defined = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]
    faults = {
        "is neither BPE nor unigram": trainer.model_type not in (trainer.BPE, trainer.UNIGRAM),
        "normalizes text": normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces,
        "leaves spaces as they are": not normalizer.escape_whitespaces,
        # The library would put the prefix before these pieces too.
        "has both a space before each text and user-defined pieces": normalizer.add_dummy_prefix
        and defined,
        # SentencePiece weighs them against other pieces, the library takes them wherever they are.
        "is a unigram with longer user-defined pieces": trainer.model_type == trainer.UNIGRAM
        and any(len(piece) > 1 for piece in defined),
    }
    for fault, is_so in faults.items():
        if is_so:
            raise BadInput(f"{path}: {fault}; no tokenizer.json is made of such a model")
    is_unigram = trainer.model_type == trainer.UNIGRAM
    tokenizer = Tokenizer(_unigram(model) if is_unigram else _bpe(model))
    if is_unigram and trainer.byte_fallback:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(SPELLED_BYTE, behavior="isolated")
    spaces, trim = [normalizers.Replace(" ", SPACE_MARK)], []
    if normalizer.add_dummy_prefix:
        spaces, trim = [normalizers.Prepend(SPACE_MARK), *spaces], [decoders.Strip(" ", 1, 0)]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    back = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, *trim])
    tokenizer.add_tokens(
        [
            AddedToken(
                piece.piece,
                special=piece.type != USER_DEFINED,
                normalized=piece.type == USER_DEFINED,
            )
            for piece in model.pieces
            if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    return tokenizer


def _bpe(model: ModelProto) -> BPE:
    vocab = {piece.piece: i for i, piece in enumerate(model.pieces)}
    unknown = next(piece.piece for piece in model.pieces if piece.type == UNKNOWN)
    return BPE(vocab, _merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=True)


def _unigram(model: ModelProto) -> Unigram:
    vocab = [(piece.piece, piece.score if piece.type == NORMAL else 0.0) for piece in model.pieces]
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN)
    return Unigram(vocab, unknown, model.trainer_spec.byte_fallback)


def _merges(model: ModelProto) -> list[tuple[str, str]]:
    """All pairs of pieces whose union is a piece, the best union first.

    Those of the user are found before anything is merged.
    """
    ranked = [piece for piece in model.pieces if piece.type == NORMAL]
    ranked.sort(key=lambda piece: -piece.score)
    known = {piece.piece for piece in ranked}
    return [
        (left, right)
        for piece in ranked
        for cut in range(1, len(piece.piece))
        if (left := piece.piece[:cut]) in known and (right := piece.piece[cut:]) in known
    ]
