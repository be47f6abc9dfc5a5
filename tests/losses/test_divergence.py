"""Divergences: closed forms, gradients; trap 6 (direction), 8 (0 log 0, low precision), 16 (cancellation)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from kd_jax.losses import divergence
from kd_jax.losses.divergence import forward_kl
from tests.helpers.divergences import log_softmax64, reference64

RNG = np.random.default_rng(0)
P, Q = (jax.nn.log_softmax(jnp.asarray(RNG.normal(size=(5, 9)) * 2, jnp.float32)) for _ in range(2))


def test_forward_kl_has_the_teacher_first():
    p, q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
    want = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    np.testing.assert_allclose(forward_kl(p, q), [want], rtol=1e-5)
    assert abs(float(forward_kl(q, p)[0]) - want) > 0.1


def test_forward_kl_equals_optax():
    np.testing.assert_allclose(forward_kl(P, Q), optax.kl_divergence(Q, jnp.exp(P)), rtol=1e-4)


def test_forward_kl_is_zero_and_stationary_if_equal():
    assert jnp.abs(forward_kl(P, P)).max() < 1e-6
    gradient = jax.grad(lambda x: forward_kl(P, jax.nn.log_softmax(x)).sum())(P)
    assert jnp.abs(gradient).max() < 1e-6


def test_forward_kl_has_the_gradient_of_its_value():
    check_grads(lambda x: forward_kl(P, jax.nn.log_softmax(x)).sum(), (Q,), 1, ["rev"], rtol=2e-2)


def test_forward_kl_of_zero_probabilities_has_finite_gradients():
    padding = jnp.full((5, 3), -jnp.inf)
    p, q = jnp.concatenate([P, padding], 1), jnp.concatenate([Q, padding], 1)
    np.testing.assert_allclose(forward_kl(p, q), forward_kl(P, Q), rtol=1e-6)
    gradient = jax.grad(lambda x: forward_kl(p, x).sum())(q)
    assert jnp.isfinite(gradient).all()
    assert not gradient[:, 9:].any()


def test_forward_kl_of_identical_bfloat16_logits_is_zero():
    logits = jnp.asarray(RNG.normal(size=(64, 128)) * 5, jnp.bfloat16)

    @jax.jit
    def kl(a, b):
        return forward_kl(*(jax.nn.log_softmax(x.astype(jnp.float32)) for x in (a, b)))

    assert jnp.abs(kl(logits, logits)).max() < 1e-6


TWO_P, TWO_Q = 0.9, 0.5


def kl(a, b):
    return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))


CLOSED = {  # two classes, p = (0.9, 0.1), q = (0.5, 0.5), by hand; swapped arguments give other values
    "reverse_kl": (divergence.reverse_kl, {}, kl(TWO_Q, TWO_P)),
    "jensen_shannon": (
        divergence.jensen_shannon,
        {"beta": 0.25},
        0.25 * kl(TWO_P, 0.25 * TWO_P + 0.75 * TWO_Q) + 0.75 * kl(TWO_Q, 0.25 * TWO_P + 0.75 * TWO_Q),
    ),
    "js at 0": (divergence.jensen_shannon, {"beta": 0.0}, kl(TWO_P, TWO_Q)),
    "js at 1": (divergence.jensen_shannon, {"beta": 1.0}, kl(TWO_Q, TWO_P)),
    "skewed_forward_kl": (divergence.skewed_forward_kl, {"alpha": 0.1}, kl(TWO_P, 0.1 * TWO_P + 0.9 * TWO_Q)),
    "skewed_reverse_kl": (divergence.skewed_reverse_kl, {"alpha": 0.1}, kl(TWO_Q, 0.1 * TWO_Q + 0.9 * TWO_P)),
    "total_variation": (divergence.total_variation, {}, 0.4),
    "taid": (divergence.taid, {"t": 0.5}, kl(0.75, TWO_Q)),  # p_t is (0.9, 0.1)^0.5 normalised: (3, 1) / 4
}


@pytest.mark.parametrize("name", CLOSED)
def test_two_class_closed_forms(name):
    loss, options, want = CLOSED[name]
    p, q = (jnp.log(jnp.asarray([[x, 1 - x]])) for x in (TWO_P, TWO_Q))
    np.testing.assert_allclose(loss(p, q, **options), [want], rtol=1e-5)
    if name != "total_variation":
        assert abs(float(loss(q, p, **options)[0]) - want) > 1e-3


@pytest.mark.parametrize("loss", divergence.ALL, ids=lambda f: f.__name__)
def test_every_divergence_is_zero_and_stationary_if_equal_and_positive_otherwise(loss):
    assert jnp.abs(loss(P, P)).max() < 1e-6
    assert (loss(P, Q) > 0).all()
    if loss is not divergence.total_variation:  # which has a corner there
        assert jnp.abs(jax.grad(lambda x: loss(P, jax.nn.log_softmax(x)).sum())(P)).max() < 1e-6


@pytest.mark.parametrize("loss", divergence.ALL, ids=lambda f: f.__name__)
def test_every_divergence_has_the_gradient_of_its_value(loss):
    check_grads(lambda x: loss(P, jax.nn.log_softmax(x)).sum(), (Q,), 1, ["rev"], rtol=3e-2, atol=1e-3)


@pytest.mark.parametrize("loss", divergence.ALL, ids=lambda f: f.__name__)
def test_impossible_tokens_on_both_sides_change_nothing(loss):
    padding = jnp.full((5, 3), -jnp.inf)
    p, q = jnp.concatenate([P, padding], 1), jnp.concatenate([Q, padding], 1)
    np.testing.assert_allclose(loss(p, q), loss(P, Q), rtol=1e-6)
    gradient = jax.grad(lambda x: loss(p, x).sum())(q)
    assert jnp.isfinite(gradient).all() and not gradient[:, 9:].any()


@pytest.mark.parametrize("loss", [divergence.jensen_shannon, divergence.skewed_reverse_kl, divergence.total_variation])
def test_bounded_divergences_are_finite_if_the_teacher_has_zero_probabilities(loss):
    p = jnp.asarray([[-jnp.inf, 0.0]])
    value, gradient = jax.value_and_grad(lambda x: loss(p, jax.nn.log_softmax(x)).sum())(jnp.zeros((1, 2)))
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def loss_of(name, share, p_logp):
    """A divergence as a function of log q."""
    options = {"jensen_shannon": "beta", "skewed_forward_kl": "alpha", "skewed_reverse_kl": "alpha", "taid": "t"}
    option = options.get(name)
    loss = getattr(divergence, name)
    return lambda x: loss(jnp.asarray(p_logp), x, **({option: share} if option else {}))


SHARES = (1e-8, 1e-6, 1e-5, 1e-3, 0.1, 0.5, 0.9)
MIXTURES = [("jensen_shannon", share) for share in (*SHARES, *(1 - share for share in SHARES[:4]))]
MIXTURES += [(name, share) for name in ("skewed_forward_kl", "skewed_reverse_kl") for share in (*SHARES, 0.99)]


@pytest.mark.parametrize("name, share", MIXTURES)
@pytest.mark.parametrize("spread", [0.01, 0.1, 2.0, 12.0])
def test_mixtures_equal_float64_for_every_share(name, share, spread):
    """Trap 16: with a small share, a difference of logarithms loses the digits of float32."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 4, 40)) * spread
    p, q = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    loss = loss_of(name, share, p)
    value, gradient = reference64(name, share, p.astype(np.float64), q.astype(np.float64))
    # The closer both are, the more of the value cancels.
    np.testing.assert_allclose(loss(jnp.asarray(q)), value, rtol=max(1e-4, 1e-5 / spread))
    got = jax.grad(lambda x: loss(x).sum())(jnp.asarray(q))
    np.testing.assert_allclose(got, gradient, rtol=1e-3, atol=1e-4 * np.abs(gradient).max())


FAR = np.arange(40, 120.5, 0.5)
NONE = np.zeros_like(FAR)
SURE, OPEN = np.stack([NONE, -FAR], 1), np.stack([NONE, NONE - 1], 1)
# Logits of two tokens: one side is sure, the other one is, both are sure of different tokens.
FAR_TEACHER = np.concatenate([SURE, OPEN, SURE])
FAR_STUDENT = np.concatenate([OPEN, SURE, np.stack([-FAR / 3, NONE], 1)])
EVERY = [
    *MIXTURES,
    ("taid", 0.25),
    ("taid", 1.0),
    *((name, 0.0) for name in ("forward_kl", "reverse_kl", "total_variation")),
]


@pytest.mark.parametrize("name, share", EVERY)
def test_log_ratios_of_40_to_120_equal_float64(name, share):
    """Also where the cotangent is small, as for a mean over many tokens: no denormal is flushed on the way."""
    p, q = (log_softmax64(logits).astype(np.float32) for logits in (FAR_TEACHER, FAR_STUDENT))
    value, gradient = reference64(name, share, p.astype(np.float64), q.astype(np.float64))
    loss, unit = loss_of(name, share, p), share * (1 - share) if name == "jensen_shannon" else 1.0
    np.testing.assert_allclose(loss(jnp.asarray(q)), value, rtol=1e-6, atol=1e-6 * unit)
    for scale in (1.0, 1e-6):
        got = jax.grad(lambda x, scale=scale: (scale * loss(x)).sum())(jnp.asarray(q))
        np.testing.assert_allclose(got, scale * gradient, rtol=1e-6, atol=1e-6 * scale * unit)


def test_jensen_shannon_tends_to_forward_and_reverse_kl():
    for beta, end in ((1e-3, divergence.forward_kl), (1 - 1e-3, divergence.reverse_kl)):
        scaled = divergence.jensen_shannon(P, Q, beta=beta) / (beta * (1 - beta))
        np.testing.assert_allclose(scaled, end(P, Q), rtol=0.1)


def taid64(t, p_logits, q_logits):
    """(value, gradient with respect to the student's logits) of TAID in float64: the target has no gradient."""
    target = log_softmax64((1 - t) * np.asarray(q_logits, np.float64) + t * np.asarray(p_logits, np.float64))
    q_logp = log_softmax64(q_logits)
    return (np.exp(target) * (target - q_logp)).sum(-1), np.exp(q_logp) - np.exp(target)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("traced", [False, True], ids=["number", "traced"])
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_taid_of_log_probabilities_is_the_paper_s_of_logits(t, traced, spread):
    rng = np.random.default_rng(1)
    p_logits, q_logits = (rng.normal(size=(2, 6, 40)) * spread).astype(np.float32)

    @jax.jit
    def loss(logits, t=t):
        return divergence.taid(*map(jax.nn.log_softmax, (jnp.asarray(p_logits), logits)), t=t)

    arguments = (jnp.asarray(q_logits), jnp.float32(t)) if traced else (jnp.asarray(q_logits),)
    value, gradient = taid64(t, p_logits, q_logits)
    np.testing.assert_allclose(loss(*arguments), value, rtol=1e-4, atol=1e-5)
    got = jax.grad(lambda *x: loss(*x).sum())(*arguments)
    np.testing.assert_allclose(got, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_taid_of_zero_probabilities_is_finite(t):
    """A token impossible for the teacher is impossible for the target, unless t is 0; padding changes nothing."""
    p = jnp.log(jnp.asarray([[0.75, 0.25, 0.0, 0.0]]))
    q_logits = jnp.asarray([[0.0, 0.0, 0.0, -jnp.inf]])  # the last token pads the vocabulary
    value, gradient = jax.value_and_grad(lambda x: divergence.taid(p, jax.nn.log_softmax(x), t=t).sum())(q_logits)
    root = np.sqrt([0.75, 0.25])
    target = (
        np.asarray([1, 1, 1]) / 3 if t == 0 else [*(root / root.sum()), 0] if t == 0.5 else np.asarray([3, 1, 0]) / 4
    )
    positive = np.asarray(target)[np.asarray(target) > 0]
    np.testing.assert_allclose(value, (positive * np.log(positive * 3)).sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, [[*(1 / 3 - np.asarray(target)), 0]], rtol=1e-5, atol=1e-6)


def test_the_teacher_gets_no_gradient_from_taid():
    assert not jax.grad(lambda p: divergence.taid(p, Q, t=0.5).sum())(P).any()
