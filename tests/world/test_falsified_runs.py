"""A finished run cannot be made to lie: every command compares every field, module and digest that a folder depends on.

The expected messages are written by hand: the field's name, the value of experiments/configs/smoke.py, and the new one.
"""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

import kd_jax
from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.main import main
from kd_jax.cli.overrides import apply_overrides
from kd_jax.errors import KdError
from kd_jax.phases import prepare
from kd_jax.phases.workdirs import lock_workdir

SMOKE = "experiments/configs/smoke.py"
COMMANDS = ("prepare", "teacher", "cache", "student", "evaluate", "report", "run")
# phase whose folder depends on the field -> field, its value in the run, another one
CHANGES = {
    "prepare": [
        ("source.examples", "400", "200"),
        ("tokenizer.vocab_size", "64", "500"),
        ("task.source", '"en"', "de"),
    ],
    "teacher": [
        ("teacher.training.tokens_per_batch", "512", "256"),
        ("teacher.training.optimizer.learning_rate", "0.005", "0.1"),
        ("teacher.terms.ce.options.label_smoothing", "0.1", "0.2"),
        ("seed", "0", "5"),
    ],
    "cache": [("evaluation.cached_k", "128", "16")],
    "student": [
        ("students.student_scratch.model.activation", '"relu"', "gelu"),
        ("students.student_kd.terms.kd.signal.k", "8", "4"),
        ("students.student_init.training.steps", "60", "30"),
        ("students.student_init.init.width", '"importance"', "first"),
    ],
    "evaluate": [("evaluation.bootstrap", "100", "50"), ("task.decoding.beam", "2", "3")],
}
CASES = [
    pytest.param(command, *change, marks=[pytest.mark.extended] if change in changes[1:] else [])
    for command in COMMANDS
    for changes in CHANGES.values()
    for change in changes
]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".kd_jax.lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().split("\n")[-1]


@pytest.fixture(scope="module")
def run_copy(smoke_run, tmp_path_factory) -> Path:
    """A copy of the smoke run that no test changes."""
    return Path(shutil.copytree(smoke_run, tmp_path_factory.mktemp("finished") / "run"))


@pytest.mark.parametrize("command, field, old, new", CASES)
def test_each_command_refuses_a_changed_field_of_each_phase(run_copy, root, capsys, command, field, old, new):
    before = bytes_of(run_copy)
    assert main([command, str(root / SMOKE), "--workdir", str(run_copy), f"--{field}", new]) == 2
    error = last_line(capsys)
    assert re.search(rf"expected {re.escape(field)} = {re.escape(old)}, which the folder was made with, got ", error)
    assert re.search(rf'got "?{re.escape(new)}"?\. Choose another --workdir, or run `[a-z]+ --force', error)
    assert bytes_of(run_copy) == before


# command and options that may change a field of their own, or one that no folder depends on
ALLOWED = [
    "prepare --force --tokenizer.vocab_size 500",
    "prepare --force --task.source de",
    "teacher --force --teacher.training.steps 120 --seed 5",
    "cache --force --students.student_kd.terms.kd.signal.k 16",
    "cache --force --evaluation.cached_k 16",
    "student --force --students.student_kd.training.steps 30",
    "student --force --only student_kd --students.student_kd.training.steps 30",
    "evaluate --force --evaluation.bootstrap 50 --task.decoding.beam 3",
    "report --comparison.distilled student_init",
    "report --evaluation.samples 3 --name another",
    "student --backend jit",
    "run --force --source.examples 200 --seed 5",
]
# command and options -> the field that a folder of an earlier phase, or one that is not made again, depends on
REFUSED = {
    "prepare --force --seed 5": "seed",
    "prepare --force --evaluation.bootstrap 50": "evaluation.bootstrap",
    "teacher --force --source.examples 200": "source.examples",
    "teacher --force --students.student_kd.training.steps 30": "students.student_kd.training.steps",
    "cache --force --seed 5": "seed",
    "cache --force --students.student_kd.training.steps 30": "students.student_kd.training.steps",
    "student --force --teacher.training.steps 120": "teacher.training.steps",
    "student --force --evaluation.bootstrap 50": "evaluation.bootstrap",
    "student --force --only student_kd --students.student_init.training.steps 30": "students.student_init.training.steps",  # noqa: E501
    "evaluate --force --source.seed 3": "source.seed",
    "evaluate --force --evaluation.cached_k 16": "evaluation.cached_k",
    "evaluate --force --students.student_kd.model.dropout 0.1": "students.student_kd.model.dropout",
}


@pytest.mark.parametrize("words", ALLOWED)
def test_a_phase_may_change_its_own_fields_and_those_that_nothing_depends_on(
    run_copy, root, capsys, monkeypatch, words
):
    command, *options = words.split()

    def reached(*_, **__):
        raise KdError("the phase was reached")

    monkeypatch.setattr(f"kd_jax.phases.{command}.run", reached)
    before = bytes_of(run_copy)
    assert main([command, str(root / SMOKE), "--workdir", str(run_copy), *options]) == 2
    assert last_line(capsys) == "error: the phase was reached"
    assert bytes_of(run_copy) == before  # also experiment.json, since the phase failed


@pytest.mark.parametrize("words, field", REFUSED.items())
def test_force_does_not_change_fields_of_other_phases(run_copy, root, capsys, words, field):
    command, *options = words.split()
    before = bytes_of(run_copy)
    assert main([command, str(root / SMOKE), "--workdir", str(run_copy), *options]) == 2
    assert f"expected {field} = " in last_line(capsys)
    assert bytes_of(run_copy) == before


def test_students_may_be_added_and_left_out(run_copy, root):
    """The folders that are there serve another student; a term that a finished student lacks is refused."""
    smoke = apply_overrides(str(root / SMOKE), [])

    class Stop(Exception):
        pass

    def check(**students):
        with lock_workdir(Workdir(run_copy), dataclasses.replace(smoke, students=students, comparison=None)):
            raise Stop

    student = smoke.students["student_kd"]
    for students in ({**smoke.students, "mine": student}, {"mine": student}, {"student_kd": student}):
        with pytest.raises(Stop):
            check(**students)
    more = dataclasses.replace(student, terms={**student.terms, "more": student.terms["ce"]})
    with pytest.raises(KdError, match=r"expected students\.student_kd\.terms\.more = absent"):
        check(student_kd=more)
    with pytest.raises(KdError, match=r"expected students\.student_kd\.terms\.kd = .*, got absent"):
        check(student_kd=dataclasses.replace(student, terms={"ce": student.terms["ce"]}))


def replace_digest(path: Path) -> None:
    """Make a folder another one: its outputs have another digest, as if its phase had run with another result."""
    manifest = json.loads(path.read_text())
    manifest["outputs"]["digest"] = "0" * 32
    if "tokenizer" in manifest["outputs"]:
        manifest["outputs"]["tokenizer"] = "0" * 32
    del manifest["digest"]
    digest = hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).hexdigest()
    path.write_text(json.dumps(manifest | {"digest": digest}))


# replaced folder -> command -> the folder that was made from another one, what it was made from, the remedy
CHAINS = {
    "data": {"generate student_scratch": ("students/student_scratch", "tokenizer", "student --force")},
    "teacher": {
        "generate student_kd": ("cache/topk", "teacher", "cache --force"),
        "generate student_init": ("students/student_init", "teacher", "student --force --only student_init"),
        "export student_kd": ("cache/topk", "teacher", "cache --force"),
        "student": ("students/student_init", "teacher", "student --force"),
        "evaluate": ("students/student_init", "teacher", "student --force"),
        "report": ("students/student_init", "teacher", "student --force"),
    },
    "cache/topk": {
        "generate student_kd": ("students/student_kd", "cache.topk", "student --force --only student_kd"),
        "report": ("students/student_kd", "cache.topk", "student --force --only student_kd"),
    },
    "cache/validation_topk": {"report": ("evaluation", "validation_topk", "evaluate --force")},
    "students/student_scratch": {
        "report": ("evaluation", "model.student_scratch", "evaluate --force"),
        "evaluate": ("evaluation", "model.student_scratch", "evaluate --force"),
    },
}


@pytest.mark.parametrize(
    "replaced, command, stale", [(replaced, *one) for replaced, cases in CHAINS.items() for one in cases.items()]
)
def test_a_folder_made_from_another_one_is_named(smoke_copy, root, tmp_path, capsys, replaced, command, stale):
    replace_digest(smoke_copy / replaced / "manifest.json")
    command, *model = command.split()
    words = ["--model", *model] if model else [str(root / SMOKE)]
    words += ["--to", str(tmp_path / "to")] if command == "export" else []
    assert main([command, "--workdir", str(smoke_copy), *words]) == 2
    folder, made_with, remedy = stale
    error = last_line(capsys)
    assert error.startswith(f"error: {smoke_copy / folder}: expected to be made with {made_with} ")
    assert f"run `{remedy}" in error and not (tmp_path / "to").exists()


def test_a_model_whose_origin_is_unchanged_is_used(smoke_copy):
    """student_scratch has no teacher, and a deleted cache is not compared."""
    replace_digest(smoke_copy / "teacher" / "manifest.json")
    text = kd_jax.load_model(smoke_copy, "student_scratch").generate(["one red house"])
    assert text == kd_jax.load_model(smoke_copy, "student_scratch").generate(["one red house"])
    with pytest.raises(KdError, match="expected to be made with teacher"):
        kd_jax.load_model(smoke_copy, "student_kd")
    with pytest.raises(KdError, match="load_params|expected the saved parameters"):
        kd_jax.load_model(smoke_copy, "teacher")


def test_a_deleted_cache_is_not_compared(smoke_copy):
    shutil.rmtree(smoke_copy / "cache")
    assert kd_jax.load_model(smoke_copy, "student_kd").generate(["one red house"])


def test_a_retrained_student_has_neither_report_nor_figures(smoke_copy, root, tmp_path, capsys, lax_promotion):
    old = json.loads((smoke_copy / "students/student_scratch/manifest.json").read_text())["outputs"]["digest"]
    words = [str(root / SMOKE), "--workdir", str(smoke_copy)]
    steps = ["--students.student_scratch.training.steps", "30"]
    export = ["export", "--workdir", str(smoke_copy), "--model", "student_scratch", "--to"]
    assert main([*export, str(tmp_path / "before")]) == 0
    card = (tmp_path / "before/README.md").read_text()
    assert old in card and "| teacher" in card
    assert main(["student", *words, "--force", "--only", "student_scratch", *steps]) == 0
    new = json.loads((smoke_copy / "students/student_scratch/manifest.json").read_text())["outputs"]["digest"]
    assert new != old
    for command in (["report"], ["evaluate"]):
        assert main([*command, *words, *steps]) == 2
        assert f'made with model.student_scratch "{new}", got "{old}"' in last_line(capsys)
    assert main(["report", *words]) == 2  # with the steps of before
    assert "expected students.student_scratch.training.steps = 30" in last_line(capsys)
    assert main([*export, str(tmp_path / "after")]) == 0
    card = (tmp_path / "after/README.md").read_text()
    assert new in card and old not in card and "| teacher" not in card and "None yet." in card


def test_experiment_json_that_was_edited_is_not_believed(smoke_copy, tmp_path, capsys):
    path = smoke_copy / "experiment.json"
    path.write_text(path.read_text().replace('"relu"', '"gelu"'))
    for words in (["generate"], ["export", "--to", str(tmp_path / "to")]):
        assert main([*words, "--workdir", str(smoke_copy)]) == 2
        assert 'model.activation = "relu", which the folder was made with, got "gelu"' in last_line(capsys)


def test_another_test_file_is_refused_before_and_with_force(root, tmp_path, capsys):
    """The evaluation is of the test split that was prepared, whatever files a command names."""
    for name, words in {"en": "one two three four", "fr": "un deux trois quatre"}.items():
        for split in ("train", "valid", "test", "other"):
            lines = [f"{word} {split} {i}" for i in range(30) for word in words.split()]
            (tmp_path / f"{split}.{name}").write_text("\n".join(lines) + "\n")
    files = {name: (str(tmp_path / f"{name}.en"), str(tmp_path / f"{name}.fr")) for name in ("train", "valid", "test")}
    source = kd_jax.Files(train=files["train"], validation=files["valid"], test=files["test"])
    smoke = apply_overrides(str(root / SMOKE), ["--tokenizer.vocab_size", "34"])
    experiment = dataclasses.replace(smoke, source=source)
    workdir = Workdir(tmp_path / "w")
    with lock_workdir(workdir, experiment):
        prepare.run(experiment, workdir)
    other = dataclasses.replace(source, test=(str(tmp_path / "other.en"), str(tmp_path / "other.fr")))
    for force in ((), ("evaluate",)):
        with (
            pytest.raises(KdError, match=r"data: expected source\.test = \[.*test\.en.*got \[.*other\.en"),
            lock_workdir(workdir, dataclasses.replace(experiment, source=other), force=force),
        ):
            pass
