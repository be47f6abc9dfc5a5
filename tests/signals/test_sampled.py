"""Draws from the teacher: exact counts, unbiased gradients (unlike top-k's), dtypes."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.batches import store
from kd_jax.losses import divergence
from kd_jax.losses.divergence import forward_kl
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK

N, V = 4, 29
RNG = np.random.default_rng(0)
TEACHER, STUDENT = (jnp.asarray(RNG.normal(size=(N, V)) * 1.5, jnp.float32) for _ in range(2))


def keys(seed, n=N):
    return jax.random.split(jax.random.key(seed), n)


def gradient(signal, payload, student=STUDENT):
    loss = lambda s: forward_kl(*signal.align(s, payload, 1.0)[:2]).sum()  # noqa: E731
    return jax.grad(loss)(student)


DENSE = jax.grad(lambda s: forward_kl(jax.nn.log_softmax(TEACHER), jax.nn.log_softmax(s)).sum())(STUDENT)


def test_counts_add_up_and_unique_ids_come_first():
    signal = Sampled(draws=20)
    payload = jax.device_get(signal.reduce(TEACHER, keys(0)))
    assert (payload["counts"].sum(-1) == 20).all()
    for ids, counts in zip(payload["ids"], payload["counts"], strict=True):
        used = counts > 0
        assert len(set(ids[used])) == used.sum() and not ids[~used].any()
        assert (np.diff(counts) <= 0).all()


def test_the_mean_gradient_is_unbiased_and_that_of_topk_is_not():
    signal = Sampled(draws=6)
    one = jax.jit(lambda seed: gradient(signal, signal.reduce(TEACHER, keys(seed))))
    distances, total = {}, 0
    for seed in range(1, 1025):
        total += one(seed)
        if seed in (4, 64, 1024):
            distances[seed] = float(jnp.abs(total / seed - DENSE).max())
    assert distances[1024] < 0.01 and distances[1024] < distances[64] / 2 < distances[4] / 4
    for tail in ("renormalise", "zero", "bucket"):
        topk = TopK(k=6, tail=tail)
        assert jnp.abs(gradient(topk, topk.reduce(TEACHER)) - DENSE).max() > 0.02


def test_tokens_are_drawn_at_the_temperature():
    signal = Sampled(draws=200, temperature=2.0)
    mean = (
        sum(np.zeros((N, V)) + np.asarray(scatter(signal.reduce(TEACHER, keys(seed)), 200)) for seed in range(60)) / 60
    )
    np.testing.assert_allclose(mean, jax.nn.softmax(TEACHER / 2.0), atol=0.004)


def scatter(payload, draws):
    rows = jnp.arange(N)[:, None]
    return jnp.zeros((N, V)).at[rows, payload["ids"]].add(payload["counts"] / draws)


def test_impossible_tokens_are_never_drawn():
    padded = jnp.concatenate([TEACHER, jnp.full((N, 3), -jnp.inf)], axis=1)
    for seed in range(20):
        assert Sampled(draws=50).reduce(padded, keys(seed))["ids"].max() < V


def test_expected_counts_are_those_of_the_distribution():
    """Each within five standard deviations of independent draws, which stratified ones stay below."""
    draws, rounds = 40, 2000
    probability_V = np.asarray(jax.nn.softmax(TEACHER[0].astype(jnp.float32)), np.float64)
    logits = jnp.broadcast_to(TEACHER[:1], (rounds, V))
    payload = jax.device_get(Sampled(draws=draws).reduce(logits, keys(0, rounds)))
    counts_V = np.bincount(payload["ids"].ravel(), payload["counts"].ravel(), V)
    deviation_V = np.sqrt(rounds * draws * probability_V * (1 - probability_V))
    assert (np.abs(counts_V - rounds * draws * probability_V) < 5 * deviation_V + 1e-9).all()


LARGE = 130_001


def draw_large(probability_V, draws=200, rounds=500):
    """Return how often each token was drawn, [V]."""
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probability_V, jnp.float32)), (20, LARGE))
    reduce = jax.jit(Sampled(draws=draws).reduce)
    counts_V = np.zeros(LARGE)
    for seed in range(rounds // 20):
        payload = jax.device_get(reduce(logits, keys(seed, 20)))
        counts_V += np.bincount(payload["ids"].ravel(), payload["counts"].ravel(), LARGE)
    return counts_V


def test_a_tail_of_unlikely_tokens_has_its_mass():
    """100,000 tokens of probability 1e-7 and 30,001 that share the rest: of 100,000 draws 1,000 are from the tail."""
    probability_V = np.full(LARGE, 1e-7)
    probability_V[:30_001] = 0.99 / 30_001
    halves = draw_large(probability_V)[30_001:].reshape(2, -1).sum(-1)
    assert (np.abs(halves - 500) < 5 * 500**0.5).all()


def test_tokens_of_probability_1e_8_are_drawn():
    """Most of them do not change one cumulative sum in float32, whose resolution is 6e-8."""
    probability_V = np.full(LARGE, 1e-8)
    probability_V[0] = 1 - 1e-8 * (LARGE - 1)
    lost_V = np.diff(np.asarray(jnp.cumsum(jnp.asarray(probability_V, jnp.float32))), prepend=0.0) == 0
    expected = 1e5 * probability_V[lost_V].sum()  # of 100,000 draws
    assert expected > 50
    assert abs(draw_large(probability_V)[lost_V].sum() - expected) < 5 * expected**0.5


def test_rare_tokens_are_drawn_in_the_block_of_the_most_likely():
    rounds = 20_000  # one draw each, so that a block has isqrt(64) = 8 tokens
    probability_V = jnp.full(64, 5e-5).at[0].set(1 - 63 * 5e-5)
    logits = jnp.broadcast_to(jnp.log(probability_V), (rounds, 64))
    ids = Sampled(draws=1).reduce(logits, keys(0, rounds))["ids"]
    assert abs(int(((ids > 0) & (ids < 8)).sum()) - 7) < 5 * 7**0.5 and int((ids >= 8).sum()) > 56 - 5 * 56**0.5


def test_only_forward_kl_is_supported():
    assert [loss for loss in divergence.ALL if Sampled().supports(loss)] == [forward_kl]


def test_ids_do_not_overflow_at_262144(tmp_path):
    """From logits to the disk and back, for top-k and draws."""
    size = 262_144
    logits = jnp.zeros((2, size)).at[:, size - 1].set(30.0).at[:, 70_000].set(29.0)
    for signal in (TopK(k=4), Sampled(draws=16)):
        payload = {name: np.asarray(x) for name, x in signal.reduce(logits, keys(0, 2)).items()}
        schema = signal.schema(size)
        folder = tmp_path / signal.name
        store.write(folder, "records", schema, 1, lambda start, stop, p=payload: [p])
        read = store.Store(folder, "records")[0]
        assert read["ids"][0, 0] == size - 1 and read["ids"][0, 1] == 70_000
