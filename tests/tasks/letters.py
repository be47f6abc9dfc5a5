"""A tokeniser for tests."""


class Letters:
    """A token for every letter."""

    eos = 2

    def __init__(self, forced_prefix=()):
        self.forced_prefix = forced_prefix

    def encode(self, text):
        return [ord(letter) for letter in text]

    def encode_prompt(self, text, most=0):
        ids = self.encode(text)
        return [*(ids[:most] if most else ids), self.eos]
