"""A tokenizer for tests."""


class Letters:
    """A tokenizer with one token for each letter."""

    eos = 2

    def __init__(self, forced_prefix=()):
        self.forced_prefix = forced_prefix

    def encode(self, text):
        return [ord(letter) for letter in text]

    def encode_prompt(self, text, max_tokens=0):
        ids = self.encode(text)
        return [*(ids[:max_tokens] if max_tokens else ids), self.eos]
