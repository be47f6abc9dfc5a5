"""Marian's tokenizers (OPUS-MT): a SentencePiece model for each side, and a vocab.json with the ids of both."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import sentencepiece

from kd_jax.artifacts import manifest
from kd_jax.errors import KdError
from kd_jax.tokenizers import base, generation_config, hf_folder
from kd_jax.tokenizers.base import PromptFormat
from kd_jax.tokenizers.hf_folder import ROWS, SPECIAL, TOKENIZER_CONFIG, VOCAB, FolderTokenizer
from kd_jax.tokenizers.sentencepiece import piece_bytes
from kd_jax.tokenizers.sentencepiece_json import NORMAL, SPACE, UNIGRAM, parse_model

SOURCE, TARGET = "source.spm", "target.spm"
TOKENS = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}  # defaults of tokenizer_config.json
BEGIN, END = ">>", "<<"  # around a language's name


@dataclasses.dataclass(frozen=True)
class MarianSpecialTokens:
    """Special tokens of a Marian or M2M100 model; stored as tokenizer_special.json."""

    tokens: Mapping[str, str]  # of the roles "start", "eos", "pad", "unk"; M2M100: "bos", "source", "target" too
    target: str  # language token before every source of Marian; "" for none
    suppress_tokens: Sequence[str]
    ends: Sequence[str] = ()  # that end a text, as "eos" does
    suppress_first: Sequence[str] = ()
    force_end: bool = False


@dataclasses.dataclass(frozen=True)
class MarianTokenizer(FolderTokenizer):
    """The tokenizer of a Marian model in a local folder; HuggingFaceTokenizer.with_folder gives it.

    The ids are those of transformers' MarianTokenizer, with two exceptions. The text "</s>" is encoded as characters,
    and ">>...<<" before a source is a language only if the vocabulary has it. Decoding begins with the padding token,
    and never generates it.

    Attributes:
      folder: with source.spm, target.spm, vocab.json, tokenizer_config.json, and the model's config.json.
      target: token of the target language before every source, such as ">>fra<<"; "" for a model with one language, or
        for sources that begin with the token.
      cut: whether to remove tokens that the training texts do not use, from the model's embedding too.

    Examples:
      >>> MarianTokenizer("models/none").check()
      Traceback (most recent call last):
      kd_jax.errors.KdError: tokenizer.folder: expected a Marian folder with source.spm, target.spm, vocab.json, \
tokenizer_config.json, got 'models/none' without source.spm. Copy the missing file, or name another local folder.
    """

    target: str = ""
    cut: bool = False

    kind: ClassVar[str] = "a Marian folder"
    required: ClassVar[tuple[str, ...]] = (SOURCE, TARGET, VOCAB, TOKENIZER_CONFIG)
    files: ClassVar[tuple[str, ...]] = (*required, SPECIAL, ROWS)

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the folder's tokenizer."""
        return max(self.read_vocab().values()) + 1

    def with_folder(self, folder: str) -> "MarianTokenizer":
        """Return these settings for another folder."""
        return dataclasses.replace(self, folder=folder)

    def check(self) -> None:
        """Raise KdError if files are missing or belong to different models, or a special token is missing."""
        self.require_files()
        if self.read_json(TOKENIZER_CONFIG).get("separate_vocabs"):
            raise KdError(
                f"tokenizer.folder: expected one vocabulary, got separate_vocabs in {self.folder!r}. Use another model."
            )
        vocab = self.read_vocab()
        for name in (SOURCE, TARGET):
            model = _load_model(name, (Path(self.folder) / name).read_bytes())
            ids = [i for i in range(model.get_piece_size()) if not (model.is_control(i) or model.is_unknown(i))]
            pieces = [model.id_to_piece(i) for i in ids if not model.is_byte(i)]
            known = sum(piece in vocab for piece in pieces)
            if 2 * known < len(pieces):
                raise KdError(
                    f"tokenizer.folder: expected the pieces of {name} in {VOCAB} of {self.folder!r}, got {known} of "
                    f"{len(pieces)}. Use the files of one model."
                )
        self._special_tokens()

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """Copy the tokenizer, pruned to the pieces of the texts if `cut` is set; there can be no symbols."""
        origin, vocab, special = Path(self.folder), self.read_vocab(), self._special_tokens()
        config = self.read_json(TOKENIZER_CONFIG)
        if symbols:
            raise KdError(
                f"task.directions: expected one direction for the Marian model {self.folder!r}, got the tags "
                f"{', '.join(symbols)}. Set tokenizer.target, or begin sources with Marian's tags, such as '>>fra<<'."
            )
        models = {name: (origin / name).read_bytes() for name in (SOURCE, TARGET)}
        rows = list(range(max(vocab.values()) + 1))
        if self.cut:
            models, tokens = _prune(LoadedMarian(origin, special, None), models, texts)
            tokens |= {*special.tokens.values(), *special.suppress_tokens, *special.ends, *special.suppress_first}
            tokens |= {self.target}
            rows = sorted(vocab[token] for token in tokens if token in vocab)
            new_ids = {old: new for new, old in enumerate(rows)}
            vocab = {token: new_ids[old] for token, old in vocab.items() if old in new_ids}
            config = hf_folder.renumber_added_tokens(config, new_ids)
        for name, model in models.items():
            manifest.write_bytes(folder / name, model)
        manifest.write_json(folder / VOCAB, vocab)
        manifest.write_json(folder / TOKENIZER_CONFIG, config)
        hf_folder.write_special(folder, special, rows)

    def load(self, folder: Path) -> "LoadedMarian":
        """Return the tokenizer that `prepare` wrote."""
        base.require_files(folder, self.files)
        return LoadedMarian(folder, *hf_folder.read_special(folder, MarianSpecialTokens))

    def _special_tokens(self) -> MarianSpecialTokens:
        """Read the special tokens of the folder."""
        vocab, model_config = self.read_vocab(), hf_folder.read_model_config(Path(self.folder))
        words = {i: token for token, i in vocab.items()}
        tokens: dict[str, str] = TOKENS | hf_folder.named_tokens(self.read_json(TOKENIZER_CONFIG), TOKENS)
        start = generation_config.token_of(model_config, "decoder_start_token_id", words)
        tokens["start"] = start or tokens["pad"]
        require_tokens(tokens, vocab, self.folder)
        if self.target and self.target not in vocab:
            known = " ".join([token for token in vocab if token.startswith(BEGIN) and token.endswith(END)][:5])
            raise KdError(
                f"tokenizer.target: expected a language token of {self.folder!r}, got {self.target!r}. "
                + (f"Name one, such as {known}." if known else "Set it to '': the model has one target language.")
            )
        return special_tokens(tokens, self.target, model_config, words, {tokens["pad"]})


class LoadedMarian:
    """A `Tokenizer` of two SentencePiece models, one for each side, over one vocabulary."""

    model_files: Mapping[str, str] = {SOURCE: SOURCE, TARGET: TARGET}
    language_tokens: frozenset[str] = frozenset()  # that a decoded text does not show
    exported_class: Mapping[str, Any] = {"tokenizer_class": "MarianTokenizer", "split_special_tokens": True}

    def __init__(self, folder: Path, special: MarianSpecialTokens, rows_V: np.ndarray | None):
        """Read the vocabulary and the models of a folder."""
        names, vocab = self.model_files, manifest.read_json(folder / VOCAB)
        self.models = {side: _load_model(name, (folder / name).read_bytes()) for side, name in names.items()}
        self._vocab, self._special, self._folder, self.rows_V = vocab, special, folder, rows_V
        self._tokens = {i: token for token, i in vocab.items()}
        self.vocab_size = max(self._tokens) + 1
        self._not_decoded = {*special.tokens.values(), *self.language_tokens}
        self.start, self.eos, self.pad = (vocab[special.tokens[role]] for role in ("start", "eos", "pad"))
        self.prompt_format = PromptFormat(f"{special.target} " if special.target else "")
        self._unknown = vocab[special.tokens["unk"]]
        self.suppress_tokens = tuple(vocab[token] for token in special.suppress_tokens)
        self.suppress_first = tuple(vocab[token] for token in special.suppress_first)
        self.ends = base.end_ids(self.eos, (vocab[token] for token in special.ends))
        self.force_end = special.force_end
        target = special.tokens.get("target")
        self.forced_prefix: tuple[int, ...] = () if target is None else (vocab[target],)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a completion's text, by the target model."""
        return self._ids(self.models[TARGET].encode(text, out_type=str))

    def encode_prompt(self, text: str, max_tokens: int = 0) -> list[int]:
        """Return the ids of a source: language token if there is one, text by the source model, end."""
        language, text = self.split_language(text)
        ids = self._ids(self.models[SOURCE].encode(text, out_type=str))
        return [*self._ids(language), *(ids[:max_tokens] if max_tokens else ids), self.eos]

    def split_language(self, text: str) -> tuple[list[str], str]:
        """Return the language token for a source ([] for none), and the text without that token."""
        if self._special.target:
            return [self._special.target], text
        code, end, rest = text.partition(END)
        if code.startswith(BEGIN) and code + end in self._vocab:
            return [code + end], rest
        return [], text

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, by the target model; pieces that only the source model has are copied."""
        pieces = [self._tokens[int(i)] for i in ids if int(i) in self._tokens]
        text = self.models[TARGET].decode([piece for piece in pieces if piece not in self._not_decoded])
        return text.replace(SPACE, " ").strip()

    def pieces(self) -> list[str]:
        """Return the vocabulary's strings, ordered by id; "" for an unused id."""
        return [self._tokens.get(i, "") for i in range(self.vocab_size)]

    def token_bytes(self) -> list[bytes | None]:
        """Return the bytes that each piece adds to a text."""
        without_text = self._not_decoded | {self._special.target}
        table: list[bytes | None] = [b""] * self.vocab_size
        for i, token in self._tokens.items():
            table[i] = b"" if token in without_text else piece_bytes(token)
        table[self._unknown] = None
        return table

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """Write the files of transformers' MarianTokenizer, which adds no language token to a text."""
        for name in (SOURCE, TARGET, VOCAB):
            (to / name).write_bytes((self._folder / name).read_bytes())
        tokens = {f"{role}_token": self._special.tokens[role] for role in TOKENS}
        config = manifest.read_json(self._folder / TOKENIZER_CONFIG)
        manifest.write_json(to / TOKENIZER_CONFIG, config | tokens | self.exported_class)
        return self._config_ids(family)

    def _config_ids(self, family: str) -> dict[str, int]:
        """Return the special ids under config.json's names."""
        ids = {"eos_token_id": self.eos, "pad_token_id": self.pad}
        return ids | ({"decoder_start_token_id": self.start} if family == "encoder_decoder" else {})

    def _ids(self, pieces: Iterable[str]) -> list[int]:
        return [self._vocab.get(piece, self._unknown) for piece in pieces]


def special_tokens(
    tokens: Mapping[str, str], target: str, model_config: hf_folder.Json, words: Mapping[int, str], suppressed: set[str]
) -> MarianSpecialTokens:
    """Return the special tokens of a folder; `words` is id -> token, `suppressed` are further tokens to suppress."""
    suppressed = suppressed | {words[i] for i in generation_config.suppressed_ids(model_config) if i in words}
    eos = next(i for i, token in words.items() if token == tokens["eos"])
    return MarianSpecialTokens(
        tokens,
        target,
        sorted(suppressed),
        ends=generation_config.end_tokens(model_config, words),
        suppress_first=generation_config.first_suppressed_tokens(model_config, words),
        force_end=generation_config.forces_end(model_config, eos),
    )


def require_tokens(tokens: Mapping[str, str], vocab: Mapping[str, int], folder: str) -> None:
    """Raise KdError if a special token (role -> token) is not in the vocabulary."""
    for role, token in tokens.items():
        if token not in vocab:
            raise KdError(
                f"tokenizer.folder: expected the token {role} in {VOCAB} of {folder!r}, got no {token!r}. Use files of "
                "one model."
            )


def _load_model(name: str, proto: bytes) -> sentencepiece.SentencePieceProcessor:
    """Return the SentencePiece model of these bytes; raise KdError if they are invalid."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=proto)
    except RuntimeError as error:
        raise KdError(
            f"tokenizer.folder: expected a SentencePiece model in {name}, got other content. Copy the file again."
        ) from error


def _prune(whole: LoadedMarian, models: Mapping[str, bytes], texts: Iterable[str]) -> tuple[dict[str, bytes], set[str]]:
    """Return the models without the pieces that no text uses, and the tokens in use.

    The most probable pieces of a text stay in the model, so they stay the most probable ones. Single characters stay
    for other texts. The side of a text is unknown here, so both models keep the pieces that they need for it.
    """
    used: dict[str, set[str]] = {name: set() for name in models}
    tokens: set[str] = set()
    for text in texts:
        language, rest = whole.split_language(text)
        tokens.update(language)
        used[SOURCE].update(whole.models[SOURCE].encode(rest, out_type=str))
        used[TARGET].update(whole.models[TARGET].encode(text, out_type=str))
    pruned = {}
    for name, proto in models.items():
        model = parse_model(proto)
        if model.trainer_spec.model_type != UNIGRAM:
            raise KdError(f"tokenizer.cut: expected a unigram model in {name}, got another type. Set cut to False.")
        pieces = [p for p in model.pieces if p.type != NORMAL or p.piece in used[name] or len(p.piece) == 1]
        del model.pieces[:]
        model.pieces.extend(pieces)
        pruned[name] = model.SerializeToString()
        tokens.update(piece.piece for piece in pieces)
    return pruned, tokens
