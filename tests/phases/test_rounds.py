"""Pruning and distillation in rounds: a student that starts from parts of another student."""

import dataclasses
import json
import re

import chex
import jax
import numpy as np
import pytest

from kd_jax import DecoderOnly, FromStudent, FromTeacher, Random, Smaller
from kd_jax.artifacts.digests import params_digest
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches import pipeline
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE
from kd_jax.cli.main import main
from kd_jax.cli.overrides import apply_overrides
from kd_jax.errors import KdError
from kd_jax.experiment import resolve
from kd_jax.phases import shrink, student
from kd_jax.phases.check import check
from kd_jax.students.importance import importance
from kd_jax.students.init import init_from_teacher
from kd_jax.teaching.imported.base import required_signal
from kd_jax.teaching.teacher import TrainedModel
from kd_jax.training.meter import Meter
from kd_jax.training.model import initial_params, load_trained
from tests.helpers.runs import copied_run

# deep has the teacher's two decoder layers and sizes; shallow is a narrower half of it.
CONFIG = """
import dataclasses
from kd_jax import FromStudent, Optimizer, Training, load_experiment
smoke = load_experiment({smoke!r})
short = Training(steps=4, eval_every=2, optimizer=Optimizer(learning_rate=0.02, warmup=1), select="cross_entropy")
kd = dataclasses.replace(smoke.students["student_kd"], training=short)
deep = dataclasses.replace(smoke.students["student_init"], model=smoke.teacher.model, training=short)
half = dataclasses.replace(smoke.teacher.model, decoder_layers=1, d_model=20, head_dim=16, d_ff=40)
experiment = dataclasses.replace(
    smoke,
    students={{
        "deep": deep,
        "copy": dataclasses.replace(deep, init=FromStudent("deep")),
        "shallow": dataclasses.replace(kd, model=half, init=FromStudent("deep", decoder=(1,), sample=30)),
    }},
    comparison=None,
)
"""
SHORT = """
--source.examples 120 --tokenizer.vocab-size 60 --buckets 12 32 --backend jit --teacher.training.steps 4
--teacher.training.eval-every 4 --teacher.training.optimizer.warmup 1 --evaluation.cached-k 0 --evaluation.texts 2
--evaluation.samples 2 --evaluation.bootstrap 10 --evaluation.speed-texts 1 --evaluation.draft 0 --task.decoding.beam 1
"""


@pytest.fixture(scope="module")
def config(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("rounds") / "config.py"
    path.write_text(CONFIG.format(smoke=str(root / "experiments/configs/smoke.py")))
    return str(path)


@pytest.fixture(scope="module")
def experiment(config):
    return apply_overrides(config, SHORT.split())


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory, lax_promotion):
    """A finished run. Read only."""
    path = tmp_path_factory.mktemp("run") / "w"
    assert main(["run", config, "--workdir", str(path), *SHORT.split()]) == 0
    return Workdir(path)


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().split("\n")[-1]


def params_of(experiment, workdir, name):
    return jax.device_get(load_trained(experiment, workdir, name)[1])


def same(one, other):
    return all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_a_student_of_the_same_sizes_starts_with_the_bits_of_the_other_one(experiment, workdir):
    deep, first = (
        params_of(experiment, workdir, "deep"),
        initial_params(experiment, workdir, experiment.students["copy"]),
    )
    chex.assert_trees_all_equal(first, deep)
    assert not same(deep, params_of(experiment, workdir, TEACHER))
    assert workdir.model("copy").outputs()["first_parameters"] == params_digest(deep)
    inputs = workdir.model("copy").inputs()
    assert inputs["consumed.model.deep"] == workdir.model("deep").outputs()["digest"]
    assert inputs["students.copy.init.name"] == "deep" and "consumed.teacher" not in inputs


def test_a_narrower_student_keeps_the_other_ones_most_important_parts(experiment, workdir):
    """Importance is measured here on the same 30 training examples, with the other student's activations."""
    recipe, data = experiment.students["shallow"], pipeline.Split(workdir.data, "train")
    indices = np.sort(np.random.default_rng(experiment.seed).choice(len(data), 30, replace=False))
    first = {}
    for name in ("deep", TEACHER):
        model = TrainedModel(experiment, workdir, name)
        layout = experiment.teacher.model.layout(workdir.data.outputs()["start"])
        batches = pipeline.EvalBatches(data, layout, experiment.shapes, INFERENCE_BATCH_SIZE, 1, indices)
        params = model.devices.replicate(params_of(experiment, workdir, name))
        scores = importance(model.model, params, batches, model.devices, head_width=16)
        init = FromTeacher(decoder=(1,), sample=30)
        architectures = experiment.teacher.model, recipe.model
        first[name] = init_from_teacher(init, *architectures, params_of(experiment, workdir, name), 60, scores)
    chex.assert_trees_all_equal(initial_params(experiment, workdir, recipe), first["deep"])
    assert workdir.model("shallow").outputs()["first_parameters"] == params_digest(first["deep"])
    assert not same(first["deep"], first[TEACHER])


def test_a_resumed_student_has_the_bits_of_an_uninterrupted_one(experiment, workdir, tmp_path, monkeypatch):
    run, read = copied_run(workdir, tmp_path, "data", TEACHER, "cache", "students/deep"), Meter._read

    def kill(self, step, *metrics):
        if step == 3:
            raise KeyboardInterrupt
        read(self, step, *metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "_read", kill)
        with pytest.raises(KeyboardInterrupt):
            student.run(experiment, run, only="shallow")
    assert not run.model("shallow").finished()
    student.run(experiment, run, only="shallow")
    chex.assert_trees_all_equal(params_of(experiment, run, "shallow"), params_of(experiment, workdir, "shallow"))


def test_a_retrained_student_puts_those_that_started_from_it_out_of_date(config, workdir, tmp_path, capsys):
    run = copied_run(workdir, tmp_path, "data", TEACHER, "cache", "students", "evaluation", "report")
    old, steps = run.model("deep").outputs()["digest"], ["--students.deep.training.steps", "6"]
    words = [config, "--workdir", str(tmp_path), *SHORT.split()]
    assert main(["student", *words, "--force", "--only", "deep", *steps]) == 0
    new = run.model("deep").outputs()["digest"]
    assert new != old
    message = f'expected to be made with model.deep "{new}", got "{old}". Choose another --workdir, or run `student'
    for command in ("report", "evaluate", "student"):
        assert main([command, *words, *steps]) == 2
        assert last_line(capsys).startswith(f"error: {run.model('copy').path}: {message} --force --only copy`")
    for name in ("copy", "shallow"):
        assert main(["generate", "--workdir", str(tmp_path), "--model", name]) == 2
        assert last_line(capsys).startswith(f"error: {run.model(name).path}: {message} --force --only {name}`")


def test_a_student_whose_start_is_not_trained_says_what_to_run(config, workdir, tmp_path, capsys):
    run = copied_run(workdir, tmp_path, "data", TEACHER, "cache", "students/shallow")
    before = run.model("shallow").outputs()["digest"]
    for force in ([], ["--force"]):
        assert main(["student", config, "--workdir", str(tmp_path), *SHORT.split(), "--only", "shallow", *force]) == 2
        assert last_line(capsys) == (
            "error: students.shallow.init.name: expected a trained student, got deep, which has no finished folder "
            f"{run.model('deep').path}. Run `student --only deep` first."
        )
    assert run.model("shallow").outputs()["digest"] == before


def test_shrink_compares_parts_of_a_trained_student(experiment, workdir, tmp_path, capsys):
    run = copied_run(workdir, tmp_path, "data", TEACHER, "students/deep")
    shrink.run(experiment, run)
    rows = json.loads((run.shrink.path / "shrink.json").read_text())
    teacher, trained, whole, copy = rows[:4]
    assert [teacher["students"], trained["students"]] == [[TEACHER], ["deep"]]
    assert (whole["students"], whole["start"]) == (["deep"], TEACHER)
    assert (copy["students"], copy["start"], copy["layers"]) == (["copy"], "deep", "all")
    assert whole["cross_entropy"] == pytest.approx(teacher["cross_entropy"])
    assert copy["cross_entropy"] == pytest.approx(trained["cross_entropy"])
    assert copy["cross_entropy"] != pytest.approx(teacher["cross_entropy"], rel=1e-3)
    choices = [(row["layers"], row["width"], row["configured"]) for row in rows[4:]]
    widths = ("importance", "first", "random")
    assert choices == [
        (layers, width, (layers, width) == ("listed, last", "importance"))
        for layers in ("listed, last", "spaced, first")
        for width in widths
    ]
    assert all((row["students"], row["start"]) == (["shallow"], "deep") for row in rows[4:])
    inputs = run.shrink.inputs()
    assert inputs["consumed.model.deep"] == run.model("deep").outputs()["digest"]
    assert re.search(r"deep, trained.*\n.*deep \*.*\n.*copy \* +all of deep", capsys.readouterr().out)


def test_shrink_leaves_out_parts_of_an_untrained_student(experiment, workdir, tmp_path, capsys):
    run = copied_run(workdir, tmp_path, "data", TEACHER)
    shrink.run(experiment, run)
    rows = json.loads((run.shrink.path / "shrink.json").read_text())
    assert [row["students"] for row in rows] == [[TEACHER], ["deep"]] and rows[1]["start"] == TEACHER
    sentence = "shrink: parts of deep skipped: it is not trained yet. Run `student --only deep` first."
    assert sentence in capsys.readouterr().err


def with_shallow(experiment, before=("deep",), **changes):
    """Return the experiment with a changed student shallow after those named."""
    students = {name: experiment.students[name] for name in before}
    shallow = dataclasses.replace(experiment.students["shallow"], **changes)
    students["shallow"] = shallow
    later = {name: recipe for name, recipe in experiment.students.items() if name not in students}
    return dataclasses.replace(experiment, students=students | later)


def sizes(experiment, **fields):
    return dataclasses.replace(experiment.teacher.model, **fields)


@pytest.mark.parametrize(
    "before, init, fields, message",
    [
        (("deep",), FromStudent("deeep"), {}, r"init\.name: .* \(deep\), got 'deeep'\. Did you mean deep\?$"),
        (("deep",), FromStudent("x"), {}, r"\(deep\), got 'x'\. Name one of them, or use FromTeacher\.$"),
        (("deep",), FromStudent(""), {}, r"\(deep\), got ''\. Name one of them, or use FromTeacher\.$"),
        (("deep",), FromStudent(TEACHER), {}, r"\(deep\), got 'teacher'\. Name one of them, or use FromTeacher\.$"),
        (
            ("deep",),
            FromStudent("shallow"),
            {},
            r"init\.name: expected a student before shallow in the experiment \(deep\), got 'shallow', the student "
            r"itself\. Name one of them, or use FromTeacher\.$",
        ),
        (("deep",), FromStudent("copy"), {}, r"\(deep\), got 'copy', which comes later\. Move it before shallow\.$"),
        ((), FromStudent("deep"), {}, r"\(there are none\), got 'deep', which comes later\. Move it before shallow\.$"),
        (
            ("deep",),
            FromStudent("deep"),
            {"d_ff": 65},
            r"model\.d_ff: expected at most deep's 64 .*FromStudent, got 65",
        ),
        (
            ("deep",),
            FromStudent("deep"),
            {"decoder_layers": 3},
            r"init\.decoder: expected one of deep's 2 layers for each of the 3 student layers, got \(\)\.",
        ),
        (("deep",), FromStudent("deep", decoder=(2,)), {"decoder_layers": 1}, r"decoder: .* \[0, 1\], got 2"),
        (("deep",), FromStudent("deep", sample=0), {}, r"init\.sample: .*got 0"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(experiment, before, init, fields, message):
    changed = with_shallow(experiment, before, init=init, model=sizes(experiment, **fields))
    with pytest.raises(KdError, match=rf"^students\.shallow\.[^\n]*{message}"):
        check(changed)


def test_a_student_of_another_family_and_a_wider_one_than_its_start_are_refused(experiment):
    narrow = sizes(experiment, d_ff=32)
    deep = dataclasses.replace(experiment.students["deep"], model=narrow)
    other = with_shallow(experiment, init=FromStudent("deep"), model=sizes(experiment, decoder_layers=1))
    students = {"deep": deep, "shallow": other.students["shallow"]}
    # As wide as the teacher, and wider than the student that it starts from.
    with pytest.raises(KdError, match=r"shallow\.model\.d_ff: expected at most deep's 32 for init=FromStudent, got 64"):
        check(dataclasses.replace(experiment, students=students))
    with pytest.raises(KdError, match="model: expected encoder_decoder, deep's family, for init=FromStudent, got dec"):
        FromStudent("deep").check(narrow, DecoderOnly(2))
    teacher = dataclasses.replace(experiment.teacher, init=FromStudent("deep"))
    with pytest.raises(KdError, match=r"teacher\.init: expected Random, .*, got FromStudent\. It is for students\."):
        check(dataclasses.replace(experiment, teacher=teacher))


def test_smaller_is_smaller_than_the_student_that_it_starts_from(experiment):
    narrow = dataclasses.replace(experiment.students["deep"], model=Smaller(d_ff=32))
    half = dataclasses.replace(narrow, model=Smaller(decoder_layers=1), init=FromStudent("deep"))
    changed = resolve(dataclasses.replace(experiment, students={"deep": narrow, "half": half}))
    assert changed.students["half"].model == sizes(experiment, d_ff=32, decoder_layers=1)
    check(changed)


def test_an_imported_teacher_allows_rounds(experiment):
    """No parameter of the teacher is read: the first student starts from random ones."""
    kd = dataclasses.replace(experiment.students["shallow"], model=experiment.teacher.model)
    students = {
        "deep": dataclasses.replace(kd, init=Random()),
        "copy": dataclasses.replace(kd, init=FromStudent("deep")),
    }
    assert required_signal(dataclasses.replace(experiment, students=students)).signal.k == 8


def test_plan_needs_no_trained_student(config, capsys, lax_promotion):
    assert main(["plan", config, "--devices", "1", "--kind", "tpu-v5e", "--only", "shallow", *SHORT.split()]) == 0
    assert re.search(r"1 x tpu-v5e +shallow", capsys.readouterr().out)
