"""The objective: all combinations, fused and plain; weights, temperatures, one pass for two terms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses import divergence
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.base import Head
from kd_jax.objective.fused_head import fused_head
from kd_jax.objective.terms import Term, total_loss
from kd_jax.schedules import Schedule
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK

TAILS = ("bucket", "renormalise", "zero")
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
    """(hidden, student's head, teacher's hidden, its head, targets, mask, weights)."""
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
def test_the_fused_head_equals_the_plain_path(combination, n, chunk, v, biased, padded, seed):
    signal, loss = combination
    hidden, head, said, teacher_head, targets, mask, weight = problem(n, 4, v, biased, padded, seed)
    terms = {"ce": Term(cross_entropy, weight=0.4), "kd": Term(loss, weight=Schedule(0.1, 1.1, 10), signal=signal)}
    logits = teacher_head.logits(said)
    payload = (
        {} if signal.name == "online" else {signal.name: signal.reduce(logits, jax.random.split(jax.random.key(1), n))}
    )
    rows = {"targets": targets, "mask": mask, "weight": weight, "payload": payload, "teacher_hidden": said}
    fixed = {"step": jnp.int32(5), "teacher_head": teacher_head}

    def fused(hidden, head):
        return fused_head(functools.partial(total_loss, terms), hidden, head, rows, fixed, chunk)[0]

    def plain(hidden, head):
        student_logits = head.logits(hidden)
        temperature = 2.0 if signal == Online(temperature=Schedule(1.0, 3.0, 10)) else signal.temperature  # half-way
        said = {"logits": logits} if signal.name == "online" else payload[signal.name]
        teacher_logp, student_logp, _ = signal.align(student_logits, said, temperature)
        divergence_N = temperature**2 * loss(teacher_logp, student_logp)
        losses_N = 0.4 * cross_entropy(student_logits, targets) + 0.6 * divergence_N
        return jnp.where(mask, weight * losses_N, 0.0).sum()

    # Compiled whole: operation by operation each example would take seconds.
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, head) for f in (fused, plain))
    scale = max(1.0, *(float(jnp.abs(x).max()) for x in jax.tree.leaves(want)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / scale, b / scale, atol=1e-5), got, want)
    if padded:
        assert not got[1][1].kernel_DV[:, v:].any()


@pytest.mark.parametrize("signal", [TopK(k=4), TopK(k=4, temperature=3.0), Online(k=4)], ids=str)
def test_one_pass_for_both_terms_gives_the_same_cross_entropy(signal):
    rng = np.random.default_rng(0)
    logits, teacher = (jnp.asarray(rng.normal(size=(6, 11)), jnp.float32) for _ in range(2))
    targets = jnp.asarray(rng.integers(0, 11, 6), jnp.int32)
    payload = {"topk": TopK(k=4, temperature=signal.temperature).reduce(teacher), "online": {"logits": teacher}}
    terms = {"kd": Term(forward_kl, signal=signal), "ce": Term(cross_entropy, options={"label_smoothing": 0.1})}
    for mask in (jnp.ones(6, bool), jnp.arange(6) == 2):
        rows = {"targets": targets, "mask": mask, "weight": jnp.ones(6), "payload": payload}
        reported = lambda x, rows=rows: total_loss(terms, x, rows, {"step": jnp.int32(0)})[1]["ce"].value  # noqa: E731
        plain = lambda x, mask=mask: jnp.where(mask, cross_entropy(x, targets, 0.1), 0.0).sum()  # noqa: E731
        got, want = (jax.value_and_grad(f)(logits) for f in (reported, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_sums_are_of_the_masked_in_tokens_unweighted_and_the_loss_weighs_them():
    """Closed form: uniform students of 11 ids have cross-entropy ln 11 everywhere; 3 of 5 tokens count."""
    rows = {"targets": jnp.arange(5), "mask": jnp.arange(5) < 3, "weight": jnp.asarray([2.0, 1.0, 1.0, 9.0, 9.0])}
    terms = {"ce": Term(cross_entropy, weight=Schedule(0.0, 1.0, 4)), "again": Term(cross_entropy, weight=0.25)}
    total, sums = total_loss(terms, jnp.zeros((5, 11)), rows | {"payload": {}}, {"step": jnp.int32(2)})
    np.testing.assert_allclose(sums["ce"].value, 4 * np.log(11), rtol=1e-6)
    np.testing.assert_allclose([total, sums["loss"].value], 0.75 * 4 * np.log(11), rtol=1e-6)
    assert {int(one.weight) for one in sums.values()} == {3}


def test_online_topk_is_cached_topk_but_for_rounding():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.integers(-64, 64, (6, 11)) / 16, jnp.float32) for _ in range(2))
    for tail in TAILS:
        cached, online = TopK(k=4, tail=tail, temperature=2.0), Online(k=4, tail=tail, temperature=2.0)
        one = cached.align(student, cached.reduce(teacher), 2.0)[:2]
        other = online.align(student, {"logits": teacher}, 2.0)[:2]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)
