"""What a teacher leaves, and a teacher in the step, frozen."""

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
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.meter import Meter
from kd_jax.training.model import load_trained
from tests.helpers.runs import beside


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("kd_jax.teaching.records.RECORDS_PER_SHARD", 25)


def with_student(experiment, **fields):
    """The experiment with one student, `it`."""
    it = dataclasses.replace(experiment.students["student_kd"], **fields)
    return dataclasses.replace(experiment, students={"it": it})


def records(folder):
    store = Store(folder.path, "records")
    return [store[i] for i in range(len(store))]


@dataclasses.dataclass(frozen=True)
class Continued(Translation):
    """A translation whose first two tokens are given: they exist and do not count."""

    def encode(self, example, tokenizer):
        (encoded,) = super().encode(example, tokenizer)
        yield encoded._replace(counts=np.arange(len(encoded.counts)) >= len(encoded.prompt) + 2)


def test_a_record_has_one_entry_per_target_that_counts(experiment, workdir, tmp_path):
    """And the batch holds what the teacher says of that target in that target's place."""
    continued, run = dataclasses.replace(experiment, task=Continued()), beside(workdir, tmp_path, TEACHER)
    prepare.run(continued, run)
    cache.run(continued, run)
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


def test_any_number_of_writers_leaves_the_same_records(experiment, workdir, tmp_path, small_shards):
    """One of two writers is killed with a shard half-way; three others finish: nothing is lost or doubled."""
    both = {"topk": Term(forward_kl, signal=TopK(k=8)), "sampled": Term(forward_kl, signal=Sampled(draws=9))}
    wanted = with_student(experiment, terms=both)
    one, many = (beside(workdir, tmp_path / name, "data", TEACHER) for name in ("one", "many"))
    cache.run(wanted, one)
    cache.run(wanted, many, writer=(0, 2))
    folder = many.cache("", "topk")
    assert not folder.finished() and not shard_path(folder.path, "records", 1).exists()
    (folder.path / "records-00001.arrayrecord.77.part").write_bytes(b"half a shard")
    for writer in range(3):
        cache.run(wanted, many, writer=(writer, 3))
    assert not list(folder.path.glob("*.part"))
    for signal in ("topk", "sampled_9_t1_s0"):
        folders = [run.cache("", signal) for run in (one, many)]
        chex.assert_trees_all_equal(*map(records, folders))
        assert len({folder.outputs()["digest"] for folder in folders}) == 1


def test_a_flipped_byte_is_named_and_only_its_shard_made_anew(experiment, workdir, tmp_path, small_shards, capsys):
    run = beside(workdir, tmp_path, "data", TEACHER)
    cache.run(experiment, run)
    folder = run.cache("", "topk")
    before, path = folder.outputs()["digest"], shard_path(folder.path, "records", 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(KdError, match=r"records-00002.*not those that were written"):
        records(folder)
    times = {shard: shard.stat().st_mtime_ns for shard in folder.path.glob("*.arrayrecord") if shard != path}
    cache.run(experiment, run)
    assert "records-00002" in capsys.readouterr().err
    assert times == {shard: shard.stat().st_mtime_ns for shard in times}
    assert folder.outputs()["digest"] == before
    assert len(records(folder)) == 120


def test_a_larger_cache_serves_a_smaller_k_and_lacks_a_temperature(experiment, workdir, tmp_path):
    run = beside(workdir, tmp_path, "data", TEACHER, "cache")
    with_signal = lambda signal: with_student(experiment, terms={"kd": Term(forward_kl, signal=signal)})  # noqa: E731
    cache.run(with_signal(TopK(k=3, tail="zero")), run)
    with pytest.raises(KdError, match="signal.temperature"):
        cache.run(with_signal(TopK(k=3, temperature=2.0)), run)
    with pytest.raises(KdError, match="expected a field rest_t2"):
        student.run(with_signal(TopK(k=3, temperature=2.0)), run)
    with pytest.raises(KdError, match=r"expected ids.*\[9\].*\[8\]"):
        student.run(with_signal(TopK(k=9)), run)


def test_the_tail_is_chosen_when_a_cache_is_read(experiment, workdir, tmp_path):
    """A cache that was made for one tail is found done, for it and for others; both of a student's terms are read."""
    run = beside(workdir, tmp_path, "data", TEACHER)
    with_signals = lambda *signals: with_student(  # noqa: E731
        experiment, terms={f"kd{i}": Term(forward_kl, signal=signal) for i, signal in enumerate(signals)}
    )
    for tail in ("renormalise", "renormalise", "bucket"):
        cache.run(with_signals(TopK(k=3, tail=tail)), run)
    warm = TopK(k=3, temperature=2.0)
    with pytest.raises(KdError, match="expected a field rest_t2"):
        student.run(with_signals(TopK(k=3), warm), run)
    student.run(with_signals(TopK(k=3), dataclasses.replace(warm, tail="renormalise")), run)


def test_a_cache_of_another_teacher_is_refused(experiment, workdir, tmp_path):
    run = beside(workdir, tmp_path, "data", "cache")
    teacher.run(dataclasses.replace(experiment, seed=5), run)
    with pytest.raises(KdError, match="cache topk: made with teacher .* this run's is"):
        student.run(experiment, run)
    with pytest.raises(KdError, match="consumed.teacher"):
        cache.run(experiment, run)


def test_two_temperatures_share_a_cache(experiment, workdir, tmp_path):
    terms = {f"t{t:g}": Term(forward_kl, signal=TopK(k=6, temperature=t)) for t in (1.0, 2.0)}
    wanted, run = with_student(experiment, terms=terms), beside(workdir, tmp_path, "data", TEACHER)
    cache.run(wanted, run)
    assert {"rest_t1", "rest_t2"} <= Store(run.cache("", "topk").path, "records").schema.keys()
    student.run(wanted, run)


ONLINE = {
    "ce": Term(cross_entropy, weight=0.5),
    "kd": Term(jensen_shannon, weight=Schedule(0.0, 0.5, 4), signal=Online(temperature=Schedule(1.0, 2.0, 4))),
    "hidden": Term(mse, weight=0.1, signal=HiddenStates(layers=((0, 1),))),
    "relations": Term(forward_kl, weight=0.1, signal=AttentionRelations(layers=((1, 1),), heads=4)),
}


@pytest.mark.parametrize("backend", ["jit", "pmap"])
def test_a_teacher_in_the_step_never_moves_and_projections_are_not_exported(experiment, workdir, tmp_path, backend):
    """Widths differ; killed and gone on with, projections and all; the student's tree is that of its network."""
    before = workdir.model(TEACHER).outputs()["digest"]
    narrow = dataclasses.replace(experiment.students["student_scratch"].model, d_model=16, d_ff=32, decoder_layers=1)
    wanted = dataclasses.replace(with_student(experiment, terms=ONLINE, model=narrow, init=Random()), backend=backend)
    whole, cut = (beside(workdir, tmp_path / name, "data", TEACHER) for name in ("whole", "cut"))
    student.run(wanted, whole)
    with pytest.MonkeyPatch.context() as patch:
        read = Meter._read

        def killed(self, step, *measured):
            if step == 5:
                raise KeyboardInterrupt
            read(self, step, *measured)

        patch.setattr(Meter, "_read", killed)
        with pytest.raises(KeyboardInterrupt):
            student.run(wanted, cut)
    student.run(wanted, cut)
    (model, params), (_, resumed) = (load_trained(wanted, run, "it") for run in (whole, cut))
    chex.assert_trees_all_equal(params, resumed)
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0)))
    assert params_digest(load_trained(wanted, whole, TEACHER)[1]) == before
    assert ONLINE.keys() <= log_of(whole)[1].keys()


def log_of(workdir):
    return metrics_log.read(workdir.model("it").path / "metrics.jsonl")


def test_the_teacher_as_student_has_no_loss_beside_itself(experiment, workdir, tmp_path):
    """Trap 10: at the start every term with the teacher in the step is 0; the teacher is far better than chance."""
    terms = {k: dataclasses.replace(v, weight=1.0) for k, v in ONLINE.items() if k != "ce"}
    terms["hidden"] = Term(mse, signal=HiddenStates(layers=((0, 0), (1, 1))))
    training = dataclasses.replace(experiment.students["student_kd"].training, eval_every=1)
    fields = {"training": training, "terms": terms, "model": experiment.teacher.model, "init": FromTeacher()}
    run = beside(workdir, tmp_path, "data", TEACHER)
    student.run(with_student(experiment, **fields), run)
    first = log_of(run)[1]
    assert max(abs(first[name]) for name in terms) < 1e-5
    assert run.model(TEACHER).outputs()["valid_cross_entropy"] < 0.9 * np.log(60)


def test_closeness_from_the_cache_equals_that_beside_the_teacher_within_its_error(experiment, workdir, tmp_path):
    run, only = beside(workdir, tmp_path, "data", TEACHER, "cache"), with_student(experiment)
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
