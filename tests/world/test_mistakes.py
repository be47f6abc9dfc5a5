"""Mistakes of users: an experiment file, a command line or a path that is wrong is one line that names the place."""

import os
import subprocess
import sys

import pytest

from kd_jax.cli import failures
from kd_jax.cli.main import main
from kd_jax.config import load_experiment
from kd_jax.errors import KdError

SMOKE = "experiments/configs/smoke.py"
HEAD = "import dataclasses\nimport kd_jax\nfrom kd_jax import *\n"
FILES = {  # text of mine.py -> what follows "config mine.py"
    "experiment = (\n": ", line 1: expected Python, got `experiment = (`: '(' was never closed.",
    "x = 1\n\n  y = 2\n": ", line 3: expected Python, got `y = 2`: unexpected indent.",
    "import nope\n": ", line 1: expected a module that is installed or stands beside the config, got nope.",
    "\nfrom kd_jax import Trainig\n": ", line 2: expected a name of kd_jax, got Trainig (did you mean Training?).",
    f"{HEAD}kd_jax.Trainig\n": ", line 4: expected an attribute of kd_jax, got Trainig (did you mean Training?).",
    f"{HEAD}x = Trainig\n": ", line 4: expected a name that the file defines or imports, got Trainig (did you mean "
    "Training?).",
    f"{HEAD}x = Training(stepz=1)\n": ", line 4: Training: expected a name of its fields, got stepz (did you mean",
    f"{HEAD}x = kd_jax.Training(stepz=1)\n": ", line 4: Training: expected a name of its fields, got stepz (did you "
    "mean steps?).",
    f"{HEAD}x = dataclasses.replace(TopK(), kk=1)\n": ", line 4: TopK: expected a name of its fields, got kk (did you "
    "mean k?).",
    f"{HEAD}x = Comparison('a')\n": ", line 4: Comparison: expected a value for 'distilled', got none.",
    f"{HEAD}x = Comparison('a', 'b', 'c', 'd')\n": ", line 4: got an exception, TypeError: Comparison.__init__() takes",
    "import sys\nsys.exit()\n": ", line 2: expected `experiment = ...` to be reached, got an exit.",
    "def f(): f()\nf()\n": ", line 1: got an exception, RecursionError: maximum recursion depth exceeded",
    "import os\nos.environ['NO_SUCH_NAME']\n": ", line 2: got an exception, KeyError: 'NO_SUCH_NAME'.",
    "import beside\nbeside.divide()\n": ", line 2: beside.py, line 3: got an exception, ZeroDivisionError: division by "
    "zero.",
    "import broken\n": ", line 1: broken.py, line 2: expected Python, got `if:`: invalid syntax.",
    f"{HEAD}load_experiment('nope.py')\n": ", line 4: config: expected a Python file, got nope.py, which does",
    "class E(Exception):\n    def __str__(self): return 1 / 0\nraise E\n": ", line 3: got an exception, ",
    "x = 1\n": ": expected a variable `experiment`, got none.",
    "experiment = None\n": ": expected a variable `experiment`, got none.",
}


@pytest.mark.parametrize("text", FILES)
def test_a_mistake_in_an_experiment_file_is_named_with_its_line(text, tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("def divide():\n    x = 0\n    return 1 / x\n")
    (tmp_path / "broken.py").write_text("x = 1\nif:\n")
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in ("beside", "broken"):
        sys.modules.pop(name, None)
    with pytest.raises(KdError) as error:
        load_experiment(tmp_path / "mine.py")
    message = str(error.value)
    assert message.startswith(f"config {tmp_path / 'mine.py'}{FILES[text]}") and "\n" not in message


FIELDS = {  # a replaced field of the smoke experiment -> the error
    "buckets=32": "buckets: expected a tuple of integers, got 32. Write (32,).",
    "students=[kd]": "students: expected a dict of names and Recipe, got a list of Recipe.",
    "source='x'": "source: expected Source, got 'x'.",
    "source=Toy": "source: expected Source, got the class Toy. Write Toy(...).",
    "seed='5'": "seed: expected an integer, got '5'.",
    "teacher=teacher.model": "teacher: expected Recipe, got EncoderDecoder.",
    "teacher=replace(teacher, terms=[Term(cross_entropy)])": "teacher.terms: expected a dict of names and Term, got a "
    "list of Term.",
    "teacher=replace(teacher, terms={'ce': Term('x')})": "teacher.terms.ce.loss: expected a function, got 'x'.",
    "teacher=replace(teacher, terms={'ce': Term(cross_entropy, weight='x')})": "teacher.terms.ce.weight: expected a "
    "number, Schedule or a function, got 'x'.",
    "teacher=replace(teacher, model=replace(teacher.model, activation='swish2'))": "teacher.model.activation: expected "
    "relu, silu, gelu, gelu_tanh, swiglu or geglu, got 'swish2'.",
    "teacher=replace(teacher, training=Training(steps=1e3))": "teacher.training.steps: expected an "
    "integer, got 1000.0.",
    "students={'a': replace(kd, init=FromTeacher)}, comparison=None": "students.a.init: expected Random, FromTeacher, "
    "FromStudent, FromCheckpoint or FromHuggingFace, got the class FromTeacher. Write FromTeacher(...).",
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_type_is_named_with_its_path(field, root, tmp_path, capsys):
    lines = [f"{HEAD}smoke = load_experiment({str(root / SMOKE)!r})", "replace = dataclasses.replace"]
    lines += ["teacher, kd = smoke.teacher, smoke.students['student_kd']", f"experiment = replace(smoke, {field})"]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    assert main(["run", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "w")]) == 2
    assert capsys.readouterr().err == f"error: {FIELDS[field]}\n"
    assert not (tmp_path / "w").exists()


def test_the_traceback_is_shown_on_request(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text("1 / 0\n")
    words = ["run", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "w")]
    assert main(words) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "KD_JAX_TRACEBACK=1" in line
    monkeypatch.setenv("KD_JAX_TRACEBACK", "1")
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in shown and shown.endswith(line)


@pytest.mark.parametrize("option", ["--workdir", "--to"])
@pytest.mark.parametrize("path", ["", "a\0b", "~nobody/run", "s4://bucket/run"])
def test_a_path_that_names_nothing_is_refused(option, path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--workdir", path] if option == "--workdir" else ["--workdir", "w", "--to", path]
    assert main(["export", *words, *(["--to", "x"] if option == "--workdir" else [])]) == 2
    assert capsys.readouterr().err.startswith(f"error: {option}: expected a path")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "dangling", "loop", "file/run", "dangling/run", "a" * 300])
@pytest.mark.parametrize("command", ["run", "generate", "report", "plan"])
def test_a_path_that_cannot_be_a_folder_is_one_line(command, name, root, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    config = [] if command == "generate" else [str(root / SMOKE)]
    assert main([command, *config, "--workdir", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "bug" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "loop"]


def raised(error: Exception) -> Exception:
    """Return the error with a traceback of this file."""
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    "error, message, code",
    [
        (KdError("k: wrong."), "k: wrong.", 2),
        (OSError(28, "No space left on device", "w/x"), "No space left on device ([Errno 28] ", 2),
        (RuntimeError("write: No space left on device"), "No space left on device (write: ", 2),
        (PermissionError(13, "Permission denied", "w/x"), "Permission denied ([Errno 13]", 2),
        (
            NotADirectoryError(20, "Not a directory", "a/b"),
            "a/b: expected a path that can be used, got an error (Not",
            2,
        ),
        (ModuleNotFoundError("No module named 'x'", name="x"), "kd_jax in ", 2),
        (
            RuntimeError("Unable to initialize backend 'cuda': no"),
            "JAX_PLATFORMS: expected a platform whose devices",
            2,
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "memory: expected enough for this command", 2),
        (MemoryError(), "memory: expected enough for this command", 2),
        (ValueError("odd"), f"{__file__}, line ", 2),
    ],
)
def test_every_known_kind_of_failure_has_its_own_line(error, message, code):
    shown, exit_code = failures.explain(raised(error))
    assert shown.startswith(message) and exit_code == code and "\n" not in shown


def test_an_unexpected_exception_of_kd_jax_is_called_a_bug():
    try:
        failures.missing_package(None)
    except AttributeError as error:
        shown, code = failures.explain(error)
    assert code == 1 and shown.startswith("kd_jax/cli/failures.py, line ") and "This is a bug of kd_jax" in shown


def test_another_python_is_told_where_kd_jax_is_installed(root):
    """Without site-packages (-S), as with the system's Python in the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-m", "kd_jax", "--help"]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: kd_jax in {root} needs the package ")


@pytest.mark.parametrize("redirection", ["<&-", ">&-"])
def test_a_closed_stream_is_refused_by_generate(redirection, smoke_run, root):
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "kd_jax", "generate", "--workdir"]
    result = subprocess.run([*command, str(smoke_run)], cwd=root, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: standard ") and "got a closed one" in result.stderr


@pytest.mark.extended
@pytest.mark.parametrize("platform", ["cuda", "nope"])
def test_a_platform_without_devices_is_one_line(platform, smoke_run, root):
    command = [sys.executable, "-m", "kd_jax", "generate", "--workdir", str(smoke_run)]
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    result = subprocess.run(command, env=environment, input="one\n", capture_output=True, text=True)
    if result.returncode:  # a machine with a GPU answers
        assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith("error: JAX_PLATFORMS: expected a ")
    else:
        assert platform == "cuda" and result.stdout.count("\n") == 1


@pytest.mark.extended
@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"COLUMNS": "1"}],
    ids=str,
)
def test_an_environment_of_another_kind_changes_no_figure(variables, smoke_copy, root):
    command = [sys.executable, "-m", "kd_jax", "report", str(root / SMOKE), "--workdir", str(smoke_copy)]
    before = (smoke_copy / "report/report.json").read_bytes()
    result = subprocess.run(command, env={**os.environ, **variables}, capture_output=True)
    assert result.returncode == 0 and not result.stderr
    assert (smoke_copy / "report/report.json").read_bytes() == before
