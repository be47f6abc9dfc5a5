"""TopK's fields from the tokens that a file names for a position."""

import numpy as np

from kd_jax.errors import KdError
from kd_jax.signals.topk import rest_field
from kd_jax.teaching.imported.base import LogprobSource, RequiredSignal
from kd_jax.teaching.imported.match import TargetLogprobs
from kd_jax.teaching.imported.readers.base import NO_TOKEN

MIN_REST = 1e-7  # of one minus the named probabilities: below it float32 log-probabilities cannot be told from 0


def check_rests_known(
    where: str, ids_nK: np.ndarray, vocab_size: int, source: LogprobSource, required: RequiredSignal
) -> None:
    """Check that every rest that is needed follows from the named tokens.

    The rest of a position that names the whole vocabulary is known at any temperature. The rest of log-probabilities is
    known at their own temperature, by subtraction from one. The rest of logits without their log Z is unknown.
    """
    named_n = (ids_nK != NO_TOKEN).sum(-1)
    partial_n = (named_n > 0) & (named_n < vocab_size)
    for temperature, needed_by in required.rests.items():
        if partial_n.any() and not source.knows_rest(temperature):
            held = "logits without log Z"
            if source.knows_rest(source.temperature):
                held = f"log-probabilities of temperature {source.temperature:g}"
            raise KdError(
                f"{where}: expected the mass of all other tokens at temperature {temperature:g}, which {needed_by} "
                f"needs, got {held} of {named_n[partial_n][0]} of {vocab_size} tokens. Set tail='renormalise', or "
                "store log-probabilities of that temperature."
            )


def top_k_fields(
    logprobs: TargetLogprobs, k: int, vocab_size: int, source: LogprobSource, temperatures: tuple[float, ...]
) -> dict[str, np.ndarray]:
    r"""Return TopK's fields of n positions: int64 ids, float32 logits and "rest_tT" of each temperature.

    .. math:: logits_i = T (\log p_i - \log p_1), \quad rest_T = \log(1 - \sum_{i \le k} p_i) - \log p_1

    with p the file's distribution, of temperature T, and p_1 its largest probability. The mass of named tokens beyond
    the k is added up, not subtracted from one. Where fewer than k tokens are named, other ids of the vocabulary fill
    up, at -inf. `check_rests_known` must have passed for the temperatures.

    Examples:
      >>> logprobs = TargetLogprobs(np.array([[7, 9, 8]]), np.log([[0.1, 0.5, 0.2]]))
      >>> fields = top_k_fields(logprobs, 2, 10, LogprobSource("vllm", 1.0, "raw"), (1.0,))
      >>> print(fields["ids"], *(np.exp(fields[name]).round(3) for name in ("logits", "rest_t1")))
      [[9 8]] [[1.  0.4]] [0.6]
    """
    order_nK = np.argsort(-logprobs.logp_nK, axis=-1, kind="stable")
    ids_nK = np.take_along_axis(logprobs.ids_nK, order_nK, -1)
    logp_nK = np.take_along_axis(logprobs.logp_nK, order_nK, -1).astype(np.float64)
    num_fill = max(0, k - ids_nK.shape[1])
    ids_nK = np.pad(ids_nK, ((0, 0), (0, num_fill)), constant_values=NO_TOKEN)
    logp_nK = np.pad(logp_nK, ((0, 0), (0, num_fill)), constant_values=-np.inf)
    largest_n1 = np.where(logp_nK[:, :1] > -np.inf, logp_nK[:, :1], 0.0)
    named_n = (ids_nK != NO_TOKEN).sum(-1)
    fields = {"ids": _fill_ids(ids_nK[:, :k], vocab_size), "logits": source.temperature * (logp_nK - largest_n1)[:, :k]}
    for temperature in temperatures:
        scaled_nX = source.temperature * (logp_nK - largest_n1)[:, k:] / temperature
        with np.errstate(divide="ignore"):
            beyond_n = np.log(np.exp(scaled_nX).sum(-1))
            unnamed_n = np.log(np.maximum(1 - np.exp(logp_nK).sum(-1), MIN_REST)) - largest_n1[:, 0]
        rest_n = np.where(named_n == vocab_size, beyond_n, np.logaddexp(beyond_n, unnamed_n))
        # Where nothing is named, all mass is outside.
        fields[rest_field(temperature)] = np.where(named_n > 0, rest_n, 0.0)
    return {name: x if name == "ids" else x.astype(np.float32) for name, x in fields.items()}


def _fill_ids(ids_nK: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return the ids with each NO_TOKEN replaced by an id that its position does not hold."""
    ids_nK = ids_nK.astype(np.int64)
    for n in np.flatnonzero((ids_nK == NO_TOKEN).any(-1)):
        # 2 K ids hold at least K that the position does not name.
        others = np.setdiff1d(np.arange(min(vocab_size, 2 * ids_nK.shape[1])), ids_nK[n])
        empty_K = ids_nK[n] == NO_TOKEN
        ids_nK[n, empty_K] = others[: empty_K.sum()]
    return ids_nK
