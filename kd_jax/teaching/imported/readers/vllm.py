"""vLLM: `prompt_logprobs` of a server's responses, or of offline outputs in either form, as JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers.base import (
    Entries,
    LogprobRecord,
    json_lines,
    member,
    number,
    of_kind,
    present,
    rectangular,
    token_id,
)

MINUS_INFINITY = -9999.0  # as the server writes it, since JSON has none
ASK = "ask the server for prompt_logprobs and return_token_ids"
Ranked = list[tuple[int, float, int | None]]  # (token id, log-probability, its rank from 1 where known)


def read(path: Path) -> Iterator[LogprobRecord]:
    """The records of a file.

    A line is a server's response, with `choices` or for a chat, or an offline output: `prompt_token_ids`, and as
    `prompt_logprobs` a list of null or {id: {"logprob", "rank"}}, or the fields of a FlatLogprobs. Entry t scores
    token t. Where the scored token is not of the likeliest it stands beside them, by its rank, and is left out: what
    remains are a position's likeliest.

    Raises:
      KdError: names the file, the record and what is wrong with it.
    """
    for where, response in json_lines(path):
        for holder in _holders(where, response):
            yield _record(where, holder)


def _holders(where: str, response: Any) -> list[Any]:
    """The objects that hold `prompt_logprobs`: a completion's choices, or the response itself."""
    if type(response) is dict and "choices" in response and "prompt_logprobs" not in response:
        return member(where, response, "choices", list)
    return [response]


def _record(where: str, holder: Any) -> LogprobRecord:
    tokens = [token_id(where, one) for one in member(where, holder, "prompt_token_ids", list)]
    if holder["prompt_logprobs"] is None if "prompt_logprobs" in holder else "logprobs" in holder:
        raise KdError(f"{where}: logprobs of generated tokens at most, whose keys are texts, not ids; {ASK}")
    stored = present(where, holder, "prompt_logprobs")
    if type(stored) is dict:
        positions = _flat(where, stored)
    else:
        listed = of_kind(where, stored, list, "prompt_logprobs")
        positions = [_listed(f"{where}, token {t}", one) for t, one in enumerate(listed)]
    if len(positions) != len(tokens):
        raise KdError(f"{where}: {len(positions)} prompt_logprobs for {len(tokens)} tokens; wanted one for each")
    return rectangular(where, tokens, [(t, _likeliest(ranked)) for t, ranked in enumerate(positions) if ranked])


def _listed(where: str, position: Any) -> Ranked:
    """Of a null, as the first token has, or an object."""
    if position is None:
        return []
    entries = []
    for token, one in of_kind(where, position, dict, "an entry of prompt_logprobs").items():
        logp = number(where, present(where, one, "logprob"))
        entries.append((token_id(where, token), logp, _rank(where, present(where, one, "rank"))))
    return entries


def _flat(where: str, flat: dict[str, Any]) -> list[Ranked]:
    """Of a FlatLogprobs, whose positions may begin with the scored token and name it again."""
    starts, ends, tokens, logps, ranks = (
        member(where, flat, name, list) for name in ("start_indices", "end_indices", "token_ids", "logprobs", "ranks")
    )
    if len(starts) != len(ends) or not len(tokens) == len(logps) == len(ranks):
        raise KdError(f"{where}: lists of prompt_logprobs differ in length; write the file again")
    positions = []
    for t, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= len(tokens):
            raise KdError(f"{where}, token {t}: entries {str(start)[:20]} to {str(end)[:20]}; write the file again")
        at = f"{where}, token {t}"
        entries = [(token_id(at, tokens[i]), number(at, logps[i]), _rank(at, ranks[i])) for i in range(start, end)]
        again = entries and entries[0][:2] in [one[:2] for one in entries[1:]]
        positions.append(entries[1:] if again else entries)
    return positions


def _rank(where: str, value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise KdError(f"{where}: {str(value)[:40]!r} as a rank; wanted a whole number or null")
    return value


def _likeliest(ranked: Ranked) -> Entries:
    """Without a scored token that is not of the likeliest: its rank is beyond the number of entries."""
    return [
        (token, -np.inf if logp <= MINUS_INFINITY else logp)
        for token, logp, rank in ranked
        if rank is None or rank <= len(ranked)
    ]
