"""What a folder in Hugging Face's layout says of texts beside its tokeniser: what begins them, and what none holds."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import processors

from kd_jax.artifacts import manifest
from kd_jax.errors import KdError

Json = Mapping[str, Any]
MULTILINGUAL = ("m2m_100", "mbart")  # model types whose texts begin with the token of their language


def conventions(folder: Path) -> dict[str, Any]:
    """What config.json and generation_config.json say; the latter's word counts where both speak. {} without them."""
    said: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            said |= {key: value for key, value in manifest.read_json(folder / name).items() if value is not None}
    return said


def special_tokens(settings: Json, names: Iterable[str]) -> dict[str, str]:
    """Name -> token of those that a tokenizer_config.json names.

    Examples:
      >>> special_tokens({"eos_token": {"content": "</s>"}, "pad_token": "<pad>"}, ("bos", "eos", "pad"))
      {'eos': '</s>', 'pad': '<pad>'}
    """
    tokens = {name: settings.get(f"{name}_token") for name in names}
    tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: token for name, token in tokens.items() if token is not None}


def suppress_tokens(said: Json) -> list[int]:
    """Ids that texts of the folder's model never hold; sequences of several ids are for the search to mind.

    Examples:
      >>> suppress_tokens({"bad_words_ids": [[7], [8, 9]], "suppress_tokens": [3]})
      [3, 7]
    """
    alone = [ids[0] for ids in said.get("bad_words_ids", ()) if len(ids) == 1]
    return sorted({*alone, *said.get("suppress_tokens", ())})


def languages(settings: Json, said: Json, ids: Mapping[str, int], source: str, target: str) -> list[str]:
    """The tokens of the language that is read and of the one that is written; [] where texts begin with none.

    Args:
      settings: tokenizer_config.json.
      said: as `conventions`.
      ids: token -> id.
      source, target: as HuggingFaceTokenizer's; "" for the folder's.

    Raises:
      KdError: if one is no token, none is known, or the model has no such tokens.
    """
    kind = said.get("model_type")
    if kind not in MULTILINGUAL:
        for field, language in (("source", source), ("target", target)):
            if language:
                raise KdError(
                    f"tokenizer.{field}: {language!r}, but texts of a model of type {kind} begin with no language; "
                    "wanted '', or, in front of a prompt, tokenizer.prefix"
                )
        return []
    words = {i: word for word, i in ids.items()}
    both = {
        "source": source or settings.get("src_lang"),
        "target": target or words.get(said.get("forced_bos_token_id")),
    }
    for field, language in both.items():
        if language not in ids:
            raise KdError(
                f"tokenizer.{field}: {language or ''!r} is no token of a {kind} folder that reads and writes many "
                f"languages; wanted one, such as eng_Latn of NLLB or en_XX of mBART"
            )
    return list(both.values())


def around_source(source: str, eos: str, ids: Mapping[str, int], legacy: bool) -> dict[str, Any]:
    """The post-processor of a multilingual source: the language, the text, its end; of old, the language last.

    Examples:
      >>> around_source("en", "</s>", {"en": 7, "</s>": 2}, legacy=False)["single"][0]
      {'SpecialToken': {'id': 'en', 'type_id': 0}}
    """
    single = ["$A", eos, source] if legacy else [source, "$A", eos]
    tokens = [(token, ids[token]) for token in (source, eos)]
    return json.loads(processors.TemplateProcessing(single=single, special_tokens=tokens).__getstate__())


def in_front(processor: Any) -> list[str]:
    """The special tokens that a post-processor puts in front of a text.

    Examples:
      >>> in_front({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]})
      ['<s>']
      >>> in_front(around_source("en", "</s>", {"en": 7, "</s>": 2}, legacy=True))
      []
    """
    if processor is None:
        return []
    if processor["type"] == "Sequence":
        return [word for one in processor["processors"] for word in in_front(one)]
    if processor["type"] == "TemplateProcessing":
        parts = processor["single"]
        text = next(i for i, part in enumerate(parts) if "Sequence" in part)
        return [part["SpecialToken"]["id"] for part in parts[:text]]
    return [processor["cls"][0]] if "cls" in processor else []


def renumbered(settings: Json, number: Mapping[int, int]) -> dict[str, Any]:
    """A tokenizer_config.json whose tokens by id have new ids; those that have none are left out.

    Examples:
      >>> renumbered({"added_tokens_decoder": {"5": "<s>", "7": "<pad>"}, "eos_token": "</s>"}, {7: 1})
      {'added_tokens_decoder': {'1': '<pad>'}, 'eos_token': '</s>'}
    """
    if "added_tokens_decoder" not in settings:
        return dict(settings)
    tokens = {int(old): token for old, token in settings["added_tokens_decoder"].items()}
    return {**settings, "added_tokens_decoder": {str(number[i]): tokens[i] for i in tokens if i in number}}
