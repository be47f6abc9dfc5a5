"""Training: a kill and a resume give the bits of a run that never stopped; a teacher never moves; NaN stops."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

from kd_jax import config
from kd_jax.artifacts import checkpoint
from kd_jax.cli import resolve as setup
from kd_jax.data.pipeline import Split, TrainBatches
from kd_jax.data.store import Store
from kd_jax.errors import KdError
from kd_jax.models.init import FromCheckpoint
from kd_jax.phases import cache, prepare, student, teacher
from kd_jax.training import loop
from kd_jax.training.model import train_model

SHORT = """
--source.examples 120 --tokenizer.vocab-size 60 --backend jit
--teacher.model.dropout 0.1 --teacher.training.steps 12 --teacher.training.eval-every 4
--teacher.training.optimizer.warmup 2 --students.student_kd.training.steps 8
--students.student_kd.training.eval-every 4 --students.student_kd.training.optimizer.warmup 2
"""


@pytest.fixture(scope="module")
def experiment(root, lax_promotion):
    """The smoke experiment, shortened."""
    return setup.resolve(str(root / "experiments/configs/smoke.py"), SHORT.split())


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    for phase in (prepare, teacher, cache):
        phase.run(experiment, path)
    return path


def params_of(folder, experiment, phase="teacher"):
    recipe = experiment.teacher if phase == "teacher" else experiment.students["student_kd"]
    return jax.device_get(checkpoint.load_params(folder, phase, recipe.model.build(60)))


@pytest.mark.parametrize("killed_at", [2, 6, 11])
def test_a_killed_run_goes_on_to_the_same_bits(experiment, workdir, tmp_path, monkeypatch, killed_at):
    (tmp_path / "data").symlink_to(workdir / "data")
    read = loop.Meter._read

    def killed(self, step, sums):
        if step == killed_at:
            raise KeyboardInterrupt
        read(self, step, sums)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Meter, "_read", killed)
        with pytest.raises(KeyboardInterrupt):
            teacher.run(experiment, tmp_path)
    assert not (tmp_path / "teacher" / "manifest.json").exists()
    teacher.run(experiment, tmp_path)
    chex.assert_trees_all_equal(params_of(tmp_path / "teacher", experiment), params_of(workdir / "teacher", experiment))
    logs = [
        [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "tokens")} for line in path.open()]
        for path in (tmp_path / "teacher/metrics.jsonl", workdir / "teacher/metrics.jsonl")
    ]
    assert {row["step"] for row in logs[0]} == {row["step"] for row in logs[1]}
    validated = [{r["step"]: r["valid_cross_entropy"] for r in log if "valid_cross_entropy" in r} for log in logs]
    assert validated[0] == validated[1]


def test_one_and_eight_devices_train_to_the_same_model(experiment, workdir, tmp_path):
    """Batches of both buckets are whole multiples of eight, so both backends see the same ones."""
    training = dataclasses.replace(experiment.teacher.training, tokens_per_batch=768, microbatches=1)
    recipe = dataclasses.replace(experiment.teacher, training=training)
    outputs = {}
    for backend in ("jit", "pmap"):
        (tmp_path / backend).mkdir()
        (tmp_path / backend / "data").symlink_to(workdir / "data")
        teacher.run(dataclasses.replace(experiment, teacher=recipe, backend=backend), tmp_path / backend)
        outputs[backend] = json.loads((tmp_path / backend / "teacher/manifest.json").read_text())["outputs"]
    np.testing.assert_allclose(outputs["pmap"]["valid_cross_entropy"], outputs["jit"]["valid_cross_entropy"], rtol=1e-4)


def test_the_student_learns_and_the_teacher_does_not_move(experiment, workdir):
    before = params_of(workdir / "teacher", experiment)
    student.run(experiment, workdir, only="student_kd")
    chex.assert_trees_all_equal(params_of(workdir / "teacher", experiment), before)
    manifest = json.loads((workdir / "students/student_kd/manifest.json").read_text())
    outputs = manifest["outputs"]
    assert outputs["valid_cross_entropy"] < outputs["loss_before_first_step"]
    assert (
        manifest["inputs"]["consumed.teacher"]
        == json.loads((workdir / "teacher/manifest.json").read_text())["outputs"]["digest"]
    )


def test_finished_phases_are_skipped_and_changed_ones_refused(experiment, workdir):
    mark = (workdir / "teacher/manifest.json").stat().st_mtime_ns
    teacher.run(experiment, workdir)
    assert (workdir / "teacher/manifest.json").stat().st_mtime_ns == mark
    changed = dataclasses.replace(experiment, seed=5)
    with pytest.raises(KdError, match="seed = 0, now 5"):
        teacher.run(changed, workdir)
    training = dataclasses.replace(experiment.teacher.training, steps=13)
    longer = dataclasses.replace(experiment.teacher, training=training)
    with pytest.raises(KdError, match="teacher.training.steps = 12, now 13"):
        teacher.run(dataclasses.replace(experiment, teacher=longer), workdir)


def test_a_loss_that_is_not_finite_stops_the_run(experiment, workdir, tmp_path):
    recipe = experiment.teacher
    optimizer = dataclasses.replace(recipe.training.optimizer, learning_rate=1e30, clip_norm=1e30)
    wild = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, optimizer=optimizer))
    (tmp_path / "data").symlink_to(workdir / "data")
    with pytest.raises(KdError, match="not finite.*last good checkpoint"):
        train_model(
            "teacher",
            "teacher",
            wild,
            experiment,
            tmp_path,
            tmp_path / "teacher",
            consumed={},
            payloads={},
            force=False,
        )


def test_damage_is_found(experiment, workdir, tmp_path):
    shutil.copytree(workdir / "teacher", tmp_path / "teacher")
    for path in (tmp_path / "teacher/checkpoints").glob("*/params/**/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(KdError, match="wanted .* bytes"):
        params_of(tmp_path / "teacher", experiment)


def test_a_student_without_its_teacher_or_cache_says_which_phase_to_run(experiment, workdir, tmp_path):
    (tmp_path / "data").symlink_to(workdir / "data")
    with pytest.raises(KdError, match="run the phase `teacher` first"):
        student.run(experiment, tmp_path)
    with pytest.raises(KdError, match="did you mean student_kd"):
        student.run(experiment, tmp_path, only="student_dk")


def test_every_artefact_is_fingerprinted(experiment):
    assert config.fingerprint(experiment) != config.fingerprint(dataclasses.replace(experiment, seed=1))


def test_the_cache_says_of_every_token_what_the_teacher_says(experiment, workdir):
    """Written in the order of the examples, read in the order of training (trap 9), by a trained teacher (trap 10)."""
    signal = experiment.students["student_kd"].terms["kd"].signal
    stores = {signal.name: Store(workdir / "cache" / signal.name, "records")}
    source = TrainBatches(Split(workdir / "data", "train", stores), experiment.buckets, 256, 1, 7, 0, 1)
    model = experiment.teacher.model.build(60)
    params = checkpoint.load_params(workdir / "teacher", "teacher", model)
    for number in (0, 5):
        batch = source[number]
        logits = model.head(params).logits(model.apply(params, batch)).reshape(-1, 60)
        cached = {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.payload[signal.name].items()}
        counted = batch.mask_BT.reshape(-1)
        for got, want in zip(
            signal.align(logits, cached, 1.0)[:2], signal.align(logits, signal.reduce(logits), 1.0)[:2], strict=True
        ):
            np.testing.assert_allclose(np.exp(got)[counted], np.exp(want)[counted], atol=2e-3)
    outputs = json.loads((workdir / "teacher/manifest.json").read_text())["outputs"]
    assert outputs["valid_cross_entropy"] < outputs["loss_before_first_step"] < 1.5 * np.log(60)


def test_a_damaged_cache_is_refused_and_rebuilt(experiment, workdir, tmp_path):
    for name in ("data", "teacher"):
        shutil.copytree(workdir / name, tmp_path / name)
    cache.run(experiment, tmp_path)
    shard = next((tmp_path / "cache").rglob("*.arrayrecord"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(KdError, match=shard.name):
        student.run(experiment, tmp_path, only="student_kd")
    cache.run(experiment, tmp_path, force=True)
    assert shard.read_bytes() == whole


def test_a_student_from_a_checkpoint_of_its_own(experiment, workdir, tmp_path):
    for name in ("data", "teacher"):
        (tmp_path / name).symlink_to(workdir / name)
    own = dataclasses.replace(
        experiment.students["student_kd"],
        model=experiment.teacher.model,
        terms=experiment.teacher.terms,
        init=FromCheckpoint(str(workdir / "teacher")),
    )
    student.run(dataclasses.replace(experiment, students={"own": own}), tmp_path)
    outputs = json.loads((tmp_path / "students/own/manifest.json").read_text())["outputs"]
    teacher_outputs = json.loads((workdir / "teacher/manifest.json").read_text())["outputs"]
    assert outputs["loss_before_first_step"] == pytest.approx(teacher_outputs["valid_cross_entropy"], rel=1e-6)
    other = dataclasses.replace(own, model=dataclasses.replace(own.model, d_ff=32))
    with pytest.raises(KdError, match="its model.d_ff is 64, this student wants 32"):
        student.run(dataclasses.replace(experiment, students={"other": other}), tmp_path)
