"""What every tokeniser can do, whoever trained it; which ids begin and end a text is its own to say."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeGuard

import numpy as np

from kd_jax.artifacts.manifest import Folder
from kd_jax.errors import KdError

NO_ID = -1


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
      vocab_size: V; ids are below it.
      start: the id that decoding begins with; in a decoder-only model it stands before the prompt.
      eos: the id that ends a text.
      pad: the id that files of others fill rows up with; NO_ID for none. Here no id does.
      forced_prefix: ids in front of every completion, given rather than written, such as the language that is asked of NLLB.
        They stand behind `start`, in training as in decoding, and do not count.
      suppress_tokens: ids that are never written.
      rows_V: for each token its row in the pretrained model's embedding; None where there is no such model.
    """

    vocab_size: int
    start: int
    eos: int
    pad: int
    forced_prefix: tuple[int, ...]
    suppress_tokens: tuple[int, ...]
    rows_V: np.ndarray | None

    def encode(self, text: str) -> list[int]:
        """Token ids of what is to be written; no special ones are added, none is seen in what only spells one."""
        ...

    def encode_prompt(self, text: str, most: int = 0) -> list[int]:
        """What is given, as the model wants it: with its end, or in a chat's words.

        Args:
          text: what is given.
          most: tokens of the text at most, from its beginning; 0 for all.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special ones."""
        ...

    def pieces(self) -> list[str]:
        """The token strings, by id."""
        ...

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """Writes files that transformers' AutoTokenizer reads; they give the ids of `prompt`.

        Args:
          to: a folder.
          family: of the model, as Architecture.family.
          prompted: whether texts are written from prompts, or prompts gone on from.

        Returns:
          The special ids in the words of a config.json, such as {"eos_token_id": 2}.
        """
        ...


class TokenizerSettings(Protocol):
    """How a tokeniser comes to be; a frozen dataclass, a field of the experiment.

    Attributes:
      vocab_size: tokens, as far as they are known before `prepare`.
      pretrained: whether it is of a pretrained model's `folder`.
      sample: characters of the texts that it wants at most; 0 for all.
      files: names of the files that `prepare` leaves and `load` reads.
    """

    vocab_size: int
    pretrained: bool
    sample: int
    files: tuple[str, ...]

    def check(self) -> None:
        """Raises KdError naming the field that is out of range."""
        ...

    def input_files(self) -> tuple[Path, ...]:
        """Files that decide it besides the texts."""
        ...

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """Leaves `files` in the folder, each whole or not there, and the last of them last.

        Args:
          texts: of the training split, or `sample` of them.
          folder: of the prepared data.
          symbols: texts that must be one piece each, such as language tags.
        """
        ...

    def load(self, folder: Path) -> Tokenizer:
        """The tokeniser that `prepare` left; raises KdError if there is none."""
        ...


class PretrainedSettings(TokenizerSettings, Protocol):
    """TokenizerSettings of a tokenizer that a pretrained model's folder holds."""

    @property
    def folder(self) -> str:
        """The folder; "" for the teacher's."""
        ...

    @property
    def cut(self) -> bool:
        """Whether tokens that the training texts do not use are removed."""
        ...

    def at(self, folder: str) -> "PretrainedSettings":
        """Return the settings of the same tokenizer in this folder."""
        ...


def is_pretrained(settings: TokenizerSettings) -> TypeGuard[PretrainedSettings]:
    """Return whether a pretrained model's folder holds the tokenizer."""
    return settings.pretrained


def digest(tokenizer: Tokenizer) -> str:
    """A digest of the pieces, in order: what ids mean, rather than how many there are."""
    return hashlib.blake2b("\n".join(tokenizer.pieces()).encode(), digest_size=16).hexdigest()


def describe_difference(ours: Tokenizer, theirs: Tokenizer) -> str:
    """The first id at which two vocabularies differ, in words; "" where they are the same."""
    for i, (our, their) in enumerate(zip(ours.pieces(), theirs.pieces(), strict=False)):
        if our != their:
            return f"token {i} is {our!r} here, {their!r} there"
    if ours.vocab_size != theirs.vocab_size:
        return f"{ours.vocab_size} tokens here, {theirs.vocab_size} there"
    return ""


def require(paths: Iterable[Path]) -> None:
    """Raises KdError if a file of a prepared tokeniser is missing."""
    for path in paths:
        if not path.exists():
            raise KdError(f"{path}: no tokeniser; run the phase `prepare` first")


def load(settings: TokenizerSettings, folder: Folder) -> Tokenizer:
    """The tokeniser of a finished folder, the bytes of its files checked; raises KdError where one was changed."""
    for name in settings.files:
        folder.file(name)
    return settings.load(folder.path)


def copy(settings: TokenizerSettings, folder: Folder, to: Path) -> None:
    """The tokeniser's files, checked, into another folder."""
    for name in settings.files:
        (to / name).write_bytes(folder.file(name).read_bytes())


# What every tokenizer_config.json says; the last is transformers' word for a tokeniser that cuts nothing.
GENERAL = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": int(1e30),
}
