"""SGLang: `input_top_logprobs` of responses of /generate, as JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers import base
from kd_jax.teaching.imported.readers.base import Entries, LogprobRecord, check_type, get_typed

REMEDY = "Request return_logprob, top_logprobs_num and logprob_start_len=0"


def read(path: Path) -> Iterator[LogprobRecord]:
    """Yield the records of a file.

    A line is a response or a list of responses. `meta_info.input_token_logprobs` has [log-probability, id, text] of
    every input token from `logprob_start_len` on. `meta_info.input_top_logprobs` has a list of such triples for each,
    or null for the first. If `logprob_start_len` is not 0, the request's `input_ids` must stand beside `meta_info`.
    """
    for where, line in base.json_lines(path):
        for response in line if type(line) is list else [line]:
            yield _record(where, response)


def _record(where: str, response: Any) -> LogprobRecord:
    meta = get_typed(where, response, "meta_info", dict)
    for name in ("input_token_logprobs", "input_top_logprobs"):
        if name not in meta or meta[name] is None:
            raise KdError(f"{where}: expected meta_info.{name}, got none. {REMEDY}.")
    scored, top = (get_typed(where, meta, name, list) for name in ("input_token_logprobs", "input_top_logprobs"))
    if len(scored) != len(top):
        raise KdError(f"{where}: expected input_top_logprobs of {len(scored)} input tokens, got {len(top)}. {REMEDY}.")
    tokens = [base.parse_token_id(where, _triple(where, one)[1]) for one in scored]
    if "input_ids" in response:
        input_ids = [base.parse_token_id(where, one) for one in get_typed(where, response, "input_ids", list)]
    else:
        input_ids = tokens
    start, count = len(input_ids) - len(tokens), meta.get("prompt_tokens", len(input_ids))
    if start < 0 or input_ids[start:] != tokens or count != len(input_ids):
        raise KdError(
            f"{where}: expected input_token_logprobs of all {str(count)[:20]} input tokens, got {len(tokens)}. "
            f"{REMEDY}, or store the request's input_ids beside meta_info."
        )
    positions = ((start + t, _entries(f"{where}, token {start + t}", one)) for t, one in enumerate(top))
    return base.make_record(where, input_ids, [(target, entries) for target, entries in positions if entries])


def _entries(where: str, position: Any) -> Entries:
    if position is None:
        return []
    triples = [_triple(where, one) for one in check_type(where, position, list, "an entry of input_top_logprobs")]
    return [(base.parse_token_id(where, token), base.parse_number(where, logp)) for logp, token, *_ in triples]


def _triple(where: str, value: Any) -> list[Any]:
    if type(value) is not list or not 2 <= len(value) <= 3:
        raise KdError(f"{where}: expected [log-probability, token id, text], got {str(value)[:40]!r}. {REMEDY}.")
    return value
