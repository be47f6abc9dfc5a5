"""Likelihoods of chunks: against float64, per token with one tokeniser, in the step, over devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax.batches.layouts import Bucket
from kd_jax.errors import KdError
from kd_jax.losses import divergence
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl, total_variation
from kd_jax.objective import fused_head as fused_head_module
from kd_jax.objective.check import check
from kd_jax.objective.fused_head import whole_rows
from kd_jax.objective.terms import Term
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.mesh import Mesh
from kd_jax.signals.chunks import END, INSIDE, Chunks, chunk_sums
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.step import count_tokens, eval_step, init_state, loss_fn, train_step
from tests.helpers.batches import rows_of, segments_with_signal
from tests.helpers.families import FAMILIES, SIGNAL, V, each_family, network

S, T = 5, 6


def outcomes64(logp, temperature):
    """Both outcomes of a chunk in float64."""
    p = np.exp(np.minimum(np.asarray(logp, np.float64) / temperature, -1e-6))
    return np.stack([p, 1 - p], -1)


DIVERGENCES = {
    forward_kl: lambda p, q: (p * (np.log(p) - np.log(q))).sum(-1),
    total_variation: lambda p, q: abs(p - q).sum(-1) / 2,
}


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_outcomes_equal_those_of_float64(loss, temperature):
    teacher, student = (-np.geomspace(1e-7, 60, 50)[np.random.default_rng(seed).permutation(50)] for seed in (0, 1))
    payload = {"logp": jnp.asarray(teacher, jnp.float32), "place": jnp.full(50, END)}
    aligned = Chunks().align(jnp.asarray(student, jnp.float32), payload, temperature)
    got = loss(aligned.teacher_logp_NK, aligned.student_logp_NK)
    want = DIVERGENCES[loss](outcomes64(teacher, temperature), outcomes64(student, temperature))
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-6)


def test_gradients_equal_differences_of_float64():
    """Also where a probability is nearly 0 or 1."""
    teacher = np.array([-1e-4, -0.3, -5.0, -40.0, -0.01, -9.0])
    student = np.array([-0.5, -1e-3, -0.2, -30.0, -12.0, -9.0])

    def total(student_logp):
        payload = {"logp": jnp.asarray(teacher, jnp.float32), "place": jnp.full(6, END)}
        aligned = Chunks().align(student_logp, payload, 1.0)
        return forward_kl(aligned.teacher_logp_NK, aligned.student_logp_NK).sum()

    got, step = jax.grad(total)(jnp.asarray(student, jnp.float32)), 1e-6
    p = outcomes64(teacher, 1.0)
    sides = [DIVERGENCES[forward_kl](p, outcomes64(student + sign * step, 1.0)) for sign in (1, -1)]
    np.testing.assert_allclose(got, (sides[0] - sides[1]) / (2 * step), rtol=1e-3, atol=1e-6)


def test_sums_skip_targets_in_no_chunk():
    logp = jnp.asarray([-1.0, -2.0, -4.0, -8.0, -16.0, -32.0])
    place = jnp.asarray([0, INSIDE, 0, END, END, INSIDE])  # the third one is not counted
    assert chunk_sums(logp, place)[3:5].tolist() == [-10.0, -16.0]


def with_chunks(batch, lengths, seed=0):
    """The batch with a payload: in each row the counted targets are chunks of these lengths, in turn."""
    place, logp = np.zeros(batch.mask_BT.shape, np.uint8), np.zeros(batch.mask_BT.shape, np.float32)
    rng = np.random.default_rng(seed)
    for b in range(len(place)):
        (counted,) = np.nonzero(np.asarray(batch.mask_BT[b]))
        for run in np.split(counted, np.flatnonzero(np.diff(counted) > 1) + 1):  # of an example, or of several
            start = n = 0
            while start + lengths[n % len(lengths)] <= len(run):
                chunk = run[start : start + lengths[n % len(lengths)]]
                place[b, chunk], place[b, chunk[-1]], logp[b, chunk[-1]] = INSIDE, END, -rng.exponential()
                start, n = start + len(chunk), n + 1
    return batch._replace(payload={**batch.payload, "chunks": {"logp": logp, "place": place}})


def make_batch(architecture, rows=8, packed=False):
    width = 2 if packed else 1
    segments = segments_with_signal(0, (S, T), width * rows, SIGNAL, V)
    grouped = rows_of(segments, [width] * rows)
    bucket, schemas = Bucket(width * S, width * T), {SIGNAL.name: SIGNAL.schema(V)}
    return architecture.layout(START).batch(grouped, rows, bucket, schemas)


TERMS = {"ce": Term(cross_entropy, weight=0.3), "alm": Term(forward_kl, weight=0.7, signal=Chunks(temperature=2.0))}


def dense(architecture, batch, terms=TERMS):
    """The same objective in float64 from all logits: the mean over chunks, times the temperature."""
    model, params, _ = network(architecture)
    logits = np.asarray(model.head(params).logits(model.apply(params, batch.inputs)), np.float64)
    logp = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    targets = np.take_along_axis(logp, np.asarray(batch.targets_BT)[..., None], -1)[..., 0]
    place, teacher = (np.asarray(batch.payload["chunks"][name]) for name in ("place", "logp"))
    values = []
    for b, t in np.argwhere(place == END):
        first = t
        while first and place[b, first - 1] == INSIDE:
            first -= 1
        p, q = (
            outcomes64(teacher[b, t], 2.0),
            outcomes64(targets[b, first : t + 1][place[b, first : t + 1] > 0].sum(), 2.0),
        )
        values.append(batch.weight_BT[b, t] * DIVERGENCES[forward_kl](p, q))
    ce = -(targets * batch.weight_BT)[np.asarray(batch.mask_BT)].mean()
    return 0.3 * ce + 0.7 * 2.0 * np.mean(values), len(values)


@each_family
@pytest.mark.parametrize("packed", [False, True])
def test_the_objective_is_the_mean_over_chunks(architecture, packed):
    batch = with_chunks(make_batch(architecture, packed=packed), [1, 3, 2])
    model, params, _ = network(architecture)
    counts = count_tokens(batch, TERMS)
    loss, sums = loss_fn((params, {}), batch, counts, None, model=model, terms=TERMS)
    want, chunks = dense(architecture, batch)
    assert int(counts.selected["alm"]) == int(sums["alm"].weight) == chunks > 0
    np.testing.assert_allclose(loss, want, rtol=1e-5)


@each_family
def test_with_one_tokeniser_it_is_the_binary_loss_of_each_token(architecture):
    batch = with_chunks(make_batch(architecture), [1])
    model, params, _ = network(architecture)
    terms = {"alm": Term(forward_kl, signal=Chunks())}
    loss, _ = loss_fn((params, {}), batch, count_tokens(batch, terms), None, model=model, terms=terms)
    logits = model.head(params).logits(model.apply(params, batch.inputs))
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(batch.targets_BT)[..., None], -1)[..., 0]
    mask, teacher = np.asarray(batch.mask_BT), batch.payload["chunks"]["logp"]
    want = DIVERGENCES[forward_kl](outcomes64(teacher[mask], 1.0), outcomes64(np.asarray(logp)[mask], 1.0))
    np.testing.assert_allclose(loss, np.mean(batch.weight_BT[mask] * want), rtol=1e-6)


@each_family
def test_chunks_of_the_head_hold_whole_rows(architecture, monkeypatch):
    """The head's own chunks would divide rows; values and gradients do not depend on them."""
    batch = with_chunks(make_batch(architecture), [2, 3])
    model, params, _ = network(architecture)
    counts = count_tokens(batch, TERMS)

    def gradient():
        return jax.grad(lambda p: loss_fn((p, {}), batch, counts, None, model=model, terms=TERMS)[0])(params)

    want = gradient()
    monkeypatch.setattr(fused_head_module, "CHUNK_TOKENS", 8)
    rows, length = batch.mask_BT.shape
    assert whole_rows(rows, length, V) == length * max(1, 8 // length) < rows * length
    chex.assert_trees_all_close(gradient(), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "backend, mesh, microbatches",
    [
        ("pmap", Mesh(), 1),
        ("jit", Mesh(), 4),
        pytest.param("mesh", Mesh(fsdp=2, tensor=2), 2, marks=pytest.mark.extended),
    ],
)
def test_devices_and_microbatches_change_nothing(backend, mesh, microbatches):
    architecture = FAMILIES["decoder_only"]
    batch = with_chunks(make_batch(architecture, rows=16), [2, 1, 3])
    model, params, _ = network(architecture)
    tx = optax.sgd(0.1)
    state = init_state(jax.random.key(0), params, tx)

    def after(backend, mesh, microbatches):
        devices = make_devices(backend, mesh)

        def step(state, batch, all_sum):
            return train_step(state, batch, model=model, terms=TERMS, tx=tx, microbatches=microbatches, all_sum=all_sum)

        new, sums = devices.compile_sums(step)(devices.replicate(state), devices.shard(batch))
        return jax.device_get(devices.unreplicate((new.params, sums["alm"], sums["loss"])))

    chex.assert_trees_all_close(after(backend, mesh, microbatches), after("jit", Mesh(), 1), rtol=1e-4, atol=1e-6)


def test_evaluation_reports_the_mean_over_chunks():
    architecture = FAMILIES["decoder_only"]
    batch = with_chunks(make_batch(architecture), [1, 2])
    model, params, _ = network(architecture)
    sums = eval_step(params, batch, model=model, terms=TERMS)
    want, chunks = dense(architecture, batch)
    assert sums["alm"].weight == chunks
    np.testing.assert_allclose(sums["loss"].mean(), want, rtol=1e-5)


@pytest.mark.parametrize("loss", divergence.ALL)
def test_every_divergence_is_accepted(loss):
    options = {"t": 0.5} if loss is divergence.taid else {}
    check({"alm": Term(loss, signal=Chunks(), options=options)}, V)


@pytest.mark.parametrize(
    "term, message",
    [
        (Term(forward_kl, signal=Chunks(temperature=0.0)), r"temperature: expected a positive number, got 0\.0"),
        (
            Term(cross_entropy, signal=Chunks()),
            r"loss: expected a loss of \(teacher_logp_NK, student_logp_NK\) for Chunks",
        ),
        (
            Term(forward_kl, signal=Chunks(), entropy_share=0.5),
            "entropy_share: expected 1 for Chunks, which compares chunks of",
        ),
    ],
)
def test_bad_terms_are_refused(term, message):
    with pytest.raises(KdError, match=rf"^terms\.alm\..*{message}"):
        check({"alm": term}, V)
