"""Collectives of compiled programs on a mesh: gradients and parameters, never the logits."""

import functools
import math
from collections.abc import Sequence

import jax
import optax
import pytest

from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.objective import fused_head as module
from kd_jax.objective.terms import Term
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.mesh import Mesh
from kd_jax.runtime.program import Collective, analyze_program
from kd_jax.signals.online import Online
from kd_jax.signals.topk import TopK
from kd_jax.teaching.signal_cache import signal_step
from tests.helpers.families import SIGNAL
from tests.runtime.networks import FAMILIES, B, V, make_batch, network, step_on

ARCHITECTURE = FAMILIES["decoder_only"]  # no other axis is as long as the vocabulary
CHUNK = 8
KD = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=SIGNAL)}
ONLINE = {"online": Term(forward_kl, signal=Online())}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Give every device several chunks."""
    monkeypatch.setattr(module, "CHUNK_TOKENS", CHUNK)


def step_collectives(mesh: Mesh, terms, microbatches: int = 1) -> tuple[Collective, ...]:
    devices = make_devices("mesh", mesh)
    step, state, teacher_params = step_on(devices, ARCHITECTURE, terms, optax.sgd(1.0), microbatches)
    return analyze_program(
        step.lower(state, devices.shard(make_batch(ARCHITECTURE)), teacher_params).compile()
    ).collectives


@pytest.mark.parametrize("microbatches", [1, 2])
def test_data_parallel_step_reduces_each_gradient_once_and_nothing_else(microbatches):
    collectives = step_collectives(Mesh(), KD, microbatches)
    params = network(ARCHITECTURE)[1]
    assert {one.kind for one in collectives} == {"all-reduce"}
    arrays = [array for one in collectives for array in one.arrays]
    sort_axes = lambda shapes: sorted(tuple(sorted(shape)) for shape in shapes if shape)  # noqa: E731
    assert sort_axes(shape for _, shape in arrays) == sort_axes(x.shape for x in jax.tree.leaves(params))
    assert len([shape for _, shape in arrays if not shape]) < 12  # counts and sums


def test_fsdp_step_gathers_matrices_and_no_rows():
    collectives = step_collectives(Mesh(fsdp=8), KD)
    matrices = [x.shape for x in jax.tree.leaves(network(ARCHITECTURE)[1]) if x.ndim == 2]
    gathered = [shape for one in collectives if one.kind == "all-gather" for _, shape in one.arrays]
    assert set(matrices) <= {*gathered, *(shape[::-1] for shape in gathered)}
    assert all(one.kind in ("all-gather", "all-reduce", "reduce-scatter") for one in collectives)
    tokens = B * make_batch(ARCHITECTURE).targets_BT.shape[1]
    rows = {B, B // 8, tokens, tokens // 8, CHUNK, 8 * CHUNK} - {x for shape in matrices for x in shape}
    assert not [shape for one in collectives for _, shape in one.arrays if rows & set(shape)]


def logit_shapes(collectives: Sequence[Collective], tensor: int) -> list[tuple[int, ...]]:
    """Return the shapes with an axis of the vocabulary, or a device's part of it, that are no parameter's."""
    width = ARCHITECTURE.d_model
    parts, params = {V, V // tensor}, {(V // tensor, width), (width, V // tensor)}
    return [shape for one in collectives for _, shape in one.arrays if parts & set(shape) and shape not in params]


@pytest.mark.parametrize("terms", [KD, ONLINE], ids=["top-k", "dense"])
@pytest.mark.parametrize("mesh", [Mesh(tensor=2), Mesh(fsdp=4, tensor=2)], ids=str)
def test_step_with_sharded_vocabulary_moves_no_logits(mesh, terms):
    assert not logit_shapes(step_collectives(mesh, terms), 2)


@pytest.mark.parametrize("mesh", [Mesh(tensor=2), Mesh(fsdp=4, tensor=2)], ids=str)
def test_cache_with_sharded_vocabulary_is_written_chunk_by_chunk(mesh):
    """top_k needs whole rows: those of the device's own chunk, and no others."""
    devices, (model, params, _) = make_devices("mesh", mesh), network(ARCHITECTURE)
    write = devices.compile(functools.partial(signal_step, model=model, signal=TopK(k=5), seed=0))
    arguments = devices.replicate(params, model.axes(params)), devices.shard(make_batch(ARCHITECTURE))
    logits = logit_shapes(analyze_program(write.lower(*arguments).compile()).collectives, 2)
    assert logits and max(map(math.prod, logits)) <= CHUNK * V
