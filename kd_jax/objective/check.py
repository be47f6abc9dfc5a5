"""Checks of an objective before training; each error names the term and the field."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import schedules
from kd_jax.config import is_number
from kd_jax.errors import KdError
from kd_jax.losses import base as losses
from kd_jax.losses import divergence, features
from kd_jax.losses.base import Loss, LossKind
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.objective.terms import Term, Terms
from kd_jax.signals.base import LogitSignal, Signal, compares_layers, compares_logits
from kd_jax.types import Array, Field

# Kinds of kd_jax's own losses. Shapes alone would not tell a divergence from a distance.
OWN_LOSSES: dict[Loss, LossKind] = {
    cross_entropy: "targets",
    **dict.fromkeys(divergence.ALL, "divergence"),
    **dict.fromkeys(features.ALL, "vectors"),
}
ARGUMENTS: dict[LossKind, str] = {
    "targets": "(logits_NV, targets_N)",
    "divergence": "(teacher_logp_NK, student_logp_NK)",
    "vectors": "(teacher_NX, student_NX)",
}
REMEDIES: dict[LossKind, str] = {
    "targets": "Use no signal: the loss reads the targets of the data.",
    "divergence": "Use a signal of distributions, for example signal=TopK(k=32).",
    "vectors": "Use a signal of vectors, for example signal=HiddenStates(layers=((0, 2),)).",
}
TOKENS = 3  # tokens on which a loss is evaluated abstractly; different from any vocabulary size


def check(terms: Terms, vocab_size: int) -> None:
    """Check that there are terms, and that each one's weight, loss, signal and options are valid and fit together.

    The loss must return one float per token. KdError names the term and the field.
    """
    if not terms:
        raise KdError("terms: expected at least one Term, got none. For example terms={'ce': Term(cross_entropy)}.")
    for name, term in terms.items():
        if not isinstance(term, Term):
            raise KdError(f"terms.{name}: expected a Term, for example Term(cross_entropy), got {term!r}.")
        try:
            _check_term(term, vocab_size)
        except KdError as error:
            raise KdError(f"terms.{name}.{error}") from error


def _check_term(term: Term, vocab_size: int) -> None:
    schedules.check(term.weight, "weight", 0.0)
    if not (is_number(term.entropy_share) and 0 < term.entropy_share <= 1):
        raise KdError(f"entropy_share: expected a number in (0, 1], got {term.entropy_share!r}. Use 1 for all targets.")
    _check_callable(term.loss)
    losses.check_options(term.loss, term.options)
    if term.signal is not None:
        # A class has its instances' attributes, so TopK without parentheses would pass as a Signal.
        if isinstance(term.signal, type) or not isinstance(term.signal, Signal):
            raise KdError(f"signal: expected a signal, for example TopK(k=32), got {term.signal!r}.")
        term.signal.check(vocab_size)
        if not compares_logits(term.signal) and term.entropy_share != 1:
            what = "layers" if compares_layers(term.signal) else "chunks of text"
            raise KdError(
                f"entropy_share: expected 1 for {type(term.signal).__name__}, which compares {what} and no "
                f"predictions, got {term.entropy_share}. Remove it."
            )
    _check_kind(term, vocab_size)
    if term.signal is not None and not term.signal.supports(losses.function_of(term.loss)):
        supported = ", ".join(losses.name_of(loss) for loss in divergence.ALL if term.signal.supports(loss))
        raise KdError(
            f"loss: expected a loss that {term.signal} supports ({supported or 'none'}), "
            f"got {losses.name_of(term.loss)}."
        )


def _check_callable(loss: Loss) -> None:
    if not callable(loss):
        raise KdError(f"loss: expected a function, for example forward_kl without quotes, got {loss!r}.")
    if isinstance(loss, functools.partial) and loss.args:
        raise KdError(f"loss: expected a functools.partial with keyword arguments only, got {loss.args!r} by position.")
    try:
        inspect.signature(losses.function_of(loss))
    except ValueError as error:
        raise KdError(
            f"loss: expected a function with a signature, got {losses.name_of(loss)}. Wrap it in a function."
        ) from error


def _check_kind(term: Term, vocab_size: int) -> None:
    """Check that a loss accepts the arrays of its term, and returns one float per token."""
    name, signal = losses.name_of(term.loss), term.signal
    kind: LossKind = "targets" if signal is None else signal.loss_kind
    expected = f"a loss of {ARGUMENTS[kind]} for {'no signal' if signal is None else type(signal).__name__}"
    function = losses.function_of(term.loss)
    own = OWN_LOSSES.get(function)
    if own is not None and own != kind:
        raise KdError(f"loss: expected {expected}, got {name} of {ARGUMENTS[own]}. {REMEDIES[own]}")
    arguments = losses.argument_names(term.loss)
    if kind != "targets" and function.__module__.startswith("optax.") and arguments not in losses.OPTAX_ARGUMENTS:
        # Log-probabilities would pass as whatever it takes, for example the probabilities of optax.kl_divergence.
        raise KdError(f"loss: expected {expected}, got {name} of ({', '.join(arguments)}). Wrap it in a function.")
    output = _abstract_output(term, kind, expected, vocab_size)
    if not (isinstance(output, jax.ShapeDtypeStruct) and output.shape == (TOKENS,) and _is_float(output)):
        expected = f"one float per token, shape [{TOKENS}] for {TOKENS} tokens"
        raise KdError(f"loss: expected {expected}, got {output} from {name}.")


def _abstract_output(term: Term, kind: LossKind, expected: str, vocab_size: int) -> Any:
    """Return the shape and dtype of a loss on TOKENS tokens, without computing it."""
    floats = jax.ShapeDtypeStruct((TOKENS, max(vocab_size, TOKENS + 1)), jnp.float32)
    targets = jax.ShapeDtypeStruct((TOKENS,), jnp.int32)

    def output(first: Array, second: Array, step: Array) -> Array:
        if kind == "targets":
            return term.loss(first, second, **losses.options_at(term.options, step))
        return term.compare_at(step)(first, second)

    try:
        return jax.eval_shape(output, floats, targets if kind == "targets" else floats, jnp.int32(0))
    except Exception as error:  # whatever the loss raises on arrays that it does not expect
        reason = " ".join(str(error).split())[:160]
        raise KdError(
            f"loss: expected {expected}, got {type(error).__name__} from {losses.name_of(term.loss)}: {reason}"
        ) from error


def _is_float(output: jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(output.dtype, jnp.floating)


def check_readable(name: str, signal: LogitSignal, vocab_size: int, schema: Mapping[str, Field]) -> None:
    """Check that a cache's schema has the fields that a signal reads, large enough and of their dtypes."""
    for field, required in (signal.required_schema(vocab_size) or {}).items():
        cached = schema.get(field)
        if cached is None:
            raise KdError(
                f"cache {name}: expected a field {field}, got {', '.join(schema)}. Write it again with `cache --force`."
            )
        if cached.dtype != required.dtype or any(a < b for a, b in zip(cached.shape, required.shape, strict=True)):
            raise KdError(
                f"cache {name}: expected {field} {required.dtype} {list(required.shape)} or larger, "
                f"got {cached.dtype} {list(cached.shape)}. Write it again with `cache --force`."
            )
