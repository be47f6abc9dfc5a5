"""The objective: what is refused before any compute; schedules; all combinations fused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.losses import divergence
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl, reverse_kl
from kd_jax.objective.terms import Term, check, check_readable, token_losses
from kd_jax.optim.ramp import Ramp
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK
from kd_jax.training.step import fused_head_sums
from kd_jax.types import Head

TAILS = ("bucket", "renormalise", "zero")
SIGNALS = [TopK(k=5, tail=tail) for tail in TAILS]
SIGNALS += [TopK(k=5, temperature=2.0), TopK(k=5, temperature=2.0, temperatures=(1.0,)), Sampled(draws=7)]
SIGNALS += [
    Online(),
    Online(temperature=2.0),
    Online(temperature=Ramp(1.0, 3.0, 10)),
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
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(5, 30),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)
@settings(max_examples=30, deadline=None)
def test_the_fused_head_equals_the_plain_path(combination, n, chunk, v, biased, padded, seed):
    signal, loss = combination
    hidden, head, said, teacher_head, targets, mask, weight = problem(n, 4, v, biased, padded, seed)
    terms = {"ce": Term(cross_entropy, weight=0.4), "kd": Term(loss, weight=Ramp(0.1, 1.1, 10), signal=signal)}
    logits = teacher_head.logits(said)
    payload = (
        {} if signal.name == "online" else {signal.name: signal.reduce(logits, jax.random.split(jax.random.key(1), n))}
    )
    rows = {"targets": targets, "mask": mask, "weight": weight, "payload": payload, "teacher_hidden": said}
    fixed = {"step": jnp.int32(5), "teacher_head": teacher_head}

    def fused(hidden, head):
        return fused_head_sums(terms, hidden, head, rows, fixed, chunk)[0]

    def plain(hidden, head):
        losses = token_losses(terms, head.logits(hidden), targets, payload | {"online": {"logits": logits}}, 5)
        return (jnp.where(mask, weight * (0.4 * losses["ce"] + 0.6 * losses["kd"]), 0.0)).sum()

    got, want = (jax.value_and_grad(f, (0, 1))(hidden, head) for f in (fused, plain))
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
    for f in (lambda t: t.sum(), lambda t: t[2]):
        got = jax.value_and_grad(lambda x, f=f: f(token_losses(terms, x, targets, payload)["ce"]))(logits)
        want = jax.value_and_grad(lambda x, f=f: f(cross_entropy(x, targets, 0.1)))(logits)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_online_topk_is_cached_topk_but_for_rounding():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.integers(-64, 64, (6, 11)) / 16, jnp.float32) for _ in range(2))
    for tail in TAILS:
        cached, online = TopK(k=4, tail=tail, temperature=2.0), Online(k=4, tail=tail, temperature=2.0)
        one = cached.align(student, cached.reduce(teacher), 2.0)[:2]
        other = online.align(student, {"logits": teacher}, 2.0)[:2]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


@pytest.mark.parametrize(
    "terms, message",
    [
        ({}, "empty"),
        ({"a": Term(cross_entropy, weight=0.0)}, "terms.a.weight"),
        ({"a": Term(cross_entropy, weight=Ramp(0.0, 0.0, 5))}, "terms.a.weight"),
        ({"a": Term(cross_entropy, weight=Ramp(0.0, 1.0, 0))}, "terms.a.weight"),
        ({"a": Term(cross_entropy, options={"label_smoothing": 1.5})}, "terms.a.options.label_smoothing"),
        ({"a": Term(divergence.jensen_shannon, signal=Online(), options={"beta": 2.0})}, "terms.a.options.beta"),
        ({"a": Term(forward_kl, signal=TopK(k=101))}, "terms.a.signal.k: 101"),
        ({"a": Term(forward_kl, signal=TopK(tail="drop"))}, "terms.a.signal.tail"),
        ({"a": Term(forward_kl, signal=TopK(temperature=Ramp(1.0, 2.0, 5)))}, "Ramp.*wanted Online"),
        ({"a": Term(forward_kl, signal=Online(k=101))}, "terms.a.signal.k"),
        ({"a": Term(forward_kl, signal=Online(temperature=0.0))}, "terms.a.signal.temperature"),
        ({"a": Term(reverse_kl, signal=Sampled())}, "terms.a.loss: reverse_kl.*supports forward_kl"),
        ({"a": Term(reverse_kl, signal=TopK(tail="zero"))}, "terms.a.loss: reverse_kl"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_built(terms, message):
    with pytest.raises(KdError, match=message):
        check(terms, 100)


def test_a_cache_without_what_is_needed_is_refused():
    stored = TopK(k=8).schema(100)
    check_readable("topk", TopK(k=8), 100, stored)
    check_readable("topk", TopK(k=3), 100, stored)
    with pytest.raises(KdError, match=r"no field rest_t2"):
        check_readable("topk", TopK(k=3, temperature=2.0), 100, stored)
    with pytest.raises(KdError, match=r"field ids .*\[8\].*\[9\]"):
        check_readable("topk", TopK(k=9), 100, stored)
    with pytest.raises(KdError, match="uint32"):
        check_readable("topk", TopK(k=3), 100_000, stored)


def test_ramps():
    ramp = Ramp(1.0, 3.0, steps=4, begin=2)
    assert [float(ramp(i)) for i in (0, 2, 3, 6, 9)] == [1.0, 1.0, 1.5, 3.0, 3.0]
    wave = Ramp(1.0, 3.0, steps=4, shape="cosine")
    np.testing.assert_allclose([wave(i) for i in (0, 2, 4)], [1.0, 2.0, 3.0], rtol=1e-6)
