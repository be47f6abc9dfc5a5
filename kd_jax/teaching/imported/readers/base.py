"""What every file of stored log-probabilities is read as, and what it must hold. Files are somebody else's."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.errors import KdError

LONGEST_LINE = 2**28  # bytes
LONGEST_SEQUENCE = 2**20  # tokens
LARGEST_ID = 2**31 - 1
NO_TOKEN = -1  # the id where a position names fewer tokens than others
Entries = Sequence[tuple[int, float]]  # what one position names: (token id, log-probability)


class LogprobRecord(NamedTuple):
    """What one record says of one sequence: N positions, each naming at most K tokens.

    Attributes:
      where: the file and the record's number, for messages.
      tokens_S: int64, the sequence's ids.
      target_N: int64, which token each position predicts: t for tokens_S[t], S for the one behind the last.
      ids_NK: int64, NO_TOKEN where nothing is named.
      logp_NK: float64, log-probabilities or logits; -inf where nothing is named.
    """

    where: str
    tokens_S: np.ndarray
    target_N: np.ndarray
    ids_NK: np.ndarray
    logp_NK: np.ndarray


def rectangular(where: str, tokens: Sequence[int], positions: Iterable[tuple[int, Entries]]) -> LogprobRecord:
    """A LogprobRecord of (target, entries) pairs; entries of -inf name nothing.

    Examples:
      >>> one = rectangular("f, record 1", [5, 6, 7], [(1, [(6, -0.1)]), (2, [(7, -0.2), (9, -2.0)])])
      >>> one.ids_NK.tolist(), one.target_N.tolist()
      ([[6, -1], [7, 9]], [1, 2])
    """
    positions = list(positions)
    shape = (len(positions), max((len(entries) for _, entries in positions), default=0))
    ids_NK, logp_NK = np.full(shape, NO_TOKEN, np.int64), np.full(shape, -np.inf)
    for n, (_, entries) in enumerate(positions):
        for k, (token, logp) in enumerate(entries):
            logp_NK[n, k] = logp
            ids_NK[n, k] = NO_TOKEN if logp == -np.inf else token
    target_N = np.asarray([target for target, _ in positions], np.int64)
    return LogprobRecord(where, np.asarray(tokens, np.int64), target_N, ids_NK, logp_NK)


def check(stored: LogprobRecord, vocab_size: int, normalised: bool, sum_error: float) -> None:
    """Refuses what cannot be a teacher's word on this vocabulary.

    Args:
      stored: one record.
      vocab_size: of the tokeniser.
      normalised: whether it holds log-probabilities (else logits, which may be any numbers).
      sum_error: how much above one a position's probabilities may add up to.

    Raises:
      KdError: names the file, the record and the position, for an id outside the vocabulary or named twice, a
        position said twice, a number that is no log-probability, and probabilities that add up to more.

    Examples:
      >>> check(rectangular("f, record 3", [5, 6], [(1, [(6, -0.1), (6, -0.1)])]), 10, True, 1e-3)
      Traceback (most recent call last):
      kd_jax.errors.KdError: f, record 3, token 1: names the id 6 twice; write the file again
    """
    where, tokens_S, target_N, ids_NK, logp_NK = stored
    if not 0 < len(tokens_S) <= LONGEST_SEQUENCE:
        raise KdError(f"{where}: {len(tokens_S)} tokens; wanted 1 to {LONGEST_SEQUENCE}")
    strange = tokens_S[(tokens_S < 0) | (tokens_S >= vocab_size)]
    if len(strange):
        raise KdError(
            f"{where}: the token id {strange[0]}; this run's tokeniser has 0 to {vocab_size - 1}, wanted those"
        )
    if len(np.unique(target_N)) < len(target_N):
        raise KdError(f"{where}: says two things of one token; write the file again")
    named_NK = logp_NK > -np.inf
    refusals = {
        "a number that is not finite": (np.isnan(logp_NK) | (logp_NK == np.inf)).any(-1),
        f"an id outside this run's vocabulary of {vocab_size}": (named_NK & (ids_NK >= vocab_size)).any(-1)
        | (named_NK & (ids_NK < 0)).any(-1),
    }
    if normalised:
        refusals["a log-probability above 0"] = (logp_NK > np.log1p(sum_error)).any(-1)
    for what, refused_N in refusals.items():
        if refused_N.any():
            raise KdError(f"{where}, token {target_N[refused_N.argmax()]}: holds {what}; write the file again")
    ordered_NK = np.sort(np.where(named_NK, ids_NK, NO_TOKEN), axis=-1)
    twice_NK = (ordered_NK[:, 1:] == ordered_NK[:, :-1]) & (ordered_NK[:, 1:] != NO_TOKEN)
    if twice_NK.any():
        n, k = np.argwhere(twice_NK)[0]
        raise KdError(f"{where}, token {target_N[n]}: names the id {ordered_NK[n, k]} twice; write the file again")
    mass_N = np.exp(logp_NK).sum(-1) if normalised else np.zeros(len(target_N))
    if (mass_N > 1 + sum_error).any():
        n = mass_N.argmax()
        raise KdError(
            f"{where}, token {target_N[n]}: its probabilities add up to {mass_N[n]:.6g}; wanted at most 1 and "
            f"--sum-error {sum_error:g}: are they of log-probabilities, and of one temperature?"
        )


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and record's number, value) of every line that is not empty.

    Raises:
      KdError: for a line that is no JSON, names an object's key twice, or is longer than LONGEST_LINE.
    """
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{path}, record {number}"
            if len(line) > LONGEST_LINE:
                raise KdError(f"{where}: longer than {LONGEST_LINE >> 20} MiB; wanted JSON lines, a response on each")
            if line.strip():
                yield where, _parsed(line, where)


def _parsed(line: bytes, where: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise KdError(f"{where}: an object names a key twice; write the file again")
        return dict(pairs)

    try:
        return json.loads(line.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise KdError(f"{where}: no JSON ({str(error)[:80]}); wanted JSON lines, a response on each") from error


def present(where: str, holder: Any, name: str) -> Any:
    """holder[name]; raises KdError where the holder is no object, or lacks it."""
    if type(holder) is not dict or name not in holder:
        raise KdError(f"{where}: no field {name}; is it of the --format that was given?")
    return holder[name]


def member(where: str, holder: Any, name: str, kind: type) -> Any:
    """As `present`; raises KdError for a value of another kind too."""
    return of_kind(where, present(where, holder, name), kind, name)


def of_kind(where: str, value: Any, kind: type, name: str) -> Any:
    """The value; raises KdError for one of another kind."""
    if type(value) is not kind:
        raise KdError(f"{where}: {name} is a {type(value).__name__}; wanted a {kind.__name__}")
    return value


def token_id(where: str, value: Any) -> int:
    """A whole number that can be a token's, or the same as text; raises KdError for others."""
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 11:
        value = int(value)
    if type(value) is not int or not 0 <= value <= LARGEST_ID:
        raise KdError(f"{where}: {str(value)[:40]!r} as a token id; wanted whole numbers (not strings of tokens)")
    return value


def number(where: str, value: Any) -> float:
    """A float; raises KdError for what is no number, or nan."""
    if type(value) not in (int, float) or value != value or abs(value) > 1e300 and value != -np.inf:
        raise KdError(f"{where}: {str(value)[:40]!r} as a log-probability; wanted a number")
    return float(value)
