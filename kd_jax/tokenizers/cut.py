"""A tokenizer.json of the tokens that some texts use: the same pieces for those texts, and for others what is left."""

from collections.abc import Iterable, Mapping
from typing import Any

from kd_jax.errors import KdError

Json = Mapping[str, Any]


def kept_ids(spec: Json, used: Iterable[int], needed: Iterable[str]) -> list[int]:
    """The ids that stay, ascending: those that are used, all they are made of, and single characters.

    A byte-pair token is made by merges, so the halves of every merge that gives a token stay too; then each text
    merges as it did, for a merge that is gone has never given a token of these texts.

    Args:
      spec: a tokenizer.json.
      used: ids of the texts' tokens.
      needed: special tokens that stay whatever the texts hold.

    Raises:
      KdError: if the model is neither BPE nor Unigram.
    """
    model, ids = spec["model"], vocabulary(spec)
    words = {i: word for word, i in ids.items()}
    kept = {words[i] for i in used} | {word for word in needed if word in ids}
    kept |= {word for word in ids if len(word) == 1 or (word.startswith("<0x") and len(word) == 6)}
    if model["type"] == "Unigram":
        kept.add(model["vocab"][model["unk_id"]][0])
        return sorted(ids[word] for word in kept)
    if model["type"] != "BPE":
        raise KdError(f"tokenizer.cut: a {model['type']} model cannot be cut; wanted BPE or Unigram, or cut=False")
    kept |= {word for word in (model.get("unk_token"),) if word in ids}
    halves: dict[str, set[str]] = {}
    for left, right in merges(model):
        halves.setdefault(left + right, set()).update((left, right))
    waiting = list(kept)
    while waiting:
        parts = halves.get(waiting.pop(), set()) - kept
        kept |= parts
        waiting += parts
    return sorted(ids[word] for word in kept)


def cut(spec: Json, ids: list[int]) -> dict[str, Any]:
    """The tokenizer.json over these ids alone, numbered anew in their order."""
    number = {old: new for new, old in enumerate(ids)}
    model = dict(spec["model"])
    if model["type"] == "Unigram":
        model["unk_id"] = number[model["unk_id"]]
        model["vocab"] = [model["vocab"][old] for old in ids if old < len(model["vocab"])]
    else:
        vocab = {word: number[old] for word, old in model["vocab"].items() if old in number}
        model["vocab"] = vocab
        model["merges"] = [[a, b] for a, b in merges(model) if a in vocab and b in vocab and a + b in vocab]
    added = [{**token, "id": number[token["id"]]} for token in spec["added_tokens"] if token["id"] in number]
    return {**spec, "model": model, "added_tokens": added, "post_processor": _numbered(spec["post_processor"], number)}


def vocabulary(spec: Json) -> dict[str, int]:
    """Token -> id, the added ones included."""
    vocab = spec["model"]["vocab"]
    words = {word: i for i, (word, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return words | {token["content"]: token["id"] for token in spec["added_tokens"]}


def merges(model: Json) -> list[tuple[str, str]]:
    """The halves of each merge, in order; older files have them as one text."""
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]


def _numbered(processor: Any, number: Mapping[int, int]) -> Any:
    """What stands around a text, by its new ids."""
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        return {**processor, "processors": [_numbered(one, number) for one in processor["processors"]]}
    if processor["type"] == "TemplateProcessing":
        tokens = processor["special_tokens"].items()
        ids = {word: {**token, "ids": [number[i] for i in token["ids"]]} for word, token in tokens}
        return {**processor, "special_tokens": ids}
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return processor | {end: [processor[end][0], number[processor[end][1]]] for end in ("sep", "cls")}
    return processor  # of bytes: no ids in it


def around(processor: Any) -> set[str]:
    """The special tokens that stand around a text."""
    if processor is None:
        return set()
    if processor["type"] == "Sequence":
        return {word for one in processor["processors"] for word in around(one)}
    if processor["type"] == "TemplateProcessing":
        return set(processor["special_tokens"])
    return {processor[end][0] for end in ("sep", "cls") if end in processor}
