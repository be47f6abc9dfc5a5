"""generate: options out of their range and lines that cannot be prompts, each told in one line."""

import pytest

from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.main import main
from kd_jax.phases.generate import changed
from kd_jax.phases.workdirs import write_experiment
from kd_jax.tasks.base import Decoding, Sampling
from tests.helpers.runs import smoke


@pytest.fixture(scope="module")
def workdir(root, tmp_path_factory):
    """Of a run whose models are not looked at."""
    path = tmp_path_factory.mktemp("run")
    write_experiment(Workdir(path), smoke(root, []))
    return path


@pytest.mark.parametrize(
    "options, message",
    [
        ("--top-p 2", "--top-p: 2.0; wanted more than 0 and at most 1"),
        ("--top-k -1", "--top-k: -1; wanted a whole number of at least 0"),
        ("--min-p 1", "--min-p: 1.0; wanted at least 0 and less than 1"),
        ("--temperature -1", "--temperature: -1.0; wanted 0 (the likeliest) to 100"),
        ("--temperature nan", "--temperature: nan; wanted 0"),
        ("--temperature warm", "--temperature: invalid float value: 'warm'"),
        ("--repetition-penalty 0", "--repetition-penalty: 0.0; wanted more than 0"),
        ("--seed -3", "--seed: -3; wanted a whole number of at least 0"),
        ("--beam 0", "--beam: 0; wanted a whole number of at least 1"),
        ("--beam 2.5", "--beam: invalid int value: '2.5'"),
        ("--length 0", "--length: 0, and length-ratio too; wanted room for at least one token"),
        ("--length -5", "--length: -5; wanted a whole number of at least 0"),
        ("--beam 4 --temperature 1", "--beam 4: beside --temperature; wanted one of the two"),
        ("--tempo 1", "generate: unknown option --tempo; wanted --workdir, --model, --beam"),
        ("--teacher.training.steps 5", "generate: unknown option --teacher.training.steps"),
    ],
)
def test_options_out_of_their_range(workdir, capsys, options, message):
    assert main(["generate", "--workdir", str(workdir), *options.split()]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and message in said and "\n" not in said


def test_what_differs_takes_the_place_of_the_tasks_own():
    decoding = Decoding(beam=4, length_ratio=1.5, length=8, sampling=Sampling(top_p=0.9))
    assert changed(decoding, {}).ways == ("greedy",) and changed(decoding, {}).max_length(100) == 158
    drawn = changed(decoding, {"temperature": 0.5, "seed": 7})
    assert drawn.ways == ("sampled",) and drawn.sampling == Sampling(temperature=0.5, top_p=0.9, seed=7)
    assert changed(decoding, {"beam": 2}).ways == ("greedy", "beam")
    assert changed(decoding, {"beam": 2, "length": 12}).max_length(100) == 12
