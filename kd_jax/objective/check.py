"""All that refuses an objective before anything is trained: in one line that names the term and its field."""

from collections.abc import Mapping

from kd_jax import schedules
from kd_jax.errors import KdError
from kd_jax.losses import base as losses
from kd_jax.losses import divergence
from kd_jax.objective.terms import Term, Terms
from kd_jax.signals.base import Knowledge, Signal
from kd_jax.types import Field

REMEDY = {  # what a kind of loss stands with
    "targets": "no signal: it compares with the data's targets",
    "divergence": "a signal that gives distributions, such as signal=TopK(k=32)",
    "vectors": "a signal that gives vectors, such as signal=HiddenStates(layers=((0, 2),))",
}


def check(terms: Terms, vocab_size: int) -> None:
    """Refuses an objective that would not mean what it says.

    Args:
      terms: name -> Term.
      vocab_size: tokens that the tokeniser knows.

    Raises:
      KdError: for no terms; a weight that is no positive number or Schedule; a loss that is no function of
        kd_jax.losses' kinds; a signal that is none, or out of its ranges; a loss of another kind than the signal
        feeds, or that it cannot support; an unknown option or one out of its range. Names the field.

    Examples:
      >>> from kd_jax.losses.features import mse
      >>> from kd_jax.signals.topk import TopK
      >>> check({"kd": Term(mse, signal=TopK(k=8))}, vocab_size=100)
      Traceback (most recent call last):
      kd_jax.errors.KdError: terms.kd.loss: mse, of the kind vectors, with TopK, which feeds divergence; \
wanted a signal that gives vectors, such as signal=HiddenStates(layers=((0, 2),))
    """
    if not terms:
        raise KdError("terms: empty; an objective needs at least one Term, for example {'ce': Term(cross_entropy)}")
    for name, term in terms.items():
        if not isinstance(term, Term):
            raise KdError(f"terms.{name}: {term!r}; wanted a Term, for example Term(cross_entropy)")
        try:
            _check_term(term, vocab_size)
        except KdError as error:
            raise KdError(f"terms.{name}.{error}") from error


def _check_term(term: Term, vocab_size: int) -> None:
    schedules.check(term.weight, "weight", 0.0)
    kind = losses.kind(term.loss)
    losses.check_options(term.loss, term.options)
    if term.signal is None:
        if kind != "targets":
            raise KdError(f"signal: None, with {term.loss.__name__}; wanted {REMEDY[kind]}")
        return
    # A class has its instances' attributes: TopK without its parentheses.
    if isinstance(term.signal, type) or not isinstance(term.signal, Knowledge):
        raise KdError(f"signal: {term.signal!r}; wanted one of kd_jax.signals, such as TopK(k=32)")
    term.signal.check(vocab_size)
    if kind != term.signal.kind:
        raise KdError(
            f"loss: {term.loss.__name__}, of the kind {kind}, with {type(term.signal).__name__}, "
            f"which feeds {term.signal.kind}; wanted {REMEDY[kind]}"
        )
    if not term.signal.supports(term.loss):
        which = ", ".join(loss.__name__ for loss in divergence.ALL if term.signal.supports(loss))
        raise KdError(f"loss: {term.loss.__name__} with {term.signal}; this signal supports {which or 'none'}")


def check_readable(name: str, signal: Signal, vocab_size: int, stored: Mapping[str, Field]) -> None:
    """Refuses a cache that lacks what a signal needs of it.

    Args:
      name: of the cache, for the message.
      signal: one with origin "cache".
      vocab_size: tokens that the tokeniser knows.
      stored: the cache's schema.

    Raises:
      KdError: names the first field that is missing, too small or of another dtype.
    """
    for field, wanted in signal.reads(vocab_size).items():
        if field not in stored:
            held = ", ".join(stored)
            raise KdError(f"cache {name}: no field {field}, it holds {held}; write it again with `cache --force`")
        at_hand = stored[field]
        if at_hand.dtype != wanted.dtype or any(a < b for a, b in zip(at_hand.shape, wanted.shape, strict=True)):
            raise KdError(
                f"cache {name}: field {field} is {at_hand.dtype} {list(at_hand.shape)}, the objective needs "
                f"{wanted.dtype} {list(wanted.shape)}; write it again with `cache --force`"
            )
