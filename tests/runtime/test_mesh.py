"""A mesh of any shape gives one device's numbers, in training, evaluation, cache writing and decoding."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import optax
import pytest

from kd_jax.artifacts.checkpoint import Checkpoints
from kd_jax.decoding.greedy import greedy
from kd_jax.errors import KdError
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.objective.terms import Term
from kd_jax.optim.optimizer import Optimizer
from kd_jax.runtime.backends import check, make_devices
from kd_jax.runtime.mesh import Mesh, MeshDevices
from kd_jax.runtime.pmap import PmapDevices
from kd_jax.signals.topk import TopK
from kd_jax.teaching.signal_cache import signal_step
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.step import eval_step
from tests.helpers.batches import random_examples
from tests.helpers.families import every_term
from tests.runtime.networks import FAMILIES, V, make_batch, network, step_on

SGD = optax.sgd(1.0)  # what it changes is the gradient
MESHES = [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 4, 1), (1, 2, 2), (8, 1, 1), (1, 8, 1), (2, 2, 2)]
PMAPS = [1, 2, 4]  # devices
each_backend = pytest.mark.parametrize("backend", MESHES + PMAPS, ids=str)
each_family = pytest.mark.parametrize("family", FAMILIES)
SCANNED = dataclasses.replace(FAMILIES["decoder_only"], layers=3, scan_layers=True, remat="layer")
PAIR = dataclasses.replace(FAMILIES["encoder_decoder"], encoder_layers=2, decoder_layers=3, scan_layers=True)
NETWORKS = FAMILIES | {"scanned": SCANNED, "scanned pair": PAIR}
close = functools.partial(chex.assert_trees_all_close, atol=1e-5, rtol=1e-5)


@functools.cache
def after_one_step(backend, family, microbatches):
    """(parameters, Sums, on the host) of one step; backend: a mesh's shape, "jit", or pmap's devices."""
    architecture = NETWORKS[family]
    devices = {tuple: lambda: MeshDevices(Mesh(*backend)), str: lambda: make_devices(backend), int: lambda: PmapDevices(backend)}[
        type(backend)
    ]()
    step, state, said = step_on(devices, architecture, every_term(architecture), SGD, microbatches)
    state, sums = step(state, devices.shard(make_batch(architecture)), said)
    return jax.device_get(devices.unreplicate((state.params, sums)))


@each_family
@each_backend
def test_a_step_is_one_devices(backend, family):
    """Dropout, masks, rows that only fill up, every kind of term."""
    close(after_one_step(backend, family, 1), after_one_step("jit", family, 1))


@each_family
@pytest.mark.parametrize("backend", [(1, 2, 2), 2, 8], ids=str)
def test_an_accumulated_step_is_one_devices(backend, family):
    close(after_one_step(backend, family, 2), after_one_step("jit", family, 1))


@pytest.mark.parametrize("scanned", ["scanned", "scanned pair"])
def test_layers_that_are_scanned_are_one_devices(scanned):
    """Of one family computed again, too. Their parameters lie stacked, and are cut as each layer's would be."""
    close(after_one_step((2, 2, 2), scanned, 2), after_one_step("jit", scanned, 1))


@pytest.fixture(scope="module", params=[(2, 2, 2), (1, 4, 2)], ids=str)
def mesh(request):
    return make_devices("mesh", Mesh(*request.param))


@each_family
def test_what_is_cut_takes_less_of_each_device(mesh, family, lax_promotion):
    """Matrices over fsdp and tensor, the optimiser's moments with them."""
    architecture, tx = FAMILIES[family], Optimizer(warmup=1).build(2)
    _, state, _ = step_on(mesh, architecture, every_term(architecture), tx)
    ways = mesh.shape.fsdp * mesh.shape.tensor
    matrices = [x for x in jax.tree.leaves((state.params, state.opt_state)) if x.ndim == 2 and x.size]
    assert len(matrices) == 3 * len([x for x in jax.tree.leaves(network(architecture)[1]) if x.ndim == 2])
    assert {x.nbytes // x.addressable_shards[0].data.nbytes for x in matrices} == {ways}


@each_family
def test_a_step_leaves_the_layout_as_it_was_and_is_compiled_once(mesh, family, lax_promotion, caplog):
    architecture, tx = FAMILIES[family], Optimizer(warmup=1).build(5)
    step, state, said = step_on(mesh, architecture, {"ce": Term(cross_entropy)}, tx)
    batch, layout = mesh.shard(make_batch(architecture)), jax.tree.map(lambda x: x.sharding, state)
    compiled = lambda: [one for one in caplog.messages if "Compiling laid_out" in one or "jit(laid_out)" in one]  # noqa: E731
    with jax.log_compiles(), jax.transfer_guard("disallow"):
        after, _ = step(state, batch, None)
    assert compiled()
    caplog.clear()
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    assert jax.tree.map(lambda x: x.sharding, after) == layout
    with jax.log_compiles(), jax.transfer_guard("disallow"):
        again, _ = step(after, batch, None)
    assert int(again.step) == 2 and not compiled()


@each_family
def test_evaluation_and_cache_writing_are_one_devices(mesh, family):
    architecture, signal = FAMILIES[family], TopK(k=5)
    (model, params, _), batch = network(architecture), make_batch(architecture)

    def measured(devices):
        put, cut = devices.replicate(params, model.axes(params)), devices.shard(batch)
        evaluate = devices.compile_sums(functools.partial(eval_step, model=model, terms={"ce": Term(cross_entropy)}))
        write = devices.compile(functools.partial(signal_step, model=model, signal=signal, seed=0))
        return jax.device_get(devices.unreplicate(evaluate(put, cut))), devices.to_host(write(put, cut))

    (sums, said), (want_sums, want) = measured(mesh), measured(make_devices("jit"))
    close(sums, want_sums)
    np.testing.assert_array_equal(said["ids"][batch.mask_BT], want["ids"][batch.mask_BT])
    np.testing.assert_allclose(said["logits"], want["logits"], atol=2e-3)  # stored as float16
    np.testing.assert_allclose(said["rest_t1"], want["rest_t1"], atol=1e-5)


@each_family
def test_what_is_written_greedily_is_one_devices(mesh, family):
    architecture, (model, params, _) = FAMILIES[family], network(FAMILIES[family])
    prompts = [one.prompt for one in random_examples(3, [(1 + n % 5, 1) for n in range(8)], V)]
    inputs = architecture.layout(START).prompts(prompts, 8, 5)

    def written(devices):
        write = devices.compile(functools.partial(greedy, model, eos=2, length=6))
        return devices.to_host(write(devices.replicate(params, model.axes(params)), devices.shard(inputs)))

    np.testing.assert_array_equal(written(mesh), written(make_devices("jit")))


BACKENDS = {
    "jit": ("jit", Mesh()),
    "pmap": ("pmap", Mesh()),
    "2x2x2": ("mesh", Mesh(2, 2, 2)),
    "1x4x2": ("mesh", Mesh(1, 4, 2)),
}


@pytest.mark.parametrize("written, read", [("jit", "2x2x2"), ("2x2x2", "1x4x2"), ("1x4x2", "pmap"), ("pmap", "2x2x2")])
def test_a_checkpoint_is_read_under_any_backend(written, read, tmp_path, lax_promotion):
    """Where it lies on the devices is no part of it."""
    architecture, tx = FAMILIES["decoder_only"], Optimizer(warmup=1).build(5)
    states = {}
    for name in (written, read):
        devices = make_devices(*BACKENDS[name])
        step, state, _ = step_on(devices, architecture, {"ce": Term(cross_entropy)}, tx)
        states[name] = devices.unreplicate(state)
        if name == written:
            state, _ = step(state, devices.shard(make_batch(architecture)), None)
            states[name] = devices.unreplicate(state)
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(states[name], {"next": 1}, 2.0)
    with Checkpoints(tmp_path) as checkpoints:
        got, _ = checkpoints.restore(states[read])
    chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(states[written]))
    assert jax.tree.map(lambda x: x.sharding, got) == jax.tree.map(lambda x: x.sharding, states[read])


@pytest.mark.parametrize(
    "backend, mesh, message",
    [
        ("mesh", Mesh(3, 2, 1), r"mesh: data 3 x fsdp 2 x tensor 1 = 6 devices; there are 8"),
        ("mesh", Mesh(tensor=3), r"mesh: data 2 x fsdp 1 x tensor 3 = 6 devices; there are 8"),
        ("mesh", Mesh(fsdp=16), r"mesh: data 1 x fsdp 16 x tensor 1 = 16 devices; there are 8"),
        ("mesh", Mesh(fsdp=0), r"mesh.fsdp: 0; wanted a whole number of at least 1"),
        (
            "pmap",
            Mesh(fsdp=2),
            r"backend: 'pmap' has no use for Mesh\(data=0, fsdp=2, tensor=1\); wanted",
        ),
    ],
)
@pytest.mark.parametrize("refuse", [check, make_devices])
def test_a_mesh_that_does_not_fit_is_refused(refuse, backend, mesh, message):
    with pytest.raises(KdError, match=message):
        refuse(backend, mesh)
