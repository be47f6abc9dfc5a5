"""Tokenizers of Hugging Face's layout: tokenizer.json, with special tokens and a chat template beside it."""

import collections
import dataclasses
import datetime
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers

from kd_jax.artifacts import manifest
from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.tokenizers import base, generation_config, hf_folder, post_processor, prune_vocabulary, tokenizer_json
from kd_jax.tokenizers.base import PromptFormat
from kd_jax.tokenizers.chat import TEMPLATE, Chat, freeze, read_template
from kd_jax.tokenizers.hf_folder import (
    COMMON_CONFIG,
    MODEL_CONFIG,
    ROWS,
    SPECIAL,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    FolderTokenizer,
)
from kd_jax.tokenizers.m2m100 import MODEL, M2M100Tokenizer
from kd_jax.tokenizers.marian import SOURCE, MarianTokenizer
from kd_jax.tokenizers.prune_vocabulary import vocabulary

TOKENIZER = "tokenizer.json"
MAX_TOKENS = 2**62  # of a prompt that is not cut


@dataclasses.dataclass(frozen=True)
class FastSpecialTokens:
    """Special tokens and the format of texts; stored as tokenizer_special.json."""

    tokens: Mapping[str, str]  # of the roles "start" and "eos", and "bos", "pad", "unk" if the folder has them
    template: str  # of a chat, with fixed dates; "" for none
    prefix: str  # of every prompt
    has_encoder: bool
    languages: Sequence[str]  # source and target, or empty
    forced_prefix: Sequence[str]
    suppress_tokens: Sequence[str]
    ends: Sequence[str] = ()  # that end a text, as "eos" does
    suppress_first: Sequence[str] = ()
    force_end: bool = False


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer(FolderTokenizer):
    """The tokenizer of a pretrained model in a local folder.

    An encoder-decoder's completions begin with `forced_prefix` after `start`: the target language (NLLB), <s> (BART),
    or nothing (T5). The prefix is an input in training, scoring and decoding; the loss does not count it, and texts do
    not contain it. Decoding never generates the single tokens of bad_words_ids, as in transformers' `generate`.

    Added tokens without a row in the embedding (vocab_size of config.json) are no tokens here. The date that a chat
    template prints is fixed by `prepare`.

    Attributes:
      folder: with tokenizer.json, tokenizer_config.json, and the model's config.json; "" for the teacher's.
      chat: whether to render every prompt with the folder's chat template, as one user's message.
      prefix: text before every prompt, such as T5's "translate English to French: ".
      end: token that ends a text; "" for the folder's eos_token.
      cut: whether to remove tokens that the training texts do not use, from the model's embedding too. The teacher's
        probabilities are then those among the remaining tokens.
      source: token of the source language, such as NLLB's "eng_Latn" or M2M100's "__en__"; "" for the folder's
        src_lang.
      target: token of the target language, such as "fra_Latn", "__fr__" or Marian's ">>fra<<"; "" for the folder's
        forced_bos_token_id (M2M100: tgt_lang).

    Examples:
      >>> HuggingFaceTokenizer("models/none").check()
      Traceback (most recent call last):
      kd_jax.errors.KdError: tokenizer.folder: expected a folder in Hugging Face's layout with tokenizer.json, \
tokenizer_config.json, got 'models/none' without tokenizer.json. Copy the missing file, or name another local folder.
    """

    chat: bool = False
    prefix: str = ""
    end: str = ""
    cut: bool = False
    source: str = ""
    target: str = ""

    kind: ClassVar[str] = "a folder in Hugging Face's layout"
    required: ClassVar[tuple[str, ...]] = (TOKENIZER, TOKENIZER_CONFIG)
    optional: ClassVar[tuple[str, ...]] = (TEMPLATE, SPECIAL_TOKENS_MAP, *FolderTokenizer.optional)
    files: ClassVar[tuple[str, ...]] = (*required, SPECIAL, ROWS)

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the folder's tokenizer."""
        return max(vocabulary(self._spec).values()) + 1

    def with_folder(self, folder: str) -> "HuggingFaceTokenizer | MarianTokenizer | M2M100Tokenizer":
        """Return these settings for another folder, as MarianTokenizer or M2M100Tokenizer if its files require that."""
        if (Path(folder) / SOURCE).exists():
            settings, kind = MarianTokenizer(folder, target=self.target, cut=self.cut), "a Marian"
            unused = ("chat", "prefix", "end", "source")
        elif (Path(folder) / MODEL).exists() and not (Path(folder) / TOKENIZER).exists():
            settings, kind = M2M100Tokenizer(folder, self.source, self.target), "an M2M100"
            unused = ("chat", "prefix", "end", "cut")
        else:
            return dataclasses.replace(self, folder=folder)
        for field in unused:
            if value := getattr(self, field):
                kind = f"{kind} model's folder ({folder!r})"
                raise KdError(f"tokenizer.{field}: expected its default for {kind}, got {value!r}. Remove it.")
        return settings

    def check(self) -> None:
        """Raise KdError if files or special tokens are missing, or the chat template fails."""
        self.require_files()
        self._special_tokens()

    def prepare(self, texts: Iterable[str], folder: Path, symbols: Sequence[str] = ()) -> None:
        """Copy the tokenizer, pruned to the tokens of the texts if `cut` is set; the symbols must be tokens."""
        special, config = self._special_tokens(), self.read_json(TOKENIZER_CONFIG)
        (spec, beyond), ids = self._contents, vocabulary(self._spec)
        if beyond:
            progress.log(f"data: tokens without a row in the embedding are left out: {', '.join(beyond)}")
        if special.languages:
            config |= dict(zip(("src_lang", "tgt_lang"), special.languages, strict=True))
            eos, legacy = special.tokens["eos"], bool(config.get("legacy_behaviour"))
            processor = post_processor.language_post_processor(special.languages[0], eos, ids, legacy)
            spec = {**spec, "post_processor": processor}  # transformers adds it when it loads
        for symbol in symbols:
            if symbol not in ids:
                raise KdError(
                    f"tokenizer.folder: expected the token {symbol!r} for the task's languages, got a vocabulary "
                    f"without it in {self.folder!r}. Train a SentencePiece, or use languages without tags."
                )
        # Encoded as one token even in a text; other special tokens are spelt, so that no text ends itself.
        added = [
            {**token, "special": token["special"] and token["content"] not in symbols} for token in spec["added_tokens"]
        ]
        spec = {**spec, "added_tokens": added}
        used, characters = self._read_texts(texts, spec, special)
        if characters:
            whole = tokenizers.Tokenizer.from_str(json.dumps(spec))
            if lost := tokenizer_json.check_characters(whole, characters, self.folder):
                progress.log(f"data: the tokenizer has no token for, and drops, {lost}")
        rows = list(range(max(ids.values()) + 1))
        if self.cut:
            required = {*special.tokens.values(), *special.forced_prefix, *special.ends, *symbols}
            required |= post_processor.all_tokens(spec["post_processor"])
            rows = prune_vocabulary.required_ids(spec, used, required)
            new_ids = {old: new for new, old in enumerate(rows)}
            spec = prune_vocabulary.prune(spec, rows)
            config = hf_folder.renumber_added_tokens(config, new_ids)
            suppressed, first = (
                [token for token in tokens if ids[token] in new_ids]
                for tokens in (special.suppress_tokens, special.suppress_first)
            )
            special = dataclasses.replace(special, suppress_tokens=suppressed, suppress_first=first)
        manifest.write_text(folder / TOKENIZER, json.dumps(spec, ensure_ascii=False))
        manifest.write_json(folder / TOKENIZER_CONFIG, config)
        hf_folder.write_special(folder, special, rows)

    def load(self, folder: Path) -> "FastTokenizer":
        """Return the tokenizer that `prepare` wrote."""
        base.require_files(folder, self.files)
        special, rows_V = hf_folder.read_special(folder, FastSpecialTokens)
        return FastTokenizer(manifest.read_json(folder / TOKENIZER), special, rows_V, folder)

    def _read_texts(
        self, texts: Iterable[str], spec: dict[str, Any], special: FastSpecialTokens
    ) -> tuple[set[int], collections.Counter[str]]:
        """Return the ids that the texts use, if `cut` is set, and their characters, if some may have no token."""
        used, characters = set[int](), collections.Counter[str]()
        may_lose = not tokenizer_json.has_every_character(spec)
        if self.cut or may_lose:
            whole = FastTokenizer(spec, special, None, Path(self.folder))
            for text in texts:
                if self.cut:
                    used.update(whole.encode(text), whole.encode_prompt(text))
                if may_lose:
                    characters.update(text)
        return used, characters

    @functools.cached_property
    def _contents(self) -> tuple[dict[str, Any], list[str]]:
        """The folder's tokenizer.json, and those of its tokens that are left out: the embedding has no row for them."""
        path = Path(self.folder) / TOKENIZER
        spec, beyond = tokenizer_json.read_spec(path), []
        if rows := hf_folder.embedding_rows(hf_folder.read_model_config(Path(self.folder))):
            spec, beyond = tokenizer_json.without_tokens_beyond(spec, rows)
            if (most := max(vocabulary(spec).values())) >= rows:
                raise KdError(
                    f"{path}: expected ids below {rows}, the embedding's rows (vocab_size in {MODEL_CONFIG}), got "
                    f"{most}. Use the tokenizer of the same model."
                )
        return spec, beyond

    @property
    def _spec(self) -> dict[str, Any]:
        """The folder's tokenizer.json, without tokens that have no row in the embedding."""
        return self._contents[0]

    def _special_tokens(self) -> FastSpecialTokens:
        """Read the special tokens of the folder."""
        folder, ids = Path(self.folder), vocabulary(self._spec)
        config, model_config = hf_folder.read_tokenizer_config(folder), hf_folder.read_model_config(folder)
        words = {i: token for token, i in ids.items()}
        has_encoder, roles = bool(model_config.get("is_encoder_decoder")), ("bos", "eos", "pad", "unk")
        named: dict[str, str | None] = {**hf_folder.named_tokens(config, roles)}
        # BART and GPT-2 were published with ids only. A decoder-only one may have an unused start.
        by_id = {role: words.get(hf_folder.id_of(model_config, f"{role}_token_id")) for role in roles}
        if has_encoder or "eos_token" not in config:
            named = by_id | named
        if self.end:
            named["eos"] = self.end
        for role in ("bos", "eos"):
            if named.get(role) in self._contents[1]:
                raise KdError(
                    f"tokenizer.folder: expected a row of the embedding for the token {role}, {named[role]!r}, got "
                    f"{hf_folder.embedding_rows(model_config)} rows (vocab_size in {MODEL_CONFIG} of {self.folder!r}). "
                    "Use the tokenizer of the same model."
                )
        tokens = {role: token for role, token in named.items() if token is not None and token in ids}
        if "eos" not in tokens:
            raise KdError(
                f"tokenizer.end: expected a token of {self.folder!r}, got {named.get('eos')!r}. Name the last token."
            )
        start = tokens.get("bos", tokens["eos"])
        if has_encoder:
            start = generation_config.token_of(model_config, "decoder_start_token_id", words)
            start = start or generation_config.token_of(model_config, "pad_token_id", words)
        if start is None:
            raise KdError(f"{folder / MODEL_CONFIG}: expected decoder_start_token_id, got none. Add the id.")
        tokens["start"] = start
        template = ""
        if self.chat:
            variables = hf_folder.template_variables(config)
            ours = {f"{role}_token": token for role, token in tokens.items()}
            others = {name: token for name, token in variables.items() if ours.get(name) != token}
            template = freeze(read_template(folder, config), others, datetime.datetime.now())
            tokens["start"] = self._chat_start(Chat(template, tokens))
        languages = hf_folder.language_tokens(config, model_config, ids, self.source, self.target)
        forced_prefix: list[str] = []
        if has_encoder and languages:
            forced_prefix = languages[1:]
        elif has_encoder and (forced := generation_config.token_of(model_config, "forced_bos_token_id", words)):
            forced_prefix = [forced]
        elif has_encoder:
            leading = post_processor.leading_tokens(self._spec["post_processor"])
            forced_prefix = [token for token in leading if token != tokens["start"]]
        return FastSpecialTokens(
            tokens=tokens,
            template=template,
            prefix=self.prefix,
            has_encoder=has_encoder,
            languages=languages,
            forced_prefix=forced_prefix,
            suppress_tokens=[words[i] for i in generation_config.suppressed_ids(model_config) if i in words],
            ends=generation_config.end_tokens(model_config, words),
            suppress_first=generation_config.first_suppressed_tokens(model_config, words),
            force_end=generation_config.forces_end(model_config, ids[tokens["eos"]]),
        )

    def _chat_start(self, chat: Chat) -> str:
        """Return the token that every chat begins with, after a check of its tokens and its end."""
        whole = tokenizers.Tokenizer.from_str(json.dumps(self._spec))
        texts = chat.render("a"), chat.render("a", "b"), chat.render("Zebra")
        prompt, with_answer, other = (whole.encode(text, add_special_tokens=False).tokens for text in texts)
        if beyond := [token for token in self._contents[1] if token in "".join(chat.around)]:
            raise KdError(
                f"tokenizer.chat: expected a template whose tokens have rows in the embedding, got {beyond[0]!r} in "
                f"that of {self.folder!r}. Use the template of the same model, or set chat to False."
            )
        if chat.tokens["eos"] not in with_answer[len(prompt) :]:
            raise KdError(
                f"tokenizer.end: expected the token that ends an answer in the chat template of {self.folder!r}, got "
                f"{chat.tokens['eos']!r}. The template ends with {with_answer[-1:]}."
            )
        if not prompt or prompt[:1] != other[:1]:
            raise KdError(
                f"tokenizer.chat: expected a template whose chats begin with one token, got {prompt[:1]} and "
                f"{other[:1]} for two messages. Add a first token to the template."
            )
        return prompt[0]


class FastTokenizer:
    """A `Tokenizer` of a tokenizer.json."""

    def __init__(self, spec: Mapping[str, Any], special: FastSpecialTokens, rows_V: np.ndarray | None, folder: Path):
        """Build the tokenizer of a tokenizer.json (`spec`), whose file is in `folder`."""
        self._whole = tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
        self._special, self._folder = special, folder
        self._ids = vocabulary(spec)
        # A chat may begin with an ordinary token, which texts contain.
        special_added = {token["content"] for token in spec["added_tokens"] if token["special"]}
        special_tokens = {token for role, token in special.tokens.items() if role not in ("unk", "start")}
        special_tokens |= {*special.languages, *special.forced_prefix, *({special.tokens["start"]} & special_added)}
        self._special_ids = {self._ids[token] for token in special_tokens}
        self._chat = Chat(special.template, special.tokens) if special.template else None
        self.prompt_format = PromptFormat(special.prefix, self._chat.around if self._chat else None)
        self._prefix_tokens = len(self.encode(special.prefix.rstrip())) if special.prefix else 0
        self.rows_V = rows_V
        self.vocab_size = max(self._ids.values()) + 1
        self.start, self.eos = self._ids[special.tokens["start"]], self._ids[special.tokens["eos"]]
        self.forced_prefix = tuple(self._ids[token] for token in special.forced_prefix)
        self.suppress_tokens = tuple(self._ids[token] for token in special.suppress_tokens)
        self.suppress_first = tuple(self._ids[token] for token in special.suppress_first)
        self.ends = base.end_ids(self.eos, (self._ids[token] for token in special.ends))
        self.force_end = special.force_end
        self.pad = self._ids[special.tokens["pad"]] if "pad" in special.tokens else base.NO_ID

    def encode(self, text: str) -> list[int]:
        """Return the ids of a completion's text, without special tokens."""
        return self._without_special(self._encode(text).ids)

    def encode_prompt(self, text: str, max_tokens: int = 0) -> list[int]:
        """Return the ids of a prompt: within a chat, or with the encoder's special tokens, or with the end."""
        text, limit = self._special.prefix + text, self._prefix_tokens + max_tokens if max_tokens else MAX_TOKENS
        if self._chat is not None:
            ids = self._encode_chat(self._chat, text, limit)
            return ids[1:] if ids[:1] == [self.start] else ids  # the layout adds the start token
        encoding = self._encode(text)
        if not self._special.has_encoder:
            return [*self._without_special(encoding.ids)[:limit], self.eos]
        encoding.truncate(limit)
        return self._whole.post_process(encoding).ids

    def _encode_chat(self, chat: Chat, text: str, limit: int) -> list[int]:
        """Return the ids of a message's chat without those of the message's tokens beyond `limit`."""
        rendered, (before, after) = chat.render(text), chat.around
        encoding = self._encode(rendered, special=True)
        begin, end = len(before), len(rendered) - len(after)
        message = [i for i, (first, last) in enumerate(encoding.offsets) if last > begin and first < end]
        removed = set(message[limit:])
        return [token for i, token in enumerate(encoding.ids) if i not in removed]

    def _encode(self, text: str, special: bool = False) -> tokenizers.Encoding:
        """Encode a text; `special`: whether special tokens in it are tokens, else they are spelt."""
        self._whole.encode_special_tokens = not special
        try:
            return self._whole.encode(text, add_special_tokens=False)
        except Exception as error:  # a unigram model without an unknown token
            raise KdError(
                f"text: expected characters that the tokenizer knows, got {text[:30]!r}: {error}. Remove the others."
            ) from error

    def _without_special(self, ids: Iterable[int]) -> list[int]:
        return [i for i in ids if i not in self._special_ids]  # a Unigram model has them among its pieces

    def encode_input(self, text: str) -> list[int]:
        """Return the ids that transformers passes to the model, without the start token, which the layout adds."""
        self._whole.encode_special_tokens = True
        ids = self._whole.encode(text, add_special_tokens=True).ids
        return ids[1:] if ids[:1] == [self.start] else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self._whole.decode([int(i) for i in ids], skip_special_tokens=True)

    def pieces(self) -> list[str]:
        """Return the vocabulary's strings, ordered by id; "" for an unused id."""
        tokens = {i: token for token, i in self._ids.items()}
        return [tokens.get(i, "") for i in range(self.vocab_size)]

    def token_bytes(self) -> list[bytes | None]:
        """Return the bytes that each token adds to a text.

        Raises:
          KdError: if the decoder is neither byte-level nor of SentencePiece's kind.
        """
        spec = json.loads(self._whole.to_str())
        bytes_of = tokenizer_json.bytes_of_token(spec, self._folder)
        literal = {
            token["id"]: b"" if token["special"] else token["content"].encode() for token in spec["added_tokens"]
        }
        table: list[bytes | None] = [b""] * self.vocab_size
        for token, i in self._ids.items():
            table[i] = literal[i] if i in literal else b"" if i in self._special_ids else bytes_of(token)
        if "unk" in self._special.tokens:
            table[self._ids[self._special.tokens["unk"]]] = None
        return table

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """Write tokenizer.json, whose special tokens are those of our prompts, and the chat template.

        tokenizer_config.json names the class that reads tokenizer.json as it is, since those of single models do not.
        """
        special, tokens = self._special, dict(self._special.tokens)
        spec, config = json.loads(self._whole.to_str()), manifest.read_json(self._folder / TOKENIZER_CONFIG)
        has_encoder = family == "encoder_decoder"
        tokens.setdefault("pad", tokens["eos"])
        if not (has_encoder and special.has_encoder):
            around = self._special_around(spec["post_processor"], prompted)
            around = around if has_encoder else [tokens["start"], *around]
            spec["post_processor"] = post_processor.template(around, self._ids)
        named = {f"{role}_token": tokens[role] for role in ("bos", "eos", "pad", "unk") if role in tokens}
        if special.languages and has_encoder:
            config |= named | {"split_special_tokens": True}  # its class sets the language, for completions too
        else:
            config = COMMON_CONFIG | named | {"padding_side": "right" if has_encoder else "left"}
            config |= {"split_special_tokens": not special.template}
        manifest.write_text(to / TOKENIZER, json.dumps(spec, ensure_ascii=False))
        manifest.write_json(to / TOKENIZER_CONFIG, config)
        if special.template:
            manifest.write_text(to / TEMPLATE, special.template)
        roles = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "pad"}
        if has_encoder:
            roles["decoder_start_token_id"] = "start"
        return {name: self._ids[tokens[role]] for name, role in roles.items() if role in tokens}

    def _special_around(self, processor: Mapping[str, Any] | None, prompted: bool) -> list[str]:
        """Return the special tokens of a prompt, with "$A" for its text; `processor` is the tokenizer.json's."""
        if self._special.has_encoder:
            leading = post_processor.leading_tokens(processor)
            return [*leading, "$A", *self._whole.post_process(self._encode("")).tokens[len(leading) :]]
        return ["$A", self._special.tokens["eos"]] if prompted else ["$A"]
