"""Tokenizers: text to token ids and back, and their files."""

from kd_jax.tokenizers.base import Tokenizer, TokenizerSettings
from kd_jax.tokenizers.byte_level import ByteLevel
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from kd_jax.tokenizers.m2m100 import M2M100Tokenizer
from kd_jax.tokenizers.marian import MarianTokenizer
from kd_jax.tokenizers.sentencepiece import SentencePiece

__all__ = [
    "ByteLevel",
    "HuggingFaceTokenizer",
    "M2M100Tokenizer",
    "MarianTokenizer",
    "SentencePiece",
    "Tokenizer",
    "TokenizerSettings",
]
