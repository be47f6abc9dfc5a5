"""Targets selected by the student's entropy: by hand, by segments, in packed rows, over devices and microbatches."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.batches.layouts import Bucket
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl, taid
from kd_jax.models.base import Architecture, Head
from kd_jax.objective.entropy import count_selected, entropy, select, select_by_entropy, selective_terms
from kd_jax.objective.terms import Term, Terms
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.mesh import Mesh
from kd_jax.schedules import Schedule
from kd_jax.signals.online import Online
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.step import count_tokens, eval_step, init_state, loss_fn, train_step
from kd_jax.types import Batch
from tests.helpers.batches import rows_of, segments_with_signal
from tests.helpers.divergences import log_softmax64
from tests.helpers.families import FAMILIES, SIGNAL, V, each_family, network

S, T, EXAMPLES = 5, 6, 16
SHARES = (0.2, 0.5)


def terms_with(ce: float = 1.0, kd: float = 1.0) -> Terms:
    """Return cross-entropy and forward KL with these shares of the targets."""
    return {
        "ce": Term(cross_entropy, weight=0.3, entropy_share=ce),
        "kd": Term(forward_kl, weight=0.7, signal=SIGNAL, entropy_share=kd),
    }


def test_a_hand_worked_example():
    """Two examples and padding in one row: ceil(0.4 * 4) = 2 of four targets, ceil(0.4 * 1) = 1 of one."""
    entropies = jnp.asarray([[9.0, 0.3, 0.8, 0.5, 0.8, 0.1, 7.0, 7.0]])
    segments = jnp.asarray([[3, 3, 3, 3, 3, 8, 8, 0]])
    mask = jnp.asarray([[False, True, True, True, True, True, False, False]])  # two prompts, and padding
    want = [[False, False, True, False, True, True, False, False]]
    assert select(entropies, mask, segments, 0.4).tolist() == want
    assert count_selected(mask, segments, 0.4) == 3


def test_of_equal_entropies_the_first_are_selected():
    segments = jnp.ones((2, 5), jnp.int32)
    got = select(jnp.zeros((2, 5)), jnp.arange(5)[None] >= jnp.asarray([[0], [2]]), segments, 0.5)
    assert got.tolist() == [[True, True, True, False, False], [False, False, True, True, False]]


@given(st.floats(1e-6, 1.0), st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_the_share_is_of_each_segment_and_the_count_is_known_from_the_masks(share, seed):
    rng = np.random.default_rng(seed)
    segments = np.cumsum(rng.random((3, 12)) < 0.3, axis=1) * (np.arange(12) < 11)
    mask = (rng.random((3, 12)) < 0.7) & (segments > 0)
    entropies = rng.integers(0, 6, (3, 12)).astype(np.float32)  # with ties
    got = np.asarray(jax.jit(functools.partial(select, share=share))(entropies, mask, segments))
    want = np.zeros_like(mask)
    for row in range(3):
        for segment in set(segments[row][mask[row]]):
            places = np.flatnonzero((segments[row] == segment) & mask[row])
            order = places[np.argsort(-entropies[row, places], kind="stable")]
            want[row, order[: max(1, math.ceil(round(share * len(places), 9)))]] = True
    np.testing.assert_array_equal(got, want)
    assert count_selected(jnp.asarray(mask), jnp.asarray(segments), share) == want.sum()


@pytest.mark.parametrize(
    "share, targets, expected", [(0.1, 30, 3), (0.3, 10, 3), (0.7, 10, 7), (0.2, 1, 1), (0.55, 100, 55)]
)
def test_no_rounding_adds_a_target(share, targets, expected):
    """0.1 * 30 is more than 3 in floating point; its ceiling would be 4."""
    ones = jnp.ones((1, targets), jnp.int32)
    assert count_selected(ones > 0, ones, share) == expected


def test_entropy_equals_float64_and_padded_columns_add_nothing():
    logits = np.random.default_rng(0).normal(size=(6, 11)).astype(np.float32) * 4
    logp = log_softmax64(logits)
    padded = jnp.pad(jnp.asarray(logits), ((0, 0), (0, 3)), constant_values=-jnp.inf)
    for x in (jnp.asarray(logits), padded):
        np.testing.assert_allclose(entropy(x), -(np.exp(logp) * logp).sum(-1), rtol=1e-4)


def test_only_terms_with_a_share_are_selective():
    assert selective_terms(terms_with()) == {}
    assert selective_terms(terms_with(kd=0.2)) == {"kd": 0.2}


def batch_of(architecture: Architecture, sizes: tuple[int, ...]) -> Batch:
    """Return 16 examples of different lengths with `sizes` of them in each row."""
    segments = segments_with_signal(0, (S, T), EXAMPLES, SIGNAL, V)
    bucket, schemas = Bucket(max(sizes) * S, max(sizes) * T), {SIGNAL.name: SIGNAL.schema(V)}
    return architecture.layout(START).batch(rows_of(segments, sizes), len(sizes), bucket, schemas)


SEPARATE, PACKED = (1,) * EXAMPLES, (2,) * 8
IRREGULAR = (3, 1, 4, 2, 1, 2, 2, 1)


def loss_and_gradient(architecture: Architecture, batch: Batch, terms: Terms):
    """Return ((loss, Sums), gradient) without dropout."""
    model, params, teacher_params = network(architecture)
    loss_of_batch = functools.partial(loss_fn, model=model, teacher=model, terms=terms)

    def loss(params, batch):
        return loss_of_batch((params, {}), batch, count_tokens(batch, terms), None, teacher_params)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)


@each_family
def test_the_loss_equals_its_definition_in_float64(architecture):
    """Each term is the mean over its own targets, which are chosen here from dense logits."""
    batch, (model, params, _) = batch_of(architecture, IRREGULAR), network(architecture)
    (total, sums), _ = loss_and_gradient(architecture, batch, terms_with(ce=0.5, kd=0.2))
    logits = jax.jit(lambda params, inputs: model.head(params).logits(model.apply(params, inputs)))(
        params, batch.inputs
    )
    logp = log_softmax64(logits)
    entropies, segments = -(np.exp(logp) * logp).sum(-1), np.asarray(batch.inputs.decoder.segment_BT)
    nll = -np.take_along_axis(logp, np.asarray(batch.targets_BT)[..., None], -1)[..., 0]
    payload = {name: np.asarray(x) for name, x in batch.payload[SIGNAL.name].items()}
    p = np.concatenate([payload["logits"].astype(np.float64), payload["rest_t1"][..., None]], -1)
    q = np.take_along_axis(logp, payload["ids"].astype(int), -1)
    q = np.concatenate([q, np.log1p(-np.exp(q).sum(-1, keepdims=True))], -1)
    p = log_softmax64(p)
    losses = {"ce": (0.5, nll), "kd": (0.2, (np.exp(p) * (p - q)).sum(-1))}
    means = {}
    for name, (share, loss) in losses.items():
        chosen = []
        for row, segment in {(row, segments[row, place]) for row, place in np.argwhere(segments)}:
            places = np.flatnonzero((segments[row] == segment) & batch.mask_BT[row])
            order = places[np.argsort(-entropies[row, places], kind="stable")]
            chosen += [(row, place) for place in order[: math.ceil(round(share * len(places), 9))]]
        means[name] = np.mean([batch.weight_BT[at] * loss[at] for at in chosen])
        assert int(sums[name].weight) == len(chosen)
    np.testing.assert_allclose([float(sums[name].mean()) for name in means], list(means.values()), rtol=1e-4)
    np.testing.assert_allclose(total, 0.3 * means["ce"] + 0.7 * means["kd"], rtol=1e-4)
    np.testing.assert_allclose(float(sums["loss"].mean()), total, rtol=1e-5)


@each_family
def test_a_share_that_selects_all_equals_no_share(architecture):
    """0.999 of at most six targets is all of them, by way of the selection; 1 is the same program as none."""
    batch = batch_of(architecture, IRREGULAR)
    want = loss_and_gradient(architecture, batch, terms_with())
    got = loss_and_gradient(architecture, batch, terms_with(ce=0.999, kd=0.999))
    chex.assert_trees_all_close(got, want, atol=1e-6, rtol=1e-5)


def test_a_share_of_one_adds_nothing_to_the_program():
    architecture = FAMILIES["decoder_only"]
    batch, (model, params, _) = batch_of(architecture, SEPARATE), network(architecture)

    def program(share):
        terms = {"ce": Term(cross_entropy, entropy_share=share)}
        return str(
            jax.make_jaxpr(
                lambda p: loss_fn((p, {}), batch, count_tokens(batch, terms), None, model=model, terms=terms)
            )(params)
        )

    plain = {"ce": Term(cross_entropy)}
    today = jax.make_jaxpr(lambda p: loss_fn((p, {}), batch, count_tokens(batch), None, model=model, terms=plain))(
        params
    )
    assert program(1.0) == program(1) == str(today)
    assert program(0.5) != program(1.0)
    counts = count_tokens(batch, plain)
    assert counts.selected is None


@each_family
def test_packed_rows_equal_separate_rows(architecture):
    terms = terms_with(ce=0.5, kd=0.2)
    separate, packed = (batch_of(architecture, sizes) for sizes in (SEPARATE, IRREGULAR))
    chex.assert_trees_all_equal(count_tokens(separate, terms), count_tokens(packed, terms))
    got, want = (loss_and_gradient(architecture, batch, terms) for batch in (packed, separate))
    chex.assert_trees_all_close(got, want, atol=1e-5, rtol=1e-5)


def after_one_step(architecture: Architecture, batch: Batch, devices, microbatches: int = 1):
    """Return (parameters, mean of each Sum) after one step of gradient descent, with the teacher in the step."""
    tx, terms = optax.sgd(1.0), terms_with(ce=0.5, kd=0.2)
    terms |= {"online": Term(taid, 0.2, Online(), {"t": Schedule(0.4, 1.0, steps=4)}, entropy_share=0.5)}
    model, params, teacher_params = network(architecture)
    step = functools.partial(train_step, model=model, teacher=model, terms=terms, tx=tx, microbatches=microbatches)
    state = init_state(jax.random.key(1), params, tx)
    state, teacher_params = devices.replicate((state, teacher_params))
    state, sums = devices.compile_sums(step)(state, devices.shard(batch), teacher_params)
    params, sums = jax.device_get(devices.unreplicate((state.params, sums)))
    return params, {name: one.mean() for name, one in sums.items()}


@pytest.mark.parametrize(
    "family, sizes, backend, microbatches",
    [("encoder_decoder", SEPARATE, "pmap", 2), ("decoder_only", PACKED, "mesh", 1)],
)
def test_one_device_equals_eight_and_microbatches(family, sizes, backend, microbatches):
    architecture = FAMILIES[family]
    batch, devices = batch_of(architecture, sizes), make_devices(backend, Mesh())
    assert devices.count == 8
    got = after_one_step(architecture, batch, devices, microbatches)
    chex.assert_trees_all_close(got, after_one_step(architecture, batch, make_devices("jit")), atol=1e-6, rtol=1e-5)


def test_eval_step_reports_the_mean_over_the_selected_targets():
    architecture = FAMILIES["decoder_only"]
    batch, (model, params, _) = batch_of(architecture, PACKED), network(architecture)
    terms = {"ce": terms_with(ce=0.5)["ce"]}
    sums = jax.jit(functools.partial(eval_step, model=model, terms=terms))(params, batch)
    (total, _), _ = loss_and_gradient(architecture, batch, {"ce": dataclasses.replace(terms["ce"], weight=1.0)})
    np.testing.assert_allclose(float(sums["ce"].mean()), total, rtol=1e-5)
    np.testing.assert_allclose(float(sums["loss"].mean()), 0.3 * total, rtol=1e-5)


def test_a_batch_without_counted_targets_has_no_loss():
    architecture = FAMILIES["decoder_only"]
    batch = batch_of(architecture, SEPARATE)
    batch = batch._replace(mask_BT=np.zeros_like(batch.mask_BT))
    (total, _), gradient = loss_and_gradient(architecture, batch, terms_with(ce=0.5, kd=0.2))
    assert total == 0 and not any(np.any(x) for x in jax.tree.leaves(gradient))


def test_there_is_no_array_of_all_logits():
    """Neither of the logits [B, T, V] nor of all pairs of positions, which the compiler reduces without storing."""
    rows, length, vocab_size = 2, 1024, 16_000
    hidden, head = jnp.zeros((rows, length, 8)), Head(jnp.zeros((8, vocab_size)))
    ones = jnp.ones((rows, length), jnp.int32)
    step = jax.jit(lambda hidden, head: select_by_entropy({"kd": 0.2}, hidden, head, ones > 0, ones))
    used = step.lower(hidden, head).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * rows * length * vocab_size / 2


def test_the_selection_stores_no_array_of_all_pairs_of_positions():
    length = 2048
    arrays = [jax.ShapeDtypeStruct((1, length), dtype) for dtype in (jnp.float32, jnp.int32)]
    step = jax.jit(lambda entropies, segments: select(entropies, segments > 0, segments, 0.2))
    assert step.lower(*arrays).compile().memory_analysis().temp_size_in_bytes < 100 * length
