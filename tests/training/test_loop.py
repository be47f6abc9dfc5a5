"""Training: a kill and a resume give the bits of a run that never stopped; a teacher never moves; NaN stops."""

import dataclasses
import os
import shutil
import signal

import chex
import jax
import numpy as np
import pytest

from kd_jax import config
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
from kd_jax.training.model import Sources, load_trained, train_model
from tests.helpers.runs import beside, smoke, taught

SHORT = """
--teacher.model.dropout 0.1 --teacher.training.steps 12 --teacher.training.eval-every 4
--teacher.training.optimizer.warmup 2 --students.student_kd.training.steps 8
--students.student_kd.training.eval-every 4 --students.student_kd.training.optimizer.warmup 2
"""
OPTIONS = {"tokens_per_batch": 512, "divisor": 1, "seed": 0, "packed": False}


@pytest.fixture(scope="module")
def experiment(root, lax_promotion):
    """The smoke experiment, shortened."""
    return smoke(root, SHORT.split())


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
    return taught(experiment, tmp_path_factory.mktemp("run"))


def params_of(workdir, experiment, name=TEACHER):
    return jax.device_get(load_trained(experiment, workdir, name)[1])


def recipe_with(recipe, **training):
    """A recipe trained otherwise."""
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, **training))


@pytest.mark.parametrize("killed_at", [2, 6])
def test_a_killed_run_goes_on_to_the_same_bits(experiment, workdir, tmp_path, monkeypatch, killed_at):
    cut, read = beside(workdir, tmp_path, "data"), Meter._read

    def killed(self, step, *measured):
        if step == killed_at:
            raise KeyboardInterrupt
        read(self, step, *measured)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "_read", killed)
        with pytest.raises(KeyboardInterrupt):
            teacher.run(experiment, cut)
    assert not cut.model(TEACHER).finished()
    teacher.run(experiment, cut)
    chex.assert_trees_all_equal(params_of(cut, experiment), params_of(workdir, experiment))
    logs = [
        [
            {k: v for k, v in row.items() if k not in ("seconds", "tokens", "tokens_per_second")}
            for row in log_of(run, TEACHER)
        ]
        for run in (cut, workdir)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("asked_at, goes_on_from", [(1, 1), (6, 6), (8, 8)])
def test_a_run_that_is_asked_to_stop_goes_on_from_that_step_to_the_same_bits(
    experiment, workdir, tmp_path, monkeypatch, capsys, asked_at, goes_on_from
):
    """Every fourth step is validated: at the eighth the signal comes before its validation, which is made up for."""
    cut, after = beside(workdir, tmp_path, "data"), Meter.after

    def asked(self, step, *measured):
        after(self, step, *measured)
        if step == asked_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, preemption.handle_sigterm():
        patch.setattr(Meter, "after", asked)
        with pytest.raises(Preempted):
            teacher.run(experiment, cut)
    assert [row["step"] for row in log_of(cut, TEACHER) if METRIC in row] == list(range(0, asked_at, 4))
    teacher.run(experiment, cut)
    assert f"goes on from step {goes_on_from}" in capsys.readouterr().err
    chex.assert_trees_all_equal(params_of(cut, experiment), params_of(workdir, experiment))
    validated = [{row["step"]: row[METRIC] for row in log_of(run, TEACHER) if METRIC in row} for run in (cut, workdir)]
    assert validated[0] == validated[1]


@pytest.mark.parametrize("damaged", [{8}, {4, 8}])
def test_training_goes_on_from_the_last_checkpoint_that_is_whole(
    experiment, workdir, tmp_path, monkeypatch, capsys, damaged
):
    cut, read = beside(workdir, tmp_path, "data"), Meter._read

    def killed(self, step, *measured):
        if step == 11:
            raise KeyboardInterrupt
        read(self, step, *measured)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Meter, "_read", killed)
        teacher.run(experiment, cut)
    for step in damaged:
        for path in cut.model(TEACHER).path.glob(f"checkpoints/{step}/params/**/d/*"):
            path.write_bytes(path.read_bytes()[::-1])
    teacher.run(experiment, cut)
    said = capsys.readouterr().err
    for step in damaged:
        assert f"checkpoints/{step} cannot be read" in said
        assert (cut.model(TEACHER).path / f"damaged_checkpoints/{step}").is_dir()
    assert ("goes on from step 4" in said) == (damaged == {8})
    chex.assert_trees_all_equal(params_of(cut, experiment), params_of(workdir, experiment))


def test_a_profile_of_steps_that_are_not_made_is_said_to_be_none(experiment, workdir, tmp_path, capsys):
    run = beside(workdir, tmp_path, "data")
    teacher.run(experiment, run, profile=(13, 20))
    assert "profile: step 13 was not among those that were made now: no trace" in capsys.readouterr().err
    assert not run.profile(TEACHER).exists()


@pytest.mark.parametrize("steps", [(2, 4), (10, 40)])
def test_a_profile_is_a_trace_and_changes_no_bit(experiment, workdir, tmp_path, capsys, steps):
    run = beside(workdir, tmp_path, "data")
    teacher.run(experiment, run, profile=steps)
    assert list(run.profile(TEACHER).rglob("*.xplane.pb"))
    assert f"profile: steps {steps[0]} to {steps[1]} in {run.profile(TEACHER)}" in capsys.readouterr().err
    chex.assert_trees_all_equal(params_of(run, experiment), params_of(workdir, experiment))


def log_of(workdir, name):
    return metrics_log.read(workdir.model(name).path / "metrics.jsonl")


def test_the_log_says_the_schedules_learning_rates(experiment, workdir):
    """Warm-up over 2 of 12 steps to 0.005, then a half cosine wave down to a twentieth of it."""
    rates = {row["step"]: row["learning_rate"] for row in log_of(workdir, TEACHER) if "learning_rate" in row}
    want = {n: 0.005 * (0.05 + 0.95 * (1 + np.cos(np.pi * (n - 2) / 10)) / 2) for n in (4, 8, 12)}
    assert rates == pytest.approx(want, rel=1e-6)


def test_the_log_counts_the_tokens_that_trained(experiment, workdir, tmp_path):
    """Means are token-weighted over batches of both buckets: they are those of two runs' Sums added by hand."""
    single = dataclasses.replace(experiment, teacher=recipe_with(experiment.teacher, steps=4, eval_every=1))
    several = dataclasses.replace(experiment, teacher=recipe_with(experiment.teacher, steps=4, eval_every=4))
    logs = []
    for name, wanted in (("single", single), ("several", several)):
        run = beside(workdir, tmp_path / name, "data")
        teacher.run(wanted, run)
        logs.append([row for row in log_of(run, TEACHER) if "loss" in row])
    split, recipe = Split(workdir.data, "train"), experiment.teacher
    source = TrainBatches(split, recipe.model.layout(START), experiment.shapes, **OPTIONS)
    tokens = [int(source[i].mask_BT.sum()) for i in range(4)]
    assert len(set(tokens)) > 1
    losses = [row["loss"] for row in logs[0]]
    assert logs[1][0]["loss"] == pytest.approx(np.average(losses, weights=tokens), rel=1e-6)


def test_one_and_eight_devices_train_to_the_same_model(experiment, workdir, tmp_path):
    """A batch is a whole multiple of eight rows, so all backends see the same ones."""
    recipe, losses = recipe_with(experiment.teacher, tokens_per_batch=768, steps=4), []
    for backend, mesh in (("jit", Mesh()), ("pmap", Mesh()), ("mesh", Mesh(fsdp=4, tensor=2))):
        run = beside(workdir, tmp_path / backend, "data")
        changes = {"teacher": recipe, "backend": backend, "mesh": mesh, "buckets": (32,)}
        teacher.run(dataclasses.replace(experiment, **changes), run)
        losses.append(run.model(TEACHER).outputs()["valid_cross_entropy"])
    np.testing.assert_allclose(losses[1:], losses[0], rtol=1e-4)


@pytest.mark.parametrize("backend, mesh", [("jit", Mesh()), ("pmap", Mesh()), ("mesh", Mesh(fsdp=4, tensor=2))])
def test_scanned_layers_train_to_the_same_model_also_after_a_stop(
    experiment, workdir, tmp_path, monkeypatch, backend, mesh
):
    """And their checkpoint is that of any model: read here by a recipe that scans over nothing."""
    recipe = recipe_with(experiment.teacher, tokens_per_batch=768, steps=4, eval_every=2)
    losses, after = [], Meter.after

    def asked(self, step, *measured):
        after(self, step, *measured)
        os.kill(os.getpid(), signal.SIGTERM)

    for scan_layers in (False, True):
        run = beside(workdir, tmp_path / str(scan_layers), "data")
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, scan_layers=scan_layers))
        changed = dataclasses.replace(experiment, teacher=recipe, backend=backend, mesh=mesh, buckets=(32,))
        with monkeypatch.context() as patch, preemption.handle_sigterm():
            patch.setattr(Meter, "after", asked)
            with pytest.raises(Preempted):
                teacher.run(changed, run)
        teacher.run(changed, run)
        losses.append(run.model(TEACHER).outputs()["valid_cross_entropy"])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    chex.assert_trees_all_equal_shapes(params_of(run, experiment), params_of(workdir, experiment))


def test_the_student_learns_and_the_teacher_does_not_move(experiment, workdir):
    before = params_of(workdir, experiment)
    student.run(experiment, workdir, only="student_kd")
    chex.assert_trees_all_equal(params_of(workdir, experiment), before)
    folder = workdir.model("student_kd")
    assert folder.outputs()["valid_cross_entropy"] < folder.outputs()["loss_before_first_step"]
    assert folder.inputs()["consumed.teacher"] == workdir.model(TEACHER).outputs()["digest"]


def test_finished_phases_are_skipped_and_changed_ones_refused(experiment, workdir):
    manifest = workdir.model(TEACHER).path / "manifest.json"
    mark = manifest.stat().st_mtime_ns
    teacher.run(experiment, workdir)
    assert manifest.stat().st_mtime_ns == mark
    with pytest.raises(KdError, match="seed = 0, now 5"):
        teacher.run(dataclasses.replace(experiment, seed=5), workdir)
    longer = dataclasses.replace(experiment, teacher=recipe_with(experiment.teacher, steps=13))
    with pytest.raises(KdError, match="teacher.training.steps = 12, now 13"):
        teacher.run(longer, workdir)


def test_a_loss_that_is_not_finite_stops_the_run(experiment, workdir, tmp_path):
    optimizer = dataclasses.replace(experiment.teacher.training.optimizer, learning_rate=1e30, clip_norm=1e30)
    wild = dataclasses.replace(experiment, teacher=recipe_with(experiment.teacher, optimizer=optimizer))
    run = beside(workdir, tmp_path, "data")
    with pytest.raises(KdError, match="validation cross-entropy is nan.*lower learning rate"):
        train_model(wild, run, TEACHER, Sources({}, {}), force=False)


def test_damage_is_found(experiment, workdir, tmp_path):
    run = beside(workdir, tmp_path, "data")
    shutil.copytree(workdir.path / TEACHER, tmp_path / TEACHER)
    for path in (tmp_path / TEACHER / "checkpoints").glob("*/params/**/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(KdError, match="wanted .* bytes"):
        params_of(run, experiment)


def test_a_student_without_its_teacher_or_cache_says_which_phase_to_run(experiment, workdir, tmp_path):
    run = beside(workdir, tmp_path, "data")
    with pytest.raises(KdError, match="run the phase `teacher` first"):
        student.run(experiment, run, only="student_init")
    with pytest.raises(KdError, match="did you mean student_kd"):
        student.run(experiment, run, only="student_dk")


def test_every_artefact_is_fingerprinted(experiment):
    assert config.fingerprint(experiment) != config.fingerprint(dataclasses.replace(experiment, seed=1))


def test_the_cache_says_of_every_token_what_the_teacher_says(experiment, workdir):
    """Written in the order of the examples, read in the order of training (trap 9), by a trained teacher (trap 10)."""
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


def test_a_damaged_cache_is_refused_and_rebuilt(experiment, workdir, tmp_path):
    run = beside(workdir, tmp_path, "data", TEACHER)
    cache.run(experiment, run)
    shard = next(run.cache("", "topk").path.glob("*.arrayrecord"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(KdError, match=shard.name):
        student.run(experiment, run, only="student_kd")
    cache.run(experiment, run, force=True)
    assert shard.read_bytes() == whole


def test_a_student_from_a_checkpoint_of_its_own(experiment, workdir, tmp_path):
    run = beside(workdir, tmp_path, "data", TEACHER)
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
    with pytest.raises(KdError, match="its model.d_ff is 64, this student wants 32"):
        student.run(dataclasses.replace(experiment, students={"other": other}), run)
