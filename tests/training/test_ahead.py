"""A step compiled from shapes is the one that training runs; what it sends and keeps is what is known of it."""

import dataclasses

import jax
import pytest

from kd_jax import config
from kd_jax.evaluation.roofline import device_memory, model_flops
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.objective.terms import Term
from kd_jax.runtime.backends import as_mesh
from kd_jax.runtime.mesh import DATA_PARALLEL, Mesh, MeshDevices
from kd_jax.runtime.program import analyze_program
from kd_jax.signals.online import Online
from kd_jax.training.ahead import compile_ahead, longest_batch
from kd_jax.training.loop import Run, training_step
from kd_jax.training.step import init_state, state_axes

V = 64
MODEL = DecoderOnly(1, d_model=64, heads=2, d_ff=128, dropout=0.0, tied=False)


@pytest.fixture(scope="module")
def experiment(root, lax_promotion):
    """A teacher and two students of one small shape, in rows of 8 tokens; a row on each of 8 devices."""
    smoke = config.load_experiment(root / "experiments/configs/smoke_lm.py")
    training = dataclasses.replace(smoke.teacher.training, tokens_per_batch=64)
    teacher = dataclasses.replace(smoke.teacher, model=MODEL, training=training)
    cached = dataclasses.replace(smoke.students["student_kd"], model=MODEL, training=training)
    beside = dataclasses.replace(cached, terms={"kd": Term(forward_kl, signal=Online())})
    students = {"cached": cached, "beside": beside}
    return dataclasses.replace(smoke, teacher=teacher, students=students, comparison=None, buckets=(8,))


def parameters():
    return jax.eval_shape(MODEL.build(V).init, jax.random.key(0))


def ahead(experiment, mesh, name="teacher"):
    return compile_ahead(experiment, name, V, MeshDevices(mesh.over(8))).compiled


def test_a_data_parallel_step_sends_each_gradient_twice_but_for_each_devices_part(experiment):
    """Beside them some counts and sums."""
    values = sum(x.size for x in jax.tree.leaves(parameters()))
    moved = analyze_program(ahead(experiment, DATA_PARALLEL)).bytes_sent
    gradients = 4 * 2 * values * 7 / 8
    assert set(moved) == {"all-reduce"} and gradients <= moved["all-reduce"] < gradients + 200


@pytest.mark.parametrize("fsdp", [2, 8])
def test_with_fsdp_each_device_gathers_every_matrix_and_keeps_its_part(experiment, fsdp):
    params = parameters()
    matrices = 4 * sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2)
    vectors = 4 * sum(x.size for x in jax.tree.leaves(params) if x.ndim == 1)
    compiled, devices = ahead(experiment, Mesh(fsdp=fsdp)), MeshDevices(Mesh(fsdp=fsdp).over(8))
    moved, share = analyze_program(compiled).bytes_sent, (fsdp - 1) / fsdp
    assert moved["all-gather"] == pytest.approx(matrices * share)
    if fsdp == 8:  # but for the head's gradient, which is scaled between its sum and its cut
        head = 4 * params["output"].size
        assert moved["reduce-scatter"] == pytest.approx((matrices - head) * share)
        assert 2 * (head + vectors) * share <= moved["all-reduce"] < 2 * (head + vectors) * share + 200
    batch = sum(x.nbytes for x in jax.tree.leaves(longest_batch(experiment, "teacher", V, 8)))
    state = 3 * (matrices / fsdp + vectors)  # parameters and two moments of each
    assert compiled.memory_analysis().argument_size_in_bytes == pytest.approx(state + batch / devices.count, rel=0.01)


def test_memory_falls_as_fsdp_grows(experiment):
    used = [device_memory(ahead(experiment, Mesh(fsdp=fsdp))) for fsdp in (1, 2, 8)]
    assert used[0] > used[1] > used[2]


@pytest.mark.parametrize("name", ["teacher", "cached", "beside"])
def test_products_are_the_models_and_little_more(experiment, name):
    """All pairs of tokens where half would do, and the head's chunks of whole 8s; nothing is done twice."""
    work = analyze_program(ahead(experiment, DATA_PARALLEL, name))
    needed = model_flops(experiment, name, V, 8) / 8
    assert needed <= work.flops < 1.03 * needed


def test_the_step_is_that_of_arrays_on_the_devices(experiment):
    devices, recipe = as_mesh("mesh", Mesh(fsdp=4), 8), experiment.students["cached"]
    model, batch = MODEL.build(V), longest_batch(experiment, "cached", V, 8)
    params, tx = jax.jit(model.init)(jax.random.key(0)), recipe.training.optimizer.build(recipe.training.steps)
    state = init_state(jax.random.key(1), params, tx)
    placed = devices.replicate(state, state_axes(state, tx, model.axes(params))), devices.shard(batch), None
    run = Run("cached", recipe, model, (), [batch], 1)
    real = training_step(run, tx, devices).lower(*placed).compile()
    planned = compile_ahead(experiment, "cached", V, devices)
    assert (planned.rows, planned.length) == batch.targets_BT.shape
    assert analyze_program(real) == analyze_program(planned.compiled)
    assert device_memory(real) == device_memory(planned.compiled)
