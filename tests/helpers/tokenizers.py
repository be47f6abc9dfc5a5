"""Tokenizers as a run prepares and loads them."""

from collections.abc import Iterable
from pathlib import Path

from kd_jax.tokenizers.base import Tokenizer, TokenizerSettings


def prepare_tokenizer(settings: TokenizerSettings, folder: Path, texts: Iterable[str]) -> Tokenizer:
    """Check the settings, prepare the tokenizer in the folder, and load it."""
    folder.mkdir(exist_ok=True)
    settings.check()
    settings.prepare(texts, folder)
    return settings.load(folder)
