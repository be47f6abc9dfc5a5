"""SGLang: `input_top_logprobs` of responses of /generate, as JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers.base import (
    Entries,
    LogprobRecord,
    json_lines,
    member,
    number,
    of_kind,
    rectangular,
    token_id,
)

ASK = "ask for return_logprob, top_logprobs_num and logprob_start_len=0"


def read(path: Path) -> Iterator[LogprobRecord]:
    """The records of a file.

    A line is a response, or a list of them. `meta_info.input_token_logprobs` has [log-probability, id, text] of every
    input token from `logprob_start_len` on, `input_top_logprobs` beside it a list of such, or null at the first. Where
    it does not begin at the first token, the request's `input_ids` must stand beside `meta_info`.

    Raises:
      KdError: names the file, the record and what is wrong with it.
    """
    for where, line in json_lines(path):
        for response in line if type(line) is list else [line]:
            yield _record(where, response)


def _record(where: str, response: Any) -> LogprobRecord:
    meta = member(where, response, "meta_info", dict)
    for name in ("input_token_logprobs", "input_top_logprobs"):
        if name not in meta or meta[name] is None:
            raise KdError(f"{where}: no meta_info.{name}; {ASK}")
    scored, top = (member(where, meta, name, list) for name in ("input_token_logprobs", "input_top_logprobs"))
    if len(scored) != len(top):
        raise KdError(f"{where}: {len(top)} input_top_logprobs for {len(scored)} input tokens; wanted one for each")
    tokens = [token_id(where, _triple(where, one)[1]) for one in scored]
    if "input_ids" in response:
        whole = [token_id(where, one) for one in member(where, response, "input_ids", list)]
    else:
        whole = tokens
    begin, count = len(whole) - len(tokens), meta["prompt_tokens"] if "prompt_tokens" in meta else len(whole)
    if begin < 0 or whole[begin:] != tokens or count != len(whole):
        raise KdError(
            f"{where}: input_token_logprobs of {len(tokens)} of {str(count)[:20]} input tokens; {ASK}, or keep the "
            "request's input_ids beside meta_info"
        )
    named = ((begin + t, _entries(f"{where}, token {begin + t}", one)) for t, one in enumerate(top))
    return rectangular(where, whole, [(target, entries) for target, entries in named if entries])


def _entries(where: str, position: Any) -> Entries:
    if position is None:
        return []
    triples = [_triple(where, one) for one in of_kind(where, position, list, "an entry of input_top_logprobs")]
    return [(token_id(where, token), number(where, logp)) for logp, token, *_ in triples]


def _triple(where: str, value: Any) -> list[Any]:
    if type(value) is not list or not 2 <= len(value) <= 3:
        raise KdError(f"{where}: {str(value)[:40]!r}; wanted [log-probability, token id, text]")
    return value
