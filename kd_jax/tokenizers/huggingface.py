"""Tokenizers of Hugging Face's layout: tokenizer.json, with special tokens and a chat template beside it."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers

from kd_jax.artifacts import manifest
from kd_jax.errors import KdError
from kd_jax.tokenizers import base, hf_folder, post_processor, prune_vocabulary
from kd_jax.tokenizers.chat import TEMPLATE, Chat
from kd_jax.tokenizers.hf_folder import MODEL_CONFIG, ROWS, SPECIAL, TOKENIZER_CONFIG, FolderTokenizer
from kd_jax.tokenizers.m2m100 import MODEL, M2M100Tokenizer
from kd_jax.tokenizers.marian import SOURCE, MarianTokenizer
from kd_jax.tokenizers.prune_vocabulary import vocabulary

TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class FastSpecialTokens:
    """Special tokens and the format of texts; stored as tokenizer_special.json."""

    tokens: Mapping[str, str]  # of the roles "start" and "eos", and "bos", "pad", "unk" if the folder has them
    template: str  # of a chat; "" for none
    prefix: str  # of every prompt
    has_encoder: bool
    languages: Sequence[str]  # source and target, or empty
    forced_prefix: Sequence[str]
    suppress_tokens: Sequence[str]


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer(FolderTokenizer):
    """The tokenizer of a pretrained model in a local folder.

    An encoder-decoder's completions begin with `forced_prefix` after `start`: the target language (NLLB), <s> (BART),
    or nothing (T5). The prefix is an input in training, scoring and decoding; the loss does not count it, and texts do
    not contain it. Decoding never generates the single tokens of bad_words_ids, as in transformers' `generate`.

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
    optional: ClassVar[tuple[str, ...]] = (TEMPLATE, *FolderTokenizer.optional)
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
        ids, spec = vocabulary(self._spec), self._spec
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
        rows = list(range(max(ids.values()) + 1))
        if self.cut:
            whole = FastTokenizer(spec, special, None, Path(self.folder))
            used: set[int] = set()
            for text in texts:
                used.update(whole.encode(text), whole.encode_prompt(text))
            required = {*special.tokens.values(), *special.forced_prefix, *symbols}
            required |= post_processor.all_tokens(spec["post_processor"])
            rows = prune_vocabulary.required_ids(spec, used, required)
            new_ids = {old: new for new, old in enumerate(rows)}
            spec = prune_vocabulary.prune(spec, rows)
            config = hf_folder.renumber_added_tokens(config, new_ids)
            suppressed = [token for token in special.suppress_tokens if ids[token] in new_ids]
            special = dataclasses.replace(special, suppress_tokens=suppressed)
        manifest.write_text(folder / TOKENIZER, json.dumps(spec, ensure_ascii=False))
        manifest.write_json(folder / TOKENIZER_CONFIG, config)
        hf_folder.write_special(folder, special, rows)

    def load(self, folder: Path) -> "FastTokenizer":
        """Return the tokenizer that `prepare` wrote."""
        base.require_files(folder, self.files)
        special, rows_V = hf_folder.read_special(folder, FastSpecialTokens)
        return FastTokenizer(manifest.read_json(folder / TOKENIZER), special, rows_V, folder)

    @functools.cached_property
    def _spec(self) -> dict[str, Any]:
        """The folder's tokenizer.json."""
        return self.read_json(TOKENIZER)

    def _special_tokens(self) -> FastSpecialTokens:
        """Read the special tokens of the folder."""
        folder, ids = Path(self.folder), vocabulary(self._spec)
        config, model_config = self.read_json(TOKENIZER_CONFIG), hf_folder.read_model_config(folder)
        words = {i: token for token, i in ids.items()}
        has_encoder, roles = bool(model_config.get("is_encoder_decoder")), ("bos", "eos", "pad", "unk")
        named: dict[str, str | None] = {**hf_folder.named_tokens(config, roles)}
        if has_encoder:  # BART was published with their ids only
            named = {role: words.get(model_config.get(f"{role}_token_id", -1)) for role in roles} | named
        tokens = {role: token for role, token in named.items() if token is not None and token in ids}
        if self.end:
            tokens["eos"] = self.end
        if tokens.get("eos") not in ids:
            raise KdError(
                f"tokenizer.end: expected a token of {self.folder!r}, got {tokens.get('eos')!r}. Name the last token."
            )
        start = tokens.get("bos", tokens["eos"])
        if has_encoder:
            start = words.get(model_config.get("decoder_start_token_id", model_config.get("pad_token_id", -1)))
        if start is None:
            raise KdError(f"{folder / MODEL_CONFIG}: expected decoder_start_token_id, got none. Add the id.")
        tokens["start"] = start
        template = ""
        if self.chat:
            chat = Chat.from_folder(folder, config, tokens)
            template, tokens["start"] = chat.template, self._chat_start(chat)
        languages = hf_folder.language_tokens(config, model_config, ids, self.source, self.target)
        forced, forced_prefix = words.get(model_config.get("forced_bos_token_id", -1)), []
        if has_encoder and languages:
            forced_prefix = languages[1:]
        elif has_encoder and forced is not None:
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
            suppress_tokens=[words[i] for i in hf_folder.suppressed_ids(model_config) if i in words],
        )

    def _chat_start(self, chat: Chat) -> str:
        """Return the token that every chat begins with, after a check that an answer ends with `end`."""
        whole = tokenizers.Tokenizer.from_str(json.dumps(self._spec))
        texts = chat.render("a"), chat.render("a", "b")
        prompt, with_answer = (whole.encode(text, add_special_tokens=False).tokens for text in texts)
        if chat.tokens["eos"] not in with_answer[len(prompt) :]:
            raise KdError(
                f"tokenizer.end: expected the token that ends an answer in the chat template of {self.folder!r}, got "
                f"{chat.tokens['eos']!r}. The template ends with {with_answer[-1]!r}."
            )
        return prompt[0]


class FastTokenizer:
    """A `Tokenizer` of a tokenizer.json."""

    def __init__(self, spec: Mapping[str, Any], special: FastSpecialTokens, rows_V: np.ndarray | None, folder: Path):
        """Build the tokenizer of a tokenizer.json (`spec`), whose file is in `folder`."""
        self._whole = tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
        self._whole.no_truncation()
        self._whole.no_padding()
        self._special, self._folder = special, folder
        self._ids = vocabulary(spec)
        special_tokens = [token for role, token in special.tokens.items() if role != "unk"]
        special_tokens += [*special.languages, *special.forced_prefix]
        self._special_ids = {self._ids[token] for token in special_tokens}
        self._chat = Chat(special.template, special.tokens) if special.template else None
        self.rows_V = rows_V
        self.vocab_size = max(self._ids.values()) + 1
        self.start, self.eos = self._ids[special.tokens["start"]], self._ids[special.tokens["eos"]]
        self.forced_prefix = tuple(self._ids[token] for token in special.forced_prefix)
        self.suppress_tokens = tuple(self._ids[token] for token in special.suppress_tokens)
        self.pad = self._ids[special.tokens["pad"]] if "pad" in special.tokens else base.NO_ID

    def encode(self, text: str) -> list[int]:
        """Return the ids of a completion's text, without special tokens."""
        self._whole.encode_special_tokens = True
        ids = self._whole.encode(text, add_special_tokens=False).ids
        return [i for i in ids if i not in self._special_ids]  # a Unigram model has them among its pieces

    def encode_prompt(self, text: str, max_tokens: int = 0) -> list[int]:
        """Return the ids of a prompt: within a chat, or with the encoder's special tokens, or with the end."""
        ids = self.encode(text)
        if max_tokens and len(ids) > max_tokens:
            text = self.decode(ids[:max_tokens])
        text = self._special.prefix + text
        if self._chat is not None:
            self._whole.encode_special_tokens = False
            ids = self._whole.encode(self._chat.render(text), add_special_tokens=False).ids
            return ids[1:] if ids[:1] == [self.start] else ids  # the layout adds the start token
        if self._special.has_encoder:
            return self._whole.encode(text, add_special_tokens=True).ids
        return [*self.encode(text), self.eos]

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

    def export(self, to: Path, family: str, prompted: bool) -> dict[str, int]:
        """Write copies of the files and of the chat template."""
        tokens = self._special.tokens
        (to / TOKENIZER).write_bytes((self._folder / TOKENIZER).read_bytes())
        config = manifest.read_json(self._folder / TOKENIZER_CONFIG)
        manifest.write_json(to / TOKENIZER_CONFIG, config | {"eos_token": tokens["eos"]})
        if self._special.template:
            manifest.write_text(to / TEMPLATE, self._special.template)
        roles = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "pad"}
        if family == "encoder_decoder":
            roles["decoder_start_token_id"] = "start"
        return {name: self._ids[tokens[role]] for name, role in roles.items() if role in tokens}
