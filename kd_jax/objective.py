"""Terms of an objective, and the one place where they meet logits."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kd_jax.errors import KdError
from kd_jax.types import Array, Payload, Signal


@dataclasses.dataclass(frozen=True)
class Term:
    """One weighted summand of the objective.

    Attributes:
      loss: from kd_jax.losses: (logits_NV, targets_N, **options) for a term without a signal, else a
        divergence (teacher_logp_NK, student_logp_NK, **options); one value per token.
      weight: factor in the sum over terms.
      signal: what the teacher says; None for a term that needs the targets alone.
      options: further arguments of the loss, such as {"label_smoothing": 0.1}.
    """

    loss: Callable[..., Array]
    weight: float = 1.0
    signal: Any = None
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)


Terms = Mapping[str, Term]


def token_losses(terms: Terms, logits_NV: Array, targets_N: Array, payload: Mapping[str, Payload]) -> dict[str, Array]:
    """Each term's unweighted loss of each token, float32 [N]. Knows no mask.

    Temperature: a divergence at temperature T has gradients of size 1/T^2, so it is multiplied by T^2
    here and nowhere else (Hinton et al. 2015, arXiv 1503.02531, section 2).
    """
    losses = {}
    for name, term in terms.items():
        if term.signal is None:
            losses[name] = term.loss(logits_NV, targets_N, **term.options)
        else:
            teacher_logp_NK, student_logp_NK = term.signal.align(logits_NV, payload[term.signal.name])
            losses[name] = term.signal.temperature**2 * term.loss(teacher_logp_NK, student_logp_NK, **term.options)
    return losses


def cached_signals(terms: Terms) -> dict[str, Signal]:
    """Name -> smallest signal whose cache serves every term."""
    signals: dict[str, Signal] = {}
    for term in terms.values():
        if term.signal is not None:
            name = term.signal.name
            signals[name] = signals[name].covering(term.signal) if name in signals else term.signal
    return signals


def check(terms: Terms) -> None:
    """Refuses an objective without terms or with a weight that is not a positive number."""
    if not terms:
        raise KdError("terms: empty; an objective needs at least one Term, for example {'ce': Term(cross_entropy)}")
    for name, term in terms.items():
        if not 0 < term.weight < float("inf"):
            raise KdError(f"terms.{name}.weight: {term.weight}; wanted a positive number (leave the term out for none)")
