"""Terms of an objective, the one place where they meet logits, and the checks made when they are put together."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kd_jax.errors import KdError
from kd_jax.losses import divergence
from kd_jax.losses.base import check_options
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.optim import ramp as schedules
from kd_jax.optim.ramp import Ramp
from kd_jax.signals.features import AttentionRelations, HiddenStates
from kd_jax.signals.online import Online
from kd_jax.types import Array, Field, Payload, Signal


@dataclasses.dataclass(frozen=True)
class Term:
    """One weighted summand of the objective.

    Attributes:
      loss: from kd_jax.losses: (logits_NV, targets_N, **options) for a term without a signal, a
        divergence (teacher_logp_NK, student_logp_NK, **options) for one with a signal or with attention
        relations, (teacher_NX, student_NX, **options) for one with hidden states; one value per token.
      weight: factor in the sum over terms, or a Ramp over the steps.
      signal: what the teacher says (kd_jax.signals); None for a term that needs the targets alone.
      options: further arguments of the loss, such as {"label_smoothing": 0.1}.
    """

    loss: Callable[..., Array]
    weight: Any = 1.0
    signal: Any = None
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)


Terms = Mapping[str, Term]


def is_feature(term: Term) -> bool:
    """Whether it compares what both networks hold inside, rather than what they say."""
    return isinstance(term.signal, HiddenStates | AttentionRelations)


def needs_teacher(terms: Terms) -> bool:
    """Whether a teacher must stand in the step."""
    return any(is_feature(term) or isinstance(term.signal, Online) for term in terms.values())


def feature_terms(terms: Terms) -> dict[str, Term]:
    """The terms with features, by name."""
    return {name: term for name, term in terms.items() if is_feature(term)}


def token_losses(
    terms: Terms, logits_NV: Array, targets_N: Array, payload: Mapping[str, Payload], step: Any = 0
) -> dict[str, Array]:
    """Each term's unweighted loss of each token, float32 [N]; terms with features left out. Knows no mask.

    Temperature: a divergence at temperature T has gradients of size 1/T^2, so it is multiplied by T^2
    here and nowhere else (Hinton et al. 2015, arXiv 1503.02531, section 2).

    Args:
      terms: the objective.
      logits_NV: the student's, float [N, V].
      targets_N: int [N].
      payload: signal name -> field -> [N, ...]; {"online": {"logits": the teacher's}} for a teacher in the step.
      step: number of the update, for a temperature that changes.
    """
    losses, log_z_N = {}, None
    for name, term in terms.items():
        if term.signal is None or is_feature(term):
            continue
        temperature = schedules.at(term.signal.temperature, step)
        aligned = term.signal.align(logits_NV, payload[term.signal.name], temperature)
        divergence_N = term.loss(aligned.teacher_logp_NK, aligned.student_logp_NK, **term.options)
        losses[name] = temperature**2 * divergence_N
        if isinstance(temperature, float) and temperature == 1.0 and aligned.log_z_N is not None:
            log_z_N = aligned.log_z_N
    for name, term in terms.items():
        if term.signal is None:
            # The pass over the vocabulary that a signal has made already is not made again: a tenth of the head's time.
            known = {"log_z_N": log_z_N} if term.loss is cross_entropy else {}
            losses[name] = term.loss(logits_NV, targets_N, **term.options, **known)
    return {name: losses[name] for name in terms if name in losses}


def cached_signals(terms: Terms) -> dict[str, Signal]:
    """Name -> smallest signal whose cache serves every term; signals that nothing is stored for are left out."""
    signals: dict[str, Signal] = {}
    for term in terms.values():
        if term.signal is not None and not is_feature(term) and not isinstance(term.signal, Online):
            name = term.signal.name
            signals[name] = signals[name].covering(term.signal) if name in signals else term.signal
    return signals


def check(terms: Terms, vocab_size: int) -> None:
    """Refuses, before any compute, an objective that would not mean what it says.

    Raises:
      KdError: for no terms, a weight or temperature that is not positive, a k beyond the vocabulary, a
        divergence that a signal cannot support, or an option out of its range; names the field.
    """
    if not terms:
        raise KdError("terms: empty; an objective needs at least one Term, for example {'ce': Term(cross_entropy)}")
    for name, term in terms.items():
        schedules.check(term.weight, f"terms.{name}.weight", 0.0)
        try:
            check_options(term.loss, term.options)
            if term.signal is None or is_feature(term):
                continue
            if not isinstance(term.signal, Online) and isinstance(term.signal.temperature, Ramp):
                raise KdError("signal.temperature: a Ramp; a cache holds fixed temperatures, wanted Online")
            schedules.check(term.signal.temperature, "signal.temperature", 1e-3)
            term.signal.check(vocab_size)
        except KdError as error:
            raise KdError(f"terms.{name}.{error}") from error
        if not term.signal.supports(term.loss):
            which = ", ".join(loss.__name__ for loss in divergence.ALL if term.signal.supports(loss))
            raise KdError(
                f"terms.{name}.loss: {term.loss.__name__} with {term.signal}; this signal supports {which or 'none'}"
            )


def check_readable(name: str, signal: Signal, vocab_size: int, stored: Mapping[str, Field]) -> None:
    """Refuses a cache that lacks what a signal needs of it.

    Raises:
      KdError: names the first field that is missing, too small or of another dtype.
    """
    for field, wanted in signal.schema(vocab_size).items():
        if field not in stored:
            held = ", ".join(stored)
            raise KdError(f"cache {name}: no field {field}, it holds {held}; write it again with `cache --force`")
        found = stored[field]
        if found.dtype != wanted.dtype or any(a < b for a, b in zip(found.shape, wanted.shape, strict=True)):
            raise KdError(
                f"cache {name}: field {field} is {found.dtype} {list(found.shape)}, the objective needs "
                f"{wanted.dtype} {list(wanted.shape)}; write it again with `cache --force`"
            )
