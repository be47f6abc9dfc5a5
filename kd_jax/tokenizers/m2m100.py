"""M2M100's tokeniser: one SentencePiece model, vocab.json numbers its pieces, and the languages' tokens follow them."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kd_jax.artifacts import files, manifest
from kd_jax.errors import KdError
from kd_jax.tokenizers import base
from kd_jax.tokenizers.folder import suppress_tokens, conventions, special_tokens
from kd_jax.tokenizers.marian import CONFIG, OURS, ROWS, SOURCE, TARGET, VOCAB, Marian

MODEL = "sentencepiece.bpe.model"
TOKENS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
CODES = {  # by language_codes of tokenizer_config.json, in the order of their ids; no file of the model says it
    "m2m100": "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr "
    "ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps "
    "pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu",
    "wmt21": "en ha is ja cs ru zh de",
}
LANGUAGES = {f"__{code}__" for codes in CODES.values() for code in codes.split()}


@dataclasses.dataclass(frozen=True)
class M2M100Tokenizer:
    """The tokeniser of an M2M100 model, read from a local folder; HuggingFaceTokenizer becomes it at such a folder.

    The ids are those of transformers' M2M100Tokenizer, but that a text which only spells a token holds none.

    Attributes:
      folder: with sentencepiece.bpe.model, vocab.json, tokenizer_config.json, and the model's config.json.
      source, target: tokens of the languages that are read and written, such as "__en__" and "__fr__"; "" for the
        folder's src_lang and tgt_lang.

    Examples:
      >>> M2M100Tokenizer("models/none").check()
      Traceback (most recent call last):
      kd_jax.errors.KdError: tokenizer.folder: 'models/none' has no sentencepiece.bpe.model; wanted an M2M100 folder \
whole, with sentencepiece.bpe.model, vocab.json, tokenizer_config.json
    """

    folder: str = ""
    source: str = ""
    target: str = ""

    pretrained: ClassVar[bool] = True
    sample: ClassVar[int] = 0
    cut: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = (MODEL, VOCAB, CONFIG, OURS, ROWS)

    @property
    def vocab_size(self) -> int:
        """Tokens of the whole tokeniser."""
        return max(self._vocab().values()) + 1

    def with_folder(self, folder: str) -> "M2M100Tokenizer":
        """The same for a folder."""
        return dataclasses.replace(self, folder=folder)

    def check(self) -> None:
        """Raises KdError if files are missing, or a token is none."""
        names = (MODEL, VOCAB, CONFIG)
        for name in names:
            if not (Path(self.folder) / name).exists():
                raise KdError(
                    f"tokenizer.folder: {self.folder!r} has no {name}; wanted an M2M100 folder whole, with "
                    f"{', '.join(names)}"
                )
        self._special()

    def input_files(self) -> tuple[Path, ...]:
        """As TokenizerSettings.sources."""
        names = (MODEL, VOCAB, CONFIG, "config.json", "generation_config.json")
        return tuple(Path(self.folder) / name for name in names if (Path(self.folder) / name).exists())

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """As TokenizerSettings.prepare: copies the tokeniser, its languages numbered too.

        Raises:
          KdError: if one of the symbols is no token.
        """
        del texts  # of which there are no pieces to learn
        vocab, special, settings = self._vocab(), self._special(), manifest.read_json(Path(self.folder) / CONFIG)
        for symbol in symbols:
            if symbol not in vocab:
                raise KdError(f"task.directions: the tag {symbol} is no token of {self.folder!r}; wanted its languages")
        codes = {
            field: special["tokens"][name].strip("_")
            for field, name in (("src_lang", "source"), ("tgt_lang", "target"))
        }
        manifest.write_bytes(folder / MODEL, (Path(self.folder) / MODEL).read_bytes())
        manifest.write_json(folder / VOCAB, vocab)
        manifest.write_json(folder / CONFIG, settings | codes)
        manifest.write_json(folder / OURS, special)
        manifest.write_array(folder / ROWS, np.arange(max(vocab.values()) + 1, dtype=np.int32))

    def load(self, folder: Path) -> "M2M100":
        """As TokenizerSettings.load."""
        base.require(folder / name for name in self.files)
        vocab, special = (manifest.read_json(folder / name) for name in (VOCAB, OURS))
        return M2M100((folder / MODEL).read_bytes(), vocab, special, files.read_array(folder / ROWS), folder)

    def _vocab(self) -> dict[str, int]:
        """Token -> id, the languages' among them."""
        pieces = manifest.read_json(Path(self.folder) / VOCAB)
        known = manifest.read_json(Path(self.folder) / CONFIG).get("language_codes", "m2m100")
        if known not in CODES:
            raise KdError(f"tokenizer.folder: {CONFIG} has language_codes {known!r}; wanted one of {', '.join(CODES)}")
        return pieces | {f"__{code}__": len(pieces) + i for i, code in enumerate(CODES[known].split())}

    def _special(self) -> dict[str, Any]:
        """What begins and ends texts, as MarianTokenizer's, with the languages among the tokens."""
        vocab, settings = self._vocab(), manifest.read_json(Path(self.folder) / CONFIG)
        words, said = {i: word for word, i in vocab.items()}, conventions(Path(self.folder))
        tokens = TOKENS | special_tokens(settings, TOKENS)
        tokens["start"] = words.get(said.get("decoder_start_token_id"), tokens["eos"])
        for field, key in (("source", "src_lang"), ("target", "tgt_lang")):
            code = settings.get(key)
            tokens[field] = vars(self)[field] or (f"__{code}__" if code else "")
        for name, token in tokens.items():
            if token not in vocab:
                language = name in ("source", "target")
                raise KdError(
                    f"tokenizer.{name if language else 'folder'}: {token!r} is no token of {self.folder!r}; wanted "
                    + ("one such as __en__" if language else "the files of one model")
                )
        return {"tokens": tokens, "target": "", "suppress_tokens": [words[i] for i in suppress_tokens(said) if i in words]}


class M2M100(Marian):
    """One SentencePiece model, with the language in front of what is read and of what is written."""

    def __init__(self, model: bytes, vocab: dict[str, int], special: dict[str, Any], rows_V: np.ndarray, folder: Path):
        """Args: as Marian's, of one model."""
        super().__init__({SOURCE: model, TARGET: model}, vocab, special, rows_V, folder)
        self._unwritten |= LANGUAGES
        self.forced_prefix = (vocab[special["tokens"]["target"]],)

    def language(self, text: str) -> tuple[list[str], str]:
        """The token of the language that is read, and the text."""
        return [self._special["tokens"]["source"]], text

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """As Tokenizer.export, for transformers' M2M100Tokenizer, which numbers the languages itself."""
        (to / MODEL).write_bytes((self._folder / MODEL).read_bytes())
        pieces = {word: i for word, i in self._vocab.items() if word not in LANGUAGES}
        manifest.write_json(to / VOCAB, pieces)
        tokens = {f"{name}_token": self._special["tokens"][name] for name in TOKENS}
        languages = sorted(set(self._vocab) - set(pieces), key=self._vocab.__getitem__)
        settings = {"additional_special_tokens": languages, "tokenizer_class": "M2M100Tokenizer"}
        manifest.write_json(to / CONFIG, manifest.read_json(self._folder / CONFIG) | tokens | settings)
        ids = {"eos_token_id": self.eos, "pad_token_id": self.pad}
        return ids | ({"decoder_start_token_id": self.start} if family == "encoder_decoder" else {})
