"""Tokenizers: text to token ids and back, and their files."""
