"""What a teacher leaves, and a teacher in the step, frozen."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from kd_jax.artifacts import checkpoint, manifest
from kd_jax.cli import resolve as setup
from kd_jax.data import pseudo_targets
from kd_jax.data.pipeline import EvalBatches, Split, TrainBatches
from kd_jax.data.pseudo_targets import PseudoTargets
from kd_jax.data.store import Store, shard_path
from kd_jax.errors import KdError
from kd_jax.evaluation import closeness as metrics
from kd_jax.experiment import cache_folder, data_folder
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl, jensen_shannon
from kd_jax.losses.features import mse
from kd_jax.models.init import FromTeacher, Random
from kd_jax.objective.terms import Term
from kd_jax.optim.ramp import Ramp
from kd_jax.parallel.base import parallel
from kd_jax.phases import cache, evaluate, prepare, student, teacher
from kd_jax.signals.features import AttentionRelations, HiddenStates
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK
from kd_jax.training import loop

SHORT = """
--source.examples 120 --tokenizer.vocab-size 60 --backend jit --evaluation.cached-k 12
--teacher.training.steps 12 --teacher.training.eval-every 12 --teacher.training.optimizer.warmup 2
--students.student_kd.training.steps 6 --students.student_kd.training.eval-every 3
--students.student_kd.training.optimizer.warmup 2
"""
CE = Term(cross_entropy)


@pytest.fixture(scope="module")
def experiment(root, lax_promotion):
    return setup.resolve(str(root / "experiments/configs/smoke.py"), SHORT.split())


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    for phase in (prepare, teacher, cache):
        phase.run(experiment, path)
    return path


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("kd_jax.teaching.signal_cache.RECORDS_PER_SHARD", 25)


def taught(experiment, **fields):
    """The experiment with one student, `it`."""
    return dataclasses.replace(
        experiment, students={"it": dataclasses.replace(experiment.students["student_kd"], **fields)}
    )


def beside(workdir, tmp_path, *names):
    for name in ("data", "teacher", *names):
        (tmp_path / name).symlink_to(workdir / name)
    return tmp_path


def records(folder):
    held = Store(folder, "records")
    return [held[i] for i in range(len(held))]


def test_any_number_of_writers_leaves_the_same_records(experiment, workdir, tmp_path, small_shards):
    """One of two writers is killed with a shard half-way; three others finish: nothing is lost or doubled."""
    both = {"topk": Term(forward_kl, signal=TopK(k=8)), "sampled": Term(forward_kl, signal=Sampled(draws=9))}
    wanted = taught(experiment, terms=both)
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
        beside(workdir, tmp_path / name)
    cache.run(wanted, tmp_path / "one")
    cache.run(wanted, tmp_path / "many", writer=(0, 2))
    folder = cache_folder(tmp_path / "many", None, "topk")
    assert not (folder / "manifest.json").exists() and not shard_path(folder, "records", 1).exists()
    (folder / "records-00001.arrayrecord.77.part").write_bytes(b"half a shard")
    for writer in range(3):
        cache.run(wanted, tmp_path / "many", writer=(writer, 3))
    assert not list(folder.glob("*.part"))
    for signal in ("topk", "sampled_9_t1_s0"):
        folders = [cache_folder(tmp_path / name, None, signal) for name in ("one", "many")]
        chex.assert_trees_all_equal(*(records(folder) for folder in folders))
        outputs = [manifest.read(folder, "cache")["outputs"]["digest"] for folder in folders]
        assert outputs[0] == outputs[1]


def test_a_flipped_byte_is_named_and_only_its_shard_made_anew(experiment, workdir, tmp_path, small_shards, capsys):
    cache.run(experiment, beside(workdir, tmp_path))
    folder = cache_folder(tmp_path, None, "topk")
    before, path = manifest.read(folder, "cache")["outputs"]["digest"], shard_path(folder, "records", 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(KdError, match=r"records-00002.*not those that were written"):
        records(folder)
    times = {p: p.stat().st_mtime_ns for p in folder.glob("*.arrayrecord") if p != path}
    cache.run(experiment, tmp_path)
    assert "records-00002" in capsys.readouterr().err
    assert times == {p: p.stat().st_mtime_ns for p in times}
    assert manifest.read(folder, "cache")["outputs"]["digest"] == before
    assert len(records(folder)) == 120


def test_a_larger_cache_serves_a_smaller_k_and_lacks_a_temperature(experiment, workdir, tmp_path):
    beside(workdir, tmp_path, "cache")
    cache.run(taught(experiment, terms={"kd": Term(forward_kl, signal=TopK(k=3, tail="zero"))}), tmp_path)
    hotter = taught(experiment, terms={"kd": Term(forward_kl, signal=TopK(k=3, temperature=2.0))})
    with pytest.raises(KdError, match="signal.temperature"):
        cache.run(hotter, tmp_path)
    with pytest.raises(KdError, match="no field rest_t2"):
        student.run(hotter, tmp_path)
    with pytest.raises(KdError, match=r"field ids.*\[8\].*\[9\]"):
        student.run(taught(experiment, terms={"kd": Term(forward_kl, signal=TopK(k=9))}), tmp_path)


def test_a_cache_of_another_teacher_is_refused(experiment, workdir, tmp_path):
    (tmp_path / "data").symlink_to(workdir / "data")
    (tmp_path / "cache").symlink_to(workdir / "cache")
    teacher.run(dataclasses.replace(experiment, seed=5), tmp_path)
    with pytest.raises(KdError, match="cache topk: made with teacher .* this run's is"):
        student.run(experiment, tmp_path)
    with pytest.raises(KdError, match="consumed.teacher"):
        cache.run(experiment, tmp_path)


def test_two_temperatures_share_a_cache(experiment, workdir, tmp_path):
    terms = {f"t{t:g}": Term(forward_kl, signal=TopK(k=6, temperature=t)) for t in (1.0, 2.0)}
    wanted = taught(experiment, terms=terms)
    cache.run(wanted, beside(workdir, tmp_path))
    assert {"rest_t1", "rest_t2"} <= Store(cache_folder(tmp_path, None, "topk"), "records").schema.keys()
    student.run(wanted, tmp_path)


ONLINE = {
    "ce": Term(cross_entropy, weight=0.5),
    "kd": Term(jensen_shannon, weight=Ramp(0.0, 0.5, 4), signal=Online(temperature=Ramp(1.0, 2.0, 4))),
    "hidden": Term(mse, weight=0.1, signal=HiddenStates(layers=((0, 1),))),
    "relations": Term(forward_kl, weight=0.1, signal=AttentionRelations(layers=((1, 1),), heads=4)),
}


@pytest.mark.parametrize("backend", ["jit", "pmap"])
def test_a_teacher_in_the_step_never_moves_and_projections_are_not_exported(experiment, workdir, tmp_path, backend):
    """Widths differ; killed and gone on with, projections and all; the student's tree is that of its network."""
    before = manifest.read(workdir / "teacher", "teacher")["outputs"]["digest"]
    narrow = dataclasses.replace(experiment.students["student_scratch"].model, d_model=16, d_ff=32, decoder_layers=1)
    wanted = dataclasses.replace(taught(experiment, terms=ONLINE, model=narrow, init=Random()), backend=backend)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        beside(workdir, tmp_path / name)
    student.run(wanted, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        read = loop.Meter._read

        def killed(self, step, sums):
            if step == 5:
                raise KeyboardInterrupt
            read(self, step, sums)

        patch.setattr(loop.Meter, "_read", killed)
        with pytest.raises(KeyboardInterrupt):
            student.run(wanted, tmp_path / "cut")
    student.run(wanted, tmp_path / "cut")
    model = narrow.build(60)
    params = [checkpoint.load_params(tmp_path / name / "students/it", "student", model) for name in ("whole", "cut")]
    chex.assert_trees_all_equal(*params)
    assert jax.tree.structure(params[0]) == jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0)))
    network = experiment.teacher.model.build(60)
    assert checkpoint.params_digest(checkpoint.load_params(workdir / "teacher", "teacher", network)) == before
    log = (tmp_path / "whole/students/it/metrics.jsonl").read_text()
    assert all(f'"{name}"' in log for name in ONLINE)


def test_the_teacher_as_student_has_no_loss_beside_itself(experiment, workdir, tmp_path):
    """Trap 10: at the start every term with the teacher in the step is 0; the teacher is far better than chance."""
    terms = {k: dataclasses.replace(v, weight=1.0) for k, v in ONLINE.items() if k != "ce"}
    terms["hidden"] = Term(mse, signal=HiddenStates(layers=((0, 0), (1, 1))))
    training = dataclasses.replace(experiment.students["student_kd"].training, eval_every=1)
    same = taught(experiment, training=training, terms=terms, model=experiment.teacher.model, init=FromTeacher())
    student.run(same, beside(workdir, tmp_path))
    rows = (tmp_path / "students/it/metrics.jsonl").read_text().splitlines()
    first = json.loads(rows[1])
    assert max(abs(first[name]) for name in terms) < 1e-5
    assert manifest.read(workdir / "teacher", "teacher")["outputs"]["valid_cross_entropy"] < 0.9 * np.log(60)


@pytest.mark.parametrize("rule", ["best", "nbest", "interpolated"])
def test_pseudo_targets_train_a_student_with_the_signals_along_them(experiment, workdir, tmp_path, rule):
    targets = PseudoTargets(rule, beam=3)
    wanted = taught(experiment, targets=targets, terms={"ce": CE, "kd": Term(forward_kl, signal=TopK(k=4))})
    cache.run(wanted, beside(workdir, tmp_path))
    stores = {"topk": Store(cache_folder(tmp_path, targets, "topk"), "records")}
    split = Split(data_folder(tmp_path, targets), "train", stores)
    batch = TrainBatches(split, experiment.buckets, 512, 1, 0, 0, 1)[0]
    assert batch.mask_BT.any() and batch.payload["topk"]["ids"].shape[-1] == 4
    weights = [split.examples[i]["weight"][0] for i in range(len(split))]
    np.testing.assert_allclose(np.sum(weights) / len(weights), 1.0, rtol=1e-5)
    assert len(split) == 120 if rule != "nbest" else len(split) > 120
    # The best hypothesis is what the teacher itself finds likely: its first token is nearly always the likeliest.
    if rule == "best":
        first = [(split.read(i)[0]["target"][0], split.read(i)[1]["topk"]["ids"][0]) for i in range(len(split))]
        assert np.mean([token in ids for token, ids in first]) > 0.9
    student.run(wanted, tmp_path)


def test_rules_choose_what_they_say():
    ids = [np.asarray([7, 2], np.int32), np.asarray([8, 9, 2], np.int32)]
    logp = np.log([0.6, 0.2])
    assert PseudoTargets("best").choose(ids, logp, len)[0][0] is ids[0]
    assert PseudoTargets("interpolated").choose(ids, logp, len)[0][0] is ids[1]
    np.testing.assert_allclose([w for _, w in PseudoTargets("nbest").choose(ids, logp, len)], [1.5, 0.5])
    padded = np.asarray([[7, 2, 0, 0], [8, 9, 2, 0], [8, 9, 2, 0], [8, 8, 8, 8]], np.int32)
    packed = pseudo_targets.pack_hypotheses(padded, np.asarray([-1.0, -2.0, -3.0, -4.0]), eos=2)
    assert [x.tolist() for x in pseudo_targets.unpack_hypotheses(packed)] == [[7, 2], [8, 9, 2]]
    assert packed["logp"].tolist() == [-1.0, -2.0]
    assert pseudo_targets.unpack_hypotheses(pseudo_targets.pack_hypotheses(padded[3:], logp[:1], eos=2)) == []


def test_closeness_from_the_cache_equals_that_beside_the_teacher_within_its_error(experiment, workdir, tmp_path):
    student.run(experiment, beside(workdir, tmp_path, "cache"), only="student_kd")
    shapes = experiment.teacher.model, experiment.students["student_kd"].model
    functions = evaluate.Functions(experiment, 60, parallel("jit"))
    params = [
        checkpoint.load_params(tmp_path / name, phase, shape.build(60))
        for name, phase, shape in zip(("teacher", "students/student_kd"), ("teacher", "student"), shapes, strict=True)
    ]
    batches = EvalBatches(Split(workdir / "data", "validation"), experiment.buckets, 64)
    online = [jax.device_get(functions.compare(shapes[1])(tuple(params), batch)) for batch in batches]
    online = evaluate._means(jax.tree.map(lambda *parts: sum(parts), *online))
    offline = evaluate.offline(experiment, workdir, functions, params[1], shapes[1])
    assert offline["kl_error"] > 0 and 0 < offline["acceptance_error"] < 1
    assert -1e-3 <= online["kl_to_teacher"] - offline["kl_to_teacher"] <= offline["kl_error"] + 1e-3
    assert -1e-3 <= offline["acceptance"] - online["acceptance"] <= offline["acceptance_error"] + 1e-3
    for name in ("agreement", "cross_entropy", "calibration_error"):
        np.testing.assert_allclose(offline[name], online[name], atol=2e-3)


def test_a_whole_cache_has_no_error(experiment, workdir):
    rng = np.random.default_rng(0)
    teacher_logits, student_logits = (np.float32(rng.integers(-64, 64, (40, 60)) / 16) for _ in range(2))
    targets, mask = np.int32(rng.integers(0, 60, 40)), rng.random(40) < 0.8
    signal = TopK(k=60)
    sums = metrics.compare_cached(
        signal, signal.reduce(teacher_logits), jax.numpy.asarray(student_logits), targets, mask
    )
    want = metrics.compare(teacher_logits, student_logits, targets, mask)
    for name, one in want.items():
        np.testing.assert_allclose(sums[name].value, one.value, atol=1e-4)
    assert abs(sums["kl_error"].value) < 1e-5 and sums["acceptance_error"].value < 1e-5
