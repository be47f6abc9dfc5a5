"""Training in rounds: killed runs resume to the same bits, whose parameters write the texts, schedule and optimizer."""

import collections
import dataclasses
import functools
import json
import os
import shutil
import signal

import chex
import jax
import numpy as np
import optax
import pytest

from kd_jax import DecoderOnly, FromTeacher, Generation, PseudoTargets, Random, Rounds, SentencePiece, Toy
from kd_jax.artifacts import metrics_log
from kd_jax.artifacts.checkpoint import Checkpoints
from kd_jax.artifacts.digests import params_digest
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.on_policy import PooledExamples
from kd_jax.batches.pipeline import Split, TrainBatches, with_references
from kd_jax.batches.store import Store
from kd_jax.decoding.text import TextTokens
from kd_jax.errors import KdError, Preempted
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.objective.terms import Term
from kd_jax.phases import cache, prepare, student, teacher
from kd_jax.runtime import preemption
from kd_jax.signals.topk import TopK
from kd_jax.teaching import signal_cache
from kd_jax.teaching.own_texts import OwnTextWriter
from kd_jax.teaching.rounds import TEXTS, write_signals, write_texts
from kd_jax.teaching.teacher import Teacher
from kd_jax.tokenizers import base as tokenizers
from kd_jax.training.meter import Meter
from kd_jax.training.model import initial_params, load_trained
from kd_jax.training.step import count_tokens, init_state, loss_fn
from tests.helpers.runs import linked_run, smoke

STEPS, EVAL_EVERY, BOUNDS = 6, 2, [0, 3, 6]  # two rounds; checkpoints at 2, 3, 4 and 6
SHORT = """
--source.examples 60 --buckets 32 --teacher.training.steps 6 --teacher.training.eval-every 6
--teacher.training.optimizer.warmup 2 --students.student_kd.training.optimizer.warmup 2
"""
TERMS = {"ce": Term(cross_entropy, weight=0.4), "kd": Term(forward_kl, weight=0.6, signal=TopK(k=12))}
RULE = Rounds(share=0.5, count=2)
DECODER_ONLY = DecoderOnly(1, d_model=16, heads=2, d_ff=32, dropout=0.1)


@pytest.fixture(scope="module")
def base(root, lax_promotion):
    return smoke(root, SHORT.split())


def with_student(base, rule=RULE, training=(), **changes):
    """Return the experiment with one student "it", with dropout."""
    recipe = base.students["student_kd"]
    lengths = {"steps": STEPS, "eval_every": EVAL_EVERY, "select": "cross_entropy"}
    parts = {
        "model": dataclasses.replace(recipe.model, dropout=0.1),
        "targets": rule,
        "terms": TERMS,
        "init": FromTeacher(),
        "training": dataclasses.replace(recipe.training, **lengths | dict(training)),
    }
    return dataclasses.replace(base, comparison=None, students={"it": dataclasses.replace(recipe, **parts | changes)})


@pytest.fixture(scope="module")
def experiment(base):
    return with_student(base)


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
    """Return a workdir with a teacher and an uninterrupted run of the student."""
    run = Workdir(tmp_path_factory.mktemp("run"))
    for phase in (prepare, teacher, student):
        phase.run(experiment, run)
    return run


def new_run(workdir, path):
    return linked_run(workdir, path, "data", TEACHER)


def params_of(run, experiment):
    return jax.device_get(load_trained(experiment, run, "it")[1])


def texts_of(run, number):
    return (run.round("it", number).path / TEXTS).read_text()


def own_lines(run, number):
    return [line for line in map(json.loads, texts_of(run, number).splitlines()) if line["own"]]


def validations(run):
    """Return step -> validation cross-entropy."""
    rows = metrics_log.read(run.model("it").path / "metrics.jsonl")
    return {row["step"]: row["valid_cross_entropy"] for row in rows if "valid_cross_entropy" in row}


def assert_equal_runs(run, other, experiment):
    chex.assert_trees_all_equal(params_of(run, experiment), params_of(other, experiment))
    for number in range(2):
        assert texts_of(run, number) == texts_of(other, number)
        caches = [one.round_cache("it", number, "topk").outputs()["digest"] for one in (run, other)]
        assert caches[0] == caches[1]
    assert validations(run) == validations(other)
    keys = ("digest", "best_step", "valid_cross_entropy", "rounds")
    mine, theirs = ({key: one.model("it").outputs()[key] for key in keys} for one in (run, other))
    assert mine == theirs


def patch_texts(patch, number, error):
    """Stop the writer of texts at a round: `error` is raised, or None sends a signal to stop."""
    write, calls = OwnTextWriter.write, []

    def stop(self, *arguments, **options):
        calls.append(None)
        if len(calls) == number:
            if error:
                raise error
            os.kill(os.getpid(), signal.SIGTERM)
        return write(self, *arguments, **options)

    patch.setattr(OwnTextWriter, "write", stop)


def patch_cache(patch, number):
    """Kill the run in the middle of the signals of a round."""
    infer, calls = signal_cache.infer_records, []

    def some(*arguments):
        calls.append(None)
        for n, record in enumerate(infer(*arguments)):
            if len(calls) == number and n == 5:
                raise KeyboardInterrupt
            yield record

    patch.setattr(signal_cache, "infer_records", some)


def patch_step(patch, step):
    """Kill the run when the metrics of a step are read."""
    read = Meter._read

    def kill(self, number, *metrics):
        if number == step:
            raise KeyboardInterrupt
        read(self, number, *metrics)

    patch.setattr(Meter, "_read", kill)


KILLS = [  # in the order of a run; then the last checkpoint, and which rounds have texts
    (lambda patch: patch_step(patch, 3), KeyboardInterrupt, 2, [True, False]),  # at the end of round 1
    (lambda patch: patch_texts(patch, 1, None), Preempted, 3, [True, False]),
    (lambda patch: patch_cache(patch, 1), KeyboardInterrupt, 3, [True, True]),
    (lambda patch: patch_step(patch, 5), KeyboardInterrupt, 4, [True, True]),  # in the middle of round 2
]


def killed_run(experiment, run, monkeypatch, kill, error=KeyboardInterrupt):
    """Train the student until it is killed."""
    with monkeypatch.context() as patch, preemption.handle_signals(resumes=True), pytest.raises(error):
        kill(patch)
        student.run(experiment, run)
    assert not run.model("it").finished()


def test_a_run_that_is_killed_at_many_stages_has_the_bits_of_an_uninterrupted_one(
    experiment, workdir, tmp_path, monkeypatch
):
    run = new_run(workdir, tmp_path / "run")
    for kill, error, checkpoint, has_texts in KILLS:
        killed_run(experiment, run, monkeypatch, kill, error)
        steps = [int(path.name) for path in run.model("it").path.glob("checkpoints/*") if path.name.isdigit()]
        assert max(steps, default=0) == checkpoint
        assert [run.round("it", number).finished() for number in range(2)] == has_texts
    student.run(experiment, run)
    assert_equal_runs(run, workdir, experiment)


@pytest.mark.extended
@pytest.mark.parametrize(
    "kill, error",
    [
        *((lambda patch, step=step: patch_step(patch, step), KeyboardInterrupt) for step in range(1, STEPS + 1)),
        (lambda patch: patch_texts(patch, 1, KeyboardInterrupt()), KeyboardInterrupt),
        (lambda patch: patch_texts(patch, 2, KeyboardInterrupt()), KeyboardInterrupt),
        (lambda patch: patch_texts(patch, 2, None), Preempted),
        (lambda patch: patch_cache(patch, 1), KeyboardInterrupt),
        (lambda patch: patch_cache(patch, 2), KeyboardInterrupt),
    ],
)
def test_resume_after_one_kill_equals_uninterrupted(experiment, workdir, tmp_path, monkeypatch, kill, error):
    run = new_run(workdir, tmp_path / "run")
    killed_run(experiment, run, monkeypatch, kill, error)
    student.run(experiment, run)
    assert_equal_runs(run, workdir, experiment)


@pytest.fixture(scope="module")
def killed(experiment, workdir, tmp_path_factory):
    """Return a run that was killed in round 2, after the checkpoint of step 4; read only."""
    run = new_run(workdir, tmp_path_factory.mktemp("killed"))
    with pytest.MonkeyPatch.context() as patch:
        killed_run(experiment, run, patch, lambda inner: patch_step(inner, 5))
    return run


def copied(run, workdir, path):
    """Return a copy of the student's folder beside links to its teacher and data."""
    copy = new_run(workdir, path)
    shutil.copytree(run.model("it").path, copy.model("it").path)
    return copy


def reverse(folder):
    """Damage a checkpoint, so that it cannot be read."""
    for path in folder.glob("params/**/d/*"):
        path.write_bytes(path.read_bytes()[::-1])


def put_other_params(folder):
    """Put the parameters of step 4 there, which can be read."""
    shutil.rmtree(folder / "params")
    shutil.copytree(folder.with_name("4") / "params", folder / "params")


@pytest.mark.parametrize("damage", [pytest.param(reverse, marks=pytest.mark.extended), put_other_params])
def test_a_damaged_checkpoint_falls_back_to_an_earlier_round(experiment, workdir, killed, tmp_path, capsys, damage):
    """Of step 3, the end of round 1, before the texts of round 2: the parameters that write texts are checked."""
    run = copied(killed, workdir, tmp_path / "run")
    checkpoints = run.model("it").path / "checkpoints"
    damage(checkpoints / "3")
    for folder in (checkpoints / "4", run.round("it", 1).path):
        shutil.rmtree(folder)
    student.run(experiment, run)
    assert "damaged_checkpoints/3" in capsys.readouterr().err
    assert (run.model("it").path / "damaged_checkpoints/3").is_dir()
    assert_equal_runs(run, workdir, experiment)


@pytest.mark.extended
def test_without_a_readable_checkpoint_the_first_round_begins_again(experiment, workdir, killed, tmp_path):
    run = copied(killed, workdir, tmp_path / "run")
    for folder in (run.model("it").path / "checkpoints").iterdir():
        reverse(folder)
    student.run(experiment, run)
    assert_equal_runs(run, workdir, experiment)


def test_deleted_texts_of_a_round_in_training_are_an_error_of_one_line(experiment, workdir, killed, tmp_path):
    run = copied(killed, workdir, tmp_path / "run")
    shutil.rmtree(run.round("it", 1).path)
    with pytest.raises(KdError) as error:
        student.run(experiment, run)
    assert str(error.value) == (
        f"{run.round('it', 1).path}: expected the texts of round 2, whose training has begun, missing. Run "
        "`student --force --only it` again."
    )


def state_at(run, experiment, step, path):
    """Return the training state of a checkpoint, from a copy without the later ones."""
    shutil.copytree(run.model("it").path / f"checkpoints/{step}", path / f"checkpoints/{step}")
    recipe = experiment.recipes["it"]
    params = initial_params(experiment, run, recipe)
    like = init_state(jax.random.key(0), params, recipe.training.optimizer.build(STEPS))
    with Checkpoints(path) as checkpoints:
        return jax.device_get(checkpoints.restore(like)[0])


def test_the_optimizer_goes_on_over_rounds(experiment, workdir, killed, tmp_path):
    """Step 4 is the first of round 2. Its second moment is at least beta2 times that of step 3, and its count is 4."""
    states = [state_at(killed, experiment, step, tmp_path / str(step)) for step in (3, 4)]
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
    adams = [next(x for x in jax.tree.leaves(one.opt_state, is_leaf=is_adam) if is_adam(x)) for one in states]
    assert [int(adam.count) for adam in adams] == [3, 4] == [int(state.step) for state in states]
    beta2 = experiment.recipes["it"].training.optimizer.beta2
    before, after = (np.concatenate([x.ravel() for x in jax.tree.leaves(adam.nu)]) for adam in adams)
    assert (before > 0).any() and (after >= 0.999999 * beta2 * before).all()
    assert (after > 1.001 * beta2 * before).sum() > (before > 0).sum() / 2  # and step 4 has a gradient of its own


def test_the_learning_rates_are_those_of_one_schedule(workdir):
    """Warm-up over 2 of 6 steps to 0.005, then cosine decay to a twentieth of it."""
    rows = metrics_log.read(workdir.model("it").path / "metrics.jsonl")
    rates = {row["step"]: row["learning_rate"] for row in rows if "learning_rate" in row}
    expected = {n: 0.005 * (0.05 + 0.95 * (1 + np.cos(np.pi * (n - 2) / 4)) / 2) for n in (2, 3, 4, 6)}
    assert rates == pytest.approx(expected, rel=1e-6)


def test_outputs_have_the_rounds_and_their_seconds(workdir):
    folders, outputs = [workdir.round("it", number) for number in range(2)], workdir.model("it").outputs()
    assert outputs["steps"] == STEPS
    assert outputs["rounds"] == [folder.outputs()["digest"] for folder in folders]
    assert len(set(outputs["rounds"])) == 2
    assert outputs["sampling_seconds"] == sum(folder.outputs()["sampling_seconds"] for folder in folders)
    assert 0 < outputs["sampling_seconds"] < workdir.model("it").manifest()["seconds"]


FAMILIES = {
    "encoder_decoder": ({}, False),
    "decoder_only": ({"model": DECODER_ONLY, "init": Random()}, True),  # with a teacher of the other family
}


@pytest.mark.parametrize("family", [pytest.param("encoder_decoder", marks=pytest.mark.extended), "decoder_only"])
def test_the_parameters_at_the_end_of_a_round_write_the_texts_of_the_next(base, workdir, tmp_path, monkeypatch, family):
    """At temperature 0 each token is the most likely one after those before it, in a forward pass over the text."""
    changes, packed = FAMILIES[family]
    experiment = with_student(base, Rounds(share=1.0, count=2, temperature=0.0), {"packed": packed}, **changes)
    run, recipe = new_run(workdir, tmp_path / "run"), experiment.recipes["it"]
    killed_run(experiment, run, monkeypatch, lambda patch: patch_cache(patch, 2))
    first = initial_params(experiment, run, recipe)
    with Checkpoints(run.model("it").path) as checkpoints:
        params = {step: checkpoints.params(step, first) for step in (2, 3)} | {0: first}
    tokenizer = tokenizers.load(experiment.tokenizer, run.data)
    model, layout = recipe.model.build(tokenizer.vocab_size), recipe.model.layout(tokenizer.start)
    logits = jax.jit(lambda params, inputs: model.head(params).logits(model.apply(params, inputs)))
    shares = {}
    for number in range(2):
        split = Split(run.round("it", number), "train")
        own = [split.read(i) for i in range(len(split))]
        batch = layout.batch([[one] for one in own], len(own), experiment.shapes[-1], {})
        assert all(one.own for one in own) and batch.mask_BT.sum() > 100
        for step, some in params.items():
            logits_BTV = np.array(logits(some, batch.inputs))
            logits_BTV[..., list(TextTokens.of(tokenizer).suppress_tokens)] = -np.inf
            shares[number, step] = (logits_BTV.argmax(-1) == batch.targets_BT)[batch.mask_BT].mean()
        writer = run.round("it", number).inputs()["consumed.student"]
        assert writer == params_digest(params[BOUNDS[number]])
    assert shares[0, 0] == 1.0 and shares[1, 3] == 1.0
    assert max(shares[0, 3], shares[1, 0], shares[1, 2]) < 1.0


def test_one_round_without_own_texts_is_plain_training_in_another_order(base, workdir, tmp_path):
    """Over an epoch of one row a batch: the same examples, and the same sum of each loss, from two caches."""
    run, experiment = new_run(workdir, tmp_path), with_student(base, Rounds(share=0.0, count=1))
    recipe, plain = experiment.recipes["it"], with_references(workdir.data, 0)
    params = initial_params(experiment, run, recipe)
    write_texts(experiment, run, "it", 0, PooledExamples(plain), params)
    write_signals(Teacher(experiment, run), "it", 0)
    cache.run(with_student(base, None), run)
    splits = {
        "rounds": Split(run.round("it", 0), "train", {"topk": Store(run.round_cache("it", 0, "topk").path, "records")}),
        "plain": with_references(run.data, 0, {"topk": Store(run.cache("", "topk").path, "records")}),
    }
    model = recipe.model.build(run.data.outputs()["vocab_size"])
    loss = functools.partial(loss_fn, model=model, terms=TERMS)
    run_loss = jax.jit(lambda batch: loss((params, {}), batch, count_tokens(batch), None, None)[1])
    examples, order, totals = {}, {}, {}
    for name, split in splits.items():
        layout = recipe.model.layout(run.data.outputs()["start"])
        batches = TrainBatches(split, layout, experiment.shapes, tokens_per_batch=1, packed=False, divisor=1, seed=0)
        assert batches.batches_per_epoch == len(split) > 30
        some = [batches[i] for i in range(len(split))]
        order[name] = [tuple(batch.targets_BT[batch.mask_BT].tolist()) for batch in some]
        prompts = [tuple(batch.inputs.encoder.ids_BT[batch.inputs.encoder.segment_BT > 0].tolist()) for batch in some]
        examples[name] = collections.Counter(zip(prompts, order[name], strict=True))
        sums = [jax.device_get(run_loss(batch)) for batch in some]
        totals[name] = {
            term: (np.sum([np.float64(one[term].value) for one in sums]), np.sum([one[term].weight for one in sums]))
            for term in TERMS
        }
    assert examples["rounds"] == examples["plain"] and order["rounds"] != order["plain"]
    for term in TERMS:
        assert totals["rounds"][term][1] == totals["plain"][term][1] > 300
        np.testing.assert_allclose(totals["rounds"][term][0], totals["plain"][term][0], rtol=1e-5)
        assert totals["plain"][term][0] > 1


@pytest.mark.extended
def test_the_other_examples_may_have_the_teachers_texts(base, workdir, tmp_path):
    """With weights; the phase `cache` writes them, and no signals for students in rounds."""
    experiment = with_student(base, Rounds(share=0.5, count=2, others=PseudoTargets(beam=2)))
    run = new_run(workdir, tmp_path)
    cache.run(experiment, run)
    student.run(experiment, run)
    recipe = experiment.recipes["it"]
    pseudo = Split(run.split(recipe.train_targets.name), "train")
    key = lambda one: tuple(tuple(x.tolist()) for x in one.encoded)  # noqa: E731
    weights = {key(one): one.weight for one in map(pseudo.read, range(len(pseudo)))}
    split = Split(run.round("it", 1), "train")
    others = [one for one in map(split.read, range(len(split))) if not one.own]
    assert 5 < len(others) < len(split) and all(weights[key(one)] == one.weight for one in others)
    assert not run.cache(recipe.train_targets.name, "topk").path.exists()


@pytest.mark.extended
def test_a_task_without_prompts_trains_on_continuations(base, tmp_path):
    """Documents of a decoder-only model; files show beginnings of up to 6 tokens and what follows."""
    model = dataclasses.replace(DECODER_ONLY, dropout=0.0)
    recipe = dataclasses.replace(base.teacher, model=model, terms={"ce": Term(cross_entropy)})
    changed = with_student(base, Rounds(share=1.0, count=2, beginning=6), {"packed": True}, model=model, init=Random())
    changes = {"source": Toy(80, kind="documents"), "task": Generation(window=24, context=8), "buckets": (16, 32)}
    changed = dataclasses.replace(changed, teacher=recipe, tokenizer=SentencePiece(40), **changes)
    run = Workdir(tmp_path)
    for phase in (prepare, teacher, student):
        phase.run(changed, run)
    rows = [row for row in metrics_log.read(run.model("it").path / "metrics.jsonl") if "loss" in row]
    assert rows and all(row["ce"] == 0 and row["kd"] > 0 for row in rows)
    for number in range(2):
        lines = own_lines(run, number)
        assert len(lines) > 20 and max(len(line["prompt_ids"]) for line in lines) == 6
        assert all(len(line["prompt_ids"]) + len(line["ids"]) <= 32 for line in lines)


def test_profile_over_two_rounds_traces_both(experiment, workdir, tmp_path, capsys):
    """Steps 3 and 4 are the last of the first round and the first of the second."""
    run = new_run(workdir, tmp_path)
    student.run(experiment, run, profile=(3, 4))
    assert len(list(run.profile("it").rglob("*.xplane.pb"))) == 2
    log = capsys.readouterr().err
    assert f"profile: steps 3 to 4 in {run.profile('it')}" in log and log.count("profile:") == 1
    assert_equal_runs(run, workdir, experiment)
