"""score: a run's own test split, as new text, has the figures of its evaluation."""

import json

import pytest

from kd_jax.artifacts.manifest import read_json
from kd_jax.cli.main import main


def rows(text):
    """Return model -> cells of the printed table."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return {line[0]: line[1:] for line in lines}


def shows(text, value):
    """Whether a text is a value, rounded to its decimals, of which there is one at least."""
    return "." in text and text == f"{value:.{len(text.partition('.')[2])}f}"


def test_test_split_as_new_text_has_the_figures_of_the_evaluation(smoke_run, tmp_path, capsys):
    examples = [json.loads(line) for line in (smoke_run / "data/test.jsonl").read_text().splitlines()]
    paths = [tmp_path / name for name in ("new.en", "new.fr")]
    for path in paths:
        path.write_text("".join(example[path.suffix[1:]] + "\n" for example in examples))
    before = sorted(path for path in smoke_run.rglob("*"))
    assert main(["score", "--workdir", str(smoke_run), "--test", *map(str, paths)]) == 0
    assert sorted(path for path in smoke_run.rglob("*")) == before  # nothing is written
    output = capsys.readouterr().out
    printed = rows(output)
    assert f"{len(examples)} examples" in output
    for name in ("teacher", "student_scratch", "student_kd"):
        figures = read_json(smoke_run / f"evaluation/{name}.json")
        assert shows(printed[name][0], figures["bleu"]) and shows(printed[name][3], figures["chrf"])
    assert shows(printed["copy"][0], read_json(smoke_run / "evaluation/baselines.json")["copy"]["bleu"])


def test_one_model_is_scored_alone(smoke_run, capsys):
    path = str(smoke_run / "data/test.jsonl")
    assert main(["score", "--workdir", str(smoke_run), "--test", path, "--model", "student_init"]) == 0
    printed = rows(capsys.readouterr().out)
    assert "student_init" in printed and "teacher" not in printed and "minus" not in printed["model"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--test", "nowhere.en", "nowhere.fr"], "nowhere.en"),
        (
            ["--test", "only.en", "two.fr", "three.de"],
            "--test: expected .jsonl files, or a text file for each of the fields en, fr, got 3",
        ),
        (["--test"], "--test: expected files with new text, got none"),
        (
            ["--test", "x.jsonl", "--model", "studnt_kd"],
            "--model: expected one of teacher, student_scratch, student_init, student_kd, got studnt_kd. Did you mean "
            "student_kd?",
        ),
    ],
)
def test_invalid_options_are_one_line(smoke_run, words, message, capsys):
    assert main(["score", "--workdir", str(smoke_run), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
