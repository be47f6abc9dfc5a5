"""generate: options out of their range, each refused in one line."""

import dataclasses

import pytest

from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.main import main
from kd_jax.phases.generate import resolve_model_name
from kd_jax.phases.workdirs import write_experiment
from tests.helpers.runs import smoke


@pytest.fixture(scope="module")
def workdir(root, tmp_path_factory):
    """A workdir without models, since the options are checked before."""
    path = tmp_path_factory.mktemp("run")
    write_experiment(Workdir(path), smoke(root, []))
    return path


@pytest.mark.parametrize(
    "options, message",
    [
        ("--top-p 2", "--top-p: expected a number "),
        ("--top-k -1", "--top-k: expected an integer in [0, 16777216], got -1"),
        ("--min-p 1", "--min-p: expected a number "),
        ("--temperature -1", "--temperature: expected a number "),
        ("--temperature nan", "--temperature: expected a number "),
        ("--temperature warm", "--temperature: expected a number, got 'warm'"),
        ("--repetition-penalty 0", "--repetition-penalty: expected a number "),
        ("--seed -3", "--seed: expected an integer in [0, 4294967295], got -3"),
        ("--beam 0", "--beam: expected an integer in [1, 1000], got 0"),
        ("--beam 2.5", "--beam: expected an integer, got '2.5'"),
        ("--length 0", "--length: expected at least 1"),
        ("--length -5", "--length: expected an integer in [0, 1048576], got -5"),
        ("--beam 1000000", "--beam: expected an integer in [1, 1000], got 1000000"),
        (f"--seed {2**64}", "--seed: expected an integer in [0, 4294967295], got 18446744073709551616"),
        ("--length 1000000000", "--length: expected an integer in [0, 1048576], got 1000000000"),
        (f"--top-k {10**12}", "--top-k: expected an integer in [0, 16777216], got 1000000000000"),
        (f"--seed {'9' * 5000}", "--seed: expected an integer"),
        ("--beam 4 --temperature 1", "--beam: expected 1 with the sampling option temperature, got 4"),
        (
            "--model studnt_kd",
            "--model: expected one of teacher, student_scratch, student_init, student_kd, got studnt_kd",
        ),
    ],
)
def test_an_option_out_of_its_range_is_refused(workdir, capsys, options, message):
    assert main(["generate", "--workdir", str(workdir), *options.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


def test_no_model_is_the_distilled_student_else_the_last(root):
    experiment = smoke(root, [])
    assert resolve_model_name(experiment, "") == "student_kd"
    last = dataclasses.replace(experiment, comparison=None)
    assert resolve_model_name(last, "") == list(last.students)[-1]
    assert resolve_model_name(dataclasses.replace(last, students={}), "") == "teacher"
