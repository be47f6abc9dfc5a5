"""Top-k with the exact remaining mass: traps 4, 5, 7 and the dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import ALL, forward_kl, reverse_kl
from kd_jax.objective.terms import StepInputs, Term, TokenInputs, total_loss
from kd_jax.signals.base import TAILS
from kd_jax.signals.online import Online
from kd_jax.signals.topk import TopK
from tests.helpers.divergences import log_softmax64, reference64

N, V = 6, 17
RNG = np.random.default_rng(0)
# Multiples of 1/16, which float16 holds exactly.
TEACHER, STUDENT = (jnp.asarray(RNG.integers(-64, 64, (N, V)) / 16, jnp.float32) for _ in range(2))
TARGETS = jnp.asarray(RNG.integers(0, V, N), jnp.int32)


def kd(signal, student=STUDENT, teacher=TEACHER):
    """Return the KD term's loss per token, T^2 included."""
    payload, terms = {signal.name: signal.reduce(teacher)}, {"kd": Term(forward_kl, signal=signal)}

    def one_token(mask_N):
        tokens = TokenInputs(TARGETS, mask_N, jnp.ones(N), payload)
        return total_loss(terms, student, tokens, StepInputs())[0]

    return jax.vmap(one_token)(jnp.eye(N, dtype=bool))


def dense(temperature, student=STUDENT, teacher=TEACHER):
    p, q = (jax.nn.log_softmax(x / temperature) for x in (teacher, student))
    return temperature**2 * forward_kl(p, q)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_k_equal_to_v_is_dense_in_value_and_gradient(temperature):
    signal = TopK(k=V, temperature=temperature)
    np.testing.assert_allclose(kd(signal), dense(temperature), rtol=1e-4, atol=1e-6)
    got, want = (
        jax.grad(lambda s, f=f: f(s).sum())(STUDENT) for f in (lambda s: kd(signal, s), lambda s: dense(temperature, s))
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


@given(st.integers(1, V), st.sampled_from([0.5, 1.0, 4.0]))
@settings(max_examples=8, deadline=None)
def test_both_sides_sum_to_one_and_the_rest_is_exact(k, temperature):
    signal = TopK(k=k, temperature=temperature)
    teacher_logp, student_logp, _ = signal.align(STUDENT, signal.reduce(TEACHER), temperature)
    for logp in (teacher_logp, student_logp):
        np.testing.assert_allclose(jnp.exp(logp).sum(-1), 1.0, rtol=1e-5)
    exact = jnp.sort(jax.nn.softmax(TEACHER / temperature), axis=-1)[:, : V - k].sum(-1)
    np.testing.assert_allclose(jnp.exp(teacher_logp[:, -1]), exact, atol=1e-6)


@given(st.integers(1, V - 1), st.integers(1, V))
@settings(max_examples=8, deadline=None)
def test_a_smaller_k_is_read_from_a_larger_one(k, larger):
    larger = max(k, larger)
    small = TopK(k=k)
    from_larger = small.align(STUDENT, TopK(k=larger).reduce(TEACHER), 1.0)
    for got, want in zip(from_larger, small.align(STUDENT, small.reduce(TEACHER), 1.0), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("k", [1, 4, V])
def test_student_equal_to_teacher_is_stationary(k):
    signal = TopK(k=k)
    assert jnp.abs(kd(signal, TEACHER)).max() < 1e-6
    assert jnp.abs(jax.grad(lambda s: kd(signal, s).sum())(TEACHER)).max() < 1e-6


def test_student_mass_outside_the_k_increases_the_loss():
    signal = TopK(k=4)
    ids = signal.reduce(TEACHER)["ids"]
    outside = jnp.put_along_axis(jnp.ones((N, V)), ids, 0.0, axis=-1, inplace=False)
    assert (kd(signal, TEACHER + 2.0 * outside) > kd(signal, TEACHER) + 0.01).all()


def test_one_hot_teacher_is_cross_entropy():
    teacher = jnp.where(jax.nn.one_hot(TARGETS, V) > 0, 0.0, -60.0)
    np.testing.assert_allclose(kd(TopK(k=4), teacher=teacher), cross_entropy(STUDENT, TARGETS), rtol=1e-4)


def test_gradients_keep_their_size_at_any_temperature():
    student, teacher = (x - x.mean(-1, keepdims=True) for x in (STUDENT, TEACHER))
    sizes = [
        jnp.abs(jax.grad(lambda s, t=t: kd(TopK(k=V, temperature=t), s, teacher).sum())(student)).sum()
        for t in (20.0, 40.0)
    ]
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.05)


def test_padded_vocabulary_equals_sliced():
    padded = lambda x: jnp.concatenate([x, jnp.full((N, 3), -jnp.inf)], axis=1)  # noqa: E731
    signal = TopK(k=4)
    np.testing.assert_allclose(kd(signal, padded(STUDENT), padded(TEACHER)), kd(signal), rtol=1e-5, atol=1e-6)
    assert not jax.grad(lambda s: kd(signal, s, padded(TEACHER)).sum())(padded(STUDENT))[:, V:].any()


@pytest.mark.parametrize(
    "loss, teacher, student, want",
    [  # float64, on the support {token 0, the three others together}
        (forward_kl, [2.0, 1.0, 0.0, 0.0], [90.0, 0.0, 0.0, 0.0], 33.976639),
        (reverse_kl, [100.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0], 18.326871),
    ],
)
def test_a_rest_far_below_the_top_does_not_underflow(loss, teacher, student, want):
    """Trap 16: the rest must not underflow, or the divergence is infinite."""
    signal, student = TopK(k=1), jnp.asarray([student])
    payload = signal.reduce(jnp.asarray([teacher]))
    value, gradient = jax.value_and_grad(lambda x: loss(*signal.align(x, payload, 1.0)[:2]).sum())(student)
    np.testing.assert_allclose(value, want, rtol=1e-4)
    assert jnp.isfinite(gradient).all()


def student_on_support64(logits_NV, ids_NK, tail):
    """Return (log-probabilities on the support; function of their gradients to the logits' gradients), in float64."""
    inside_NKV = ids_NK[:, :, None] == np.arange(logits_NV.shape[1])
    if tail == "renormalise":
        logits_NV = np.where(inside_NKV.any(1), logits_NV, -np.inf)
    outcomes = [*inside_NKV.swapaxes(0, 1), ~inside_NKV.any(1)] if tail == "bucket" else inside_NKV.swapaxes(0, 1)
    logp_NV = log_softmax64(logits_NV)
    logp_NXV = np.stack([np.where(is_part_NV, logp_NV, -np.inf) for is_part_NV in outcomes], 1)
    logp_NX = np.logaddexp.reduce(logp_NXV, -1)
    jacobian_NXV = np.exp(logp_NXV - logp_NX[:, :, None]) - np.exp(logp_NV)[:, None]
    return logp_NX, lambda gradient_NX: np.einsum("nx,nxv->nv", gradient_NX, jacobian_NXV)


FAR = np.arange(40, 120.5, 0.5)
FAR_ROWS = [  # the logits of (teacher, student) that are higher by the gap
    ([1, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ([1, 0, 0, 0, 0], [0, 0, 0, 0, 1]),
    ([1, 1, 0, 0, 0], [0, 0, 1, 1, 0]),
    ([1, 1, 0, 0, 0], [1, 0, 0, 0, 0]),
]
FAR_SIGNALS = [Online(), *(TopK(k=2, tail=tail) for tail in TAILS)]


@pytest.mark.parametrize("signal, loss", [(s, loss) for s in FAR_SIGNALS for loss in ALL if s.supports(loss)])
def test_logits_that_differ_by_40_to_120_equal_float64(signal, loss):
    """Values and gradients of the logits, for every divergence and tail rule."""
    near = np.asarray([0.5, 0.25, -0.5, 0.125, 0.0]), np.asarray([-0.25, 0.5, 0.0, 1.0, 0.5])
    far = zip(*FAR_ROWS, strict=True)
    teacher, student = (
        x + np.concatenate([np.outer(FAR, row) for row in rows]) for x, rows in zip(near, far, strict=True)
    )
    payload = signal.reduce(jnp.asarray(teacher, jnp.float32))
    if signal == Online():
        tail, teacher_logp, ids = "zero", log_softmax64(teacher), np.tile(np.arange(5), (len(teacher), 1))
    else:
        tail, ids = signal.tail, np.asarray(payload["ids"])
        parts = payload["logits"], payload["rest_t1"][:, None]
        teacher_logp = log_softmax64(np.concatenate(parts[: 1 if tail == "renormalise" else 2], axis=1))
        teacher_logp = teacher_logp[:, :2] if tail == "zero" else teacher_logp
    student_logp, pull_back = student_on_support64(student, ids, tail)
    share = {"jensen_shannon": 0.5, "taid": 1.0}.get(loss.__name__, 0.1)  # the defaults
    value, gradient = reference64(loss.__name__, share, teacher_logp, student_logp)
    of_logits = lambda x: loss(*signal.align(x, payload, 1.0)[:2])  # noqa: E731
    got, got_gradient = jax.jit(lambda x: (of_logits(x), jax.grad(lambda x: of_logits(x).sum())(x)))(
        jnp.asarray(student, jnp.float32)
    )
    # The float32 log-probabilities have a spacing of 8e-6 there.
    np.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got_gradient, pull_back(gradient), rtol=1e-6, atol=1e-5)


def payload_of_fewer(signal, count):
    """Return a payload that names `count` ids; the other ids are padding, with logits of -inf."""
    payload, whole = TopK(k=count).reduce(TEACHER), TopK(k=V).reduce(TEACHER)
    filled = jnp.where(jnp.arange(signal.k) < count, whole["logits"][:, : signal.k], -jnp.inf)
    return {"ids": whole["ids"][:, : signal.k], "logits": filled.astype(jnp.float16), "rest_t1": payload["rest_t1"]}


@pytest.mark.parametrize("loss, tail", [(forward_kl, "zero"), *((one, t) for one in ALL for t in TAILS[:2])])
def test_padded_ids_count_among_the_other_tokens(loss, tail):
    """A record of 3 padded to 6 equals a record of 3, in value and gradient."""
    short, room = TopK(k=3, tail=tail), TopK(k=6, tail=tail)
    payloads = {short: short.reduce(TEACHER), room: payload_of_fewer(room, 3)}
    value = lambda student, signal: loss(*signal.align(student, payloads[signal], 1.0)[:2]).sum()  # noqa: E731
    results = [jax.value_and_grad(value)(STUDENT, signal) for signal in payloads]
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss, tail", [(forward_kl, "zero"), *((one, t) for one in ALL for t in TAILS[:2])])
def test_a_record_without_ids_has_no_loss_and_no_gradient(loss, tail):
    signal = TopK(k=3, tail=tail)
    payload = payload_of_fewer(signal, 3) | {"logits": jnp.full((N, 3), -jnp.inf), "rest_t1": jnp.zeros(N)}
    value, gradient = jax.value_and_grad(lambda x: loss(*signal.align(x, payload, 1.0)[:2]).sum())(STUDENT)
    assert value == 0 and not gradient.any()


def test_merge_takes_the_larger_k_and_all_temperatures():
    assert TopK(k=4).merge(TopK(k=9)) == TopK(k=9).merge(TopK(k=4)) == TopK(k=9)
    both = TopK(k=4, temperature=2.0, tail="zero").merge(TopK(k=9, temperature=1.0))
    assert both == TopK(k=9, temperature=1.0, tail="zero", temperatures=(2.0,))
