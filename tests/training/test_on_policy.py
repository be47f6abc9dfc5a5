"""On-policy training: losses on own texts, their figures, and runs that stop and resume to the same bits."""

import dataclasses
import functools
import json
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax import DecoderOnly, Generation, Schedule, SentencePiece, Toy
from kd_jax.artifacts import metrics_log
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.layouts import Bucket
from kd_jax.batches.on_policy import OnPolicy
from kd_jax.batches.pipeline import Split, with_references
from kd_jax.errors import KdError, Preempted
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import reverse_kl
from kd_jax.models.base import Head, Model
from kd_jax.objective.terms import Term
from kd_jax.phases import prepare, student, teacher
from kd_jax.runtime import preemption
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.mesh import Mesh
from kd_jax.signals.online import Online
from kd_jax.teaching.own_texts import OwnTextWriter
from kd_jax.training.meter import Meter
from kd_jax.training.model import load_trained, on_policy_batches
from kd_jax.training.on_policy import judge_step
from kd_jax.training.step import count_tokens, init_state, loss_fn, train_step
from tests.helpers.batches import random_examples
from tests.helpers.divergences import log_softmax64, reference64
from tests.helpers.families import FAMILIES, V, each_family, network
from tests.helpers.own_texts import examples_in, own_batches, random_text
from tests.helpers.runs import linked_run, smoke

START, PREFIX, TX = 1, 3, optax.sgd(1.0)
BUCKETS = (Bucket(5, 5), Bucket(9, 12))
EXAMPLES = random_examples(1, [(1 + i % 9, 1 + i % 11) for i in range(60)], V)
CE, KD = Term(cross_entropy, weight=0.4), Term(reverse_kl, weight=0.6, signal=Online())
TERMS = {"ce": CE, "kd": KD}
each_packing = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])


def text_of(prompt):
    return random_text(prompt) % V


@functools.cache
def own_batch(architecture, packed=False, share=0.5):
    """Return a batch of 16 rows of texts of the last bucket's length, and the own texts by their segments."""
    layout = architecture.layout(START, (PREFIX,))
    size = int(layout.sizes(np.asarray(BUCKETS[-1]))[-1])
    options = {"packed": packed, "tokens_per_batch": 14 * size, "divisor": 16}
    batches = own_batches(EXAMPLES, OnPolicy(share=share, pool=1), layout, BUCKETS[-1:], **options)
    prompts = batches.begin(0)
    batches.fill([text_of(prompt) for prompt in prompts])
    batch = next(batches)
    assert (
        batch.mask_BT.shape == (16, size) and batch.own_BT.any() and (share == 1) == batch.own_BT[batch.mask_BT].all()
    )
    return batch, {1 + len(EXAMPLES) + prompt.number: text_of(prompt) for prompt in prompts}


@functools.cache
def compiled_loss(architecture, names):
    model = network(architecture)[0]
    loss = functools.partial(loss_fn, model=model, teacher=model, terms={name: TERMS[name] for name in names})
    run = lambda params, t, batch: loss((params, {}), batch, count_tokens(batch), None, t)  # noqa: E731
    return jax.jit(jax.value_and_grad(run, has_aux=True))


def loss_of(architecture, batch, *names):
    """Return (loss, Sums, gradient)."""
    _, params, teacher_params = network(architecture)
    (loss, sums), gradient = compiled_loss(architecture, names)(params, teacher_params, batch)
    return loss, sums, gradient


@each_packing
@each_family
def test_cross_entropy_has_no_gradient_on_own_texts(architecture, packed):
    batch, _ = own_batch(architecture, packed, share=1.0)
    loss, sums, gradient = loss_of(architecture, batch, "ce")
    assert loss == 0 and sums["ce"].weight == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    loss, sums, gradient = loss_of(architecture, batch, "kd")
    assert loss > 1e-3 and sums["kd"].weight == batch.mask_BT.sum()
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@each_packing
@each_family
def test_cross_entropy_reads_the_other_targets_alone(architecture, packed):
    """Its reported mean is theirs. Other ids in place of own targets change no bit of the step, others do."""
    batch, _ = own_batch(architecture, packed)
    model, params, _ = network(architecture)
    loss, sums, gradient = loss_of(architecture, batch, "ce", "kd")
    logits_BTV = jax.jit(lambda p, inputs: model.head(p).logits(model.apply(p, inputs)))(params, batch.inputs)
    nll_BT = -np.take_along_axis(log_softmax64(logits_BTV), np.asarray(batch.targets_BT)[..., None], -1)[..., 0]
    read_BT = batch.mask_BT & ~batch.own_BT
    assert sums["ce"].weight == read_BT.sum() > 0
    np.testing.assert_allclose(sums["ce"].mean(), nll_BT[read_BT].mean(), rtol=1e-5)
    other = batch._replace(targets_BT=np.where(batch.own_BT, (batch.targets_BT + 5) % V, batch.targets_BT))
    chex.assert_trees_all_equal(loss_of(architecture, other, "ce", "kd"), (loss, sums, gradient))
    other = batch._replace(targets_BT=np.where(read_BT, (batch.targets_BT + 5) % V, batch.targets_BT))
    assert abs(loss_of(architecture, other, "ce", "kd")[0] - loss) > 1e-3
    # Both terms are divided by all targets: of the step there is one count.
    want = (0.4 * float(sums["ce"].value) + 0.6 * float(sums["kd"].value)) / batch.mask_BT.sum()
    np.testing.assert_allclose(loss, want, rtol=1e-6)


@pytest.mark.parametrize("family, packed", [("encoder_decoder", False), ("decoder_only", True)])
def test_step_on_own_texts_is_independent_of_devices_and_microbatches(family, packed):
    architecture = FAMILIES[family]
    (model, params, teacher_params), (batch, _) = network(architecture), own_batch(architecture, packed)
    results = []
    for backend, microbatches in (("jit", 1), ("jit", 4), ("pmap", 1)):
        devices = make_devices(backend)
        assert devices.count == (8 if backend == "pmap" else 1)
        parts = {"model": model, "teacher": model, "terms": {"ce": CE, "kd": KD}, "tx": TX}
        step = devices.compile_sums(functools.partial(train_step, **parts, microbatches=microbatches))
        state, replicated = devices.replicate((init_state(jax.random.key(1), params, TX), teacher_params))
        state, sums = step(state, devices.shard(batch), replicated)
        host = jax.device_get(devices.unreplicate((state.params, sums)))
        results.append((host[0], {name: one.mean() for name, one in host[1].items()}))
    for got in results[1:]:
        chex.assert_trees_all_close(got, results[0], atol=1e-6, rtol=1e-5)


def lookup(batch):
    """Return a network whose parameters are its logits [B, T, V] on this batch."""
    wide = batch.mask_BT.shape
    return Model(
        init=lambda key: {},
        apply=lambda params, inputs, dropout_key=None: params["logits"],
        taps=lambda params, inputs, dropout_key=None: (params["logits"], {}),
        head=lambda params: Head(jnp.eye(params["logits"].shape[-1])),
        prefill=lambda *_: wide,
        extend=lambda *_: wide,
    )


def text_positions(batch, texts):
    """Return where the logits of an own text's tokens are, bool [B, T]: its length counted back from its segment's end.

    The first is the last position of the prompt and the forced prefix; the last predicts the end token.
    """
    where_BT = np.zeros(batch.mask_BT.shape, bool)
    for b, segment_T in enumerate(np.asarray(batch.inputs.decoder.segment_BT)):
        for segment in set(segment_T.tolist()) & set(texts):
            end = int(np.flatnonzero(segment_T == segment)[-1]) + 1
            where_BT[b, end - len(texts[segment]) : end] = True
    return where_BT


@each_packing
@each_family
def test_the_loss_reads_the_logits_from_the_last_prompt_token_to_the_end_token(architecture, packed):
    """Others, of the prompt and the forced prefix before it and of padding after it, change no bit."""
    batch, texts = own_batch(architecture, packed, share=1.0)
    rng, read_BT = np.random.default_rng(0), text_positions(batch, texts)
    student, teacher = rng.normal(size=(2, *batch.mask_BT.shape, V)).astype(np.float32)
    model = lookup(batch)
    loss = functools.partial(loss_fn, model=model, teacher=model, terms={"kd": KD})

    @jax.jit
    def value_and_grad(student, teacher):
        run = lambda x: loss(({"logits": x}, {}), batch, count_tokens(batch), None, {"logits": teacher})[0]  # noqa: E731
        return jax.value_and_grad(run)(student)

    want = value_and_grad(student, teacher)
    np.testing.assert_array_equal(np.any(want[1], axis=-1), read_BT)
    junk = np.where(read_BT[..., None], 0.0, 1e4 * rng.integers(-1, 2, (*read_BT.shape, V))).astype(np.float32)
    chex.assert_trees_all_equal(value_and_grad(student + junk, teacher - junk), want)
    kl_BT = reference64("reverse_kl", 0.5, log_softmax64(teacher), log_softmax64(student))[0]
    np.testing.assert_allclose(want[0], 0.6 * kl_BT[read_BT].sum() / read_BT.sum(), rtol=1e-5)
    # The first and the last logits of each text, by themselves.
    first_BT = read_BT & ~np.roll(read_BT, 1, axis=1)
    for where_BT in (first_BT, read_BT & ~np.roll(read_BT, -1, axis=1)):
        nudge = np.where(where_BT[..., None], rng.normal(size=student.shape), 0.0).astype(np.float32)
        assert abs(value_and_grad(student + nudge, teacher)[0] - want[0]) > 1e-3
        assert abs(value_and_grad(student, teacher + nudge)[0] - want[0]) > 1e-3


def test_judgement_equals_float64():
    """Forward and reverse KL, and how many of the teacher's 20 most likely tokens are among the student's, of 40."""
    batch, _ = own_batch(FAMILIES["encoder_decoder"], share=1.0)
    rng, mask_BT = np.random.default_rng(0), batch.mask_BT
    student, teacher = rng.normal(size=(2, *mask_BT.shape, 40)).astype(np.float32)
    student += teacher
    model = lookup(batch)
    run = jax.jit(functools.partial(judge_step, student=model, teacher=model))
    sums = run(({"logits": student}, {"logits": teacher}), batch)
    p_logp, q_logp = log_softmax64(teacher)[mask_BT], log_softmax64(student)[mask_BT]
    top = lambda logp: [set(row.tolist()) for row in np.argsort(-logp, axis=-1)[:, :20]]  # noqa: E731
    overlap = np.mean([len(a & b) / 20 for a, b in zip(top(p_logp), top(q_logp), strict=True)])
    assert 0.5 < overlap < 0.9
    expected = {
        "own_kl": reference64("forward_kl", 0.5, p_logp, q_logp)[0].mean(),
        "own_reverse_kl": reference64("reverse_kl", 0.5, p_logp, q_logp)[0].mean(),
        "own_top_20": overlap,
    }
    assert {name: float(one.mean()) for name, one in sums.items()} == pytest.approx(expected, rel=1e-5)
    assert {int(one.weight) for one in sums.values()} == {mask_BT.sum()}


SHORT = """
--teacher.training.steps 12 --teacher.training.eval-every 12 --teacher.training.optimizer.warmup 2
--students.student_kd.training.steps 8 --students.student_kd.training.eval-every 2
--students.student_kd.training.optimizer.warmup 2
"""
STEPS, POOL = 8, 2


def with_student(experiment, targets, base="student_kd", model=None, **training):
    """Return the experiment with one student, which learns from the teacher in the step, with dropout."""
    recipe = experiment.students[base]
    return dataclasses.replace(
        experiment,
        comparison=None,
        students={
            "it": dataclasses.replace(
                recipe,
                model=dataclasses.replace(model or recipe.model, dropout=0.1),
                targets=targets,
                terms={"ce": CE, "kd": KD},
                training=dataclasses.replace(recipe.training, select="cross_entropy", **training),
            )
        },
    )


@pytest.fixture(scope="module")
def experiment(root, lax_promotion):
    return with_student(smoke(root, SHORT.split()), OnPolicy(share=0.5, pool=POOL))


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
    """Return a workdir with a teacher and an uninterrupted run of the student."""
    run = Workdir(tmp_path_factory.mktemp("run"))
    for phase in (prepare, teacher, student):
        phase.run(experiment, run)
    return run


def params_of(run, experiment):
    return jax.device_get(load_trained(experiment, run, "it")[1])


def log_of(run):
    """Return the rows of the log without the times."""
    timed = ("seconds", "tokens", "tokens_per_second")
    rows = metrics_log.read(run.model("it").path / "metrics.jsonl")
    return [
        {k: v for k, v in row.items() if k not in timed and not k.endswith(("_seconds", "_per_second"))} for row in rows
    ]


def texts_of(run):
    """Return name -> contents of the files of own texts."""
    return {path.name: path.read_text() for path in (run.model("it").path / "own_texts").iterdir()}


def pool_starts(run):
    return [row["step"] for row in log_of(run) if "own_texts" in row]


def assert_equal_runs(run, other, experiment):
    chex.assert_trees_all_equal(params_of(run, experiment), params_of(other, experiment))
    assert texts_of(run) == texts_of(other)
    mine, theirs = ([row for row in log_of(one) if "loss" not in row] for one in (run, other))
    assert mine == theirs


def test_the_log_and_the_files_show_the_own_texts(experiment, workdir):
    rows, files = [row for row in log_of(workdir) if "own_texts" in row], texts_of(workdir)
    assert len(rows) > 2 and sorted(files) == [f"{row['step']:08d}.jsonl" for row in rows]
    for row in rows:
        lines = [json.loads(line) for line in files[f"{row['step']:08d}.jsonl"].splitlines()]
        assert len(lines) == row["own_texts"] and sum(len(line["ids"]) for line in lines) == row["own_tokens"]
        assert row["own_length"] == pytest.approx(np.mean([len(line["ids"]) for line in lines]))
        assert row["own_cut"] == pytest.approx(np.mean([line["ids"][-1] != 2 for line in lines]))
        pairs = [list(zip(line["ids"], line["ids"][1:], strict=False)) for line in lines]
        assert row["own_distinct_2"] == pytest.approx(sum(len(set(p)) for p in pairs) / sum(map(len, pairs)))
        assert row["own_kl"] > 0 and row["own_reverse_kl"] > 0 and 0 < row["own_top_20"] <= 1
        assert all(line["prompt"] and line["ended"] == (line["ids"][-1] == 2) for line in lines)
    assert len({line for text in files.values() for line in text.splitlines()}) > 40


KILLS = [3, 6, 8]


@pytest.mark.parametrize("killed_at", [*KILLS[:2], pytest.param(KILLS[2], marks=pytest.mark.extended)])
def test_resume_after_kill_equals_uninterrupted(experiment, workdir, tmp_path, monkeypatch, capsys, killed_at):
    run, read = linked_run(workdir, tmp_path, "data", TEACHER), Meter._read

    def kill(self, step, *metrics):
        if step == killed_at:
            raise KeyboardInterrupt
        read(self, step, *metrics)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Meter, "_read", kill)
        student.run(experiment, run)
    assert not run.model("it").finished()
    student.run(experiment, run)
    assert f"resuming from step {2 * ((killed_at - 1) // 2)}" in capsys.readouterr().err
    assert_equal_runs(run, workdir, experiment)


@pytest.mark.extended
@pytest.mark.parametrize("stop_at", [1, 5])
def test_resume_after_stop_equals_uninterrupted(experiment, workdir, tmp_path, monkeypatch, stop_at):
    run, after_step = linked_run(workdir, tmp_path, "data", TEACHER), Meter.after_step

    def ask(self, step, *metrics):
        after_step(self, step, *metrics)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, preemption.handle_signals(resumes=True), pytest.raises(Preempted):
        patch.setattr(Meter, "after_step", ask)
        student.run(experiment, run)
    student.run(experiment, run)
    assert_equal_runs(run, workdir, experiment)


def test_resume_steps_are_within_a_pool_and_at_its_end(workdir):
    starts, resumed = pool_starts(workdir), {2 * ((step - 1) // 2) for step in KILLS} | {1, 5}
    ends = {start - 1 for start in starts}
    assert resumed & ends and resumed - ends
    assert any(start - 1 in resumed and start - 1 > 0 for start in starts)


@pytest.mark.parametrize("pool", [pytest.param(0, marks=pytest.mark.extended), 1])
def test_a_stop_while_texts_are_written_resumes_to_the_same_bits(
    experiment, workdir, tmp_path, monkeypatch, capsys, pool
):
    """The first pool's stop leaves no step; that of a later one a checkpoint of the step before it."""
    run, write = linked_run(workdir, tmp_path, "data", TEACHER), OwnTextWriter.write
    calls = []

    def stop(self, *arguments):
        calls.append(None)
        if len(calls) == pool + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(self, *arguments)

    with monkeypatch.context() as patch, preemption.handle_signals(resumes=True), pytest.raises(Preempted):
        patch.setattr(OwnTextWriter, "write", stop)
        student.run(experiment, run)
    student.run(experiment, run)
    last = pool_starts(workdir)[pool] - 1
    assert (f"resuming from step {last}" in capsys.readouterr().err) == bool(last)
    assert_equal_runs(run, workdir, experiment)


def test_share_0_is_the_training_without_on_policy(experiment, workdir, tmp_path):
    logs, params = [], []
    for name, targets in (("own", OnPolicy(share=0.0, pool=3)), ("plain", None)):
        run, changed = linked_run(workdir, tmp_path / name, "data", TEACHER), with_student(experiment, targets, "it")
        student.run(changed, run)
        params.append(params_of(run, changed))
        logs.append([row for row in log_of(run) if "valid_cross_entropy" in row])
    chex.assert_trees_all_equal(*params)
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    "bound, message",
    [
        (
            {"max_cut": 0.0, "length": 12},
            "targets.max_cut: expected at most 0% texts without an end among its own, got",
        ),
        pytest.param(
            {"min_distinct": 1.0},
            "targets.min_distinct: expected at least 100% different pairs of tokens among its own",
            marks=pytest.mark.extended,
        ),
    ],
)
def test_texts_beyond_a_bound_stop_the_run_and_keep_the_checkpoint(experiment, workdir, tmp_path, bound, message):
    """The first texts are written for step 5, after the checkpoint of step 4."""
    run = linked_run(workdir, tmp_path, "data", TEACHER)
    share = Schedule(0.0, 1.0, steps=1, begin=3)
    changed = with_student(experiment, OnPolicy(share=share, pool=2, temperature=1.5, **bound), "it")
    with pytest.raises(KdError) as error:
        student.run(changed, run)
    folder = run.model("it").path
    assert str(error.value).startswith(f"it: step 5: {message}") and f"Read them in {folder / 'own_texts'}" in str(
        error.value
    )
    assert (folder / "own_texts/00000005.jsonl").exists() and (folder / "checkpoints/4").is_dir()
    assert str(error.value).endswith("Last good checkpoint: step 4.")
    assert [row["step"] for row in log_of(run) if "own_cut" in row] == [5]
    assert not run.model("it").finished()


@pytest.mark.extended
@pytest.mark.parametrize("backend, mesh", [("pmap", Mesh()), ("mesh", Mesh(fsdp=4, tensor=2))])
def test_backends_train_to_the_same_loss(experiment, workdir, tmp_path, backend, mesh):
    """The rows are a multiple of eight, so all backends have the same batches."""
    losses, texts = [], []
    for name, options in (("jit", ("jit", Mesh())), ("other", (backend, mesh))):
        run = linked_run(workdir, tmp_path / name, "data", TEACHER)
        changed = with_student(experiment, OnPolicy(pool=2), "it", tokens_per_batch=768, steps=3)
        changed = dataclasses.replace(changed, backend=options[0], mesh=options[1], buckets=(32,))
        student.run(changed, run)
        losses.append(run.model("it").outputs()["valid_cross_entropy"])
        texts.append(texts_of(run))
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert texts[0]["00000001.jsonl"] == texts[1]["00000001.jsonl"]  # later ones differ by rounding


def prompts_of(run, split, numbers):
    examples = Split(run.data, split)
    return {tuple(examples.read(int(n)).encoded.prompt.tolist()) for n in numbers}


def test_examples_without_a_reference_are_always_own(experiment, workdir):
    """Of a model with 40 references; the others' references are in the data, but not in its batches."""
    rule = OnPolicy(share=0.0, pool=12, unlabelled=True)
    recipe = dataclasses.replace(experiment.students["it"], targets=rule, references=40)
    devices, split = make_devices("jit"), with_references(workdir.data, 40)
    batches = on_policy_batches(experiment, workdir, recipe, rule, split, devices)
    prompts = batches.begin(0)
    known = prompts_of(workdir, "train", split.numbers)
    unknown = prompts_of(workdir, "train", set(range(len(Split(workdir.data, "train")))) - set(split.numbers.tolist()))
    assert len(split) == 40 and len(unknown) > 40
    written = {tuple(prompt.ids.tolist()) for prompt in prompts}
    assert len(written) > 40 and written <= unknown and not written & known
    batches.fill([np.int32([4, 2])] * len(prompts))
    rows = [row for _ in range(12) for row in examples_in(next(batches))]
    assert {tuple(row.prompt) for row in rows if not row.own} <= known
    assert {tuple(row.prompt) for row in rows if row.own} == written


@pytest.mark.parametrize("references", [0, 30])
def test_a_sources_unlabelled_split_is_own(root, tmp_path, references):
    small = smoke(root, SHORT.split())
    source = dataclasses.replace(small.source, labelled=60)
    rule = OnPolicy(share=0.0, pool=12, unlabelled=True)
    changed = with_student(dataclasses.replace(small, source=source), rule)
    recipe = dataclasses.replace(changed.students["it"], references=references)
    run = Workdir(tmp_path)
    prepare.run(dataclasses.replace(changed, students={"it": recipe}), run)
    split = with_references(run.data, references)
    batches = on_policy_batches(changed, run, recipe, rule, split, make_devices("jit"))
    written = {tuple(prompt.ids.tolist()) for prompt in batches.begin(0)}
    free = prompts_of(run, "unlabelled", range(len(Split(run.data, "unlabelled"))))
    if references:
        free |= prompts_of(run, "train", set(range(60)) - set(split.numbers.tolist()))
    assert len(split) == (references or 60) and len(written) > 20 and written <= free


def test_a_task_without_prompts_trains_on_continuations(root, lax_promotion, tmp_path):
    """Documents of a decoder-only model; files show beginnings of up to 6 tokens and what follows."""
    small = smoke(root, SHORT.split())
    model = DecoderOnly(1, d_model=16, heads=2, d_ff=32, dropout=0.0)
    recipe = dataclasses.replace(small.teacher, model=model, terms={"ce": Term(cross_entropy)})
    changes = {
        "source": Toy(80, kind="documents"),
        "tokenizer": SentencePiece(40),
        "task": Generation(window=24, context=8),
    }
    changed = dataclasses.replace(small, teacher=recipe, buckets=(16, 32), **changes)
    changed = with_student(changed, OnPolicy(share=1.0, pool=2, beginning=6), "student_kd", model=model, steps=4)
    run = Workdir(tmp_path)
    for phase in (prepare, teacher, student):
        phase.run(changed, run)
    rows = [row for row in log_of(run) if "own_texts" in row]
    assert len(rows) == 2 and all(row["own_texts"] > 8 for row in rows)
    losses = [row for row in log_of(run) if "loss" in row]
    assert all(row["ce"] == 0 and row["kd"] > 0 for row in losses)
    lines = [json.loads(line) for text in texts_of(run).values() for line in text.splitlines()]
    assert all(len(line["ids"]) <= 26 for line in lines)
