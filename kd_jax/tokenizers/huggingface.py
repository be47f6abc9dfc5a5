"""A tokeniser of Hugging Face's layout: tokenizer.json, and what stands beside it of special tokens and chats."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers

from kd_jax.artifacts import files, manifest
from kd_jax.errors import KdError
from kd_jax.tokenizers import base
from kd_jax.tokenizers.chat import Chat
from kd_jax.tokenizers.cut import around, cut, kept_ids, vocabulary
from kd_jax.tokenizers.folder import around_source, suppress_tokens, conventions, in_front, languages, renumbered, special_tokens
from kd_jax.tokenizers.m2m100 import MODEL, M2M100Tokenizer
from kd_jax.tokenizers.marian import SOURCE, MarianTokenizer

JSON, CONFIG, OURS, ROWS = "tokenizer.json", "tokenizer_config.json", "tokenizer_special.json", "tokenizer_rows.npy"
TEMPLATE = "chat_template.jinja"
UNSAID = {"languages": [], "forced_prefix": [], "suppress_tokens": []}  # of data prepared before these were kept


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer:
    """The tokeniser of a pretrained model, read from a local folder.

    What an encoder-decoder writes begins, behind `start`, as its folder's texts do: with the language (NLLB), with <s>
    (BART), mostly with nothing (T5). That forced_prefix is given: in training, scoring and decoding it stands in the decoder
    and does not count, and the texts are without it. What transformers' `generate` never writes is not written here
    either: the single tokens of bad_words_ids.

    Attributes:
      folder: with tokenizer.json, tokenizer_config.json, and the model's config.json; "" for the teacher's.
      chat: whether prompts are wrapped in the folder's chat template, as one user's message.
      prefix: what stands in front of every prompt, such as T5's "translate English to French: " or a chat's request.
      source, target: tokens of the languages that are read and written, such as NLLB's "eng_Latn" and "fra_Latn",
        M2M100's "__en__" and "__fr__"; of Marian's models the one to write, such as ">>fra<<". "" for the folder's:
        src_lang, and forced_bos_token_id (M2M100's tgt_lang).
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
    source: str = ""
    target: str = ""

    pretrained: ClassVar[bool] = True
    sample: ClassVar[int] = 0
    files: ClassVar[tuple[str, ...]] = (JSON, CONFIG, OURS, ROWS)

    @property
    def vocab_size(self) -> int:
        """Tokens of the whole tokeniser."""
        return max(vocabulary(self._spec).values()) + 1

    def with_folder(self, folder: str) -> "HuggingFaceTokenizer | MarianTokenizer | M2M100Tokenizer":
        """The same for a folder; MarianTokenizer or M2M100Tokenizer where it holds their files.

        Raises:
          KdError: for a field that such a folder has no use of.
        """
        if (Path(folder) / SOURCE).exists():
            self._refuse(("chat", "prefix", "end", "source"), f"{folder!r} is a Marian model's", ">>fra<<")
            return MarianTokenizer(folder, target=self.target, cut=self.cut)
        if (Path(folder) / MODEL).exists() and not (Path(folder) / JSON).exists():
            self._refuse(("chat", "prefix", "end", "cut"), f"{folder!r} is an M2M100 model's", "__fr__")
            return M2M100Tokenizer(folder, self.source, self.target)
        return dataclasses.replace(self, folder=folder)

    def _refuse(self, fields: Iterable[str], why: str, target: str) -> None:
        for field in fields:
            if vars(self)[field]:
                raise KdError(
                    f"tokenizer.{field}: {vars(self)[field]!r}; {why} and has no use of it: wanted its default, and "
                    f"the language to write, if it has several, as tokenizer.target {target!r}"
                )

    def check(self) -> None:
        """Raises KdError if the folder holds no tokeniser, a special token is missing, or a chat template fails."""
        for name in (JSON, CONFIG):
            if not (Path(self.folder) / name).exists():
                raise KdError(
                    f"tokenizer.folder: {self.folder!r} has no {name}; wanted a local folder in Hugging Face's layout "
                    "(transformers' save_pretrained writes one)"
                )
        self._special()

    def input_files(self) -> tuple[Path, ...]:
        """As TokenizerSettings.sources."""
        names = (JSON, CONFIG, TEMPLATE, "config.json", "generation_config.json")
        return tuple(Path(self.folder) / name for name in names if (Path(self.folder) / name).exists())

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """As TokenizerSettings.prepare: copies the tokeniser, cut to what the texts use where that is wanted.

        Raises:
          KdError: if one of the symbols is no token.
        """
        special, settings = self._special(), manifest.read_json(Path(self.folder) / CONFIG)
        ids, spec = vocabulary(self._spec), self._framed(special, settings)
        if special["languages"]:
            settings |= dict(zip(("src_lang", "tgt_lang"), special["languages"], strict=True))
        for symbol in symbols:
            if symbol not in ids:
                raise KdError(
                    f"tokenizer.folder: {self.folder!r} has no token {symbol!r}, which the task's languages need; "
                    "train a SentencePiece, or name languages without tags"
                )
        rows = sorted(ids.values())
        rows = list(range(rows[-1] + 1))
        if self.cut:
            whole = FastTokenizer(spec, special, None)
            needed = {*special["tokens"].values(), *special["forced_prefix"], *around(spec["post_processor"]), *symbols}
            rows = kept_ids(spec, _used(whole, texts), needed)
            number = {old: new for new, old in enumerate(rows)}
            spec, settings = cut(spec, rows), renumbered(settings, number)
            special["suppress_tokens"] = [word for word in special["suppress_tokens"] if ids[word] in number]
        manifest.write_text(folder / JSON, json.dumps(spec, ensure_ascii=False))
        manifest.write_json(folder / CONFIG, settings)
        manifest.write_json(folder / OURS, special)
        manifest.write_array(folder / ROWS, np.asarray(rows, np.int32))

    def load(self, folder: Path) -> "FastTokenizer":
        """As TokenizerSettings.load."""
        base.require(folder / name for name in self.files)
        spec, special = (manifest.read_json(folder / name) for name in (JSON, OURS))
        return FastTokenizer(spec, UNSAID | special, files.read_array(folder / ROWS), folder)

    @functools.cached_property
    def _spec(self) -> dict[str, Any]:
        return manifest.read_json(Path(self.folder) / JSON)

    def _framed(self, special: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """tokenizer.json, with the source's language around a prompt, which transformers puts there when it loads."""
        if not special["languages"]:
            return self._spec
        legacy, eos = bool(settings.get("legacy_behaviour")), special["tokens"]["eos"]
        processor = around_source(special["languages"][0], eos, vocabulary(self._spec), legacy)
        return {**self._spec, "post_processor": processor}

    def _special(self) -> dict[str, Any]:
        """What begins and ends texts, JSON-able.

        {"tokens": name -> token, "template", "prefix", "has_encoder", "languages": [source, target] or [], "forced_prefix",
        "suppress_tokens": tokens}.
        """
        folder, ids = Path(self.folder), vocabulary(self._spec)
        settings, model = manifest.read_json(folder / CONFIG), conventions(folder)
        words = {i: word for word, i in ids.items()}
        has_encoder, names = bool(model.get("is_encoder_decoder")), ("bos", "eos", "pad", "unk")
        tokens = special_tokens(settings, names)
        if has_encoder:  # BART was published without their names
            tokens = {name: words.get(model.get(f"{name}_token_id")) for name in names} | tokens
        tokens = {name: token for name, token in tokens.items() if token in ids}
        if self.end:
            tokens["eos"] = self.end
        if tokens.get("eos") not in ids:
            raise KdError(
                f"tokenizer.end: {tokens.get('eos')!r} is no token of {self.folder!r}; wanted the one that ends a text"
            )
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
        pair = languages(settings, model, ids, self.source, self.target)
        forced_prefix = self._forced_prefix(tokens["start"], pair, words.get(model.get("forced_bos_token_id")))
        special = {"tokens": tokens, "template": template, "prefix": self.prefix, "has_encoder": has_encoder}
        special |= {"languages": pair, "forced_prefix": forced_prefix if has_encoder else []}
        return special | {"suppress_tokens": [words[i] for i in suppress_tokens(model) if i in words]}

    def _forced_prefix(self, start: str, pair: list[str], forced: str | None) -> list[str]:
        """The language to write; else what decoding is forced to begin with; else what begins the folder's texts."""
        if pair:
            return pair[1:]
        if forced is not None:
            return [forced]
        return [word for word in in_front(self._spec["post_processor"]) if word != start]

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


class FastTokenizer:
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
        words = [word for name, word in special["tokens"].items() if name != "unk"]
        self._special_ids = {self._ids[word] for word in (*words, *special["languages"], *special["forced_prefix"])}
        self._chat = Chat(special["template"], special["tokens"]) if special["template"] else None
        self.rows_V = rows_V
        self.vocab_size = max(self._ids.values()) + 1
        self.start, self.eos = (self._ids[special["tokens"][name]] for name in ("start", "eos"))
        self.forced_prefix, self.suppress_tokens = (tuple(self._ids[word] for word in special[of]) for of in ("forced_prefix", "suppress_tokens"))
        self.pad = self._ids[special["tokens"]["pad"]] if "pad" in special["tokens"] else base.NO_ID

    def encode(self, text: str) -> list[int]:
        """As Tokenizer.encode."""
        self._whole.encode_special_tokens = True
        ids = self._whole.encode(text, add_special_tokens=False).ids
        return [i for i in ids if i not in self._special_ids]  # a Unigram model has them among its pieces

    def encode_prompt(self, text: str, most: int = 0) -> list[int]:
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


def _used(tokenizer: FastTokenizer, texts: Iterable[str]) -> set[int]:
    """Ids of all tokens of the texts, alone and as prompts."""
    used: set[int] = set()
    for text in texts:
        used.update(tokenizer.encode(text), tokenizer.encode_prompt(text))
    return used
