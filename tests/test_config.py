"""Configurations: every experiment's resolved text is kept, so that no default changes unseen."""

import dataclasses
import functools
import os
from pathlib import Path

import pytest

from kd_jax import config
from kd_jax.artifacts import manifest
from kd_jax.cli.resolve import resolve
from kd_jax.errors import KdError
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.objective.terms import Term, check

CONFIGS = sorted((Path(__file__).parents[1] / "experiments/configs").glob("*.py"))
GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_resolved_text_is_the_golden_one(path):
    """KD_JAX_GOLDEN=write python -m pytest tests/test_config.py writes it anew."""
    text, golden = config.to_text(resolve(str(path), [])), GOLDEN / f"{path.stem}.txt"
    if "KD_JAX_GOLDEN" in os.environ:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_change_of_one_field_changes_the_fingerprint():
    term = Term(cross_entropy)
    assert config.fingerprint(term) == config.fingerprint(Term(cross_entropy))
    assert config.fingerprint(term) != config.fingerprint(Term(cross_entropy, options={"label_smoothing": 0.1}))
    assert config.fingerprint(term) != config.fingerprint(dataclasses.replace(term, weight=0.5))


def test_functions_without_a_name_are_refused():
    with pytest.raises(KdError, match="has no name of its own"):
        config.flatten(Term(lambda logits, targets: logits), "term")


def test_objectives_are_checked():
    for terms, message in (({}, "empty"), ({"ce": Term(cross_entropy, weight=float("nan"))}, "terms.ce.weight")):
        with pytest.raises(KdError, match=message):
            check(terms, 100)


def test_config_files_that_are_not(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(KdError, match="defines no `experiment`"):
        config.load(tmp_path / "a.py")
    with pytest.raises(KdError, match="no such file"):
        config.load(tmp_path / "b.py")


def test_a_folder_is_begun_finished_skipped_refused_and_forced(tmp_path):
    start = functools.partial(manifest.start, tmp_path / "f", "teacher")
    assert start({"a": 1})
    assert start({"a": 2})  # nothing had come of it
    (tmp_path / "f/work").write_text("half done")
    with pytest.raises(KdError, match="a = 2, now 3"):
        start({"a": 3})
    assert start({"a": 2})
    with pytest.raises(KdError, match="run the phase `teacher` first"):
        manifest.read(tmp_path / "f", "teacher")
    manifest.finish(tmp_path / "f", "teacher", {"digest": "d"}, 1.0)
    assert not start({"a": 2})
    with pytest.raises(KdError, match="b = absent, now 1"):
        start({"a": 2, "b": 1})
    assert start({"a": 3}, force=True)
    assert not (tmp_path / "f/work").exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    manifest.write_json(tmp_path / "x.json", {"old": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest.os, "fsync", full)
    with pytest.raises(OSError):
        manifest.write_json(tmp_path / "x.json", {"new": 2})
    assert manifest.read_json(tmp_path / "x.json") == {"old": 1}
