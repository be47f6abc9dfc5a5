"""Post-processors of a tokenizer.json: the special tokens around a text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import processors


def language_post_processor(source: str, eos: str, ids: Mapping[str, int], legacy: bool) -> dict[str, Any]:
    """Return the post-processor of a multilingual model's text: token of the source language, text, `eos`.

    Legacy: the language stands last, as in NLLB's legacy_behaviour.
    """
    return template(["$A", eos, source] if legacy else [source, "$A", eos], ids)


def template(single: Sequence[str], ids: Mapping[str, int]) -> dict[str, Any]:
    """Return the post-processor that puts special tokens around a text, "$A" in `single`."""
    tokens = [(token, ids[token]) for token in dict.fromkeys(single) if token != "$A"]
    return json.loads(processors.TemplateProcessing(single=list(single), special_tokens=tokens).__getstate__())


def leading_tokens(processor: Mapping[str, Any] | None) -> list[str]:
    """Return the special tokens that a post-processor adds before a text.

    Examples:
      >>> leading_tokens({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]})
      ['<s>']
      >>> leading_tokens(language_post_processor("en", "</s>", {"en": 7, "</s>": 2}, legacy=True))
      []
    """
    if processor is None:
        return []
    if processor["type"] == "Sequence":
        return [token for part in processor["processors"] for token in leading_tokens(part)]
    if processor["type"] == "TemplateProcessing":
        parts = processor["single"]
        text = next(i for i, part in enumerate(parts) if "Sequence" in part)
        return [part["SpecialToken"]["id"] for part in parts[:text]]
    return [processor["cls"][0]] if "cls" in processor else []


def all_tokens(processor: Mapping[str, Any] | None) -> set[str]:
    """Return the special tokens that a post-processor adds before or after a text."""
    if processor is None:
        return set()
    if processor["type"] == "Sequence":
        return {token for part in processor["processors"] for token in all_tokens(part)}
    if processor["type"] == "TemplateProcessing":
        return set(processor["special_tokens"])
    return {processor[end][0] for end in ("sep", "cls") if end in processor}


def renumber(processor: Mapping[str, Any] | None, new_ids: Mapping[int, int]) -> dict[str, Any] | None:
    """Return the post-processor with new ids (old id -> new id)."""
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        return {**processor, "processors": [renumber(part, new_ids) for part in processor["processors"]]}
    if processor["type"] == "TemplateProcessing":
        tokens = processor["special_tokens"]
        tokens = {name: {**token, "ids": [new_ids[i] for i in token["ids"]]} for name, token in tokens.items()}
        return {**processor, "special_tokens": tokens}
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        ends = {end: [processor[end][0], new_ids[processor[end][1]]] for end in ("sep", "cls")}
        return {**processor, **ends}
    return dict(processor)  # ByteLevel has no ids
