"""SentencePiece tokenizers, trained on the training split."""

import dataclasses
import io
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import sentencepiece

from kd_jax.artifacts import manifest
from kd_jax.config import MAX_VOCAB, check_count
from kd_jax.errors import KdError
from kd_jax.runtime import preemption
from kd_jax.tokenizers import base
from kd_jax.tokenizers.base import PromptFormat
from kd_jax.tokenizers.hf_folder import COMMON_CONFIG, TOKENIZER_CONFIG
from kd_jax.tokenizers.sentencepiece_json import to_tokenizer_json

PAD, START, EOS, UNKNOWN = range(4)
MODEL = "tokenizer.model"
NORMALIZATIONS = ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity")
LONG_TEXT, PART_LENGTH = 16_384, 2048  # characters of a training text
BYTE_PIECE, BLANK = re.compile(r"<0x([0-9A-F]{2})>"), "\u2581"
MAX_BYTES = 2**30  # of a training text; SentencePiece's default of 4,192 silently skips longer documents


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """Settings of a SentencePiece tokenizer that is trained on the training split; source and target share it.

    Attributes:
      vocab_size: number of pieces, with the four special ones.
      model_type: "unigram" (arXiv 1804.10959) or "bpe".
      character_coverage: share of the characters that get a piece; 0.9995 for rich scripts.
      byte_fallback: whether to spell unknown characters as bytes, which takes 256 pieces.
      normalization: SentencePiece's rule for every text before it is split. "nmt_nfkc" is NFKC with blanks in place of
        tabs, newlines and joiners (U+200C, U+200D), which Persian and Indic scripts need: use "nfkc" for them.
        "nmt_nfkc_cf" and "nfkc_cf" fold case too, "identity" changes nothing.
      sample: maximum number of characters of training text, drawn uniformly; 0 for all. Training a unigram model takes
        about 21 bytes of memory per character.

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
    normalization: Literal["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"] = "nmt_nfkc"
    sample: int = 30_000_000

    pretrained: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = (MODEL,)

    def check(self) -> None:
        """Raise KdError if a field has an invalid value."""
        check_count("tokenizer.vocab_size", self.vocab_size, UNKNOWN + 2, MAX_VOCAB)
        if self.model_type not in ("unigram", "bpe"):
            raise KdError(f"tokenizer.model_type: expected unigram or bpe, got {self.model_type!r}. Choose one.")
        if self.normalization not in NORMALIZATIONS:
            names = ", ".join(NORMALIZATIONS)
            raise KdError(f"tokenizer.normalization: expected {names}, got {self.normalization!r}. Choose one.")
        if not 0.98 <= self.character_coverage <= 1:
            coverage = self.character_coverage
            raise KdError(f"tokenizer.character_coverage: expected a share in [0.98, 1], got {coverage}. Use 1.0.")
        check_count("tokenizer.sample", self.sample, 0, remedy="Use 0 for all.")

    def input_files(self) -> tuple[Path, ...]:
        """Return no files: the training texts alone decide the tokenizer."""
        return ()

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """Train the model and write it; the symbols count in vocab_size."""
        model, failures = io.BytesIO(), list[BaseException]()

        def readable() -> Iterator[str]:
            try:
                yield from split_long(texts)
            except BaseException as error:  # SentencePiece would raise another in its place
                failures.append(error)

        def train() -> None:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=readable(),
                model_writer=model,
                vocab_size=self.vocab_size,
                model_type=self.model_type,
                character_coverage=self.character_coverage,
                byte_fallback=self.byte_fallback,
                normalization_rule_name=self.normalization,
                pad_id=PAD,
                bos_id=START,
                eos_id=EOS,
                unk_id=UNKNOWN,
                user_defined_symbols=list(symbols),
                max_sentence_length=MAX_BYTES,
                num_threads=1,  # more threads make the pieces depend on the machine
                minloglevel=2,
            )

        try:
            call_in_thread(train)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].rpartition("] ")[2]  # without the C++ condition
            unsuitable = KdError(
                f"tokenizer.vocab_size: expected a size that suits the training text, got {self.vocab_size}. "
                f"SentencePiece: {reason}"
            )
            raise (failures or [unsuitable])[0] from error
        if failures:
            raise failures[0]
        manifest.write_bytes(folder / MODEL, model.getvalue())

    def load(self, folder: Path) -> "SentencePieceTokenizer":
        """Return the tokenizer that `prepare` wrote."""
        base.require_files(folder, self.files)
        return SentencePieceTokenizer(folder / MODEL)


def split_long(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts of at most LONG_TEXT characters as they are, and longer ones in parts that end with a space.

    SentencePiece's time grows with the square of the length of a text that repeats itself, and it fails on very long
    words. No piece spans a space, so only words of more than a part's length are cut.

    Examples:
      >>> [len(part) for part in split_long(["a" * LONG_TEXT, "word " * 4096])]
      [16384, 2045, 2045, 2045, 2045, 2045, 2045, 2045, 2045, 2045, 2045, 30]
    """
    for text in texts:
        start, size = 0, PART_LENGTH if len(text) > LONG_TEXT else LONG_TEXT
        while start < len(text):
            end = start + size
            if end < len(text):
                end = text.rfind(" ", start, end) + 1 or end
            yield text[start:end]
            start = end


def call_in_thread(function: Callable[[], None]) -> None:
    """Call a function in another thread, while this one takes signals and polls for a stop."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)  # a stopped process does not wait for it
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        preemption.poll()
    if errors:
        raise errors[0]


class SentencePieceTokenizer:
    """A `Tokenizer` of a trained SentencePiece model."""

    start: int = START
    eos: int = EOS
    pad: int = PAD
    forced_prefix: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    ends: tuple[int, ...] = (EOS,)
    suppress_first: tuple[int, ...] = ()
    force_end: bool = False
    prompt_format = PromptFormat()
    rows_V: np.ndarray | None = None

    def __init__(self, path: Path):
        """Read the model file."""
        self._path = path
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
            self.vocab_size = self._processor.get_piece_size()
        except RuntimeError:
            self.vocab_size = 0
        if not self.vocab_size:  # an empty file is not even parsed
            raise KdError(f"{path}: expected a SentencePiece model, got other bytes. Run its phase with --force again.")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; separators such as U+2028 become spaces, characters without a piece UNKNOWN."""
        return self._processor.encode(text)

    def encode_prompt(self, text: str, max_tokens: int = 0) -> list[int]:
        """Return the ids of a text and the end."""
        ids = self.encode(text)
        return [*(ids[:max_tokens] if max_tokens else ids), EOS]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self._processor.decode([int(i) for i in ids])

    def pieces(self) -> list[str]:
        """Return the vocabulary's strings, ordered by id."""
        return [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

    def token_bytes(self) -> list[bytes | None]:
        """Return the bytes that each piece adds to a text."""
        return processor_bytes(self._processor)

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """Write tokenizer.json and tokenizer_config.json."""
        # The decoder of T5, Marian and Pegasus begins with the padding token. Converters such as CTranslate2's rely on
        # that, so an encoder-decoder's padding token is exported as its start token.
        has_encoder = family == "encoder_decoder"
        pad = START if has_encoder else PAD
        template = "$A </s>" if has_encoder or prompted else "$A"
        tokenizer = to_tokenizer_json(self._path, template if has_encoder else f"<s> {template}")
        tokenizer.save(str(to / "tokenizer.json"))
        special = {"pad_token": pad, "bos_token": START, "eos_token": EOS, "unk_token": UNKNOWN}
        config = COMMON_CONFIG | {name: tokenizer.id_to_token(i) for name, i in special.items()}
        if not has_encoder:
            config["padding_side"] = "left"
        manifest.write_json(to / TOKENIZER_CONFIG, config)
        ids = {"pad_token_id": pad, "bos_token_id": START, "eos_token_id": EOS}
        return ids | ({"decoder_start_token_id": START} if has_encoder else {})


def processor_bytes(processor: sentencepiece.SentencePieceProcessor) -> list[bytes | None]:
    """Return the bytes that each piece of a model adds to a text: b"" for control pieces, None for the unknown one."""
    return [
        b"" if processor.is_control(i) else None if processor.is_unknown(i) else piece_bytes(processor.id_to_piece(i))
        for i in range(processor.get_piece_size())
    ]


def piece_bytes(piece: str) -> bytes:
    """Return the bytes of a piece in which U+2581 is a space and <0x0A> a byte.

    Examples:
      >>> piece_bytes(f"{BLANK}a"), list(piece_bytes("<0x0A>"))
      (b' a', [10])
    """
    is_byte = BYTE_PIECE.fullmatch(piece)
    return bytes([int(is_byte[1], 16)]) if is_byte else piece.replace(BLANK, " ").encode()
