"""Ahead-of-time compilation: the step is that of training, with the expected traffic, memory and FLOPs."""

import dataclasses

import jax
import pytest

from kd_jax import config
from kd_jax.batches.on_policy import OnPolicy
from kd_jax.evaluation.roofline import device_memory, model_flops, step_figures
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.objective.terms import Term
from kd_jax.runtime.backends import as_mesh
from kd_jax.runtime.chips import CHIPS
from kd_jax.runtime.mesh import DATA_PARALLEL, Mesh, MeshDevices
from kd_jax.runtime.program import analyze_program
from kd_jax.signals.online import Online
from kd_jax.training.compile import compile_step, longest_batch
from kd_jax.training.loop import compile_train_step
from kd_jax.training.step import init_state, state_axes

V = 64
MODEL = DecoderOnly(1, d_model=64, heads=2, d_ff=128, dropout=0.0, tied=False)


@pytest.fixture(scope="module")
def experiment(root, lax_promotion):
    """Return a teacher and two students of one small shape: rows of 8 tokens, one row on each of 8 devices."""
    smoke = config.load_experiment(root / "experiments/configs/smoke_lm.py")
    training = dataclasses.replace(smoke.teacher.training, tokens_per_batch=64)
    teacher = dataclasses.replace(smoke.teacher, model=MODEL, training=training)
    cached = dataclasses.replace(smoke.students["student_kd"], model=MODEL, training=training)
    online = dataclasses.replace(cached, terms={"kd": Term(forward_kl, signal=Online())})
    students = {"cached": cached, "online": online}
    return dataclasses.replace(smoke, teacher=teacher, students=students, comparison=None, buckets=(8,))


def param_shapes():
    return jax.eval_shape(MODEL.build(V).init, jax.random.key(0))


def compiled_step(experiment, mesh, name="teacher"):
    return compile_step(experiment, name, V, MeshDevices(mesh.over(8))).compiled


def test_data_parallel_step_all_reduces_gradients(experiment):
    """Besides the gradients only counts and sums are sent."""
    values = sum(x.size for x in jax.tree.leaves(param_shapes()))
    sent = analyze_program(compiled_step(experiment, DATA_PARALLEL)).bytes_sent
    gradients = 4 * 2 * values * 7 / 8
    assert set(sent) == {"all-reduce"} and gradients <= sent["all-reduce"] < gradients + 200


@pytest.mark.parametrize("fsdp", [2, 8])
def test_fsdp_gathers_matrices_and_scatters_gradients(experiment, fsdp):
    params = param_shapes()
    matrices = 4 * sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2)
    vectors = 4 * sum(x.size for x in jax.tree.leaves(params) if x.ndim == 1)
    compiled, devices = compiled_step(experiment, Mesh(fsdp=fsdp)), MeshDevices(Mesh(fsdp=fsdp).over(8))
    sent, share = analyze_program(compiled).bytes_sent, (fsdp - 1) / fsdp
    assert sent["all-gather"] == pytest.approx(matrices * share)
    if fsdp == 8:  # except the head's gradient, which is scaled between sum and scatter
        head = 4 * params["output"].size
        assert sent["reduce-scatter"] == pytest.approx((matrices - head) * share)
        assert 2 * (head + vectors) * share <= sent["all-reduce"] < 2 * (head + vectors) * share + 200
    batch = sum(x.nbytes for x in jax.tree.leaves(longest_batch(experiment, "teacher", V, 8)))
    state = 3 * (matrices / fsdp + vectors)  # parameters and two moments of each
    assert compiled.memory_analysis().argument_size_in_bytes == pytest.approx(state + batch / devices.count, rel=0.01)


def test_memory_decreases_with_fsdp(experiment):
    memory = [device_memory(compiled_step(experiment, Mesh(fsdp=fsdp))) for fsdp in (1, 2, 8)]
    assert memory[0] > memory[1] > memory[2]


@pytest.mark.parametrize("name", ["teacher", "cached", "online"])
def test_flops_are_those_of_the_model(experiment, name):
    """At most 3% more: masked pairs of tokens, and chunks of the head rounded up to 8 tokens."""
    work = analyze_program(compiled_step(experiment, DATA_PARALLEL, name))
    expected = model_flops(experiment, name, V, 8) / 8
    assert expected <= work.flops < 1.03 * expected


def test_rows_of_padding_are_not_counted(experiment):
    """64 tokens are 8 rows of 8. Of 2 rows for 8 devices 6 are padding, so the plan has a quarter of the targets."""
    few = dataclasses.replace(experiment.teacher.training, tokens_per_batch=16)
    sparse = dataclasses.replace(experiment, teacher=dataclasses.replace(experiment.teacher, training=few))
    devices, chip = MeshDevices(DATA_PARALLEL.over(8)), CHIPS["tpu-v5e"]
    full, padded = (step_figures(one, "teacher", V, devices, chip) for one in (experiment, sparse))
    assert (full["rows x length of a batch"], full["of them padding"]) == ("8 x 8", "0%")
    assert (padded["rows x length of a batch"], padded["of them padding"]) == ("8 x 8", "75%")
    targets = [float(one["at most, targets a second"].replace(",", "")) for one in (full, padded)]
    assert targets[1] == pytest.approx(targets[0] / 4, rel=1e-3)


def test_step_from_shapes_equals_step_from_arrays(experiment):
    devices, recipe = as_mesh("mesh", Mesh(fsdp=4), 8), experiment.students["cached"]
    model, batch = MODEL.build(V), longest_batch(experiment, "cached", V, 8)
    params, tx = jax.jit(model.init)(jax.random.key(0)), recipe.training.optimizer.build(recipe.training.steps)
    state = init_state(jax.random.key(1), params, tx)
    placed = devices.replicate(state, state_axes(state, tx, model.axes(params))), devices.shard(batch), None
    actual = compile_train_step(recipe, model, None, tx, devices, shapes=1).lower(*placed).compile()
    planned = compile_step(experiment, "cached", V, devices)
    assert (planned.rows, planned.length) == batch.targets_BT.shape
    assert analyze_program(actual) == analyze_program(planned.compiled)
    assert device_memory(actual) == device_memory(planned.compiled)


LONG = dataclasses.replace(MODEL, d_model=32, head_dim=16, d_ff=32)


def long_experiment(experiment, length, **model):
    """One row of this many tokens on each of 8 devices."""
    training = dataclasses.replace(experiment.teacher.training, tokens_per_batch=8 * length)
    teacher = dataclasses.replace(experiment.teacher, model=dataclasses.replace(LONG, **model), training=training)
    return dataclasses.replace(experiment, teacher=teacher, students={}, buckets=(length,))


def plan_of(experiment, chip):
    return step_figures(experiment, "teacher", V, MeshDevices(DATA_PARALLEL.over(8)), CHIPS[chip])


def megabytes(figures):
    return float(figures["memory, MiB"].replace(",", "")) - float(figures["of it state and batch"].replace(",", ""))


def test_memory_of_the_plan_has_no_scores_of_all_pairs_where_the_chip_has_a_kernel(experiment):
    """Twice the length takes twice the memory with a kernel, and four times the memory without."""
    lengths = (1024, 2048)
    kernel = [plan_of(long_experiment(experiment, length), "tpu-v5e") for length in lengths]
    plain = [plan_of(long_experiment(experiment, length, attention="plain"), "tpu-v5e") for length in lengths]
    assert [one["attention"] for one in (*kernel, *plain)] == ["splash", "splash", "plain", "plain"]
    assert megabytes(kernel[1]) < 2.3 * megabytes(kernel[0]) and megabytes(plain[1]) > 3 * megabytes(plain[0])
    assert megabytes(plain[1]) > 3 * megabytes(kernel[1])
    bfloat16 = long_experiment(experiment, 1024, compute="bfloat16")
    assert plan_of(bfloat16, "h100")["attention"] == "triton"
    assert plan_of(long_experiment(experiment, 1024, positions="relative"), "tpu-v5e")["attention"] == "blocks"


def test_own_texts_cost_at_least_the_traffic_of_the_parameters(experiment):
    """Half of 1,024 tokens a batch, written 64 texts at a time in 8 steps, each reading all float32 parameters once.

    An eighth of the 64 texts is on each device; half of 8 tokens of keys and values is in its cache on average.
    """
    student = dataclasses.replace(
        experiment.students["online"],
        targets=OnPolicy(share=0.5),
        training=dataclasses.replace(experiment.teacher.training, tokens_per_batch=1024),
    )
    changed = dataclasses.replace(experiment, students={"own": student})
    figures = step_figures(changed, "own", V, MeshDevices(DATA_PARALLEL.over(8)), CHIPS["h100"])
    parameters = sum(x.size for x in jax.tree.leaves(param_shapes()))
    step = 4 * (parameters + 8 * (2 * 64 * 4)) / 3350e9
    texts = 0.5 * 1024 / 8
    want = 1e3 * texts / 64 * 8 * step
    assert float(figures["own texts, ms an update at least"]) == pytest.approx(want, abs=1e-4)
    assert "own texts, ms an update at least" not in step_figures(
        changed, "teacher", V, MeshDevices(DATA_PARALLEL.over(8)), CHIPS["h100"]
    )
