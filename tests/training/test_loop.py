"""Training: resumed runs have the bits of uninterrupted ones; log, traces, devices, first parameters."""

import dataclasses
import os
import shutil
import signal

import chex
import jax
import numpy as np
import pytest

from kd_jax.artifacts import metrics_log
from kd_jax.artifacts.checkpoint import METRIC
from kd_jax.artifacts.workdir import TEACHER
from kd_jax.batches.pipeline import Split, TrainBatches
from kd_jax.batches.store import Store
from kd_jax.errors import KdError, Preempted
from kd_jax.phases import cache, student, teacher
from kd_jax.runtime import preemption
from kd_jax.runtime.mesh import Mesh
from kd_jax.students.init import FromCheckpoint
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.meter import Meter
from kd_jax.training.model import TrainingInputs, load_trained, train_model
from tests.helpers.runs import linked_run, run_until_cache, smoke

SHORT = """
--teacher.model.dropout 0.1 --teacher.training.steps 12 --teacher.training.eval-every 4
--teacher.training.optimizer.warmup 2 --students.student_kd.training.steps 8
--students.student_kd.training.eval-every 4 --students.student_kd.training.optimizer.warmup 2
"""
OPTIONS = {"tokens_per_batch": 512, "divisor": 1, "seed": 0, "packed": False}


@pytest.fixture(scope="module")
def experiment(root, lax_promotion):
    """Return the smoke experiment with fewer steps."""
    return smoke(root, SHORT.split())


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
    return run_until_cache(experiment, tmp_path_factory.mktemp("run"))


def params_of(workdir, experiment, name=TEACHER):
    return jax.device_get(load_trained(experiment, workdir, name)[1])


def recipe_with(recipe, **training):
    """Return the recipe with changes of its training."""
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, **training))


@pytest.mark.parametrize("killed_at", [2, 6])
def test_resume_after_kill_equals_uninterrupted(experiment, workdir, tmp_path, monkeypatch, killed_at):
    interrupted, read = linked_run(workdir, tmp_path, "data"), Meter._read

    def kill(self, step, *metrics):
        if step == killed_at:
            raise KeyboardInterrupt
        read(self, step, *metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "_read", kill)
        with pytest.raises(KeyboardInterrupt):
            teacher.run(experiment, interrupted)
    assert not interrupted.model(TEACHER).finished()
    teacher.run(experiment, interrupted)
    chex.assert_trees_all_equal(params_of(interrupted, experiment), params_of(workdir, experiment))
    logs = [
        [
            {k: v for k, v in row.items() if k not in ("seconds", "tokens", "tokens_per_second", "selection_seconds")}
            for row in log_of(run, TEACHER)
        ]
        for run in (interrupted, workdir)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    "stop_at, resumes_from", [(6, 6), *(pytest.param(*x, marks=pytest.mark.extended) for x in ((1, 1), (8, 8)))]
)
def test_resume_after_stop_equals_uninterrupted(
    experiment, workdir, tmp_path, monkeypatch, capsys, stop_at, resumes_from
):
    """Validation is at every fourth step. A stop at step 8 comes before its validation, which the resumed run makes."""
    interrupted, after_step = linked_run(workdir, tmp_path, "data"), Meter.after_step

    def ask(self, step, *metrics):
        after_step(self, step, *metrics)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, preemption.handle_signals(resumes=True):
        patch.setattr(Meter, "after_step", ask)
        with pytest.raises(Preempted):
            teacher.run(experiment, interrupted)
    assert [row["step"] for row in log_of(interrupted, TEACHER) if METRIC in row] == list(range(0, stop_at, 4))
    teacher.run(experiment, interrupted)
    assert f"resuming from step {resumes_from}" in capsys.readouterr().err
    chex.assert_trees_all_equal(params_of(interrupted, experiment), params_of(workdir, experiment))
    validated = [
        {row["step"]: (row[METRIC], row.get("valid_bleu")) for row in log_of(run, TEACHER) if METRIC in row}
        for run in (interrupted, workdir)
    ]
    assert validated[0] == validated[1]
    outputs = [run.model(TEACHER).outputs() for run in (interrupted, workdir)]
    assert outputs[0]["best_step"] == outputs[1]["best_step"]


@pytest.mark.parametrize("damaged", [pytest.param({8}, marks=pytest.mark.extended), {4, 8}])
def test_resume_uses_the_last_undamaged_checkpoint(experiment, workdir, tmp_path, monkeypatch, capsys, damaged):
    interrupted, read = linked_run(workdir, tmp_path, "data"), Meter._read

    def kill(self, step, *metrics):
        if step == 11:
            raise KeyboardInterrupt
        read(self, step, *metrics)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Meter, "_read", kill)
        teacher.run(experiment, interrupted)
    for step in damaged:
        for path in interrupted.model(TEACHER).path.glob(f"checkpoints/{step}/params/**/d/*"):
            path.write_bytes(path.read_bytes()[::-1])
    teacher.run(experiment, interrupted)
    log = capsys.readouterr().err
    for step in damaged:
        assert f"checkpoints/{step} cannot be read" in log
        assert (interrupted.model(TEACHER).path / f"damaged_checkpoints/{step}").is_dir()
    assert ("resuming from step 4" in log) == (damaged == {8})
    chex.assert_trees_all_equal(params_of(interrupted, experiment), params_of(workdir, experiment))


def test_profile_of_steps_outside_the_run_writes_no_trace(experiment, workdir, tmp_path, capsys):
    run = linked_run(workdir, tmp_path, "data")
    teacher.run(experiment, run, profile=(13, 20))
    assert "profile: no trace, since this run made none of the steps 13 to 20" in capsys.readouterr().err
    assert not run.profile(TEACHER).exists()


@pytest.mark.parametrize("steps", [(2, 4), pytest.param((10, 40), marks=pytest.mark.extended)])
def test_profile_writes_a_trace_and_changes_no_bit(experiment, workdir, tmp_path, capsys, steps):
    run = linked_run(workdir, tmp_path, "data")
    teacher.run(experiment, run, profile=steps)
    assert list(run.profile(TEACHER).rglob("*.xplane.pb"))
    assert f"profile: steps {steps[0]} to {steps[1]} in {run.profile(TEACHER)}" in capsys.readouterr().err
    chex.assert_trees_all_equal(params_of(run, experiment), params_of(workdir, experiment))


def log_of(workdir, name):
    return metrics_log.read(workdir.model(name).path / "metrics.jsonl")


def test_log_has_the_learning_rates_of_the_schedule(experiment, workdir):
    """Warm-up over 2 of 12 steps to 0.005, then cosine decay to a twentieth of it."""
    rates = {row["step"]: row["learning_rate"] for row in log_of(workdir, TEACHER) if "learning_rate" in row}
    expected = {n: 0.005 * (0.05 + 0.95 * (1 + np.cos(np.pi * (n - 2) / 10)) / 2) for n in (4, 8, 12)}
    assert rates == pytest.approx(expected, rel=1e-6)


def test_log_weights_losses_by_tokens(experiment, workdir, tmp_path):
    """A row of four steps has the token-weighted mean of four rows of one step."""
    single = dataclasses.replace(experiment, teacher=recipe_with(experiment.teacher, steps=4, eval_every=1))
    several = dataclasses.replace(experiment, teacher=recipe_with(experiment.teacher, steps=4, eval_every=4))
    logs = []
    for name, changed in (("single", single), ("several", several)):
        run = linked_run(workdir, tmp_path / name, "data")
        teacher.run(changed, run)
        logs.append([row for row in log_of(run, TEACHER) if "loss" in row])
    split, recipe = Split(workdir.data, "train"), experiment.teacher
    source = TrainBatches(split, recipe.model.layout(START), experiment.shapes, **OPTIONS)
    tokens = [int(source[i].mask_BT.sum()) for i in range(4)]
    assert len(set(tokens)) > 1
    losses = [row["loss"] for row in logs[0]]
    assert logs[1][0]["loss"] == pytest.approx(np.average(losses, weights=tokens), rel=1e-6)


def test_backends_train_to_the_same_loss(experiment, workdir, tmp_path):
    """The number of rows is a multiple of eight, so all backends have the same batches."""
    recipe, losses = recipe_with(experiment.teacher, tokens_per_batch=768, steps=4), []
    for backend, mesh in (("jit", Mesh()), ("pmap", Mesh()), ("mesh", Mesh(fsdp=4, tensor=2))):
        run = linked_run(workdir, tmp_path / backend, "data")
        changes = {"teacher": recipe, "backend": backend, "mesh": mesh, "buckets": (32,)}
        teacher.run(dataclasses.replace(experiment, **changes), run)
        losses.append(run.model(TEACHER).outputs()["valid_cross_entropy"])
    np.testing.assert_allclose(losses[1:], losses[0], rtol=1e-4)


@pytest.mark.parametrize(
    "backend, mesh",
    [
        pytest.param("jit", Mesh(), marks=pytest.mark.extended),
        pytest.param("pmap", Mesh(), marks=pytest.mark.extended),
        ("mesh", Mesh(fsdp=4, tensor=2)),
    ],
)
def test_scan_layers_trains_to_the_same_loss_after_a_stop(experiment, workdir, tmp_path, monkeypatch, backend, mesh):
    """Its checkpoints have the layout of any model, so a recipe without scan_layers reads them."""
    recipe = recipe_with(experiment.teacher, tokens_per_batch=768, steps=4, eval_every=2)
    losses, after_step = [], Meter.after_step

    def ask(self, step, *metrics):
        after_step(self, step, *metrics)
        os.kill(os.getpid(), signal.SIGTERM)

    for scan_layers in (False, True):
        run = linked_run(workdir, tmp_path / str(scan_layers), "data")
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, scan_layers=scan_layers))
        changed = dataclasses.replace(experiment, teacher=recipe, backend=backend, mesh=mesh, buckets=(32,))
        with monkeypatch.context() as patch, preemption.handle_signals(resumes=True):
            patch.setattr(Meter, "after_step", ask)
            with pytest.raises(Preempted):
                teacher.run(changed, run)
        teacher.run(changed, run)
        losses.append(run.model(TEACHER).outputs()["valid_cross_entropy"])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    chex.assert_trees_all_equal_shapes(params_of(run, experiment), params_of(workdir, experiment))


def test_student_learns_and_teacher_stays_the_same(experiment, workdir):
    before = params_of(workdir, experiment)
    student.run(experiment, workdir, only="student_kd")
    chex.assert_trees_all_equal(params_of(workdir, experiment), before)
    folder = workdir.model("student_kd")
    assert folder.outputs()["valid_cross_entropy"] < folder.outputs()["loss_before_first_step"]
    assert folder.inputs()["consumed.teacher"] == workdir.model(TEACHER).outputs()["digest"]


def test_finished_phase_is_skipped_and_changed_one_refused(experiment, workdir):
    manifest = workdir.model(TEACHER).path / "manifest.json"
    mark = manifest.stat().st_mtime_ns
    teacher.run(experiment, workdir)
    assert manifest.stat().st_mtime_ns == mark
    with pytest.raises(KdError, match="expected seed = 0, .* got 5"):
        teacher.run(dataclasses.replace(experiment, seed=5), workdir)
    longer = dataclasses.replace(experiment, teacher=recipe_with(experiment.teacher, steps=13))
    with pytest.raises(KdError, match="expected teacher.training.steps = 12, .* got 13"):
        teacher.run(longer, workdir)


def test_non_finite_validation_loss_stops_the_run(experiment, workdir, tmp_path):
    optimizer = dataclasses.replace(experiment.teacher.training.optimizer, learning_rate=1e30, clip_norm=1e30)
    diverging = dataclasses.replace(experiment, teacher=recipe_with(experiment.teacher, optimizer=optimizer))
    run = linked_run(workdir, tmp_path, "data")
    with pytest.raises(KdError, match="expected a finite validation cross-entropy, got nan.*lower learning rate"):
        train_model(diverging, run, TEACHER, TrainingInputs({}, {}), force=False)


def test_damaged_checkpoint_is_refused(experiment, workdir, tmp_path):
    run = linked_run(workdir, tmp_path, "data")
    shutil.copytree(workdir.path / TEACHER, tmp_path / TEACHER)
    for path in (tmp_path / TEACHER / "checkpoints").glob("*/params/**/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(KdError, match="expected .* bytes, got .* bytes"):
        params_of(run, experiment)


def test_student_without_teacher_names_the_phase_to_run(experiment, workdir, tmp_path):
    run = linked_run(workdir, tmp_path, "data")
    with pytest.raises(KdError, match="Run `teacher` first"):
        student.run(experiment, run, only="student_init")
    with pytest.raises(KdError, match="Did you mean student_kd"):
        student.run(experiment, run, only="student_dk")


def test_cache_has_the_distribution_of_the_trained_teacher(experiment, workdir):
    """It is written in the order of examples and read in the order of training (traps 9 and 10)."""
    signal = experiment.students["student_kd"].terms["kd"].signal
    split = Split(workdir.data, "train", {signal.name: Store(workdir.cache("", signal.name).path, "records")})
    layout = experiment.teacher.model.layout(START)
    source = TrainBatches(split, layout, experiment.shapes, **OPTIONS | {"seed": 7})
    model, params = load_trained(experiment, workdir, TEACHER)
    for number in (0, 5):
        batch = source[number]
        logits = model.head(params).logits(model.apply(params, batch.inputs)).reshape(-1, 60)
        cached = {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.payload[signal.name].items()}
        counted = batch.mask_BT.reshape(-1)
        for got, want in zip(
            signal.align(logits, cached, 1.0)[:2], signal.align(logits, signal.reduce(logits), 1.0)[:2], strict=True
        ):
            np.testing.assert_allclose(np.exp(got)[counted], np.exp(want)[counted], atol=2e-3)
    outputs = workdir.model(TEACHER).outputs()
    assert outputs["valid_cross_entropy"] < outputs["loss_before_first_step"] < 1.5 * np.log(60)


def test_damaged_cache_is_refused_and_rebuilt(experiment, workdir, tmp_path):
    run = linked_run(workdir, tmp_path, "data", TEACHER)
    cache.run(experiment, run)
    shard = next(run.cache("", "topk").path.glob("*.arrayrecord"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(KdError, match=shard.name):
        student.run(experiment, run, only="student_kd")
    cache.run(experiment, run, force=True)
    assert shard.read_bytes() == whole


def test_student_starts_from_a_checkpoint_of_another_run(experiment, workdir, tmp_path):
    run = linked_run(workdir, tmp_path, "data", TEACHER)
    own = dataclasses.replace(
        experiment.students["student_kd"],
        model=experiment.teacher.model,
        terms=experiment.teacher.terms,
        init=FromCheckpoint(str(workdir.model(TEACHER).path)),
    )
    student.run(dataclasses.replace(experiment, students={"own": own}), run)
    first, theirs = run.model("own").outputs(), workdir.model(TEACHER).outputs()
    assert first["loss_before_first_step"] == pytest.approx(theirs["valid_cross_entropy"], rel=1e-6)
    other = dataclasses.replace(own, model=dataclasses.replace(own.model, d_ff=32))
    with pytest.raises(KdError, match="model.d_ff: expected 64.* got 32"):
        student.run(dataclasses.replace(experiment, students={"other": other}), run)
