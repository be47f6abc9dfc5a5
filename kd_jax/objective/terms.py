"""Terms of an objective, and their sum over tokens."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.losses import base
from kd_jax.losses.base import Loss
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.support import logits_at
from kd_jax.models.base import Head
from kd_jax.schedules import ScalarOrSchedule, value_at
from kd_jax.signals.base import (
    ChunkSignal,
    FeatureSignal,
    LogitSignal,
    Signal,
    compares_chunks,
    compares_layers,
    compares_logits,
)
from kd_jax.signals.chunks import END, chunk_sums
from kd_jax.types import Array, Payload, Sum


@dataclasses.dataclass(frozen=True)
class Term:
    """One weighted summand of the objective.

    The signal decides the arguments of the loss:

      - None: ``loss(logits_NV, targets_N)``, for example `cross_entropy`;
      - TopK, Sampled, Online, AttentionRelations: ``loss(teacher_logp_NK, student_logp_NK)``, for example `forward_kl`;
      - HiddenStates: ``loss(teacher_NX, student_NX)``, for example `mse`.

    The loss returns one float per token, [N]. Any function with these arguments will do, also a functools.partial with
    keyword arguments and the losses of optax, for example `optax.losses.kl_divergence_with_log_targets`, which are
    called by the names of their arguments (see `kd_jax.losses.base.comparison`).

    Attributes:
      loss: function of two arrays and options.
      weight: factor in the sum over terms: a number, a Schedule, or a function of the step.
      signal: the teacher's knowledge (kd_jax.signals); None for a loss on the targets of the data.
      options: further arguments of the loss, for example {"label_smoothing": 0.1}: numbers, or a Schedule where the
        loss allows it, as for the t of `taid`.
      entropy_share: share of the counted targets of each example that this term reads: those at which the student's
        prediction has the highest entropy, at least one. The term is the mean over them. 1 reads all of them; less
        costs a second pass of the output layer. For terms on predictions, not on layers.

    References:
      Tavor et al. 2026, arXiv 2602.01395 (SE-KD), for `entropy_share`.

    Examples:
      >>> from kd_jax.losses.divergence import forward_kl
      >>> from kd_jax.signals.topk import TopK
      >>> terms = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}
      >>> list(cached_signals(terms)), needs_teacher(terms)
      (['topk'], False)
    """

    loss: Loss
    weight: ScalarOrSchedule = 1.0
    signal: Signal | None = None
    options: Mapping[str, ScalarOrSchedule] = dataclasses.field(default_factory=dict)
    entropy_share: float = 1.0

    def compare_at(self, step: Array | int) -> Callable[[Array, Array], Array]:
        """Return the loss with its options at a step as a function of the teacher's and the student's arrays."""
        return base.comparison(self.loss, base.options_at(self.options, step))


Terms = Mapping[str, Term]


class TokenInputs(NamedTuple):
    """Inputs of an objective for each token. Over a batch each array is [B, T, ...], else [N, ...].

    Attributes:
      targets: int, ids to predict.
      mask: bool, true where a target counts in the loss.
      weight: float32, factor on the token's losses.
      payload: signal name -> field name -> array; empty if no term has a cached signal.
      teacher_hidden: float [..., D], the teacher's hidden states; None if no teacher runs in the step.
      selected: term name -> bool, the targets that a term with `entropy_share` below 1 reads; None if there is no such
        term.
      own: bool, targets of a text that the student wrote, which terms without a signal do not read; None if there are
        none.

    Examples:
      >>> tokens = TokenInputs(jnp.array([5, 2]), mask=jnp.array([True, False]), weight=jnp.ones(2), payload={})
      >>> tokens.targets[tokens.mask].tolist()  # padding does not count
      [5]
    """

    targets: Array
    mask: Array
    weight: Array
    payload: Mapping[str, Payload]
    teacher_hidden: Array | None = None
    selected: Mapping[str, Array] | None = None
    own: Array | None = None


class StepInputs(NamedTuple):
    """Inputs of an objective that all tokens of a step share.

    Attributes:
      step: number of the update, from 0; schedules depend on it.
      teacher_head: the teacher's output layer; None if no teacher runs in the step.
      factors: term name -> counted targets over those that the term reads in the whole step, for each name in
        `TokenInputs.selected` and each term on chunks; None if there is no such term.

    Examples:
      >>> StepInputs(step=10)
      StepInputs(step=10, teacher_head=None, factors=None)
    """

    step: Array | int = 0
    teacher_head: Head | None = None
    factors: Mapping[str, Array] | None = None


def needs_teacher(terms: Terms) -> bool:
    """Return whether a term needs the teacher in the training step."""
    return any(term.signal is not None and term.signal.origin == "step" for term in terms.values())


def feature_signals(terms: Terms) -> dict[str, FeatureSignal]:
    """Return term name -> signal of the terms that compare layers of both networks instead of logits."""
    return {name: term.signal for name, term in terms.items() if compares_layers(term.signal)}


def chunk_signals(terms: Terms) -> dict[str, ChunkSignal]:
    """Return term name -> signal of the terms that compare likelihoods of chunks of text."""
    return {name: term.signal for name, term in terms.items() if compares_chunks(term.signal)}


def cached_signals(terms: Terms) -> dict[str, LogitSignal]:
    """Return name -> the smallest signal whose cache serves every term."""
    signals: dict[str, LogitSignal] = {}
    for term in terms.values():
        if compares_logits(term.signal) and term.signal.origin == "cache":
            name = term.signal.name
            signals[name] = signals[name].merge(term.signal) if name in signals else term.signal
    return signals


def total_loss(terms: Terms, logits_NV: Array, tokens: TokenInputs, shared: StepInputs) -> tuple[Array, dict[str, Sum]]:
    r"""Compute the weighted sum of all terms on logits over the tokens.

    .. math:: L = \sum_i w_i(s) \sum_n m_n u_n T_i^2 \ell_i(n)

    with the weight w of term i at step s, the mask m, the tokens' weights u, and the loss l. T is the temperature of
    the term's signal, 1 without one: the gradient of a divergence at temperature T scales as 1 / T^2, so it is
    multiplied by T^2 here and nowhere else. Terms that compare layers are left to the training step.

    A term with `entropy_share` below 1 sums over its selected targets (`TokenInputs.selected`) in place of m, one on
    chunks over the targets at which a chunk ends, times T in place of T^2. Its sum in L is multiplied by its factor
    (`StepInputs.factors`): L over the number of counted targets then holds its mean over those that it reads. All
    targets of a chunk are among the tokens. A term without a signal reads no targets that the student wrote itself
    (`TokenInputs.own`): there is no reference to learn from.

    Args:
      terms: name -> Term.
      logits_NV: float [N, V], the student's.
      tokens: inputs for each token.
      shared: inputs for all tokens.

    Returns:
      (L, to differentiate; name -> Sum over tokens of each term without its weight w, and of L as "loss").

    References:
      Hinton et al. 2015, arXiv 1503.02531, section 2.

    Examples:
      >>> logits = jnp.zeros((2, 4))  # uniform over four tokens
      >>> tokens = TokenInputs(jnp.array([0, 1]), mask=jnp.array([True, False]), weight=jnp.ones(2), payload={})
      >>> loss, sums = total_loss({"ce": Term(cross_entropy, weight=0.5)}, logits, tokens, StepInputs(step=0))
      >>> print(f"{loss:.4f} {sums['ce'].value:.4f} {sums['ce'].weight}")  # log(4) / 2; log 4, of one token
      0.6931 1.3863 1
    """
    payload = dict(tokens.payload)
    if tokens.teacher_hidden is not None:
        assert shared.teacher_head is not None
        payload["online"] = {"logits": shared.teacher_head.logits(tokens.teacher_hidden)}
    losses, log_z_N = {}, None
    if chunks := chunk_signals(terms):
        log_z_N = jax.nn.logsumexp(logits_NV, axis=-1)
        target_logp_N = logits_at(logits_NV, tokens.targets[:, None])[:, 0] - log_z_N
        for name, signal in chunks.items():
            fields, temperature = payload[signal.name], value_at(signal.temperature, shared.step)
            aligned = signal.align(chunk_sums(target_logp_N, fields["place"]), fields, temperature)
            compare = terms[name].compare_at(shared.step)
            losses[name] = temperature * compare(aligned.teacher_logp_NK, aligned.student_logp_NK)
    for name, term in terms.items():
        if not compares_logits(term.signal):
            continue
        temperature = value_at(term.signal.temperature, shared.step)
        aligned = term.signal.align(logits_NV, payload[term.signal.name], temperature)
        compare = term.compare_at(shared.step)
        losses[name] = temperature**2 * compare(aligned.teacher_logp_NK, aligned.student_logp_NK)
        if isinstance(temperature, float) and temperature == 1.0 and aligned.log_z_N is not None:
            log_z_N = aligned.log_z_N
    for name, term in terms.items():
        if term.signal is None:
            # Cross-entropy reuses the signal's pass over the vocabulary.
            known = {"log_z_N": log_z_N} if base.function_of(term.loss) is cross_entropy else {}
            options = base.options_at(term.options, shared.step)
            losses[name] = term.loss(logits_NV, tokens.targets, **options, **known)
    selected, read = dict(tokens.selected or {}), {}
    selected |= {name: tokens.mask & (payload[signal.name]["place"] == END) for name, signal in chunks.items()}
    for name in losses:
        read[name] = selected.get(name, tokens.mask)
        if tokens.own is not None and terms[name].signal is None:
            read[name] &= ~tokens.own
    values = {name: jnp.where(read[name], tokens.weight * losses[name], 0.0).sum() for name in terms if name in losses}
    total: Array = jnp.float32(0.0)
    for name, value in values.items():
        weight = value_at(terms[name].weight, shared.step)
        if name in selected:
            assert shared.factors is not None
            weight *= shared.factors[name]
        total += weight * value
    read["loss"] = tokens.mask
    return total, {
        name: Sum(value, read[name].sum(dtype=jnp.int32)) for name, value in (values | {"loss": total}).items()
    }
