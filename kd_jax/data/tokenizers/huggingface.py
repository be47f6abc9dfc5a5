"""A tokeniser of Hugging Face's layout: tokenizer.json, and what stands beside it of special tokens and chats."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers

from kd_jax.artifacts import manifest
from kd_jax.data.tokenizers import base
from kd_jax.data.tokenizers.chat import Chat
from kd_jax.data.tokenizers.cut import around, cut, kept_ids, vocabulary
from kd_jax.errors import KdError

JSON, CONFIG, OURS, ROWS = "tokenizer.json", "tokenizer_config.json", "tokenizer_special.json", "tokenizer_rows.npy"
TEMPLATE = "chat_template.jinja"
ENCODED_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer:
    """The tokeniser of a pretrained model, read from a local folder.

    Attributes:
      folder: with tokenizer.json, tokenizer_config.json, and the model's config.json; "" for the teacher's.
      chat: whether prompts are wrapped in the folder's chat template, as one user's message.
      prefix: what stands in front of every prompt, such as T5's "translate English to French: " or a chat's request.
      end: the token that ends a text; "" for the folder's eos_token.
      cut: whether tokens that the training texts do not use are left out, in the model's embedding too. The teacher's
        probabilities are then those among the tokens that are left.

    Examples:
      >>> HuggingFaceTokenizer("models/none").check()
      Traceback (most recent call last):
      kd_jax.errors.KdError: tokenizer.folder: 'models/none' has no tokenizer.json; wanted a local folder in \
Hugging Face's layout (transformers' save_pretrained writes one)
    """

    folder: str = ""
    chat: bool = False
    prefix: str = ""
    end: str = ""
    cut: bool = False

    pretrained: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = (JSON, CONFIG, OURS, ROWS)

    @property
    def vocab_size(self) -> int:
        """Tokens of the whole tokeniser."""
        return max(vocabulary(self._spec).values()) + 1

    def check(self) -> None:
        """Raises KdError if the folder holds no tokeniser, a special token is missing, or a chat template fails."""
        for name in (JSON, CONFIG):
            if not (Path(self.folder) / name).exists():
                raise KdError(
                    f"tokenizer.folder: {self.folder!r} has no {name}; wanted a local folder in Hugging Face's layout "
                    "(transformers' save_pretrained writes one)"
                )
        self._special()

    def sources(self) -> tuple[Path, ...]:
        """As Settings.sources."""
        names = (JSON, CONFIG, TEMPLATE, "config.json")
        return tuple(Path(self.folder) / name for name in names if (Path(self.folder) / name).exists())

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """As Settings.prepare: copies the tokeniser, cut to what the texts use where that is wanted.

        Raises:
          KdError: if one of the symbols is no token.
        """
        ids, spec, special = vocabulary(self._spec), self._spec, self._special()
        for symbol in symbols:
            if symbol not in ids:
                raise KdError(
                    f"tokenizer.folder: {self.folder!r} has no token {symbol!r}, which the task's languages need; "
                    "train a SentencePiece, or name languages without tags"
                )
        rows = sorted(ids.values())
        rows = list(range(rows[-1] + 1))
        if self.cut:
            whole = Wrapped(spec, special, None)
            needed = {*special["tokens"].values(), *around(spec["post_processor"]), *symbols}
            rows = kept_ids(spec, _used(whole, texts), needed)
            spec = cut(spec, rows)
        manifest.write_text(folder / JSON, json.dumps(spec, ensure_ascii=False))
        manifest.write_json(folder / CONFIG, manifest.read_json(Path(self.folder) / CONFIG))
        manifest.write_json(folder / OURS, special)
        np.save(folder / ROWS, np.asarray(rows, np.int32))

    def load(self, folder: Path) -> "Wrapped":
        """As Settings.load."""
        base.require(folder / name for name in self.files)
        spec, special = (manifest.read_json(folder / name) for name in (JSON, OURS))
        return Wrapped(spec, special, np.load(folder / ROWS), folder)

    @functools.cached_property
    def _spec(self) -> dict[str, Any]:
        return manifest.read_json(Path(self.folder) / JSON)

    def _special(self) -> dict[str, Any]:
        """What begins and ends texts: {"tokens": name -> token, "template", "prefix", "has_encoder"}, JSON-able."""
        folder, ids = Path(self.folder), vocabulary(self._spec)
        settings = manifest.read_json(folder / CONFIG)
        model = manifest.read_json(folder / "config.json") if (folder / "config.json").exists() else {}
        words = {i: word for word, i in ids.items()}
        tokens = {}
        for name in ("bos", "eos", "pad", "unk"):
            token = settings.get(f"{name}_token")
            token = token["content"] if isinstance(token, dict) else token
            if token in ids:
                tokens[name] = token
        if self.end:
            tokens["eos"] = self.end
        if tokens.get("eos") not in ids:
            raise KdError(
                f"tokenizer.end: {tokens.get('eos')!r} is no token of {self.folder!r}; wanted the one that ends a text"
            )
        has_encoder = bool(model.get("is_encoder_decoder"))
        if has_encoder:
            tokens["start"] = words.get(model.get("decoder_start_token_id", model.get("pad_token_id")))
            if tokens["start"] is None:
                raise KdError(f"{folder / 'config.json'}: no decoder_start_token_id; wanted what decoding begins with")
        else:
            tokens["start"] = tokens.get("bos", tokens["eos"])
        template = ""
        if self.chat:
            chat = Chat.of(folder, settings, tokens)
            template, tokens["start"] = chat.template, self._chat_start(chat)
        return {"tokens": tokens, "template": template, "prefix": self.prefix, "has_encoder": has_encoder}

    def _chat_start(self, chat: Chat) -> str:
        """The token that every chat begins with; it takes the place of the one that texts begin with.

        Raises:
          KdError: if an answer in the template does not end with `end`.
        """
        whole = tokenizers.Tokenizer.from_str(json.dumps(self._spec))
        encode = functools.partial(whole.encode, add_special_tokens=False)
        answered = encode(chat.render("a", "b")).tokens
        if chat.tokens["eos"] not in answered[len(encode(chat.render("a")).tokens) :]:
            raise KdError(
                f"tokenizer.end: {chat.tokens['eos']!r} does not end an answer in the chat template of "
                f"{self.folder!r}, which ends with {answered[-1]!r}; set tokenizer.end"
            )
        return encode(chat.render("a")).tokens[0]


class Wrapped:
    """A tokenizer.json, as a Tokenizer."""

    def __init__(
        self, spec: dict[str, Any], special: dict[str, Any], rows_V: np.ndarray | None, folder: Path | None = None
    ):
        """Args: tokenizer.json; what `_special` says; rows of the pretrained embedding; where the files are."""
        self._whole = tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
        self._whole.no_truncation()
        self._whole.no_padding()
        self._special, self._folder = special, folder
        self._ids = vocabulary(spec)
        self._special_ids = {self._ids[word] for name, word in special["tokens"].items() if name != "unk"}
        self._chat = Chat(special["template"], special["tokens"]) if special["template"] else None
        self.rows_V = rows_V
        self.vocab_size = max(self._ids.values()) + 1
        self.start, self.eos = (self._ids[special["tokens"][name]] for name in ("start", "eos"))
        self.pad = self._ids[special["tokens"]["pad"]] if "pad" in special["tokens"] else base.NO_ID

    def encode(self, text: str) -> list[int]:
        """As Tokenizer.encode."""
        self._whole.encode_special_tokens = True
        ids = self._whole.encode(text, add_special_tokens=False).ids
        return [i for i in ids if i not in self._special_ids]  # a Unigram model has them among its pieces

    def prompt(self, text: str, most: int = 0) -> list[int]:
        """As Tokenizer.prompt: in a chat's words; or with what stands around an encoder's text; or with the end."""
        ids = self.encode(text)
        if most and len(ids) > most:
            text = self.decode(ids[:most])
        text = self._special["prefix"] + text
        if self._chat is not None:
            self._whole.encode_special_tokens = False
            ids = self._whole.encode(self._chat.render(text), add_special_tokens=False).ids
            return ids[ids[:1] == [self.start] :]  # the layout puts it there
        if self._special["has_encoder"]:
            return self._whole.encode(text, add_special_tokens=True).ids
        return [*self.encode(text), self.eos]

    def decode(self, ids: Sequence[int]) -> str:
        """As Tokenizer.decode."""
        return self._whole.decode([int(i) for i in ids], skip_special_tokens=True)

    def pieces(self) -> list[str]:
        """As Tokenizer.pieces; "" for a number that is no token's."""
        words = {i: word for word, i in self._ids.items()}
        return [words.get(i, "") for i in range(self.vocab_size)]

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """As Tokenizer.export: as they came, the chat template with them."""
        tokens = self._special["tokens"]
        (to / JSON).write_bytes((self._folder / JSON).read_bytes())
        settings = manifest.read_json(self._folder / CONFIG)
        settings["eos_token"] = tokens["eos"]
        manifest.write_json(to / CONFIG, settings)
        if self._special["template"]:
            manifest.write_text(to / TEMPLATE, self._special["template"])
        names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "pad"}
        names |= {"decoder_start_token_id": "start"} if family == "encoder_decoder" else {}
        return {key: self._ids[tokens[name]] for key, name in names.items() if name in tokens}


def _used(tokenizer: Wrapped, texts: Iterable[str]) -> set[int]:
    """Ids of all tokens of the texts, alone and as prompts."""
    used: set[int] = set()
    for text in texts:
        used.update(tokenizer.encode(text), tokenizer.prompt(text))
    return used
