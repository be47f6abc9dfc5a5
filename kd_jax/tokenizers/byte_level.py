"""Tokenizers whose tokens are the bytes of UTF-8."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from kd_jax.artifacts import manifest
from kd_jax.errors import KdError
from kd_jax.tokenizers import base, post_processor
from kd_jax.tokenizers.base import PromptFormat
from kd_jax.tokenizers.hf_folder import COMMON_CONFIG, TOKENIZER_CONFIG
from kd_jax.tokenizers.sentencepiece import EOS, PAD, START, UNKNOWN
from kd_jax.tokenizers.tokenizer_json import byte_letters

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
FIRST = len(SPECIAL)  # id of the byte 0
SYMBOLS = "symbols.json"


@dataclasses.dataclass(frozen=True)
class ByteLevel:
    """Settings of a byte-level tokenizer: each byte of UTF-8 is a token (ByT5, arXiv 2105.13626).

    It needs no training and writes every text. Rows are longer: an English word takes about five tokens.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> ByteLevel().prepare(["any text"], folder)
      >>> tokenizer = ByteLevel().load(folder)
      >>> tokenizer.encode("né"), tokenizer.decode(tokenizer.encode("né")), tokenizer.vocab_size
      ([114, 199, 173], 'né', 260)
    """

    pretrained: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = (SYMBOLS,)

    @property
    def vocab_size(self) -> int:
        """Number of tokens without symbols: 256 bytes and four special ones."""
        return FIRST + 256

    @property
    def sample(self) -> int:
        """Return 1: no training text is read."""
        return 1

    def check(self) -> None:
        """Do nothing: there are no fields."""

    def input_files(self) -> tuple[Path, ...]:
        """Return no files."""
        return ()

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """Write the symbols, which get the ids after the bytes."""
        manifest.write_json(folder / SYMBOLS, list(symbols))

    def load(self, folder: Path) -> "ByteLevelTokenizer":
        """Return the tokenizer that `prepare` wrote."""
        base.require_files(folder, self.files)
        return ByteLevelTokenizer(manifest.read_json(folder / SYMBOLS))


class ByteLevelTokenizer:
    """A `Tokenizer` of bytes, and of a few symbols that are single tokens."""

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

    def __init__(self, symbols: Sequence[str]):
        """Give each symbol the next id after the bytes."""
        self._symbols = {symbol.encode(): FIRST + 256 + n for n, symbol in enumerate(symbols)}
        self._bytes = [b"", b"", b"", None, *(bytes([byte]) for byte in range(256)), *self._symbols]
        self.vocab_size = len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; a symbol is one token wherever it stands."""
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise KdError(f"text: expected Unicode without lone surrogates, got {text[:30]!r}. Remove them.") from error
        if not self._symbols:
            return [FIRST + byte for byte in data]
        ids, place = [], 0
        while place < len(data):
            symbol = next((s for s in self._symbols if data.startswith(s, place)), None)
            ids.append(self._symbols[symbol] if symbol else FIRST + data[place])
            place += len(symbol) if symbol else 1
        return ids

    def encode_prompt(self, text: str, max_tokens: int = 0) -> list[int]:
        """Return the ids of a text and the end."""
        ids = self.encode(text)
        return [*(ids[:max_tokens] if max_tokens else ids), EOS]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._bytes[int(i)] or b"" for i in ids).decode(errors="replace")

    def token_bytes(self) -> list[bytes | None]:
        """Return the bytes of each token."""
        return list(self._bytes)

    def pieces(self) -> list[str]:
        """Return the vocabulary's strings, ordered by id."""
        return [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *(s.decode() for s in self._symbols)]

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """Write tokenizer.json, a byte-level BPE without merges, and tokenizer_config.json."""
        has_encoder = family == "encoder_decoder"
        letters = byte_letters()
        vocab = {token: i for i, token in enumerate(SPECIAL)}
        vocab |= {letters[byte]: FIRST + byte for byte in range(256)}
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(list(SPECIAL))
        tokenizer.add_tokens([symbol.decode() for symbol in self._symbols])
        around = ["$A", SPECIAL[EOS]] if has_encoder or prompted else ["$A"]
        spec = json.loads(tokenizer.to_str())
        spec["post_processor"] = post_processor.template(around if has_encoder else [SPECIAL[START], *around], vocab)
        manifest.write_text(to / "tokenizer.json", json.dumps(spec, ensure_ascii=False))
        names = {"pad_token": START if has_encoder else PAD, "bos_token": START, "eos_token": EOS, "unk_token": UNKNOWN}
        config = COMMON_CONFIG | {name: SPECIAL[i] for name, i in names.items()}
        if not has_encoder:
            config["padding_side"] = "left"
        manifest.write_json(to / TOKENIZER_CONFIG, config)
        ids = {"pad_token_id": names["pad_token"], "bos_token_id": START, "eos_token_id": EOS}
        return ids | ({"decoder_start_token_id": START} if has_encoder else {})
