"""From what a file names of a position to TopK's fields."""

import numpy as np

from kd_jax.errors import KdError
from kd_jax.signals.topk import rest_field
from kd_jax.teaching.imported.base import LogprobSource, RequiredSignal
from kd_jax.teaching.imported.readers.base import NO_TOKEN

LEAST = 1e-7  # of what remains of one: float32's log-probabilities tell no less from nothing


def refuse_unknown(
    where: str, ids_nK: np.ndarray, vocab_size: int, source: LogprobSource, wanted: RequiredSignal
) -> None:
    """Refuses positions from which a rest that is needed does not follow.

    Known is the rest of a position that names the whole vocabulary, at any temperature, and of log-probabilities, at
    their own: what is lacking to one. Of logits without their log Z it is not.

    Raises:
      KdError: names the record and what needs the rest.
    """
    named_n = (ids_nK != NO_TOKEN).sum(-1)
    part_n = (named_n > 0) & (named_n < vocab_size)
    for temperature, needed_by in wanted.rests.items():
        if part_n.any() and not source.says(temperature):
            held = f"temperature {source.temperature:g}" if source.says(source.temperature) else "logits, no log Z"
            raise KdError(
                f"{where}: names {named_n[part_n][0]} of {vocab_size} tokens ({held}), so at temperature "
                f"{temperature:g} the mass of all others is unknown, which {needed_by} needs; wanted "
                "tail='renormalise', or files at that temperature that have it"
            )


def top_k(
    ids_nK: np.ndarray,
    logp_nK: np.ndarray,
    k: int,
    vocab_size: int,
    source: LogprobSource,
    temperatures: tuple[float, ...],
) -> dict[str, np.ndarray]:
    """TopK's fields, n positions.

    .. math:: logits_i = T (\\log p_i - \\log p_1), \\quad rest_T = \\log(1 - \\sum_{i \\le k} p_i) - \\log p_1

    with p the file's distribution, of temperature T, and p_1 its largest. What falls away beyond the k is added up,
    not subtracted. Where fewer than k are named, the ids that fill up are others of the vocabulary, at -inf.

    Args:
      ids_nK: NO_TOKEN where nothing is named; else different ids of a position.
      logp_nK: log-probabilities, or logits over T; -inf where nothing is named.
      k: entries kept.
      vocab_size: of the tokeniser.
      source: of the file.
      temperatures: at which the rest is wanted; it must be known, as `refuse_unknown` sees to.

    Returns:
      {"ids" [n, k], "logits" [n, k], "rest_tT" [n] for every T}, float32 but for the ids.

    Examples:
      >>> ids, logp = np.array([[7, 9, 8]]), np.log([[0.1, 0.5, 0.2]])
      >>> fields = top_k(ids, logp, 2, 10, LogprobSource("vllm", 1.0, "raw"), (1.0,))
      >>> print(fields["ids"], *(np.exp(fields[name]).round(3) for name in ("logits", "rest_t1")))
      [[9 8]] [[1.  0.4]] [0.6]
    """
    order_nK = np.argsort(-logp_nK, axis=-1, kind="stable")
    ids_nK = np.take_along_axis(ids_nK, order_nK, -1)
    logp_nK = np.take_along_axis(logp_nK, order_nK, -1).astype(np.float64)
    lacking = max(0, k - ids_nK.shape[1])
    ids_nK = np.pad(ids_nK, ((0, 0), (0, lacking)), constant_values=NO_TOKEN)
    logp_nK = np.pad(logp_nK, ((0, 0), (0, lacking)), constant_values=-np.inf)
    largest_n1 = np.where(logp_nK[:, :1] > -np.inf, logp_nK[:, :1], 0.0)
    named_n = (ids_nK != NO_TOKEN).sum(-1)
    fields = {"ids": _filled(ids_nK[:, :k], vocab_size), "logits": source.temperature * (logp_nK - largest_n1)[:, :k]}
    for temperature in temperatures:
        scaled_nX = source.temperature * (logp_nK - largest_n1)[:, k:] / temperature
        with np.errstate(divide="ignore"):
            beyond_n = np.log(np.exp(scaled_nX).sum(-1))
            unnamed_n = np.log(np.maximum(1 - np.exp(logp_nK).sum(-1), LEAST)) - largest_n1[:, 0]
        part_n = np.where(named_n == vocab_size, beyond_n, np.logaddexp(beyond_n, unnamed_n))
        # Where nothing is named all mass is outside.
        fields[rest_field(temperature)] = np.where(named_n > 0, part_n, 0.0)
    return {name: x if name == "ids" else x.astype(np.float32) for name, x in fields.items()}


def _filled(ids_nK: np.ndarray, vocab_size: int) -> np.ndarray:
    """The ids, each NO_TOKEN replaced by one that its position does not hold."""
    ids_nK = ids_nK.astype(np.int64)
    for n in np.flatnonzero((ids_nK == NO_TOKEN).any(-1)):
        # Twice as many as there are places hold enough others.
        others = np.setdiff1d(np.arange(min(vocab_size, 2 * ids_nK.shape[1])), ids_nK[n])
        empty_K = ids_nK[n] == NO_TOKEN
        ids_nK[n, empty_K] = others[: empty_K.sum()]
    return ids_nK
