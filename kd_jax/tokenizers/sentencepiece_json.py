"""A SentencePiece model as a tokenizer.json, with the same ids for the same text."""

import re
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

MAX_LEADING_SPACES = 2**20  # that decoding strips; SentencePiece strips all
SPACE = "\u2581"  # stands for a space in the pieces
UNIGRAM, BPE = 1, 2  # ModelProto.TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # ModelProto.SentencePiece.Type


def parse_model(proto: bytes) -> Any:
    """Return a serialised SentencePiece model as a protobuf message."""
    # protobuf makes the class at import time, so that no checker sees it.
    return sentencepiece_model_pb2.ModelProto.FromString(proto)  # pyright: ignore[reportAttributeAccessIssue]


def to_tokenizer_json(path: Path, template: str) -> Tokenizer:
    """Return the tokenizer of a model that SentencePiece.prepare wrote; its `save` writes tokenizer.json.

    `template` has the special tokens around a text, such as "<s> $A </s>".
    """
    model = parse_model(path.read_bytes())
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(_model(model, pieces))
    # SentencePiece trims spaces only; other white space is an ordinary character.
    steps: list[Any] = [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        steps.insert(0, normalizers.Precompiled(charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    control, symbols = ([p.piece for p in model.pieces if p.type == kind] for kind in (CONTROL, USER_DEFINED))
    steps = [pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")]
    if symbols:
        pattern = Regex("|".join(re.escape(piece) for piece in symbols))
        steps.append(pre_tokenizers.Split(pattern, behavior="isolated"))
    # A text such as "</s>" is no special piece: it is split before its letter. Unknown characters stay together.
    special_texts = [re.split("(?=[a-z])", p.piece, maxsplit=1) for p in model.pieces if p.type in (UNKNOWN, CONTROL)]
    pattern = "|".join(f"{re.escape(first)}(?={re.escape(rest)})" for first, rest in special_texts)
    steps.append(pre_tokenizers.Split(Regex(pattern), behavior="merged_with_previous"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    unknown = decoders.Replace(pieces[model.trainer_spec.unk_id][0], model.trainer_spec.unk_surface)
    strip = decoders.Strip(" ", MAX_LEADING_SPACES, 0)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), strip, unknown]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    special = [(piece, tokenizer.token_to_id(piece)) for piece in control]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


def _model(model: Any, pieces: list[tuple[str, float]]) -> models.Model:
    """Return the Unigram or BPE model of the pieces."""
    unknown, byte_fallback = model.trainer_spec.unk_id, model.trainer_spec.byte_fallback
    if model.trainer_spec.model_type == UNIGRAM:
        return models.Unigram(pieces, unknown, byte_fallback)
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, i in ids.items():  # the smaller a piece's id, the earlier its merge
        halves = ((piece[:middle], piece[middle:]) for middle in range(1, len(piece)))
        merges += [(i, ids[left], ids[right], left, right) for left, right in halves if left in ids and right in ids]
    ordered = [(left, right) for *_, left, right in sorted(merges)]
    return models.BPE(
        ids, ordered, unk_token=pieces[unknown][0], fuse_unk=True, byte_fallback=byte_fallback, ignore_merges=True
    )
