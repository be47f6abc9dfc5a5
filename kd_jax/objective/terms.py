"""Terms of an objective, and the one place where they meet logits."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from kd_jax import schedules
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.signals.base import Signal
from kd_jax.types import Array, Sum


@dataclasses.dataclass(frozen=True)
class Term:
    """One weighted summand of the objective.

    Attributes:
      loss: from kd_jax.losses: (logits_NV, targets_N, **options) for a term without a signal, a
        divergence (teacher_logp_NK, student_logp_NK, **options) for one with a signal or with attention
        relations, (teacher_NX, student_NX, **options) for one with hidden states; one value per token.
      weight: factor in the sum over terms, or a Schedule over the steps.
      signal: what the teacher says (kd_jax.signals); None for a term that needs the targets alone.
      options: further arguments of the loss, such as {"label_smoothing": 0.1}.

    Examples:
      >>> from kd_jax.losses.divergence import forward_kl
      >>> from kd_jax.signals.topk import TopK
      >>> terms = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}
      >>> list(cached_signals(terms)), needs_teacher(terms)
      (['topk'], False)
    """

    loss: Callable[..., Array]
    weight: Any = 1.0
    signal: Any = None
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)


Terms = Mapping[str, Term]


def needs_teacher(terms: Terms) -> bool:
    """Whether a teacher must stand in the step."""
    return any(term.signal is not None and term.signal.origin == "step" for term in terms.values())


def feature_terms(terms: Terms) -> dict[str, Term]:
    """The terms that compare what both networks hold inside, rather than what they say."""
    return {name: term for name, term in terms.items() if term.signal is not None and term.signal.level == "layers"}


def cached_signals(terms: Terms) -> dict[str, Signal]:
    """Name -> smallest signal whose cache serves every term; signals that nothing is stored for are left out."""
    signals: dict[str, Signal] = {}
    for term in terms.values():
        if term.signal is not None and term.signal.origin == "cache":
            name = term.signal.name
            signals[name] = signals[name].covering(term.signal) if name in signals else term.signal
    return signals


def total_loss(terms: Terms, logits_NV: Array, rows: Mapping[str, Any], fixed: Mapping[str, Any]):
    """All terms that read logits: sum over tokens of mask * weight * loss.

    Temperature: a divergence at temperature T has gradients of size 1/T^2, so it is multiplied by T^2
    here and nowhere else.

    Args:
      terms: name -> Term; those that compare layers are left out.
      logits_NV: the student's, float [N, V].
      rows: of each token: "targets" int [N], "mask" bool [N], "weight" float [N], "payload": signal name -> field
        -> [N, ...], and "teacher_hidden" [N, D] where the teacher stands in the step.
      fixed: "step", number of the update, for weights and temperatures that change; "teacher_head".

    Returns:
      (scalar to differentiate, name -> Sum of each term unweighted, and of all together as "loss").

    References:
      Hinton et al. 2015, arXiv 1503.02531, section 2.

    Examples:
      >>> logits = jnp.zeros((2, 4))  # each of four tokens is as likely
      >>> rows = {"targets": jnp.array([0, 1]), "mask": jnp.array([True, False]), "weight": jnp.ones(2), "payload": {}}
      >>> loss, sums = total_loss({"ce": Term(cross_entropy, weight=0.5)}, logits, rows, {"step": 0})
      >>> print(f"{loss:.4f} {sums['ce'].value:.4f} {sums['ce'].weight}")  # log(4) / 2; log 4, of one token
      0.6931 1.3863 1
    """
    step, payload = fixed["step"], dict(rows["payload"])
    if "teacher_hidden" in rows:
        payload["online"] = {"logits": fixed["teacher_head"].logits(rows["teacher_hidden"])}
    losses, log_z_N = {}, None
    for name, term in terms.items():
        if term.signal is None or term.signal.level == "layers":
            continue
        temperature = schedules.value_at(term.signal.temperature, step)
        aligned = term.signal.align(logits_NV, payload[term.signal.name], temperature)
        divergence_N = term.loss(aligned.teacher_logp_NK, aligned.student_logp_NK, **term.options)
        losses[name] = temperature**2 * divergence_N
        if isinstance(temperature, float) and temperature == 1.0 and aligned.log_z_N is not None:
            log_z_N = aligned.log_z_N
    for name, term in terms.items():
        if term.signal is None:
            # The pass over the vocabulary that a signal has made already is not made again: a tenth of the head's time.
            known = {"log_z_N": log_z_N} if term.loss is cross_entropy else {}
            losses[name] = term.loss(logits_NV, rows["targets"], **term.options, **known)
    count = rows["mask"].sum(dtype=jnp.int32)
    values = {
        name: jnp.where(rows["mask"], rows["weight"] * losses[name], 0.0).sum() for name in terms if name in losses
    }
    total = sum((schedules.value_at(terms[name].weight, step) * value for name, value in values.items()), jnp.float32(0.0))
    return total, {name: Sum(value, count) for name, value in (values | {"loss": total}).items()}
