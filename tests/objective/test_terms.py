"""The objective: all combinations of signals and losses, weights, temperatures, losses of other libraries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses import divergence
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.losses.features import mse
from kd_jax.models.base import Head
from kd_jax.objective.fused_head import fused_head
from kd_jax.objective.terms import (
    StepInputs,
    Term,
    TokenInputs,
    cached_signals,
    feature_signals,
    needs_teacher,
    total_loss,
)
from kd_jax.schedules import Schedule
from kd_jax.signals.base import TAILS
from kd_jax.signals.features import HiddenStates
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK
from tests.helpers.divergences import log_softmax64

SIGNALS = [TopK(k=5, tail=tail) for tail in TAILS]
SIGNALS += [TopK(k=5, temperature=2.0), TopK(k=5, temperature=2.0, temperatures=(1.0,)), Sampled(draws=7)]
SIGNALS += [
    Online(),
    Online(temperature=2.0),
    Online(temperature=Schedule(1.0, 3.0, 10)),
    *(Online(k=5, tail=t) for t in TAILS),
]
COMBINATIONS = [(signal, loss) for signal in SIGNALS for loss in divergence.ALL if signal.supports(loss)]


@functools.cache
def problem(n, d, v, biased, padded, seed):
    """Return (hidden, the student's head, the teacher's hidden and head, targets, mask, weights)."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    heads = [
        Head(normal(d, v + 3 * padded), normal(v + 3 * padded) if biased else None, 5.0 if biased else 0.0, v * padded)
        for _ in range(2)
    ]
    mask = jnp.asarray(rng.random(n) < 0.7)
    return (
        normal(n, d),
        heads[0],
        normal(n, d),
        heads[1],
        jnp.asarray(rng.integers(0, v, n), jnp.int32),
        mask,
        normal(n) ** 2,
    )


@given(
    st.sampled_from(COMBINATIONS),
    st.sampled_from([1, 7, 40]),
    st.sampled_from([1, 5, 12]),
    st.sampled_from([5, 30]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)
@settings(max_examples=15, deadline=None)
def test_the_fused_head_equals_the_unfused_objective(combination, n, chunk, v, biased, padded, seed):
    signal, loss = combination
    hidden, head, teacher_hidden, teacher_head, targets, mask, weight = problem(n, 4, v, biased, padded, seed)
    terms = {"ce": Term(cross_entropy, weight=0.4), "kd": Term(loss, weight=Schedule(0.1, 1.1, 10), signal=signal)}
    logits = teacher_head.logits(teacher_hidden)
    payload = (
        {} if signal.name == "online" else {signal.name: signal.reduce(logits, jax.random.split(jax.random.key(1), n))}
    )
    tokens = TokenInputs(targets, mask, weight, payload, teacher_hidden)
    shared = StepInputs(jnp.int32(5), teacher_head)

    def fused(hidden, head):
        return fused_head(functools.partial(total_loss, terms), hidden, head, tokens, shared, chunk)[0]

    def unfused(hidden, head):
        student_logits = head.logits(hidden)
        temperature = 2.0 if signal == Online(temperature=Schedule(1.0, 3.0, 10)) else signal.temperature  # half-way
        signal_payload = {"logits": logits} if signal.name == "online" else payload[signal.name]
        teacher_logp, student_logp, _ = signal.align(student_logits, signal_payload, temperature)
        divergence_N = temperature**2 * loss(teacher_logp, student_logp)
        losses_N = 0.4 * cross_entropy(student_logits, targets) + 0.6 * divergence_N
        return jnp.where(mask, weight * losses_N, 0.0).sum()

    # Compiled whole: operation by operation each example would take seconds.
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, head) for f in (fused, unfused))
    scale = max(1.0, *(float(jnp.abs(x).max()) for x in jax.tree.leaves(want)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / scale, b / scale, atol=1e-5), got, want)
    if padded:
        assert not got[1][1].kernel_DV[:, v:].any()


@pytest.mark.parametrize("signal", [TopK(k=4), TopK(k=4, temperature=3.0), Online(k=4)], ids=str)
def test_cross_entropy_is_the_same_if_it_shares_the_pass_of_a_signal(signal):
    rng = np.random.default_rng(0)
    logits, teacher = (jnp.asarray(rng.normal(size=(6, 11)), jnp.float32) for _ in range(2))
    targets = jnp.asarray(rng.integers(0, 11, 6), jnp.int32)
    payload = {"topk": TopK(k=4, temperature=signal.temperature).reduce(teacher), "online": {"logits": teacher}}
    terms = {"kd": Term(forward_kl, signal=signal), "ce": Term(cross_entropy, options={"label_smoothing": 0.1})}
    for mask in (jnp.ones(6, bool), jnp.arange(6) == 2):
        tokens = TokenInputs(targets, mask, jnp.ones(6), payload)
        reported = lambda x, tokens=tokens: total_loss(terms, x, tokens, StepInputs())[1]["ce"].value  # noqa: E731
        plain = lambda x, mask=mask: jnp.where(mask, cross_entropy(x, targets, 0.1), 0.0).sum()  # noqa: E731
        got, want = (jax.value_and_grad(f)(logits) for f in (reported, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_sums_count_unmasked_tokens_and_the_loss_is_weighted():
    """Closed form: a uniform student over 11 ids has cross-entropy ln 11 everywhere; 3 of 5 tokens count."""
    tokens = TokenInputs(jnp.arange(5), jnp.arange(5) < 3, jnp.asarray([2.0, 1.0, 1.0, 9.0, 9.0]), {})
    terms = {"ce": Term(cross_entropy, weight=Schedule(0.0, 1.0, 4)), "again": Term(cross_entropy, weight=0.25)}
    total, sums = total_loss(terms, jnp.zeros((5, 11)), tokens, StepInputs(jnp.int32(2)))
    np.testing.assert_allclose(sums["ce"].value, 4 * np.log(11), rtol=1e-6)
    np.testing.assert_allclose([total, sums["loss"].value], 0.75 * 4 * np.log(11), rtol=1e-6)
    assert {int(one.weight) for one in sums.values()} == {3}


def test_a_selective_term_sums_over_its_targets_and_is_scaled_to_the_counted_ones():
    """Closed form: cross-entropy log 11 everywhere; 4 targets count, 2 are selected, so the factor is 2."""
    mask, selected = jnp.arange(5) < 4, jnp.asarray([True, False, True, False, False])
    weight = jnp.asarray([2.0, 1.0, 1.0, 1.0, 9.0])
    tokens = TokenInputs(jnp.arange(5), mask, weight, {}, selected={"few": selected})
    terms = {"ce": Term(cross_entropy), "few": Term(cross_entropy, weight=0.5, entropy_share=0.4)}
    shared = StepInputs(jnp.int32(0), factors={"few": jnp.float32(2.0)})
    total, sums = total_loss(terms, jnp.zeros((5, 11)), tokens, shared)
    np.testing.assert_allclose(sums["ce"].value, 5 * np.log(11), rtol=1e-6)
    np.testing.assert_allclose(sums["few"].value, 3 * np.log(11), rtol=1e-6)
    np.testing.assert_allclose([total, sums["loss"].value], (5 + 0.5 * 2 * 3) * np.log(11), rtol=1e-6)
    assert {name: int(one.weight) for name, one in sums.items()} == {"ce": 4, "few": 2, "loss": 4}


TWO_LOGITS = jnp.log(jnp.asarray([[0.5, 0.5]]))  # the student's q
TEACHER = jnp.log(jnp.asarray([[0.9, 0.1]]))  # the teacher's p
KL = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
M = 0.3 * np.asarray([0.9, 0.1]) + 0.7 * 0.5
JENSEN_SHANNON = 0.3 * (0.9 * np.log(0.9 / M[0]) + 0.1 * np.log(0.1 / M[1])) + 0.7 * 0.5 * np.log(0.25 / M.prod())


@pytest.mark.parametrize(
    "term, expected",
    [
        (Term(forward_kl, signal=Online()), KL),
        (Term(optax.losses.kl_divergence_with_log_targets, signal=Online()), KL),
        (Term(functools.partial(divergence.jensen_shannon, beta=0.3), signal=Online()), JENSEN_SHANNON),
        (Term(lambda a, b: ((jnp.exp(a) - jnp.exp(b)) ** 2).sum(-1), signal=Online()), 2 * 0.4**2),
        (Term(lambda a, b: a[:, 0] - 2 * b[:, 0], signal=Online()), np.log(0.9) - 2 * np.log(0.5)),
        (Term(optax.losses.softmax_cross_entropy_with_integer_labels), np.log(2)),
        (Term(functools.partial(cross_entropy, label_smoothing=0.2)), np.log(2)),
        (Term(forward_kl, weight=optax.linear_schedule(0.0, 1.0, 10), signal=Online()), 0.5 * KL),
    ],
)
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_any_loss_has_its_closed_form(term, expected, fused):
    """One token of two outcomes at step 5, with an identity for an output layer."""
    tokens = TokenInputs(jnp.asarray([0]), jnp.asarray([True]), jnp.ones(1), {}, TEACHER)
    shared, objective = StepInputs(jnp.int32(5), Head(jnp.eye(2))), functools.partial(total_loss, {"a": term})
    if fused:
        value, _ = fused_head(objective, TWO_LOGITS, Head(jnp.eye(2)), tokens, shared)
    else:
        value, _ = objective(TWO_LOGITS, tokens, shared)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("signal", [Online(), Online(k=5), TopK(k=5), TopK(k=30)], ids=str)
@pytest.mark.parametrize("step, t", [(0, 0.25), (5, 0.625), (10, 1.0), (99, 1.0)])
def test_a_scheduled_option_in_the_fused_head_equals_float64(signal, step, t):
    """TAID's t by a schedule: value and gradients of the hidden states and the kernel, in chunks with padding.

    The reference is dense and in NumPy: logits of all tokens, the support of the signal, closed-form gradients.
    """
    hidden, head, teacher_hidden, teacher_head, targets, mask, weight = problem(7, 4, 30, False, False, 1)
    # Teacher logits that float16 stores exactly, for the cache.
    teacher = jnp.asarray(np.random.default_rng(5).integers(-64, 64, (7, 30)) / 16, jnp.float32)
    payload = {} if signal.name == "online" else {"topk": signal.reduce(teacher)}
    term = Term(divergence.taid, signal=signal, options={"t": Schedule(0.25, 1.0, steps=10)})
    tokens = TokenInputs(targets, mask, weight, payload, teacher)
    shared, objective = StepInputs(jnp.int32(step), Head(jnp.eye(30))), functools.partial(total_loss, {"kd": term})
    fused = jax.value_and_grad(lambda h, w: fused_head(objective, h, w, tokens, shared, 3)[0], (0, 1))
    value, (d_hidden, d_head) = jax.jit(fused)(hidden, head)

    hidden64, kernel64, weight64 = (np.asarray(x, np.float64) for x in (hidden, head.kernel_DV, weight))
    q_logp, p_logp = log_softmax64(hidden64 @ kernel64), log_softmax64(teacher)
    k = getattr(signal, "k", 0) or 30
    ids = np.argsort(-np.asarray(teacher), -1, kind="stable")[:, :k]
    rest = np.ones((7, 30), bool)
    np.put_along_axis(rest, ids, False, -1)

    def on_support(logp):
        logp_rest = np.logaddexp.reduce(np.where(rest, logp, -np.inf), -1, keepdims=True)
        return np.concatenate([np.take_along_axis(logp, ids, -1), logp_rest], -1)

    p, q = on_support(p_logp), on_support(q_logp)
    mixed = np.where(np.isneginf(p), -np.inf, (1 - t) * np.where(np.isneginf(q), 0.0, q) + t * p)
    target = log_softmax64(mixed)
    terms = np.exp(target) * np.where(np.isneginf(target), 0.0, target - np.where(np.isneginf(q), 0.0, q))
    scale = np.where(mask, weight64, 0.0)
    np.testing.assert_allclose(value, (scale * terms.sum(-1)).sum(), rtol=1e-4, atol=1e-5)
    # The gradient by a logit: the student's probability minus the target's; the rest's is shared as the student's.
    spread = np.exp(target[:, -1:]) * np.where(rest, np.exp(q_logp - np.where(np.isneginf(q), 0.0, q)[:, -1:]), 0.0)
    np.put_along_axis(spread, ids, np.exp(target[:, :-1]), -1)
    d_logits = scale[:, None] * (np.exp(q_logp) - spread)
    np.testing.assert_allclose(d_hidden, d_logits @ kernel64.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(d_head.kernel_DV, hidden64.T @ d_logits, rtol=1e-3, atol=1e-4)


def test_a_partial_equals_its_options():
    """Also where cross-entropy shares the pass of a signal."""
    rng = np.random.default_rng(0)
    logits, teacher = (jnp.asarray(rng.normal(size=(6, 11)), jnp.float32) for _ in range(2))
    payload = {"topk": TopK(k=4).reduce(teacher)}
    tokens = TokenInputs(jnp.arange(6), jnp.ones(6, bool), jnp.ones(6), payload)
    kd = Term(forward_kl, signal=TopK(k=4))
    options = {"kd": kd, "ce": Term(cross_entropy, options={"label_smoothing": 0.1})}
    partial = {"kd": kd, "ce": Term(functools.partial(cross_entropy, label_smoothing=0.1))}
    one, other = (total_loss(terms, logits, tokens, StepInputs()) for terms in (options, partial))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_terms_are_sorted_by_their_signals():
    hidden, small, large = HiddenStates(layers=((0, 1),)), TopK(k=4), TopK(k=9, temperature=2.0)
    terms = {"ce": Term(cross_entropy), "a": Term(forward_kl, signal=small), "b": Term(forward_kl, signal=large)}
    assert cached_signals(terms) == {"topk": small.merge(large)}
    assert feature_signals(terms) == {} and not needs_teacher(terms)
    terms |= {"h": Term(mse, signal=hidden), "o": Term(forward_kl, signal=Online())}
    assert feature_signals(terms) == {"h": hidden} and needs_teacher(terms)
    assert list(cached_signals(terms)) == ["topk"]


def test_online_topk_equals_cached_topk_except_for_rounding():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.integers(-64, 64, (6, 11)) / 16, jnp.float32) for _ in range(2))
    for tail in TAILS:
        cached, online = TopK(k=4, tail=tail, temperature=2.0), Online(k=4, tail=tail, temperature=2.0)
        one = cached.align(student, cached.reduce(teacher), 2.0)[:2]
        other = online.align(student, {"logits": teacher}, 2.0)[:2]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


@pytest.mark.parametrize("chunk", [1, 4, 12])
def test_a_term_without_a_signal_skips_targets_that_the_student_wrote(chunk):
    """Its sum, its count and its gradient are over the others; a term with a signal reads all that count."""
    rng = np.random.default_rng(0)
    hidden, _, teacher_hidden, head, targets, mask, weight = problem(12, 4, 5, False, False, 0)
    own = jnp.asarray(rng.random(12) < 0.5)
    terms = {"ce": Term(cross_entropy, weight=0.4), "kd": Term(forward_kl, weight=0.6, signal=Online())}
    tokens = TokenInputs(targets, mask, weight, {}, teacher_hidden, own=own)

    @jax.jit
    def run(hidden, tokens):
        shared = StepInputs(jnp.int32(0), head)
        objective = lambda x: fused_head(functools.partial(total_loss, terms), x, head, tokens, shared, chunk)  # noqa: E731
        return jax.value_and_grad(objective, has_aux=True)(hidden)

    (loss, sums), gradient = run(hidden, tokens)
    logp, teacher_logp = (log_softmax64(head.logits(x)) for x in (hidden, teacher_hidden))
    nll = -np.take_along_axis(logp, np.asarray(targets)[:, None], -1)[:, 0]
    kl = (np.exp(teacher_logp) * (teacher_logp - logp)).sum(-1)
    counts, weights, is_own = np.asarray(mask), np.asarray(weight, np.float64), np.asarray(own)
    read = counts & ~is_own
    assert 0 < read.sum() < counts.sum()
    assert (int(sums["ce"].weight), int(sums["kd"].weight), int(sums["loss"].weight)) == (
        read.sum(),
        counts.sum(),
        counts.sum(),
    )
    ce_sum, kd_sum = (weights * nll)[read].sum(), (weights * kl)[counts].sum()
    np.testing.assert_allclose([float(sums["ce"].value), float(sums["kd"].value)], [ce_sum, kd_sum], rtol=1e-5)
    np.testing.assert_allclose(float(loss), 0.4 * ce_sum + 0.6 * kd_sum, rtol=1e-5)
    without = run(hidden, tokens._replace(targets=jnp.where(own, (targets + 1) % 5, targets)))
    np.testing.assert_array_equal(without[1], gradient)
    assert np.abs(np.asarray(gradient))[counts & is_own].max() > 1e-3  # of the term with the signal


def test_without_own_targets_nothing_changes():
    """A mask of none is the same as no mask."""
    hidden, head, _, _, targets, mask, weight = problem(12, 4, 5, False, False, 0)
    terms = {"ce": Term(cross_entropy)}
    tokens = TokenInputs(targets, mask, weight, {})
    run = jax.jit(lambda tokens: total_loss(terms, head.logits(hidden), tokens, StepInputs(jnp.int32(0))))
    got, want = run(tokens._replace(own=jnp.zeros(12, bool))), run(tokens)
    jax.tree.map(np.testing.assert_array_equal, got, want)
