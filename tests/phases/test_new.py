"""`kd-jax new`: every config that it writes runs as it stands, and no file is overwritten."""

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
from tests.helpers.pretrained import write_pretrained
from tests.helpers.sources import write

VALID = [(name, family) for name, task in new.TASKS.items() for family in task.families]


@pytest.mark.parametrize("task, family", VALID)
def test_every_config_resolves_and_is_formatted(task, family, tmp_path, root, capsys):
    path = tmp_path / "mine.py"
    assert main(["new", str(path), "--task", task, "--family", family, "--train", "texts.jsonl"]) == 0
    assert "texts.jsonl does not exist yet" in capsys.readouterr().err
    experiment = apply_overrides(str(path), [])
    assert experiment.name == "mine" and experiment.source.train == ("texts.jsonl",)
    assert experiment.task.name == task and experiment.task.fields() == new.TASKS[task].fields()
    assert {recipe.model.family for recipe in experiment.recipes.values()} == {family}
    assert experiment.students["student_kd"].terms["kd"].signal.k == 32
    # The path of a temporary folder is long; the rules are this project's.
    text = path.read_text().replace(str(path), "mine.py")
    path.write_text(text)
    shutil.copy(root / "pyproject.toml", tmp_path)
    for words in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *words, str(path)], check=True, cwd=tmp_path)


def test_all_valid_pairs_are_tested():
    assert len(VALID) == 7 and ("generation", "encoder_decoder") not in VALID


TINY = """
--tokenizer.vocab-size 40 --backend jit --evaluation.cached-k 0 --evaluation.bootstrap 20 --evaluation.speed-texts 1
--evaluation.texts 4 --task.decoding.length 4 --task.decoding.length-ratio 0 --task.decoding.beam 1
"""
SMALL = {"model.d-model": 16, "model.heads": 2, "model.d-ff": 32, "training.steps": 2, "training.optimizer.warmup": 1}


def tiny(path):
    """Return overrides for two steps of small models."""
    words = TINY.split()
    for name in apply_overrides(path, []).recipes:
        recipe = name if name == "teacher" else f"students.{name}"
        words += [word for field, value in SMALL.items() for word in (f"--{recipe}.{field}", str(value))]
    return words


@pytest.mark.parametrize(
    "task, family, texts_of, changes",
    [
        pytest.param(
            "generation",
            "decoder_only",
            toy.generate_documents,
            "--task.window 64 --task.context 16 --buckets 64",
            marks=pytest.mark.extended,
        ),
        ("summarization", "encoder_decoder", toy.generate_summaries, "--task.document-tokens 31 --buckets 32"),
    ],
)
def test_it_runs_on_two_hundred_lines(task, family, texts_of, changes, tmp_path, monkeypatch, lax_promotion):
    monkeypatch.chdir(tmp_path)
    fields = new.TASKS[task].fields()
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
def test_the_config_has_the_field_names_of_the_file(row, fields, tmp_path):
    (tmp_path / "train.jsonl").write_text("\ufeff" + json.dumps(row) + "\n", encoding="utf-8")
    arguments = str(tmp_path / "mine.py"), "summarization", "decoder_only", (str(tmp_path / "train.jsonl"),)
    new.run(*arguments)
    assert apply_overrides(arguments[0], []).task.fields() == fields


def test_text_file_for_each_field(tmp_path):
    files = [str(tmp_path / name) for name in ("train.de", "train.it")]
    assert (
        main(["new", str(tmp_path / "mine.py"), "--task", "translation", "--family", "decoder_only", "--train", *files])
        == 0
    )
    experiment = apply_overrides(str(tmp_path / "mine.py"), [])
    assert experiment.source.train == tuple(files) and experiment.task.fields() == ("de", "it")


@pytest.mark.parametrize(
    "task, family, sizes", [("generation", "decoder_only", [1]), ("translation", "encoder_decoder", [3, 1])]
)
def test_config_of_a_pretrained_teacher_is_valid(task, family, sizes, tmp_path, monkeypatch):
    """The small teachers have three layers in every stack; the student has half, rounded down."""
    monkeypatch.chdir(tmp_path)
    write_pretrained(tmp_path / "folder", family)
    lines = ({"en": en, "fr": fr, "text": f"{en} {fr}"} for en, fr in toy.generate_pairs(60, 0))
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["new", "mine.py", "--task", task, "--teacher", "folder"]) == 0
    experiment = apply_overrides("mine.py", [])
    assert experiment.teacher.init.folder == "folder" and experiment.teacher.model.family == family
    assert list(experiment.students["student_kd"].model.stacks().values()) == sizes
    words = "--source.held-out 0.1"
    if task == "generation":
        words += " --task.window 64 --task.context 16 --buckets 64 --prompt-buckets 32"
    # It checks the whole experiment before it prepares the text; tests/phases/test_pretrained.py trains such students.
    assert main(["prepare", "mine.py", "--workdir", "runs/mine", *words.split()]) == 0


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"id": "1", "title": "t", "body": "b"}', 'expected "document" and "summary", got id, title, body'),
        ('{"document": "d"}', 'expected "document" and "summary", got document'),
        ("not json", "line 1: expected a JSON object, got invalid JSON"),
        ("[1]", 'line 1: expected an object with "document" and "summary", got list'),
    ],
)
def test_ambiguous_field_names_are_refused(line, message, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text(line + "\n")
    words = ["new", str(tmp_path / "mine.py"), "--task", "summarization", "--family", "decoder_only"]
    assert main([*words, "--train", str(tmp_path / "train.jsonl")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "mine.py").exists()


def test_odd_names_are_quoted(tmp_path):
    row = {'a "quoted" \\ name': "d", "été\n": "s"}
    (tmp_path / 'odd"\\.jsonl').write_text(json.dumps(row))
    new.run(str(tmp_path / "mine.py"), "summarization", "decoder_only", (str(tmp_path / 'odd"\\.jsonl'),))
    assert apply_overrides(str(tmp_path / "mine.py"), []).task.fields() == tuple(row)


def test_a_plain_text_file_keeps_the_tasks_field(tmp_path):
    (tmp_path / "texts.txt").write_text("once upon a time\n")
    new.run(str(tmp_path / "mine.py"), "generation", "decoder_only", (str(tmp_path / "texts.txt"),))
    assert apply_overrides(str(tmp_path / "mine.py"), []).task.fields() == ("text",)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "missing --task {translation,summarization,instructions,generation}"),
        (["--task", "chat"], "--task: expected translation, summarization, instructions or generation, got 'chat'"),
        (["--task", "translation"], "--family: expected encoder_decoder or decoder_only, got none"),
        (
            ["--task", "translation", "--family", "decoder_only", "--train", "a.en", "b.fr", "c.de"],
            '--train: expected one file, or one for each of "en" and "fr", got 3',
        ),
        (["--task", "translation", "--teacher", "models/none"], "init.folder: expected a local folder"),
        (
            ["--task", "generation", "--family", "encoder_decoder"],
            "--family: expected decoder_only for generation, got encoder_decoder",
        ),
        (["--tsk", "generation"], "new: unknown option --tsk. Did you mean --task?"),
    ],
)
def test_invalid_options_are_one_line(words, message, tmp_path, capsys):
    assert main(["new", str(tmp_path / "mine.py"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "mine.py").exists()


def test_no_file_is_overwritten(tmp_path):
    (tmp_path / "mine.py").write_text("mine")
    with pytest.raises(KdError, match="mine.py: File exists. Choose another name"):
        new.run(str(tmp_path / "mine.py"), "generation", "decoder_only", ("train.jsonl",))
    with pytest.raises(KdError, match="mine.py/other.py"):
        new.run(str(tmp_path / "mine.py" / "other.py"), "generation", "decoder_only", ("train.jsonl",))
    with pytest.raises(KdError, match="expected the name of a Python file"):
        new.run(str(tmp_path / "mine.txt"), "generation", "decoder_only", ("train.jsonl",))
    assert (tmp_path / "mine.py").read_text() == "mine"


def test_a_chat_keeps_the_names_of_the_task(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    chat, config = (
        write(tmp_path / "chat.jsonl", json.dumps({"messages": turns, "id": "7"}) + "\n"),
        tmp_path / "mine.py",
    )
    new.run(str(config), "instructions", "decoder_only", [chat])
    experiment = apply_overrides(str(config), [])
    assert experiment.task.fields() == ("prompt", "response") and experiment.source.train == (chat,)
    no_answer = write(tmp_path / "open.jsonl", json.dumps({"messages": turns[:1]}) + "\n")
    with pytest.raises(KdError, match="^--train: .*line 1: expected 'messages' to end with the roles user and"):
        new.run(str(tmp_path / "other.py"), "instructions", "decoder_only", [no_answer])
