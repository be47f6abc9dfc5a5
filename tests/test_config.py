"""Configurations: defaults and shipped experiments, flat text, data, and files that are not valid."""

import dataclasses
import functools
import json
import operator
import os
from pathlib import Path

import pytest

import kd_jax
from kd_jax import config
from kd_jax.cli.overrides import apply_overrides
from kd_jax.errors import KdError
from kd_jax.losses.divergence import jensen_shannon
from kd_jax.objective.terms import Term

CONFIGS = sorted((Path(__file__).parents[1] / "experiments/configs").glob("*.py"))
NEEDS_FOLDER = {"pretrained_chat", "pretrained_lm", "pretrained_seq2seq"}  # of a pretrained teacher
GOLDEN = Path(__file__).parent / "golden"
RECIPE = kd_jax.Recipe(model=None, terms={}, training=kd_jax.Training(steps=1))
REQUIRED = {  # arguments without a default
    "AttentionRelations": {"layers": ((0, 0),)},
    "Comparison": {"baseline": "a", "distilled": "b"},
    "Directions": {"pairs": {}},
    "Experiment": {
        "name": "a",
        "source": None,
        "task": None,
        "tokenizer": None,
        "buckets": (1,),
        "teacher": RECIPE,
        "students": {},
    },
    "Files": {"train": ("a",)},
    "FromCheckpoint": {"folder": "a"},
    "FromHuggingFace": {"folder": "a"},
    "FromStudent": {"name": "a"},
    "HiddenStates": {"layers": ((0, 0),)},
    "Recipe": {"model": None, "terms": {}, "training": kd_jax.Training(steps=1)},
    "Schedule": {"start": 1.0, "end": 0.0, "steps": 1},
    "Term": {"loss": kd_jax.cross_entropy},
    "Tfds": {"dataset": "a", "fields": {}},
    "Training": {"steps": 1},
}
NO_CONFIGURATION = ("Head", "ResolvedExperiment", "Workdir")


def default_objects():
    """Return name -> an object of each public configuration class, with its defaults."""
    classes = {name: getattr(kd_jax, name) for name in kd_jax.__all__ if name not in NO_CONFIGURATION}
    return {
        name: kind(**REQUIRED.get(name, {}))
        for name, kind in classes.items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }


def golden_texts():
    """Return file name -> text."""
    texts = {"defaults": config.to_text(default_objects())}
    for name in ("quickstart", "smoke_lm", "pretrained_lm"):
        path = CONFIGS[0].with_name(f"{name}.py")
        experiment = config.load_experiment(path) if name in NEEDS_FOLDER else apply_overrides(str(path), [])
        texts[name] = config.to_text(experiment)
    return texts


def test_texts_equal_the_golden_files():
    """No default changes unseen. KD_JAX_GOLDEN=write python -m pytest tests/test_config.py writes the files."""
    for name, text in golden_texts().items():
        golden = GOLDEN / f"{name}.txt"
        if "KD_JAX_GOLDEN" in os.environ:
            golden.write_text(text)
        assert text == golden.read_text(), name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_is_valid(path):
    if path.stem in NEEDS_FOLDER:
        assert config.load_experiment(path).teacher.init.folder == ""
        with pytest.raises(KdError, match="tokenizer.folder|init.folder"):
            apply_overrides(str(path), [])
    else:
        assert apply_overrides(str(path), []).recipes


def test_functions_without_a_name_are_refused():
    with pytest.raises(KdError, match=r"term\.loss: expected a function that a module defines, got <function"):
        config.flatten(Term(lambda logits, targets: logits), "term")


def test_partial_functions_have_their_arguments():
    loss = functools.partial(jensen_shannon, beta=0.3)
    name = "functools.partial(kd_jax.losses.divergence.jensen_shannon"
    flat = config.flatten(Term(loss), "term")
    assert (flat["term.loss"], flat["term.loss.beta"]) == (name + ")", 0.3)
    assert config.flatten(config.from_data(config.to_data(Term(loss))), "term") == flat


def test_function_of_the_config_file_is_refused(tmp_path):
    lines = ["import dataclasses", "from kd_jax import Term", "def mine(logits_NV, targets_N): ..."]
    lines += ["@dataclasses.dataclass(frozen=True)", "class E:", "    term: Term", "experiment = E(Term(mine))"]
    (tmp_path / "a.py").write_text("\n".join(lines))
    with pytest.raises(KdError, match=r"term\.loss: expected a function of an importable module, got mine"):
        config.flatten(config.load_experiment(tmp_path / "a.py").term, "term")


def test_missing_and_invalid_files_are_refused(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(KdError, match="expected a variable `experiment`, got none"):
        config.load_experiment(tmp_path / "a.py")
    with pytest.raises(KdError, match="expected a Python file, got .*b.py, which does not exist"):
        config.load_experiment(tmp_path / "b.py")


def test_experiment_as_data_is_read_again():
    """Classes of kd_jax are built again, and names of functions remain names."""
    smoke = apply_overrides(str(CONFIGS[-1]), [])
    read = config.from_data(json.loads(json.dumps(config.to_data(smoke))))
    for field in ("evaluation", "task", "buckets", "shapes", "comparison"):
        assert operator.attrgetter(field)(read) == operator.attrgetter(field)(smoke)
    assert {n: r.model for n, r in read.recipes.items()} == {n: r.model for n, r in smoke.recipes.items()}
    assert read.teacher.terms["ce"].loss == "kd_jax.losses.cross_entropy.cross_entropy"


@pytest.mark.parametrize(
    "name",
    ["os.system", "kd_jax.artifacts.manifest.write_text", "kd_jax.artifacts.manifest.os.system", "kd_jax.nothing.X"],
)
def test_data_executes_nothing(name, tmp_path):
    data = {"class": name, "fields": {"path": str(tmp_path / "x"), "text": "run"}}
    if name.startswith("kd_jax."):
        with pytest.raises(KdError, match="expected a configuration class of kd_jax|expected a class of this version"):
            config.from_data(data)
    else:
        assert config.from_data(data) == {"class": name, "fields": data["fields"]}
    assert not list(tmp_path.iterdir())
