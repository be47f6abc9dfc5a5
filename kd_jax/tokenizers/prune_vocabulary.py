"""A tokenizer.json pruned to the tokens that some texts use.

The pruned tokenizer encodes these texts as before, and other texts with the tokens that are left.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from kd_jax.errors import KdError
from kd_jax.tokenizers import post_processor

Json = Mapping[str, Any]


def required_ids(spec: Json, used: Iterable[int], required_tokens: Iterable[str]) -> list[int]:
    """Return the ids to keep, ascending: used ids, the parts of their merges, and single characters.

    Merges make a byte-pair token, so the halves of every merge that gives a kept token are kept too. Every text of
    `used` then merges as before, since a removed merge gave no token of these texts. The special `required_tokens` are
    kept even if no text uses them.
    """
    model, ids = spec["model"], vocabulary(spec)
    tokens = {i: token for token, i in ids.items()}
    keep = {tokens[i] for i in used} | {token for token in required_tokens if token in ids}
    keep |= {token for token in ids if len(token) == 1 or (token.startswith("<0x") and len(token) == 6)}
    if model["type"] == "Unigram":
        if model["unk_id"] is not None:
            keep.add(model["vocab"][model["unk_id"]][0])
        return sorted(ids[token] for token in keep)
    if model["type"] != "BPE":
        raise KdError(f"tokenizer.cut: expected a BPE or a Unigram model, got {model['type']}. Set it to False.")
    if model.get("unk_token") in ids:
        keep.add(model["unk_token"])
    halves: dict[str, set[str]] = {}
    for left, right in merges(model):
        halves.setdefault(left + right, set()).update((left, right))
    waiting = list(keep)
    while waiting:
        parts = halves.get(waiting.pop(), set()) - keep
        keep |= parts
        waiting += parts
    return sorted(ids[token] for token in keep)


def prune(spec: Json, ids: list[int]) -> dict[str, Any]:
    """Return the tokenizer.json with these ids only, renumbered from 0 in their order."""
    new_ids = {old: new for new, old in enumerate(ids)}
    model = dict(spec["model"])
    if model["type"] == "Unigram":
        model["unk_id"] = new_ids.get(model["unk_id"])
        model["vocab"] = [model["vocab"][old] for old in ids if old < len(model["vocab"])]
    else:
        vocab = {token: new_ids[old] for token, old in model["vocab"].items() if old in new_ids}
        model["vocab"] = vocab
        model["merges"] = [[a, b] for a, b in merges(model) if a in vocab and b in vocab and a + b in vocab]
    added = [{**token, "id": new_ids[token["id"]]} for token in spec["added_tokens"] if token["id"] in new_ids]
    processor = post_processor.renumber(spec["post_processor"], new_ids)
    return {**spec, "model": model, "added_tokens": added, "post_processor": processor}


def vocabulary(spec: Json) -> dict[str, int]:
    """Return token -> id of a tokenizer.json, with the added tokens."""
    vocab = spec["model"]["vocab"]
    ids = {token: i for i, (token, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return ids | {token["content"]: token["id"] for token in spec["added_tokens"]}


def merges(model: Json) -> list[tuple[str, str]]:
    """Return the two halves of each merge, in order."""
    # Older files have a merge as one string, "left right".
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]
