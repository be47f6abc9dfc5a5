"""The phase `evaluate` with odd characters, a field called id, and one very long line."""

import json

import pytest

from kd_jax.cli.main import main

CONFIG = """
import dataclasses
from kd_jax import Files, Translation, load_experiment
smoke = load_experiment({smoke!r})
student = smoke.students["student_init"]
experiment = dataclasses.replace(
    smoke,
    source=Files(train=({train!r},), validation=({held_out!r},), test=({test!r},)),
    task=Translation(source="id", target="text"),
    students={{"it": student}},
    comparison=None,
)
"""
SHORT = """
--tokenizer.vocab-size 36 --backend jit --buckets 32 --teacher.training.steps 3 --teacher.training.optimizer.warmup 1
--students.it.training.steps 3 --students.it.training.optimizer.warmup 1 --evaluation.bootstrap 10
--evaluation.speed-texts 1 --task.decoding.beam 1 --task.decoding.length-ratio 0.02 --evaluation.samples 50
--evaluation.cached-k 0
"""
ODD = ["one\u2028red", "two\x85blue", "three\u2029\x0b green", "<script>alert(1)</script> | `four`"]


@pytest.fixture
def config(root, tmp_path):
    """Distinct pairs of words; the held-out ones hold odd characters, and one line of the test is 70 words long."""
    words = ["one", "two", "three", "four", "red", "blue", "green", "houses", "boats", "birds"]
    pairs = [f"{a} {b} {c}" for a in words for b in words for c in words[:2]]
    long = " ".join(words[i % 10] for i in range(70))
    splits = {"train": pairs[:120], "held_out": [*pairs[120:130], *ODD], "test": [*pairs[130:140], *ODD[::-1], long]}
    paths = {}
    for name, texts in splits.items():
        if name != "held_out":
            texts = [text + " " + name for text in texts]  # so that no source is met twice
        rows = (json.dumps({"id": text, "text": text[::-1]}, ensure_ascii=False) for text in texts)
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    (tmp_path / "config.py").write_text(
        CONFIG.format(smoke=str(root / "experiments/configs/smoke.py"), **{n: str(p) for n, p in paths.items()})
    )
    return tmp_path / "config.py"


def test_odd_texts_and_a_long_one_are_evaluated_and_reported(config, tmp_path, monkeypatch, capsys, lax_promotion):
    monkeypatch.setattr(
        "kd_jax.batches.buckets.MAX_SCORES_BYTES", 2**19
    )  # so that the long line's batch has fewer rows
    assert main(["run", str(config), "--workdir", str(tmp_path / "w"), *SHORT.split()]) == 0
    rows = (tmp_path / "w/evaluation/it.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    sources = [json.loads(row)["source"] for row in rows]
    assert [text + " test" for text in ODD[::-1]] == sources[10:14] and len(sources) == 15
    assert "longer than the last bucket, evaluated uncut" in capsys.readouterr().err
    for file in ("report.html", "report.md"):
        assert "<script>" not in (tmp_path / "w/report" / file).read_text(encoding="utf-8")


def test_a_held_out_text_that_no_machine_takes_is_refused_before_training(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kd_jax.phases.prepare.MAX_LENGTH", 100)
    assert main(["run", str(config), "--workdir", str(tmp_path / "w"), *SHORT.split()]) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert "source: test: expected examples of at most 100 tokens" in last and "one two three" in last
    assert not (tmp_path / "w/teacher").exists()
