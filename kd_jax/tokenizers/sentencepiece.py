"""SentencePiece, trained on the training split alone."""

import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import sentencepiece

from kd_jax.artifacts import manifest
from kd_jax.errors import KdError
from kd_jax.tokenizers import base
from kd_jax.tokenizers.to_json import tokenizer_json

PAD, START, EOS, UNKNOWN = range(4)
MODEL = "tokenizer.model"
LONGEST = 2**30  # bytes; SentencePiece's own 4,192 would leave whole documents out of the training, unsaid


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """How the tokeniser is trained; source and target share it.

    Attributes:
      vocab_size: pieces, the four special ones included.
      model_type: "unigram" (arXiv 1804.10959) or "bpe".
      character_coverage: share of the characters that get a piece; 0.9995 for rich scripts.
      byte_fallback: spell unknown characters as bytes, at a price of 256 pieces.
      sample: characters that it is trained on at most, drawn evenly from all training text; 0 for all. A unigram model
        takes about 21 bytes of memory for each.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> settings = SentencePiece(vocab_size=8, model_type="bpe")
      >>> settings.prepare(["ab ba", "ba ab"], folder)
      >>> tokenizer = settings.load(folder)
      >>> tokenizer.decode(tokenizer.encode("ba ab")), tokenizer.vocab_size
      ('ba ab', 8)
    """

    vocab_size: int = 4000
    model_type: Literal["unigram", "bpe"] = "unigram"
    character_coverage: float = 1.0
    byte_fallback: bool = False
    sample: int = 30_000_000

    pretrained: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = (MODEL,)

    def check(self) -> None:
        """Raises KdError naming the field that is out of range."""
        if type(self.vocab_size) is not int or not UNKNOWN + 1 < self.vocab_size < 2**31:
            raise KdError(f"tokenizer.vocab_size: {self.vocab_size}; wanted a whole number above {UNKNOWN + 1}")
        if self.model_type not in ("unigram", "bpe"):
            raise KdError(f"tokenizer.model_type: {self.model_type!r}; wanted unigram or bpe")
        if not 0.98 <= self.character_coverage <= 1:
            raise KdError(f"tokenizer.character_coverage: {self.character_coverage}; wanted 0.98 to 1")
        if type(self.sample) is not int or self.sample < 0:
            raise KdError(f"tokenizer.sample: {self.sample}; wanted a number of characters, or 0 for all")

    def input_files(self) -> tuple[Path, ...]:
        """As TokenizerSettings.sources: none."""
        return ()

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """As TokenizerSettings.prepare: trains the model and writes it by rename; symbols count in vocab_size.

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
        manifest.write_bytes(folder / MODEL, model.getvalue())

    def load(self, folder: Path) -> "SentencePieceTokenizer":
        """As TokenizerSettings.load."""
        base.require([folder / MODEL])
        return SentencePieceTokenizer(folder / MODEL)


class SentencePieceTokenizer:
    """A trained SentencePiece model, as a Tokenizer."""

    start, eos, pad, forced_prefix, suppress_tokens, rows_V = START, EOS, PAD, (), (), None

    def __init__(self, path: Path):
        self._path = path
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        self.vocab_size = self._processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """As Tokenizer.encode; separators such as U+2028 are blanks, and what has no piece (NUL) is UNKNOWN."""
        return self._processor.encode(text)

    def encode_prompt(self, text: str, most: int = 0) -> list[int]:
        """As Tokenizer.prompt: the text's tokens and the end."""
        ids = self.encode(text)
        return [*(ids[:most] if most else ids), EOS]

    def decode(self, ids: Sequence[int]) -> str:
        """As Tokenizer.decode."""
        return self._processor.decode([int(i) for i in ids])

    def pieces(self) -> list[str]:
        """As Tokenizer.pieces."""
        return [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """As Tokenizer.export: tokenizer.json and tokenizer_config.json."""
        # As in T5, Marian and Pegasus, an encoder-decoder's decoding begins with what pads: converters such as
        # CTranslate2's take one for the other.
        has_encoder = family == "encoder_decoder"
        pad = START if has_encoder else PAD
        template = "$A </s>" if has_encoder or prompted else "$A"
        tokenizer = tokenizer_json(self._path, template if has_encoder else f"<s> {template}")
        tokenizer.save(str(to / "tokenizer.json"))
        words = {"pad_token": pad, "bos_token": START, "eos_token": EOS, "unk_token": UNKNOWN}
        settings = {name: tokenizer.id_to_token(token) for name, token in words.items()}
        side = {} if has_encoder else {"padding_side": "left"}
        manifest.write_json(to / "tokenizer_config.json", base.GENERAL | settings | side)
        ids = {"pad_token_id": pad, "bos_token_id": START, "eos_token_id": EOS}
        return ids | ({"decoder_start_token_id": START} if has_encoder else {})
