"""Records of stored log-probabilities and their checks: files of other programs are not trusted."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from kd_jax.errors import KdError

LONGEST_LINE = 2**28  # bytes
LONGEST_SEQUENCE = 2**20  # tokens
MOST_CELLS = 2**22  # of a record's array, which may be empty at most of them
MOST_PADDING = 8  # cells of a larger array for each named token
JSON_REMEDY = "Write one response on each line."
NO_TOKEN = -1  # the id where a position names fewer tokens than others
Entries = Sequence[tuple[int, float]]  # (token id, log-probability) of each token that a position names
FieldT = TypeVar("FieldT")


class LogprobRecord(NamedTuple):
    """The log-probabilities of one sequence: N positions, each naming at most K tokens.

    Attributes:
      where: the file and the record's number, for messages.
      tokens_S: int64, the sequence's ids.
      target_N: int64, the token that each position predicts: t for tokens_S[t], S for the one behind the last.
      ids_NK: int64, NO_TOKEN where nothing is named.
      logp_NK: float64, log-probabilities or logits; -inf where nothing is named.
    """

    where: str
    tokens_S: np.ndarray
    target_N: np.ndarray
    ids_NK: np.ndarray
    logp_NK: np.ndarray


def make_record(where: str, tokens: Sequence[int], positions: Iterable[tuple[int, Entries]]) -> LogprobRecord:
    """Return a record from (target, entries) pairs; entries of -inf name nothing.

    A record is an array as wide as its longest position. One whose positions differ so much that the array would be far
    larger than the file is refused.

    Examples:
      >>> record = make_record("f, record 1", [5, 6, 7], [(1, [(6, -0.1)]), (2, [(7, -0.2), (9, -2.0)])])
      >>> record.ids_NK.tolist(), record.target_N.tolist()
      ([[6, -1], [7, 9]], [1, 2])
    """
    positions = list(positions)
    counts = [len(entries) for _, entries in positions]
    shape = (len(positions), max(counts, default=0))
    if shape[0] * shape[1] > max(MOST_CELLS, MOST_PADDING * sum(counts)):
        raise KdError(
            f"{where}: expected about as many named tokens at each position, got {shape[1]} at one and "
            f"{sum(counts) / shape[0]:.1f} on average. Store the same top k everywhere."
        )
    ids_NK, logp_NK = np.full(shape, NO_TOKEN, np.int64), np.full(shape, -np.inf)
    for n, (_, entries) in enumerate(positions):
        for k, (token, logp) in enumerate(entries):
            logp_NK[n, k] = logp
            ids_NK[n, k] = NO_TOKEN if logp == -np.inf else token
    target_N = np.asarray([target for target, _ in positions], np.int64)
    return LogprobRecord(where, np.asarray(tokens, np.int64), target_N, ids_NK, logp_NK)


def check_record(record: LogprobRecord, vocab_size: int, normalised: bool, sum_error: float) -> None:
    """Check that a record holds a teacher's log-probabilities (or logits) on this vocabulary.

    An error names the file, the record and the position of an id outside the vocabulary or named twice, two positions
    for one token, a number that is no log-probability, or probabilities whose sum exceeds 1 by more than `sum_error`.
    """
    where, tokens_S, target_N, ids_NK, logp_NK = record
    if not 0 < len(tokens_S) <= LONGEST_SEQUENCE:
        raise KdError(f"{where}: expected 1 to {LONGEST_SEQUENCE} tokens, got {len(tokens_S)}. Remove the record.")
    outside = tokens_S[(tokens_S < 0) | (tokens_S >= vocab_size)]
    if len(outside):
        raise KdError(f"{where}: expected token ids from 0 to {vocab_size - 1}, got {outside[0]}. Check the tokeniser.")
    if len(np.unique(target_N)) < len(target_N):
        raise KdError(f"{where}: expected one position for each token, got two. Write the file again.")
    named_NK = logp_NK > -np.inf
    infinite_NK = np.isnan(logp_NK) | (logp_NK == np.inf)
    _check_positions(record, infinite_NK, "finite numbers", "a number that is not finite")
    outside_NK = named_NK & ((ids_NK >= vocab_size) | (ids_NK < 0))
    _check_positions(record, outside_NK, f"ids from 0 to {vocab_size - 1}", "an id outside this run's vocabulary")
    if normalised:
        _check_positions(record, logp_NK > np.log1p(sum_error), "log-probabilities of at most 0", "one above 0")
    ordered_NK = np.sort(np.where(named_NK, ids_NK, NO_TOKEN), axis=-1)
    twice_NK = (ordered_NK[:, 1:] == ordered_NK[:, :-1]) & (ordered_NK[:, 1:] != NO_TOKEN)
    if twice_NK.any():
        _check_positions(record, twice_NK, "different ids", f"the id {ordered_NK[:, 1:][twice_NK][0]} twice")
    mass_N = np.exp(logp_NK).sum(-1) if normalised else np.zeros(len(target_N))
    if (mass_N > 1 + sum_error).any():
        n = mass_N.argmax()
        raise KdError(
            f"{where}, token {target_N[n]}: expected probabilities whose sum is at most 1 and --sum-error "
            f"{sum_error:g}, got {mass_N[n]:.6g}. Check that the file holds log-probabilities of one temperature."
        )


def _check_positions(record: LogprobRecord, bad_NK: np.ndarray, expected: str, got: str) -> None:
    if bad_NK.any():
        token = record.target_N[bad_NK.any(-1).argmax()]
        raise KdError(f"{record.where}, token {token}: expected {expected}, got {got}. Write the file again.")


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file and record's number, value) of every line that is not empty."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{path}, record {number}"
            if len(line) > LONGEST_LINE:
                raise KdError(f"{where}: expected at most {LONGEST_LINE >> 20} MiB, got a longer line. {JSON_REMEDY}")
            if line.strip():
                yield where, _parse_line(line, where)


def _parse_line(line: bytes, where: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise KdError(f"{where}: expected different keys in an object, got a duplicate. Write the file again.")
        return dict(pairs)

    try:
        return json.loads(line.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise KdError(f"{where}: expected JSON, got an error ({str(error)[:80]}). {JSON_REMEDY}") from error


def shorten(error: Exception) -> str:
    """Return an error's message on one line of at most 120 characters."""
    return " ".join(str(error).split())[:120]


def get_field(where: str, holder: Any, name: str) -> Any:
    """Return holder[name] of an object that has the field."""
    if type(holder) is not dict or name not in holder:
        raise KdError(f"{where}: expected a field {name}, got none. Check --format.")
    return holder[name]


def get_typed(where: str, holder: Any, name: str, kind: type[FieldT]) -> FieldT:
    """Return holder[name], which must be of the type `kind`."""
    return check_type(where, get_field(where, holder, name), kind, name)


def check_type(where: str, value: Any, kind: type[FieldT], name: str) -> FieldT:
    """Return the value, which must be of the type `kind`."""
    if type(value) is not kind:
        raise KdError(f"{where}: expected a {kind.__name__} as {name}, got a {type(value).__name__}. Check --format.")
    return value


def parse_token_id(where: str, value: Any) -> int:
    """Return a token id from an integer, or from its digits as text."""
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 11:
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**31:
        raise KdError(f"{where}: expected an integer as a token id, got {str(value)[:40]!r}. Store ids, not texts.")
    return value


def parse_number(where: str, value: Any) -> float:
    """Return a log-probability as a float."""
    if type(value) not in (int, float) or value != value or abs(value) > 1e300 and value != -np.inf:
        raise KdError(f"{where}: expected a log-probability, got {str(value)[:40]!r}. Write the file again.")
    return float(value)
