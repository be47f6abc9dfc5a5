"""M2M100's tokenizers: one SentencePiece model, the ids of its pieces in vocab.json, and language tokens after them."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from kd_jax.artifacts import manifest
from kd_jax.errors import KdError
from kd_jax.tokenizers import base, generation_config, hf_folder
from kd_jax.tokenizers.hf_folder import ROWS, SPECIAL, TOKENIZER_CONFIG, VOCAB, FolderTokenizer
from kd_jax.tokenizers.marian import SOURCE, TARGET, LoadedMarian, MarianSpecialTokens, require_tokens, special_tokens

MODEL = "sentencepiece.bpe.model"
TOKENS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
# language_codes of tokenizer_config.json -> the languages in the order of their ids; no file of a model lists them.
CODES = {
    "m2m100": "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr "
    "ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps "
    "pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu",
    "wmt21": "en ha is ja cs ru zh de",
}
LANGUAGES = frozenset(f"__{code}__" for codes in CODES.values() for code in codes.split())


@dataclasses.dataclass(frozen=True)
class M2M100Tokenizer(FolderTokenizer):
    """The tokenizer of an M2M100 model in a local folder; HuggingFaceTokenizer.with_folder gives it.

    The ids are those of transformers' M2M100Tokenizer, except that texts such as "</s>" are encoded as characters.

    Attributes:
      folder: with sentencepiece.bpe.model, vocab.json, tokenizer_config.json, and the model's config.json.
      source: token of the source language, such as "__en__"; "" for the folder's src_lang.
      target: token of the target language, such as "__fr__"; "" for the folder's tgt_lang.

    Examples:
      >>> M2M100Tokenizer("models/none").check()
      Traceback (most recent call last):
      kd_jax.errors.KdError: tokenizer.folder: expected an M2M100 folder with sentencepiece.bpe.model, vocab.json, \
tokenizer_config.json, got 'models/none' without sentencepiece.bpe.model. Copy the missing file, or name another local \
folder.
    """

    source: str = ""
    target: str = ""

    kind: ClassVar[str] = "an M2M100 folder"
    required: ClassVar[tuple[str, ...]] = (MODEL, VOCAB, TOKENIZER_CONFIG)
    files: ClassVar[tuple[str, ...]] = (*required, SPECIAL, ROWS)
    cut = False  # a BPE SentencePiece model cannot be pruned

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the folder's tokenizer."""
        return max(self._vocab().values()) + 1

    def with_folder(self, folder: str) -> "M2M100Tokenizer":
        """Return these settings for another folder."""
        return dataclasses.replace(self, folder=folder)

    def check(self) -> None:
        """Raise KdError if files or special tokens are missing."""
        self.require_files()
        self._special_tokens()

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """Copy the tokenizer, with the ids of the languages in vocab.json; the texts change nothing."""
        vocab, special = self._vocab(), self._special_tokens()
        for symbol in symbols:
            if symbol not in vocab:
                raise KdError(
                    f"task.directions: expected languages of {self.folder!r}, got the tag {symbol}, which is not a "
                    "token. Use the model's languages."
                )
        config = self.read_json(TOKENIZER_CONFIG)
        config |= {"src_lang": special.tokens["source"].strip("_"), "tgt_lang": special.tokens["target"].strip("_")}
        manifest.write_bytes(folder / MODEL, (Path(self.folder) / MODEL).read_bytes())
        manifest.write_json(folder / VOCAB, vocab)
        manifest.write_json(folder / TOKENIZER_CONFIG, config)
        hf_folder.write_special(folder, special, list(range(max(vocab.values()) + 1)))

    def load(self, folder: Path) -> "LoadedM2M100":
        """Return the tokenizer that `prepare` wrote."""
        base.require_files(folder, self.files)
        return LoadedM2M100(folder, *hf_folder.read_special(folder, MarianSpecialTokens))

    def _vocab(self) -> dict[str, int]:
        """Return token -> id, with the languages."""
        pieces = self.read_vocab()
        codes = self.read_json(TOKENIZER_CONFIG).get("language_codes", "m2m100")
        if codes not in CODES:
            raise KdError(
                f"tokenizer.folder: expected language_codes {' or '.join(CODES)} in {TOKENIZER_CONFIG}, got {codes!r}. "
                "Use a folder of these models."
            )
        return pieces | {f"__{code}__": len(pieces) + i for i, code in enumerate(CODES[codes].split())}

    def _special_tokens(self) -> MarianSpecialTokens:
        """Read the special tokens of the folder, the two languages among them."""
        vocab, config = self._vocab(), self.read_json(TOKENIZER_CONFIG)
        words, model_config = {i: token for token, i in vocab.items()}, hf_folder.read_model_config(Path(self.folder))
        tokens: dict[str, str] = TOKENS | hf_folder.named_tokens(config, TOKENS)
        start = generation_config.token_of(model_config, "decoder_start_token_id", words)
        tokens["start"] = start or tokens["eos"]
        require_tokens(tokens, vocab, self.folder)
        for role, field, language in (("source", "src_lang", self.source), ("target", "tgt_lang", self.target)):
            tokens[role] = language or (f"__{config[field]}__" if config.get(field) else "")
            if tokens[role] not in vocab:
                raise KdError(
                    f"tokenizer.{role}: expected a language token of {self.folder!r}, got {tokens[role]!r}. Name one, "
                    "such as __en__."
                )
        return special_tokens(tokens, "", model_config, words, set())


class LoadedM2M100(LoadedMarian):
    """A `Tokenizer` of one SentencePiece model, with a language token before source and completion."""

    model_files = {SOURCE: MODEL, TARGET: MODEL}
    language_tokens = LANGUAGES
    exported_class = {"tokenizer_class": "M2M100Tokenizer", "split_special_tokens": True}

    def split_language(self, text: str) -> tuple[list[str], str]:
        """Return the token of the source language, and the text."""
        return [self._special.tokens["source"]], text

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """Write the files of transformers' M2M100Tokenizer, which numbers the languages itself."""
        (to / MODEL).write_bytes((self._folder / MODEL).read_bytes())
        pieces = {token: i for token, i in self._vocab.items() if token not in LANGUAGES}
        manifest.write_json(to / VOCAB, pieces)
        tokens = {f"{role}_token": self._special.tokens[role] for role in TOKENS}
        languages = sorted(set(self._vocab) - set(pieces), key=self._vocab.__getitem__)
        config = manifest.read_json(self._folder / TOKENIZER_CONFIG) | tokens
        config |= {"additional_special_tokens": languages, **self.exported_class}
        manifest.write_json(to / TOKENIZER_CONFIG, config)
        return self._config_ids(family)
