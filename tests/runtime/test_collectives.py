"""What the compiled programs of a mesh move between devices, and that it is never the logits."""

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

ARCHITECTURE = FAMILIES["decoder_only"]  # none of whose other axes is as long as the vocabulary
CHUNK = 8
KD = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=SIGNAL)}
ONLINE = {"online": Term(forward_kl, signal=Online())}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several on every device."""
    monkeypatch.setattr(module, "CHUNK_TOKENS", CHUNK)


def of_step(mesh: Mesh, terms, microbatches: int = 1) -> tuple[Collective, ...]:
    devices = make_devices("mesh", mesh)
    step, state, said = step_on(devices, ARCHITECTURE, terms, optax.sgd(1.0), microbatches)
    return analyze_program(step.lower(state, devices.shard(make_batch(ARCHITECTURE)), said).compile()).collectives


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_data_parallel_step_moves_every_gradient_once_and_nothing_else(microbatches):
    moved = of_step(Mesh(), KD, microbatches)
    params = network(ARCHITECTURE)[1]
    assert {one.kind for one in moved} == {"all-reduce"}
    arrays = [array for one in moved for array in one.arrays]
    turned = lambda shapes: sorted(tuple(sorted(shape)) for shape in shapes if shape)  # noqa: E731
    assert turned(shape for _, shape in arrays) == turned(x.shape for x in jax.tree.leaves(params))
    assert len([shape for _, shape in arrays if not shape]) < 12  # counts and sums


def test_with_fsdp_a_step_gathers_matrices_and_no_row():
    moved = of_step(Mesh(fsdp=8), KD)
    matrices = [x.shape for x in jax.tree.leaves(network(ARCHITECTURE)[1]) if x.ndim == 2]
    gathered = [shape for one in moved if one.kind == "all-gather" for _, shape in one.arrays]
    assert set(matrices) <= {*gathered, *(shape[::-1] for shape in gathered)}
    assert all(one.kind in ("all-gather", "all-reduce", "reduce-scatter") for one in moved)
    tokens = B * make_batch(ARCHITECTURE).targets_BT.shape[1]
    rows = {B, B // 8, tokens, tokens // 8, CHUNK, 8 * CHUNK} - {x for shape in matrices for x in shape}
    assert not [shape for one in moved for _, shape in one.arrays if rows & set(shape)]


def with_rows_of_logits(moved: Sequence[Collective], tensor: int) -> list[tuple[int, ...]]:
    """Shapes that have the vocabulary, or a device's part of it, and are no parameter's."""
    width = ARCHITECTURE.d_model
    parts, params = {V, V // tensor}, {(V // tensor, width), (width, V // tensor)}
    return [shape for one in moved for _, shape in one.arrays if parts & set(shape) and shape not in params]


@pytest.mark.parametrize("terms", [KD, ONLINE], ids=["top-k", "dense"])
@pytest.mark.parametrize("mesh", [Mesh(tensor=2), Mesh(fsdp=4, tensor=2)], ids=str)
def test_over_a_cut_vocabulary_a_step_moves_no_logits(mesh, terms):
    assert not with_rows_of_logits(of_step(mesh, terms), 2)


@pytest.mark.parametrize("mesh", [Mesh(tensor=2), Mesh(fsdp=4, tensor=2)], ids=str)
def test_over_a_cut_vocabulary_the_cache_is_written_chunk_by_chunk(mesh):
    """top_k wants whole rows: those of the device's own chunk, and no others."""
    devices, (model, params, _) = make_devices("mesh", mesh), network(ARCHITECTURE)
    write = devices.compile(functools.partial(signal_step, model=model, signal=TopK(k=5), seed=0))
    put, cut = devices.replicate(params, model.axes(params)), devices.shard(make_batch(ARCHITECTURE))
    logits = with_rows_of_logits(analyze_program(write.lower(put, cut).compile()).collectives, 2)
    assert logits and max(map(math.prod, logits)) <= CHUNK * V
