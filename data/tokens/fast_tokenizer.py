"""A SentencePiece model as the tokenizer.json that transformers reads.

The ids are the same. SentencePiece's BPE merges the neighbours whose union has the best score; the
tokenizers library the pair that stands first in a list. The list here holds every cut of every
piece, best score first. Three texts differ: a spelled-out special token becomes that token, as
transformers has it everywhere; a U+2581, which SentencePiece writes for a space, becomes one; and
of a unigram model long ones in which two ways to cut are all but equal, for SentencePiece adds up
in 32 bits and the library in 64.

Source: transformers, convert_slow_tokenizer.py (SpmConverter), which does the same for more kinds.
"""

from pathlib import Path

from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from data.errors import BadInput
from data.tokens.encode import SPACE_MARK

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
# The library's unigram would take a text that spells a piece for a byte for that piece.
SPELLED_BYTE = Regex("<(?=0x[0-9A-F]{2}>)")


def from_pieces(path: Path) -> Tokenizer:
    """Turns a model over.

    Args:
        path: a SentencePiece BPE or unigram model that leaves text as it is but for spaces.

    Raises:
        BadInput: a model of another kind.
    """
    model = ModelProto.FromString(path.read_bytes())
    pieces, trainer, normalizer = model.pieces, model.trainer_spec, model.normalizer_spec
    defined = [piece.piece for piece in pieces if piece.type == USER_DEFINED]
    is_unigram = trainer.model_type == trainer.UNIGRAM
    faults = {
        "is neither BPE nor unigram": trainer.model_type not in (trainer.BPE, trainer.UNIGRAM),
        "normalizes text": normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces,
        "leaves spaces as they are": not normalizer.escape_whitespaces,
        # The library would put the prefix before these pieces too.
        "has both a space before each text and user-defined pieces": normalizer.add_dummy_prefix
        and defined,
        # SentencePiece weighs them against other pieces, the library takes them wherever they are.
        "is a unigram with longer user-defined pieces": is_unigram
        and any(len(piece) > 1 for piece in defined),
    }
    for fault, is_so in faults.items():
        if is_so:
            raise BadInput(f"{path}: {fault}; no tokenizer.json is made of such a model")
    unknown = next(i for i, piece in enumerate(pieces) if piece.type == UNKNOWN)
    if is_unigram:
        scores = [(p.piece, p.score if p.type == NORMAL else 0.0) for p in pieces]
        tokenizer = Tokenizer(Unigram(scores, unknown, trainer.byte_fallback))
    else:
        vocab, name = {piece.piece: i for i, piece in enumerate(pieces)}, pieces[unknown].piece
        options = {"unk_token": name, "fuse_unk": True, "byte_fallback": True}
        tokenizer = Tokenizer(BPE(vocab, _merges(model), **options))
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
            for piece in pieces
            if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    return tokenizer


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
