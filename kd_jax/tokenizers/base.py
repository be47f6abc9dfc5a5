"""Protocols of tokenizers and of their settings, and functions for every tokenizer."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, TypeGuard

import numpy as np

from kd_jax.artifacts.manifest import Folder
from kd_jax.errors import KdError

NO_ID = -1


class PromptFormat(NamedTuple):
    """How a prompt becomes the input of an exported tokenizer, which adds special tokens.

    Attributes:
      prefix: text before every prompt.
      chat: None, or the prompt with its prefix is a user's message in a chat: the chat's text before and after it.
    """

    prefix: str = ""
    chat: tuple[str, str] | None = None


class Tokenizer(Protocol):
    """A map from text to token ids and back.

    Attributes:
      vocab_size: V; ids are below it.
      start: id that decoding begins with. A decoder-only model has it before the prompt.
      eos: id that ends a text.
      pad: padding id in exported files; NO_ID for none. kd_jax itself pads with masks.
      forced_prefix: ids after `start` at the beginning of every completion, such as NLLB's target language. They are
        inputs in training and in decoding, and the loss does not count them.
      suppress_tokens: ids that decoding never generates.
      ends: ids that end a text in decoding, `eos` first.
      suppress_first: ids that decoding never begins a text with.
      force_end: whether decoding ends a text with `eos` at the maximum length.
      prompt_format: how a prompt becomes the input of the exported tokenizer.
      rows_V: int32 [V], each token's row in the pretrained model's embedding; None without a pretrained model.
    """

    vocab_size: int
    start: int
    eos: int
    pad: int
    forced_prefix: tuple[int, ...]
    suppress_tokens: tuple[int, ...]
    ends: tuple[int, ...]
    suppress_first: tuple[int, ...]
    force_end: bool
    prompt_format: PromptFormat
    rows_V: np.ndarray | None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a completion's text, without special tokens.

        The text "</s>" is encoded as characters, never as the special token.
        """
        ...

    def encode_prompt(self, text: str, max_tokens: int = 0) -> list[int]:
        """Return the ids of a prompt in the model's format: with its end token, or within a chat template.

        Args:
          text: of the prompt.
          max_tokens: keep the first `max_tokens` tokens of the text; 0 for all.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        ...

    def pieces(self) -> list[str]:
        """Return the vocabulary's strings, ordered by id; "" for an unused id."""
        ...

    def token_bytes(self) -> list[bytes | None]:
        """Return the bytes that each token adds to a text, ordered by id.

        b"" for special tokens, None for tokens that stand for no fixed text.

        Raises:
          KdError: if tokens of this kind of tokenizer stand for different texts in different places.
        """
        ...

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """Write files that transformers' AutoTokenizer reads; they give the ids of `encode_prompt`.

        Args:
          to: folder to write to.
          family: of the model, as Architecture.family.
          prompted: whether the task has prompts, which end with `eos`.

        Returns:
          The special ids under config.json's names, such as {"eos_token_id": 2}.
        """
        ...


class TokenizerSettings(Protocol):
    """An experiment's tokenizer settings: a frozen dataclass that prepares a tokenizer's files and loads them.

    Attributes:
      pretrained: whether the tokenizer belongs to a pretrained model; see `is_pretrained`.
      files: names of the files that `prepare` writes and `load` reads.
    """

    pretrained: ClassVar[bool]
    files: ClassVar[tuple[str, ...]]

    @property
    def vocab_size(self) -> int:
        """Number of tokens before `prepare`; a pruned vocabulary becomes smaller."""
        ...

    @property
    def sample(self) -> int:
        """Maximum number of characters of training text for `prepare`; 0 for all."""
        ...

    def check(self) -> None:
        """Raise KdError if a field has an invalid value."""
        ...

    def input_files(self) -> tuple[Path, ...]:
        """Return the local files that `prepare` reads besides the texts; their digests are recorded."""
        ...

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """Write `files` to the folder, each one atomically and in this order.

        Args:
          texts: of the training split, at most `sample` characters.
          folder: of the prepared data.
          symbols: texts that must be single tokens, such as language tags.

        Raises:
          KdError: if the texts or the symbols do not fit the settings.
        """
        ...

    def load(self, folder: Path) -> Tokenizer:
        """Return the tokenizer that `prepare` wrote.

        Raises:
          KdError: if a file is missing.
        """
        ...


class PretrainedSettings(TokenizerSettings, Protocol):
    """Settings of a tokenizer that a pretrained model's folder contains."""

    @property
    def folder(self) -> str:
        """The model's folder; "" for the teacher's."""
        ...

    @property
    def cut(self) -> bool:
        """Whether tokens that the training texts do not use are removed from tokenizer and embedding."""
        ...

    def with_folder(self, folder: str) -> "PretrainedSettings":
        """Return these settings for another folder."""
        ...


def is_pretrained(settings: TokenizerSettings) -> TypeGuard[PretrainedSettings]:
    """Return whether the tokenizer belongs to a pretrained model."""
    return settings.pretrained


def end_ids(eos: int, others: Iterable[int]) -> tuple[int, ...]:
    """Return `Tokenizer.ends`.

    Examples:
      >>> end_ids(2, [7, 2])
      (2, 7)
    """
    return (eos, *sorted(set(others) - {eos}))


def digest(tokenizer: Tokenizer) -> str:
    """Return a digest of the vocabulary's strings in the order of their ids."""
    return hashlib.blake2b("\n".join(tokenizer.pieces()).encode(), digest_size=16).hexdigest()


def describe_difference(ours: Tokenizer, theirs: Tokenizer) -> str:
    """Describe the first id at which two vocabularies differ; "" if they are equal."""
    for i, (our, their) in enumerate(zip(ours.pieces(), theirs.pieces(), strict=False)):
        if our != their:
            return f"token {i} is {our!r} here, {their!r} there"
    if ours.vocab_size != theirs.vocab_size:
        return f"{ours.vocab_size} tokens here, {theirs.vocab_size} there"
    return ""


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Raise KdError if a file of a prepared tokenizer is missing."""
    for path in (folder / name for name in names):
        if not path.exists():
            raise KdError(f"{path}: expected a prepared tokenizer, got no file. Run the phase `prepare` first.")


def load(settings: TokenizerSettings, folder: Folder) -> Tokenizer:
    """Return a finished folder's tokenizer, after a check of its files' digests."""
    for name in settings.files:
        folder.file(name)
    return settings.load(folder.path)


def copy(settings: TokenizerSettings, folder: Folder, to: Path) -> None:
    """Copy a finished folder's tokenizer files to another folder, after a check of their digests."""
    for name in settings.files:
        (to / name).write_bytes(folder.file(name).read_bytes())
