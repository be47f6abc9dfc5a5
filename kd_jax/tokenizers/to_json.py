"""A SentencePiece model as tokenizer.json, which Hugging Face's libraries read: the same ids for the same text."""

import re
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

LONGEST = 2**20  # blanks at the beginning of a text, all of which SentencePiece leaves out
BLANK = "\u2581"  # stands for a space in the pieces
UNIGRAM, BPE = 1, 2  # ModelProto.TrainerSpec.ModelType
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # ModelProto.SentencePiece.Type


def tokenizer_json(path: Path, template: str) -> Tokenizer:
    """The tokeniser of `path`, a SentencePiece model.

    Args:
      path: as kd_jax/tokenizers.py trains it, unigram or bpe.
      template: what stands around a text, as "<s> $A </s>".

    Returns:
      A tokeniser of the library `tokenizers`; its `save` writes tokenizer.json.
    """
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(_model(model, pieces))
    tokenizer.normalizer = _normalizer(model)
    kinds = {kind: [piece.piece for piece in model.pieces if piece.type == kind] for kind in (CONTROL, USER_DEFINED)}
    words = [pre_tokenizers.Metaspace(BLANK, prepend_scheme="always")]
    if kinds[USER_DEFINED]:
        symbols = Regex("|".join(re.escape(piece) for piece in kinds[USER_DEFINED]))
        words.append(pre_tokenizers.Split(symbols, behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    unknown = decoders.Replace(pieces[model.trainer_spec.unk_id][0], model.trainer_spec.unk_surface)
    blanks = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", LONGEST, 0)]
    tokenizer.decoder = decoders.Sequence([*blanks, unknown])
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in kinds[CONTROL]])
    special = [(piece, tokenizer.token_to_id(piece)) for piece in kinds[CONTROL]]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


def _model(model: Any, pieces: list[tuple[str, float]]) -> models.Model:
    unknown, bytes_too = model.trainer_spec.unk_id, model.trainer_spec.byte_fallback
    if model.trainer_spec.model_type == UNIGRAM:
        return models.Unigram(pieces, unknown, bytes_too)
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, i in ids.items():  # the earlier a piece, the earlier its merge
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [(i, ids[left], ids[right], left, right) for left, right in halves if left in ids and right in ids]
    ordered = [(left, right) for *_, left, right in sorted(merges)]
    return models.BPE(
        ids, ordered, unk_token=pieces[unknown][0], fuse_unk=True, byte_fallback=bytes_too, ignore_merges=True
    )


def _normalizer(model: Any) -> normalizers.Normalizer:
    steps = []
    if model.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap))
    # Blanks alone: other white space is a character like any other.
    steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)
