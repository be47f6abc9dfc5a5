"""SentencePiece, trained on the training split alone."""

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import sentencepiece

from kd_jax.errors import KdError

PAD, START, EOS, UNKNOWN = range(4)
LONGEST = 2**30  # bytes; SentencePiece's own 4,192 would leave whole documents out of the training, unsaid


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """How the tokeniser is trained; source and target share it.

    Attributes:
      vocab_size: pieces, the four special ones included.
      model_type: "unigram" (arXiv 1804.10959) or "bpe".
      character_coverage: share of the characters that get a piece; 0.9995 for rich scripts.
      byte_fallback: spell unknown characters as bytes, at a price of 256 pieces.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "tokenizer.model"
      >>> SentencePiece(vocab_size=8, model_type="bpe").train(["ab ba", "ba ab"], path)
      >>> tokenizer = Tokenizer(path)
      >>> tokenizer.decode(tokenizer.encode("ba ab")), tokenizer.vocab_size
      ('ba ab', 8)
    """

    vocab_size: int = 4000
    model_type: Literal["unigram", "bpe"] = "unigram"
    character_coverage: float = 1.0
    byte_fallback: bool = False

    def check(self) -> None:
        """Raises KdError naming the field that is out of range."""
        if type(self.vocab_size) is not int or not UNKNOWN + 1 < self.vocab_size < 2**31:
            raise KdError(f"tokenizer.vocab_size: {self.vocab_size}; wanted a whole number above {UNKNOWN + 1}")
        if self.model_type not in ("unigram", "bpe"):
            raise KdError(f"tokenizer.model_type: {self.model_type!r}; wanted unigram or bpe")
        if not 0.98 <= self.character_coverage <= 1:
            raise KdError(f"tokenizer.character_coverage: {self.character_coverage}; wanted 0.98 to 1")

    def train(self, texts: Iterable[str], path: Path, symbols: Sequence[str] = ()) -> None:
        """Trains on `texts` and writes the model to `path`, by rename.

        Args:
          texts: of the training split.
          path: of the model.
          symbols: texts that become one piece each, such as language tags; they count in vocab_size.

        Raises:
          KdError: if the texts cannot fill the vocabulary.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                vocab_size=self.vocab_size,
                model_type=self.model_type,
                character_coverage=self.character_coverage,
                byte_fallback=self.byte_fallback,
                pad_id=PAD,
                bos_id=START,
                eos_id=EOS,
                unk_id=UNKNOWN,
                user_defined_symbols=list(symbols),
                max_sentence_length=LONGEST,
                num_threads=1,  # the pieces must not depend on the machine
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].rpartition("] ")[2]  # without the C++ condition
            raise KdError(
                f"tokenizer.vocab_size: {self.vocab_size} does not suit the training text: {reason}"
            ) from error
        beside = path.with_name(path.name + ".part")
        beside.write_bytes(model.getvalue())
        os.replace(beside, path)


class Tokenizer:
    """A trained tokeniser: text to ids and back; no special ids are added."""

    eos = EOS

    def __init__(self, path: Path):
        """Raises KdError if there is no such model."""
        if not path.exists():
            raise KdError(f"{path}: no tokeniser; run the phase `prepare` first")
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        self.vocab_size = self._processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Token ids; separators such as U+2028 are blanks, and what has no piece (NUL) is UNKNOWN."""
        return self._processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        return self._processor.decode([int(i) for i in ids])

    def pieces(self) -> list[str]:
        """The token strings, by id."""
        return [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

    def digest(self) -> str:
        """A digest of the pieces, in order: what ids mean, rather than how many there are."""
        return hashlib.blake2b("\n".join(self.pieces()).encode(), digest_size=16).hexdigest()


def first_difference(ours: Tokenizer, theirs: Tokenizer) -> str:
    """The first id at which two vocabularies differ, in words; "" where they are the same."""
    for i, (our, their) in enumerate(zip(ours.pieces(), theirs.pieces(), strict=False)):
        if our != their:
            return f"token {i} is {our!r} here, {their!r} there"
    if ours.vocab_size != theirs.vocab_size:
        return f"{ours.vocab_size} tokens here, {theirs.vocab_size} there"
    return ""
