"""What losses share: how a loss says its kind and its options, and the one pass over the vocabulary.

A loss is a pure function from arrays to one float32 value per token. Its signature is its declaration: the
first two arguments name its kind, further ones with a default are its options, and an option's range is
the annotation of its type.
"""

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.config import is_number
from kd_jax.errors import KdError
from kd_jax.types import Array

Kind = Literal["targets", "divergence", "vectors"]
KINDS: dict[tuple[str, ...], Kind] = {
    ("logits_NV", "targets_N"): "targets",
    ("teacher_logp_NK", "student_logp_NK"): "divergence",
    ("teacher_NX", "student_NX"): "vectors",
}
SHARED_ARRAYS = {"log_z_N"}  # what total_loss passes on from one term to another; nobody's option


class Range(NamedTuple):
    """An option's least and greatest value, both allowed: `beta: Annotated[float, Range(0.0, 1.0)] = 0.5`."""

    least: float
    greatest: float


def kind(loss: Callable[..., Array]) -> Kind:
    """What a loss compares, read from the names of its first two arguments.

    Args:
      loss: (logits_NV, targets_N, ...), (teacher_logp_NK, student_logp_NK, ...) or (teacher_NX, student_NX, ...).

    Returns:
      "targets", "divergence" or "vectors", in this order.

    Raises:
      KdError: if it is no function, or has other arguments.

    Examples:
      >>> from kd_jax.losses.features import mse
      >>> kind(mse)
      'vectors'
    """
    wanted = "; ".join(f"({', '.join(arguments)}, ...) for {name}" for arguments, name in KINDS.items())
    if not callable(loss):
        raise KdError(f"loss: {loss!r}, a {type(loss).__name__}; wanted a function such as forward_kl, without quotes")
    arguments = tuple(inspect.signature(loss).parameters)[:2]
    if arguments not in KINDS:
        raise KdError(f"loss: {loss.__qualname__}({', '.join(arguments)}, ...); wanted {wanted}")
    return KINDS[arguments]


def option_ranges(loss: Callable[..., Array]) -> dict[str, Range]:
    """Option -> its range, of every option that a loss has; without bounds where it declares none.

    Examples:
      >>> from kd_jax.losses.divergence import jensen_shannon
      >>> option_ranges(jensen_shannon)
      {'beta': Range(least=0.0, greatest=1.0)}
    """
    parameters = list(inspect.signature(loss).parameters.values())[2:]
    return {
        parameter.name: next(
            (bounds for bounds in typing.get_args(parameter.annotation) if isinstance(bounds, Range)),
            Range(-float("inf"), float("inf")),
        )
        for parameter in parameters
        if parameter.default is not parameter.empty and parameter.name not in SHARED_ARRAYS
    }


def check_options(loss: Callable[..., Array], options: Mapping[str, float]) -> None:
    """Refuses options that a loss does not have, and values outside their ranges.

    Args:
      loss: of one of the three kinds.
      options: name -> value, further arguments of the loss.

    Raises:
      KdError: names the option, with the nearest one that there is; or the value, and its range.

    Examples:
      >>> from kd_jax.losses.divergence import jensen_shannon
      >>> check_options(jensen_shannon, {"beta": 0.1})
      >>> check_options(jensen_shannon, {"bata": 0.1})
      Traceback (most recent call last):
      kd_jax.errors.KdError: options.bata: no option of jensen_shannon, which has beta; did you mean beta?
    """
    ranges = option_ranges(loss)
    for option, value in options.items():
        if option not in ranges:
            nearest = difflib.get_close_matches(option, ranges, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "leave it out"
            raise KdError(
                f"options.{option}: no option of {loss.__name__}, which has {', '.join(ranges) or 'none'}; {hint}"
            )
        least, greatest = ranges[option]
        if not (is_number(value) and least <= value <= greatest):
            raise KdError(f"options.{option}: {value!r}; wanted a number from {least:g} to {greatest:g}")


# The pass over [N, V] is what a divergence costs beside cross-entropy. So it is made once, for the log-sum-exp of
# what the support leaves out and for the normaliser that cross-entropy needs too, and the gradient is written by
# hand: what is left out shares one factor, the support is scattered in.


@jax.custom_vjp
def split(logits_NV: Array, ids_NK: Array) -> tuple[Array, Array]:
    """The logits at the ids, and the log-sum-exp of all others.

    Nothing is lost to cancellation, as it would be in 1 - sum(p).

    Args:
      logits_NV: float32 [N, V].
      ids_NK: int [N, K]; those of a row differ from each other, but for V and above, which are no token's.

    Returns:
      (float32 [N, K], -inf where there is no token; float32 [N], -inf where the support leaves nothing out).

    Examples:
      >>> split(jnp.asarray([[3.0, 0.0, 0.0]]), jnp.asarray([[0]]))[1]  # log(1 + 1)
      Array([0.6931472], dtype=float32)
    """
    return _split_forward(logits_NV, ids_NK)[0]


def _split_forward(logits_NV, ids_NK):
    # The sum is shifted by the largest of what is summed: the row's own largest would let it underflow.
    others_NV = put(logits_NV, ids_NK, jnp.full_like(ids_NK, -jnp.inf, dtype=logits_NV.dtype))
    rest_N = jax.nn.logsumexp(others_NV, axis=-1)
    return (at(logits_NV, ids_NK), rest_N), (logits_NV, rest_N, ids_NK)


def _split_backward(residuals, cotangents):
    logits_NV, rest_N, ids_NK = residuals
    d_at_ids_NK, d_rest_N = cotangents
    there_N = rest_N > -jnp.inf
    # Taken again rather than kept: an exponential in a fused pass costs less than an array that is written and read.
    share_NV = jnp.exp(logits_NV - jnp.where(there_N, rest_N, 0.0)[:, None])
    d_others_NV = share_NV * jnp.where(there_N, d_rest_N, 0.0)[:, None]
    return put(d_others_NV, ids_NK, d_at_ids_NK), None


split.defvjp(_split_forward, _split_backward)


def at(logits_NV: Array, ids_NK: Array) -> Array:
    """The logits at the ids [N, K]; -inf where an id is V or above, and so no token's."""
    return jnp.take_along_axis(logits_NV, ids_NK, axis=-1, mode="fill", fill_value=-jnp.inf)


def put(x_NV: Array, ids_NK: Array, values_NK: Array) -> Array:
    """x with the values at the ids [N, K]; nowhere where an id is V or above.

    Row by row: of jnp.put_along_axis the compiler does not see that no row needs another one, and over a mesh gathers
    the ids of all.
    """
    return jax.vmap(lambda x_V, ids_K, values_K: x_V.at[ids_K].set(values_K, mode="drop"))(x_NV, ids_NK, values_NK)


def logp_with_rest(logits_NV: Array, ids_NK: Array) -> tuple[Array, Array]:
    """(log-probabilities at the ids and, last, of all other tokens together [N, K + 1], log Z [N])."""
    at_ids_NK, rest_N = split(logits_NV, ids_NK)
    logits_NX = jnp.concatenate([at_ids_NK, rest_N[:, None]], axis=-1)
    log_z_N = jax.nn.logsumexp(logits_NX, axis=-1)
    return logits_NX - log_z_N[:, None], log_z_N


def logp_at(logits_NV: Array, ids_NK: Array) -> tuple[Array, Array]:
    """(log-probabilities at the ids [N, K], log Z [N])."""
    log_z_N = jax.nn.logsumexp(logits_NV, axis=-1)
    return at(logits_NV, ids_NK) - log_z_N[:, None], log_z_N
