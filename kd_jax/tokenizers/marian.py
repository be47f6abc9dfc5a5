"""Marian's tokeniser (OPUS-MT): one SentencePiece model reads, another writes, and vocab.json numbers their pieces."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from kd_jax.artifacts import files, manifest
from kd_jax.errors import KdError
from kd_jax.tokenizers import base
from kd_jax.tokenizers.folder import suppress_tokens, conventions, renumbered, special_tokens
from kd_jax.tokenizers.to_json import BLANK, UNIGRAM

SOURCE, TARGET, VOCAB, CONFIG = "source.spm", "target.spm", "vocab.json", "tokenizer_config.json"
OURS, ROWS = "tokenizer_special.json", "tokenizer_rows.npy"
TOKENS = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}  # where tokenizer_config.json names no others
NORMAL = 1  # ModelProto.SentencePiece.Type
BEGIN, END = ">>", "<<"  # around a language's name


@dataclasses.dataclass(frozen=True)
class MarianTokenizer:
    """The tokeniser of a Marian model, read from a local folder; HuggingFaceTokenizer becomes it at such a folder.

    The ids are those of transformers' MarianTokenizer, but that a text which only spells </s> holds none, and that
    ">>...<<" in front of a source is a language only where it is a token. Decoding begins with the pad, which was added
    to the vocabulary for that, and never writes it.

    Attributes:
      folder: with source.spm, target.spm, vocab.json, tokenizer_config.json, and the model's config.json.
      target: token of the language to write, which is put in front of every source, where the model has several, such
        as ">>fra<<"; "" where it has one, or the sources begin with it themselves.
      cut: as HuggingFaceTokenizer's.

    Examples:
      >>> MarianTokenizer("models/none").check()
      Traceback (most recent call last):
      kd_jax.errors.KdError: tokenizer.folder: 'models/none' has no source.spm; wanted a Marian folder whole, with \
source.spm, target.spm, vocab.json, tokenizer_config.json
    """

    folder: str = ""
    target: str = ""
    cut: bool = False

    pretrained: ClassVar[bool] = True
    sample: ClassVar[int] = 0
    files: ClassVar[tuple[str, ...]] = (SOURCE, TARGET, VOCAB, CONFIG, OURS, ROWS)

    @property
    def vocab_size(self) -> int:
        """Tokens of the whole tokeniser."""
        return max(self._json(VOCAB).values()) + 1

    def with_folder(self, folder: str) -> "MarianTokenizer":
        """The same for a folder."""
        return dataclasses.replace(self, folder=folder)

    def check(self) -> None:
        """Raises KdError if files are missing or not of one model, or a token is none."""
        names = (SOURCE, TARGET, VOCAB, CONFIG)
        for name in names:
            if not (Path(self.folder) / name).exists():
                raise KdError(
                    f"tokenizer.folder: {self.folder!r} has no {name}; wanted a Marian folder whole, with "
                    f"{', '.join(names)}"
                )
        if self._json(CONFIG).get("separate_vocabs"):
            raise KdError(
                f"tokenizer.folder: {self.folder!r} has separate_vocabs; wanted one vocabulary of both languages"
            )
        vocab = self._json(VOCAB)
        for name in (SOURCE, TARGET):
            pieces = _words(_model(name, (Path(self.folder) / name).read_bytes()))
            numbered = sum(piece in vocab for piece in pieces)
            if 2 * numbered < len(pieces):
                raise KdError(
                    f"tokenizer.folder: {VOCAB} of {self.folder!r} has {numbered} of the {len(pieces)} pieces of "
                    f"{name}; wanted the files of one model"
                )
        self._special()

    def input_files(self) -> tuple[Path, ...]:
        """As TokenizerSettings.sources."""
        names = (SOURCE, TARGET, VOCAB, CONFIG, "config.json", "generation_config.json")
        return tuple(Path(self.folder) / name for name in names if (Path(self.folder) / name).exists())

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """As TokenizerSettings.prepare: copies the tokeniser, cut to what the texts use where that is wanted.

        Raises:
          KdError: if one of the symbols is no token, or a model that is no unigram model is to be cut.
        """
        given, vocab, special, settings = Path(self.folder), self._json(VOCAB), self._special(), self._json(CONFIG)
        if symbols:
            raise KdError(
                f"task.directions: the tags {', '.join(symbols)} are no tokens of {self.folder!r}; wanted one "
                "direction, and tokenizer.target or sources that begin with Marian's own, such as '>>fra<<'"
            )
        models = {name: (given / name).read_bytes() for name in (SOURCE, TARGET)}
        rows = list(range(max(vocab.values()) + 1))
        if self.cut:
            models, words = _cut(Marian(models, vocab, special, None), models, texts)
            words |= {*special["tokens"].values(), *special["suppress_tokens"], *([self.target] if self.target else [])}
            rows = sorted(vocab[word] for word in words if word in vocab)
            number = {old: new for new, old in enumerate(rows)}
            vocab = {word: number[old] for word, old in vocab.items() if old in number}
            settings = renumbered(settings, number)
        for name, model in models.items():
            manifest.write_bytes(folder / name, model)
        manifest.write_json(folder / VOCAB, vocab)
        manifest.write_json(folder / CONFIG, settings)
        manifest.write_json(folder / OURS, special)
        manifest.write_array(folder / ROWS, np.asarray(rows, np.int32))

    def load(self, folder: Path) -> "Marian":
        """As TokenizerSettings.load."""
        base.require(folder / name for name in self.files)
        models = {name: (folder / name).read_bytes() for name in (SOURCE, TARGET)}
        vocab, special = (manifest.read_json(folder / name) for name in (VOCAB, OURS))
        return Marian(models, vocab, special, files.read_array(folder / ROWS), folder)

    def _json(self, name: str) -> dict[str, Any]:
        return manifest.read_json(Path(self.folder) / name)

    def _special(self) -> dict[str, Any]:
        """What begins and ends texts, JSON-able: {"tokens": name -> token, "target", "suppress_tokens": tokens}."""
        vocab, said = self._json(VOCAB), conventions(Path(self.folder))
        words = {i: word for word, i in vocab.items()}
        tokens = TOKENS | special_tokens(self._json(CONFIG), TOKENS)
        if "decoder_start_token_id" in said:
            tokens["start"] = words.get(said["decoder_start_token_id"])
        else:
            tokens["start"] = tokens["pad"]
        for name, token in tokens.items():
            if token not in vocab:
                raise KdError(
                    f"tokenizer.folder: {VOCAB} of {self.folder!r} lacks {name}, {token!r}; wanted the files of one "
                    "model"
                )
        if self.target and self.target not in vocab:
            known = " ".join([word for word in vocab if word.startswith(BEGIN) and word.endswith(END)][:5])
            raise KdError(
                f"tokenizer.target: {self.target!r} is no token of {self.folder!r}; wanted "
                + (f"one such as {known}" if known else "'': it writes one language")
            )
        never = {tokens["pad"], *(words[i] for i in suppress_tokens(said) if i in words)}
        return {"tokens": tokens, "target": self.target, "suppress_tokens": sorted(never)}


class Marian:
    """Two SentencePiece models over one vocabulary, as a Tokenizer."""

    forced_prefix = ()

    def __init__(
        self,
        models: Mapping[str, bytes],
        vocab: dict[str, int],
        special: dict[str, Any],
        rows_V: np.ndarray | None,
        folder: Path | None = None,
    ):
        """Args: models by file name; token -> id; what `_special` says; rows of the embedding; where the files are."""
        self.models = {name: _model(name, proto) for name, proto in models.items()}
        self._vocab, self._special, self._folder, self.rows_V = vocab, special, folder, rows_V
        self._words = {i: word for word, i in vocab.items()}
        self.vocab_size = max(self._words) + 1
        tokens = special["tokens"]
        self._unwritten = set(tokens.values())
        self.start, self.eos, self.pad = (vocab[tokens[name]] for name in ("start", "eos", "pad"))
        self._unknown = vocab[tokens["unk"]]
        self.suppress_tokens = tuple(vocab[word] for word in special["suppress_tokens"])

    def encode(self, text: str) -> list[int]:
        """As Tokenizer.encode: by the model that writes."""
        return self._numbered(self.models[TARGET].encode(text, out_type=str))

    def encode_prompt(self, text: str, most: int = 0) -> list[int]:
        """As Tokenizer.prompt: the language to write, where there is one, the text's tokens, and the end."""
        language, text = self.language(text)
        ids = self._numbered(self.models[SOURCE].encode(text, out_type=str))
        return [*self._numbered(language), *(ids[:most] if most else ids), self.eos]

    def language(self, text: str) -> tuple[list[str], str]:
        """The token of the language to write, if there is one, and the text without it."""
        if self._special["target"]:
            return [self._special["target"]], text
        code, end, rest = text.partition(END)
        if code.startswith(BEGIN) and code + end in self._vocab:
            return [code + end], rest
        return [], text

    def decode(self, ids: Sequence[int]) -> str:
        """As Tokenizer.decode: by the model that writes; a piece that it has not is written as it is."""
        pieces = [self._words[int(i)] for i in ids if int(i) in self._words]
        text = self.models[TARGET].decode([piece for piece in pieces if piece not in self._unwritten])
        return text.replace(BLANK, " ").strip()

    def pieces(self) -> list[str]:
        """As Tokenizer.pieces; "" for a number that is no token's."""
        return [self._words.get(i, "") for i in range(self.vocab_size)]

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """As Tokenizer.export, for transformers' MarianTokenizer.

        It puts no language in front of a source: where the model writes several, the text begins with its token.
        """
        for name in (SOURCE, TARGET, VOCAB):
            (to / name).write_bytes((self._folder / name).read_bytes())
        tokens = {f"{name}_token": self._special["tokens"][name] for name in TOKENS}
        settings = manifest.read_json(self._folder / CONFIG)
        manifest.write_json(to / CONFIG, settings | tokens | {"tokenizer_class": "MarianTokenizer"})
        ids = {"eos_token_id": self.eos, "pad_token_id": self.pad}
        return ids | ({"decoder_start_token_id": self.start} if family == "encoder_decoder" else {})

    def _numbered(self, pieces: Iterable[str]) -> list[int]:
        return [self._vocab.get(piece, self._unknown) for piece in pieces]


def _model(name: str, proto: bytes) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model; raises KdError if the bytes are none."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=proto)
    except RuntimeError as error:
        raise KdError(f"tokenizer.folder: its {name} is no SentencePiece model; copy the file again") from error


def _words(model: sentencepiece.SentencePieceProcessor) -> list[str]:
    """Its pieces that are made of a text's characters."""
    said = (i for i in range(model.get_piece_size()) if not (model.is_control(i) or model.is_unknown(i)))
    return [model.id_to_piece(i) for i in said if not model.is_byte(i)]


def _cut(whole: Marian, models: Mapping[str, bytes], texts: Iterable[str]) -> tuple[dict[str, bytes], set[str]]:
    """The models without the pieces that no text uses, and the tokens that are in use.

    The likeliest pieces of a text are still there, so they are still the likeliest; single characters stay, for others.
    Which side a text is of is not known here, so both models keep what they need for it.
    """
    used: dict[str, set[str]] = {name: set() for name in models}
    tokens: set[str] = set()
    for text in texts:
        language, rest = whole.language(text)
        tokens.update(language)
        used[SOURCE].update(whole.models[SOURCE].encode(rest, out_type=str))
        used[TARGET].update(whole.models[TARGET].encode(text, out_type=str))
    smaller = {}
    for name, proto in models.items():
        model = sentencepiece_model_pb2.ModelProto.FromString(proto)
        if model.trainer_spec.model_type != UNIGRAM:
            raise KdError(f"tokenizer.cut: {name} is no unigram model, whose pieces need no others; wanted cut=False")
        pieces = [one for one in model.pieces if one.type != NORMAL or one.piece in used[name] or len(one.piece) == 1]
        del model.pieces[:]
        model.pieces.extend(pieces)
        smaller[name] = model.SerializeToString()
        tokens.update(one.piece for one in pieces)
    return smaller, tokens
