"""vLLM: `prompt_logprobs` of a server's responses, or of offline outputs in either form, as JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers import base
from kd_jax.teaching.imported.readers.base import Entries, LogprobRecord, check_type, get_field, get_typed

MINUS_INFINITY = -9999.0  # the server writes this, since JSON has no infinity
REMEDY = "Request prompt_logprobs and return_token_ids from the server."
Ranked = list[tuple[int, float, int | None]]  # (token id, log-probability, rank from 1 where known)


def read(path: Path) -> Iterator[LogprobRecord]:
    """Yield the records of a file.

    A line is a server's response to a completion or a chat, or an offline output. It has `prompt_token_ids`, and
    `prompt_logprobs`: a list of null or {id: {"logprob", "rank"}}, or the fields of a FlatLogprobs. Entry t scores
    token t. A scored token whose rank is beyond the k most likely tokens is dropped.
    """
    for where, response in base.json_lines(path):
        holders = [response]
        if type(response) is dict and "choices" in response and "prompt_logprobs" not in response:
            holders = get_typed(where, response, "choices", list)  # of a completion
        for holder in holders:
            yield _record(where, holder)


def _record(where: str, holder: Any) -> LogprobRecord:
    tokens = [base.parse_token_id(where, one) for one in get_typed(where, holder, "prompt_token_ids", list)]
    if holder.get("prompt_logprobs") is None and ("prompt_logprobs" in holder or "logprobs" in holder):
        raise KdError(f"{where}: expected prompt_logprobs, got at most logprobs whose keys are texts. {REMEDY}")
    logprobs = get_field(where, holder, "prompt_logprobs")
    if type(logprobs) is dict:
        positions = _parse_flat(where, logprobs)
    else:
        entries = check_type(where, logprobs, list, "prompt_logprobs")
        positions = [_parse_position(f"{where}, token {t}", one) for t, one in enumerate(entries)]
    if len(positions) != len(tokens):
        counts = f"each of {len(tokens)} tokens, got {len(positions)}"
        raise KdError(f"{where}: expected prompt_logprobs for {counts}. {REMEDY}")
    return base.make_record(where, tokens, [(t, _top_entries(ranked)) for t, ranked in enumerate(positions) if ranked])


def _parse_position(where: str, position: Any) -> Ranked:
    """Return the entries of an object, or of null, which the first token has."""
    if position is None:
        return []
    entries = []
    for token, one in check_type(where, position, dict, "an entry of prompt_logprobs").items():
        logp = base.parse_number(where, get_field(where, one, "logprob"))
        entries.append((base.parse_token_id(where, token), logp, _parse_rank(where, get_field(where, one, "rank"))))
    return entries


def _parse_flat(where: str, flat: dict[str, Any]) -> list[Ranked]:
    """Return the entries of a FlatLogprobs, whose positions may begin with the scored token and repeat it."""
    starts, ends, tokens, logps, ranks = (
        get_typed(where, flat, name, list)
        for name in ("start_indices", "end_indices", "token_ids", "logprobs", "ranks")
    )
    if len(starts) != len(ends) or not len(tokens) == len(logps) == len(ranks):
        raise KdError(f"{where}: expected lists of one length in prompt_logprobs, got others. Write the file again.")
    positions, last = [], 0
    for t, (start, end) in enumerate(zip(starts, ends, strict=True)):
        at = f"{where}, token {t}"
        if type(start) is not int or type(end) is not int or not last <= start <= end <= len(tokens):
            entries = f"{str(start)[:20]} to {str(end)[:20]}"
            raise KdError(
                f"{at}: expected entries between {last} and {len(tokens)}, got {entries}. Write the file again."
            )
        last = end
        entries = [
            (base.parse_token_id(at, tokens[i]), base.parse_number(at, logps[i]), _parse_rank(at, ranks[i]))
            for i in range(start, end)
        ]
        repeated = entries and entries[0][:2] in [one[:2] for one in entries[1:]]
        positions.append(entries[1:] if repeated else entries)
    return positions


def _parse_rank(where: str, value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise KdError(f"{where}: expected an integer or null as a rank, got {str(value)[:40]!r}. Write the file again.")
    return value


def _top_entries(ranked: Ranked) -> Entries:
    """Return the entries without a scored token whose rank is beyond the number of entries."""
    return [
        (token, -np.inf if logp <= MINUS_INFINITY else logp)
        for token, logp, rank in ranked
        if rank is None or rank <= len(ranked)
    ]
