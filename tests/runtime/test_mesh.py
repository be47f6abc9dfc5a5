"""Meshes of any shape give the results of one device, in training, evaluation, cache writing and decoding."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import optax
import pytest

from kd_jax.artifacts.checkpoint import Checkpoints
from kd_jax.decoding.greedy import greedy
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.objective.terms import Term
from kd_jax.optim.optimizer import Optimizer
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.mesh import Mesh, MeshDevices
from kd_jax.runtime.pmap import PmapDevices
from kd_jax.signals.topk import TopK
from kd_jax.teaching.signal_cache import signal_step
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.step import eval_step
from tests.helpers.batches import random_examples
from tests.helpers.families import every_term
from tests.runtime.networks import FAMILIES, V, make_batch, network, step_on

SGD = optax.sgd(1.0)  # the change of the parameters is the gradient
MESHES = [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 4, 1), (1, 2, 2), (8, 1, 1), (1, 8, 1), (2, 2, 2)]
PMAPS = [1, 2, 4]  # devices
ALWAYS = [(8, 1, 1), (1, 8, 1), (2, 2, 2), 4]  # of the eleven; the others are extended
BACKENDS = [
    backend if backend in ALWAYS else pytest.param(backend, marks=pytest.mark.extended) for backend in MESHES + PMAPS
]
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=str)
each_family = pytest.mark.parametrize("family", FAMILIES)
SCANNED = dataclasses.replace(FAMILIES["decoder_only"], layers=3, scan_layers=True, remat="layer")
PAIR = dataclasses.replace(FAMILIES["encoder_decoder"], encoder_layers=2, decoder_layers=3, scan_layers=True)
NETWORKS = FAMILIES | {"scanned": SCANNED, "scanned pair": PAIR}
close = functools.partial(chex.assert_trees_all_close, atol=1e-5, rtol=1e-5)


@functools.cache
def one_step(backend, family, microbatches):
    """Return (parameters, sums) of one step on the host; backend: a mesh's shape, "jit", or pmap's devices."""
    architecture = NETWORKS[family]
    if isinstance(backend, tuple):
        devices = MeshDevices(Mesh(*backend))
    else:
        devices = make_devices(backend) if isinstance(backend, str) else PmapDevices(backend)
    step, state, teacher_params = step_on(devices, architecture, every_term(architecture), SGD, microbatches)
    state, sums = step(state, devices.shard(make_batch(architecture)), teacher_params)
    return jax.device_get(devices.unreplicate((state.params, sums)))


@each_family
@each_backend
def test_step_equals_one_device(backend, family):
    """With dropout, masks, rows of padding and every kind of term."""
    close(one_step(backend, family, 1), one_step("jit", family, 1))


@each_family
@pytest.mark.parametrize("backend", [pytest.param((1, 2, 2), marks=pytest.mark.extended), 2, 8], ids=str)
def test_accumulated_step_equals_one_device(backend, family):
    close(one_step(backend, family, 2), one_step("jit", family, 1))


@pytest.mark.parametrize("scanned", ["scanned", "scanned pair"])
def test_scanned_layers_equal_one_device(scanned):
    """Their parameters are stacked, and sharded as each layer's would be; one of the two uses remat."""
    close(one_step((2, 2, 2), scanned, 2), one_step("jit", scanned, 1))


@pytest.fixture(scope="module", params=[(2, 2, 2), (1, 4, 2)], ids=str)
def mesh(request):
    return make_devices("mesh", Mesh(*request.param))


@each_family
def test_sharded_matrices_take_less_memory_of_each_device(mesh, family, lax_promotion):
    """Over fsdp and tensor, with the optimiser's moments."""
    architecture, tx = FAMILIES[family], Optimizer(warmup=1).build(2)
    _, state, _ = step_on(mesh, architecture, every_term(architecture), tx)
    shards = mesh.shape.fsdp * mesh.shape.tensor
    matrices = [x for x in jax.tree.leaves((state.params, state.opt_state)) if x.ndim == 2 and x.size]
    assert len(matrices) == 3 * len([x for x in jax.tree.leaves(network(architecture)[1]) if x.ndim == 2])
    assert {x.nbytes // x.addressable_shards[0].data.nbytes for x in matrices} == {shards}


@each_family
def test_step_keeps_shardings_and_compiles_once(mesh, family, lax_promotion, caplog):
    architecture, tx = FAMILIES[family], Optimizer(warmup=1).build(5)
    step, state, _ = step_on(mesh, architecture, {"ce": Term(cross_entropy)}, tx)
    batch, shardings = mesh.shard(make_batch(architecture)), jax.tree.map(lambda x: x.sharding, state)
    compilations = lambda: [message for message in caplog.messages if "step_in_layout" in message]  # noqa: E731
    with jax.log_compiles(), jax.transfer_guard("disallow"):
        after, _ = step(state, batch, None)
    assert compilations()
    caplog.clear()
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    assert jax.tree.map(lambda x: x.sharding, after) == shardings
    with jax.log_compiles(), jax.transfer_guard("disallow"):
        again, _ = step(after, batch, None)
    assert int(again.step) == 2 and not compilations()


@each_family
def test_evaluation_and_cache_writing_equal_one_device(mesh, family):
    architecture, signal = FAMILIES[family], TopK(k=5)
    (model, params, _), batch = network(architecture), make_batch(architecture)

    def evaluate_and_write(devices):
        inputs = devices.replicate(params, model.axes(params)), devices.shard(batch)
        evaluate = devices.compile_sums(functools.partial(eval_step, model=model, terms={"ce": Term(cross_entropy)}))
        write = devices.compile(functools.partial(signal_step, model=model, signal=signal, seed=0))
        return jax.device_get(devices.unreplicate(evaluate(*inputs))), devices.to_host(write(*inputs))

    (sums, payload), (expected_sums, expected) = evaluate_and_write(mesh), evaluate_and_write(make_devices("jit"))
    close(sums, expected_sums)
    np.testing.assert_array_equal(payload["ids"][batch.mask_BT], expected["ids"][batch.mask_BT])
    np.testing.assert_allclose(payload["logits"], expected["logits"], atol=2e-3)  # stored as float16
    np.testing.assert_allclose(payload["rest_t1"], expected["rest_t1"], atol=1e-5)


@each_family
def test_greedy_decoding_equals_one_device(mesh, family):
    architecture, (model, params, _) = FAMILIES[family], network(FAMILIES[family])
    prompts = [example.prompt for example in random_examples(3, [(1 + n % 5, 1) for n in range(8)], V)]
    inputs = architecture.layout(START).prompts(prompts, 8, 5)

    def decode(devices):
        write = devices.compile(functools.partial(greedy, model, eos=2, length=6))
        return devices.to_host(write(devices.replicate(params, model.axes(params)), devices.shard(inputs)))

    np.testing.assert_array_equal(decode(mesh), decode(make_devices("jit")))


BACKENDS = {
    "jit": ("jit", Mesh()),
    "pmap": ("pmap", Mesh()),
    "2x2x2": ("mesh", Mesh(2, 2, 2)),
    "1x4x2": ("mesh", Mesh(1, 4, 2)),
}


@pytest.mark.parametrize("written, read", [("jit", "2x2x2"), ("2x2x2", "1x4x2"), ("1x4x2", "pmap"), ("pmap", "2x2x2")])
def test_checkpoint_is_restored_on_any_backend(written, read, tmp_path, lax_promotion):
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
        restored, _ = checkpoints.restore(states[read])
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(states[written]))
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, states[read])
