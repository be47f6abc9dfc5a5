"""`kd_jax new`: every config that it writes can be run as it stands, and nothing is written over."""

import json
import shutil
import subprocess
import sys

import pytest

from kd_jax.cli.main import main
from kd_jax.cli.overrides import apply_overrides
from kd_jax.errors import KdError
from kd_jax.phases import new
from kd_jax.sources import toy

VALID = [(name, family) for name, start in new.STARTS.items() for family in start.task.families]


@pytest.mark.parametrize("task, family", VALID)
def test_every_config_is_python_that_resolves(task, family, tmp_path, root, capsys):
    path = tmp_path / "mine.py"
    assert main(["new", str(path), "--task", task, "--family", family, "--train", "texts.jsonl"]) == 0
    assert "texts.jsonl is not there yet" in capsys.readouterr().err
    experiment = apply_overrides(str(path), [])
    assert experiment.name == "mine" and experiment.source.train == ("texts.jsonl",)
    assert experiment.task.name == task and experiment.task.fields() == new.STARTS[task].task.fields()
    assert {recipe.model.family for recipe in experiment.recipes.values()} == {family}
    assert experiment.students["student_kd"].terms["kd"].signal.k == 32
    # The path of a temporary folder is long; the rules are this project's.
    text = path.read_text().replace(str(path), "mine.py")
    path.write_text(text)
    shutil.copy(root / "pyproject.toml", tmp_path)
    for words in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *words, str(path)], check=True, cwd=tmp_path)


def test_all_valid_pairs_are_offered():
    assert len(VALID) == 7 and ("generation", "encoder_decoder") not in VALID


TINY = """
--tokenizer.vocab-size 40 --backend jit --evaluation.cached-k 0 --evaluation.bootstrap 20 --evaluation.speed-texts 1
--evaluation.texts 4 --task.decoding.length 4 --task.decoding.length-ratio 0 --task.decoding.beam 1
"""
SMALL = {"model.d-model": 16, "model.heads": 2, "model.d-ff": 32, "training.steps": 2, "training.optimizer.warmup": 1}


def tiny(path):
    """Overrides that leave of a config what two steps need."""
    words = TINY.split()
    for name in apply_overrides(path, []).recipes:
        recipe = name if name == "teacher" else f"students.{name}"
        words += [word for field, value in SMALL.items() for word in (f"--{recipe}.{field}", str(value))]
    return words


@pytest.mark.parametrize(
    "task, family, texts_of, changes",
    [
        ("generation", "decoder_only", toy.generate_documents, "--task.window 64 --task.context 16 --buckets 64"),
        ("summarization", "encoder_decoder", toy.generate_summaries, "--task.document-tokens 31 --buckets 32"),
    ],
)
def test_it_runs_on_two_hundred_lines(task, family, texts_of, changes, tmp_path, monkeypatch, lax_promotion):
    monkeypatch.chdir(tmp_path)
    fields = new.STARTS[task].task.fields()
    lines = (json.dumps(dict(zip(fields, row, strict=True))) + "\n" for row in texts_of(200, 0))
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    assert main(["new", "mine.py", "--task", task, "--family", family, "--train", "texts.jsonl"]) == 0
    assert (
        main(["run", "mine.py", "--workdir", "runs/mine", *tiny("mine.py"), *changes.split(), "--prompt-buckets", "32"])
        == 0
    )
    assert (tmp_path / "runs/mine/report/report.html").exists()


@pytest.mark.parametrize(
    "row, fields",
    [
        ({"document": "d", "summary": "s"}, ("document", "summary")),
        ({"summary": "s", "id": 3, "document": "d", "url": "u"}, ("document", "summary")),
        ({"article": "d", "highlights": "s"}, ("article", "highlights")),
        ({"highlights": "s", "score": 0.5, "document": "d"}, ("document", "highlights")),
    ],
)
def test_the_files_own_field_names_are_taken(row, fields, tmp_path):
    (tmp_path / "train.jsonl").write_text("\ufeff" + json.dumps(row) + "\n", encoding="utf-8")
    arguments = str(tmp_path / "mine.py"), "summarization", "decoder_only", str(tmp_path / "train.jsonl")
    new.run(*arguments)
    assert apply_overrides(arguments[0], []).task.fields() == fields


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"id": "1", "title": "t", "body": "b"}', "has the fields id, title, body, the task wants"),
        ('{"document": "d"}', "has the fields document, the task wants"),
        ("not json", "line 1: not JSON"),
        ("[1]", "line 1: wanted an object"),
    ],
)
def test_fields_that_cannot_be_told_are_refused(line, message, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text(line + "\n")
    words = ["new", str(tmp_path / "mine.py"), "--task", "summarization", "--family", "decoder_only"]
    assert main([*words, "--train", str(tmp_path / "train.jsonl")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "mine.py").exists()


def test_odd_names_stay_text(tmp_path):
    row = {'a "quoted" \\ name': "d", "été\n": "s"}
    (tmp_path / 'odd"\\.jsonl').write_text(json.dumps(row))
    new.run(str(tmp_path / "mine.py"), "summarization", "decoder_only", str(tmp_path / 'odd"\\.jsonl'))
    assert apply_overrides(str(tmp_path / "mine.py"), []).task.fields() == tuple(row)


def test_one_text_a_line_is_no_json(tmp_path):
    (tmp_path / "texts.txt").write_text("once upon a time\n")
    new.run(str(tmp_path / "mine.py"), "generation", "decoder_only", str(tmp_path / "texts.txt"))
    assert apply_overrides(str(tmp_path / "mine.py"), []).task.fields() == ("text",)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "--task missing: wanted one of translation, summarization, instructions, generation"),
        (["--task", "chat"], "--task chat: wanted one of"),
        (["--task", "translation"], "--family missing: translation is served by encoder_decoder or decoder_only"),
        (["--task", "generation", "--family", "encoder_decoder"], "generation is served by decoder_only"),
        (["--tsk", "generation"], "new: unknown option --tsk; wanted --task, --family, --train"),
    ],
)
def test_bad_words_are_one_line(words, message, tmp_path, capsys):
    assert main(["new", str(tmp_path / "mine.py"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "mine.py").exists()


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "mine.py").write_text("mine")
    with pytest.raises(KdError, match="mine.py: File exists; take another name"):
        new.run(str(tmp_path / "mine.py"), "generation", "decoder_only", "train.jsonl")
    with pytest.raises(KdError, match="mine.py/other.py"):
        new.run(str(tmp_path / "mine.py" / "other.py"), "generation", "decoder_only", "train.jsonl")
    with pytest.raises(KdError, match="wanted the name of a Python file"):
        new.run(str(tmp_path / "mine.txt"), "generation", "decoder_only", "train.jsonl")
    assert (tmp_path / "mine.py").read_text() == "mine"
