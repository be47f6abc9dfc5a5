"""Benchmarks and scripts find all that they use: a name that was changed breaks here, not in a run of an hour."""

import ast
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
from sacrebleu.metrics import BLEU

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILES = sorted(path for folder in ("benchmarks", "scripts") for path in (EXPERIMENTS / folder).glob("*.py"))


@pytest.fixture
def imported(monkeypatch):
    """A file to its module, whose `main` is not run; the import leaves no trace."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # the scripts put the repository first

    def module_of(path: Path) -> types.ModuleType:
        spec = importlib.util.spec_from_file_location(f"imported_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look up their annotations
        spec.loader.exec_module(module)
        return module

    return module_of


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_names_are_there(path, imported):
    """Those that it imports, and those that its functions take from the modules it imports."""
    module = imported(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = vars(module)[node.value.id] if node.value.id in vars(module) else None
            if isinstance(owner, types.ModuleType) and owner.__name__.startswith("kd_jax"):
                assert node.attr in dir(owner), f"{path.name}:{node.lineno}: {owner.__name__} has no {node.attr}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_says_how_it_is_called(path, imported, monkeypatch, capsys):
    module = imported(path)
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        module.main()
    assert "--json" in capsys.readouterr().out
    assert f"python experiments/{path.parent.name}/{path.name}" in module.__doc__


def test_added_statistics_give_the_bleu_of_the_corpus(tmp_path, imported):
    ablation = imported(EXPERIMENTS / "scripts/ablation.py")
    hypotheses = ["the cat sat on the mat today", "a small library for reading images", "one two"]
    references = ["the cat sat on a mat today", "small library for reading of images", "two one"]
    rows = [{"greedy": h, "reference": r} for h, r in zip(hypotheses, references, strict=True)]
    path = tmp_path / "student.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    statistics = ablation.bleu_statistics(path)
    assert ablation.corpus_bleu(statistics.sum(0)) == pytest.approx(BLEU().corpus_score(hypotheses, [references]).score)


def test_verdicts(tmp_path, imported):
    ablation = imported(EXPERIMENTS / "scripts/ablation.py")
    texts = [f"word {i} of a sentence that is long enough" for i in range(20)]
    scores = {}
    for name, hypotheses in {"good": texts, "bad": [text[:-12] for text in texts]}.items():
        path = tmp_path / f"{name}.jsonl"
        rows = [{"greedy": h, "reference": r} for h, r in zip(hypotheses, texts, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        scores[name] = [ablation.bleu_statistics(path)] * 2
    assert ablation.paired(scores["good"], scores["bad"])["verdict"] == "better"
    assert ablation.paired(scores["bad"], scores["good"])["verdict"] == "not better"
    assert ablation.paired(scores["good"], scores["good"])["interval"] == [0.0, 0.0]
