"""Signal caches, and students with the teacher in the step."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from kd_jax.artifacts import metrics_log
from kd_jax.artifacts.digests import params_digest
from kd_jax.artifacts.workdir import TEACHER
from kd_jax.batches.pipeline import Split
from kd_jax.batches.store import Store, shard_path
from kd_jax.batches.targets import TrainTargets
from kd_jax.errors import KdError
from kd_jax.evaluation.candidates import load_candidates
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl, jensen_shannon
from kd_jax.losses.features import mse
from kd_jax.objective.terms import Term
from kd_jax.phases import cache, evaluate, prepare, student, teacher
from kd_jax.schedules import Schedule
from kd_jax.signals.features import AttentionRelations, HiddenStates
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK
from kd_jax.students.init import FromTeacher, Random
from kd_jax.tasks.translation import Translation
from kd_jax.teaching.signal_cache import write_signal
from kd_jax.teaching.teacher import Teacher
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.meter import Meter
from kd_jax.training.model import load_trained
from tests.helpers.runs import linked_run


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("kd_jax.teaching.records.RECORDS_PER_SHARD", 25)


def with_student(experiment, **fields):
    """Return the experiment with one student, `it`."""
    it = dataclasses.replace(experiment.students["student_kd"], **fields)
    return dataclasses.replace(experiment, students={"it": it})


def records(folder):
    store = Store(folder.path, "records")
    return [store[i] for i in range(len(store))]


@dataclasses.dataclass(frozen=True)
class Continued(Translation):
    """A translation whose first two target tokens do not count."""

    def encode(self, example, tokenizer):
        (encoded,) = super().encode(example, tokenizer)
        yield encoded._replace(counts=np.arange(len(encoded.counts)) >= len(encoded.prompt) + 2)


def test_record_has_one_entry_per_target_that_counts(experiment, workdir, tmp_path):
    """The batch holds the teacher's signal of a target at the target's position."""
    continued, run = dataclasses.replace(experiment, task=Continued()), linked_run(workdir, tmp_path, TEACHER)
    prepare.run(continued, run)
    # Not by the phase, which refuses a teacher of other data.
    write_signal(Teacher(continued, run), run.cache("", "topk"), TopK(k=8), TrainTargets(), "train", force=False)
    store = Store(run.cache("", "topk").path, "records")
    split, plain = Split(run.data, "train", {"topk": store}), Store(workdir.data.path, "train")
    assert len(split) == len(plain) == 120
    for i in range(len(split)):
        row = split.read(i)
        assert len(row.records["topk"]["ids"]) == row.encoded.counts.sum() == len(plain[i]["completion"]) - 2
    signal, (model, params) = TopK(k=8), load_trained(experiment, workdir, TEACHER)
    batch = split.batch(experiment.teacher.model.layout(START), np.arange(8)[:, None], 8, experiment.shapes[-1])
    assert not batch.mask_BT[:, :2].any() and batch.mask_BT[:, 2].all()
    logits_NV = model.head(params).logits(model.apply(params, batch.inputs))[batch.mask_BT]
    cached = {name: x[batch.mask_BT] for name, x in batch.payload["topk"].items()}
    both = [signal.align(logits_NV, payload, 1.0).teacher_logp_NK for payload in (cached, signal.reduce(logits_NV))]
    np.testing.assert_allclose(*np.exp(both), atol=2e-3)


def test_records_do_not_depend_on_the_number_of_writers(experiment, workdir, tmp_path, small_shards):
    """One of two writers is killed in a shard; three others finish without loss or repetition."""
    both = {"topk": Term(forward_kl, signal=TopK(k=8)), "sampled": Term(forward_kl, signal=Sampled(draws=9))}
    changed = with_student(experiment, terms=both)
    one, many = (linked_run(workdir, tmp_path / name, "data", TEACHER) for name in ("one", "many"))
    cache.run(changed, one)
    cache.run(changed, many, writer=(0, 2))
    folder = many.cache("", "topk")
    assert not folder.finished() and not shard_path(folder.path, "records", 1).exists()
    (folder.path / "records-00001.arrayrecord.77.part").write_bytes(b"half a shard")
    for writer in range(3):
        cache.run(changed, many, writer=(writer, 3))
    assert not list(folder.path.glob("*.part"))
    for signal in ("topk", "sampled_9_t1_s0"):
        folders = [run.cache("", signal) for run in (one, many)]
        chex.assert_trees_all_equal(*map(records, folders))
        assert len({folder.outputs()["digest"] for folder in folders}) == 1


def test_flipped_byte_is_named_and_only_its_shard_is_rewritten(experiment, workdir, tmp_path, small_shards, capsys):
    run = linked_run(workdir, tmp_path, "data", TEACHER)
    cache.run(experiment, run)
    folder = run.cache("", "topk")
    before, path = folder.outputs()["digest"], shard_path(folder.path, "records", 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(KdError, match=r"records-00002.*expected the bytes that were written"):
        records(folder)
    times = {shard: shard.stat().st_mtime_ns for shard in folder.path.glob("*.arrayrecord") if shard != path}
    cache.run(experiment, run)
    assert "records-00002" in capsys.readouterr().err
    assert times == {shard: shard.stat().st_mtime_ns for shard in times}
    assert folder.outputs()["digest"] == before
    assert len(records(folder)) == 120


def test_larger_cache_serves_smaller_k_but_not_another_temperature(experiment, workdir, tmp_path):
    run = linked_run(workdir, tmp_path, "data", TEACHER, "cache")
    with_signal = lambda signal: with_student(experiment, terms={"kd": Term(forward_kl, signal=signal)})  # noqa: E731
    cache.run(with_signal(TopK(k=3, tail="zero")), run)
    with pytest.raises(KdError, match="signal.temperature"):
        cache.run(with_signal(TopK(k=3, temperature=2.0)), run)
    with pytest.raises(KdError, match="expected a field rest_t2"):
        student.run(with_signal(TopK(k=3, temperature=2.0)), run)
    with pytest.raises(KdError, match=r"expected ids.*\[9\].*\[8\]"):
        student.run(with_signal(TopK(k=9)), run)


def test_tail_is_chosen_when_a_cache_is_read(experiment, workdir, tmp_path):
    """A cache written for one tail serves all tails, and both terms of a student read it."""
    run = linked_run(workdir, tmp_path, "data", TEACHER)
    with_signals = lambda *signals: with_student(  # noqa: E731
        experiment, terms={f"kd{i}": Term(forward_kl, signal=signal) for i, signal in enumerate(signals)}
    )
    for tail in ("renormalise", "renormalise", "bucket"):
        cache.run(with_signals(TopK(k=3, tail=tail)), run)
    warm = TopK(k=3, temperature=2.0)
    with pytest.raises(KdError, match="expected a field rest_t2"):
        student.run(with_signals(TopK(k=3), warm), run)
    student.run(with_signals(TopK(k=3), dataclasses.replace(warm, tail="renormalise")), run)


def test_cache_of_another_teacher_is_rejected(experiment, workdir, tmp_path):
    run = linked_run(workdir, tmp_path, "data", "cache")
    teacher.run(dataclasses.replace(experiment, seed=5), run)
    with pytest.raises(KdError, match="cache/topk: expected to be made with teacher .*, got "):
        student.run(experiment, run)
    with pytest.raises(KdError, match="cache/topk: expected to be made with teacher .*, got "):
        cache.run(experiment, run)


def test_two_temperatures_share_a_cache(experiment, workdir, tmp_path):
    terms = {f"t{t:g}": Term(forward_kl, signal=TopK(k=6, temperature=t)) for t in (1.0, 2.0)}
    changed, run = with_student(experiment, terms=terms), linked_run(workdir, tmp_path, "data", TEACHER)
    cache.run(changed, run)
    assert {"rest_t1", "rest_t2"} <= Store(run.cache("", "topk").path, "records").schema.keys()
    student.run(changed, run)


ONLINE = {
    "ce": Term(cross_entropy, weight=0.5),
    "kd": Term(jensen_shannon, weight=Schedule(0.0, 0.5, 4), signal=Online(temperature=Schedule(1.0, 2.0, 4))),
    "hidden": Term(mse, weight=0.1, signal=HiddenStates(layers=((0, 1),))),
    "relations": Term(forward_kl, weight=0.1, signal=AttentionRelations(layers=((1, 1),), heads=4)),
}


@pytest.mark.parametrize("backend", ["jit", pytest.param("pmap", marks=pytest.mark.extended)])
def test_teacher_in_the_step_is_frozen_and_projections_are_not_exported(experiment, workdir, tmp_path, backend):
    """Widths differ; a killed run resumes with its projections; the student's tree is its network's."""
    before = workdir.model(TEACHER).outputs()["digest"]
    narrow = dataclasses.replace(experiment.students["student_scratch"].model, d_model=16, d_ff=32, decoder_layers=1)
    changed = dataclasses.replace(with_student(experiment, terms=ONLINE, model=narrow, init=Random()), backend=backend)
    uninterrupted, killed_run = (
        linked_run(workdir, tmp_path / name, "data", TEACHER) for name in ("uninterrupted", "killed")
    )
    student.run(changed, uninterrupted)
    with pytest.MonkeyPatch.context() as patch:
        read = Meter._read

        def kill_at_step_5(self, step, *values):
            if step == 5:
                raise KeyboardInterrupt
            read(self, step, *values)

        patch.setattr(Meter, "_read", kill_at_step_5)
        with pytest.raises(KeyboardInterrupt):
            student.run(changed, killed_run)
    student.run(changed, killed_run)
    (model, params), (_, resumed) = (load_trained(changed, run, "it") for run in (uninterrupted, killed_run))
    chex.assert_trees_all_equal(params, resumed)
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0)))
    assert params_digest(load_trained(changed, uninterrupted, TEACHER)[1]) == before
    assert ONLINE.keys() <= log_of(uninterrupted)[1].keys()


def log_of(workdir):
    return metrics_log.read(workdir.model("it").path / "metrics.jsonl")


def test_teacher_as_its_own_student_has_no_loss(experiment, workdir, tmp_path):
    """At the start every term with the teacher in the step is 0; the teacher is far better than chance."""
    terms = {k: dataclasses.replace(v, weight=1.0) for k, v in ONLINE.items() if k != "ce"}
    terms["hidden"] = Term(mse, signal=HiddenStates(layers=((0, 0), (1, 1))))
    training = dataclasses.replace(experiment.students["student_kd"].training, eval_every=1)
    fields = {"training": training, "terms": terms, "model": experiment.teacher.model, "init": FromTeacher()}
    run = linked_run(workdir, tmp_path, "data", TEACHER)
    student.run(with_student(experiment, **fields), run)
    first = log_of(run)[1]
    assert max(abs(first[name]) for name in terms) < 1e-5
    assert run.model(TEACHER).outputs()["valid_cross_entropy"] < 0.9 * np.log(60)


def test_closeness_from_cache_equals_closeness_to_teacher_within_its_error(experiment, workdir, tmp_path):
    run, only = linked_run(workdir, tmp_path, "data", TEACHER, "cache"), with_student(experiment)
    only = dataclasses.replace(only, evaluation=dataclasses.replace(only.evaluation, split="validation"))
    student.run(only, run)
    first, second = load_candidates(only, run)
    context = evaluate.load_context(only, run)
    online = evaluate.compare_with_teacher(context, second, first.params, second.params)
    offline = evaluate.compare_with_cache(context, second, second.params)
    assert offline.kl_error > 0 and 0 < offline.acceptance_error < 1
    assert -1e-3 <= online.kl_to_teacher - offline.kl_to_teacher <= offline.kl_error + 1e-3
    assert -1e-3 <= offline.acceptance - online.acceptance <= offline.acceptance_error + 1e-3
    for name in ("agreement", "cross_entropy", "calibration_error"):
        np.testing.assert_allclose(getattr(offline, name), getattr(online, name), atol=2e-3)
