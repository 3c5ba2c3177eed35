"""A SentencePiece BPE model as the tokenizer.json that transformers reads, with the same ids.

SentencePiece merges the neighbours whose union has the best score; the tokenizers library the pair
that stands first in a list. The list here holds every cut of every piece, best score first. Two
texts differ: a spelled-out special token becomes that token, as transformers has it everywhere,
and a U+2581, which SentencePiece writes for a space, becomes one.
"""

from pathlib import Path

from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from data.errors import BadInput

SPACE_MARK = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


def to_fast(path: Path, bos: str | None) -> Tokenizer:
    """Turns a tokenizer.model over.

    Args:
        path: a SentencePiece BPE model that leaves text as it is but for spaces.
        bos: a token that transformers is to put before every text, or None.

    Raises:
        BadInput: a model of another kind.
    """
    model = ModelProto.FromString(path.read_bytes())
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    defined = any(piece.type == USER_DEFINED for piece in model.pieces)
    faults = {
        "is no BPE": trainer.model_type != trainer.BPE,
        "normalizes text": normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces,
        "leaves spaces as they are": not normalizer.escape_whitespaces,
        # The library would put the prefix before these pieces too.
        "has both a space before each text and user-defined pieces": normalizer.add_dummy_prefix
        and defined,
    }
    for fault, is_so in faults.items():
        if is_so:
            raise BadInput(f"{path}: {fault}; no tokenizer.json is made of such a model")
    vocab = {piece.piece: i for i, piece in enumerate(model.pieces)}
    unknown = next(piece.piece for piece in model.pieces if piece.type == UNKNOWN)
    tokenizer = Tokenizer(
        BPE(vocab, _merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
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
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
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
