"""Configurations: every experiment's resolved text is kept, so that no default changes unseen."""

import json
import operator
import os
from pathlib import Path

import pytest

from kd_jax import config
from kd_jax.cli.overrides import apply_overrides
from kd_jax.errors import KdError
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.objective.check import check
from kd_jax.objective.terms import Term

CONFIGS = sorted((Path(__file__).parents[1] / "experiments/configs").glob("*.py"))
GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_resolved_text_is_the_golden_one(path):
    """KD_JAX_GOLDEN=write python -m pytest tests/test_config.py writes it anew."""
    pretrained = path.stem.startswith("pretrained")  # which wait for a folder
    text = config.to_text(config.load_experiment(path) if pretrained else apply_overrides(str(path), []))
    golden = GOLDEN / f"{path.stem}.txt"
    if "KD_JAX_GOLDEN" in os.environ:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_functions_without_a_name_are_refused():
    with pytest.raises(KdError, match="has no name of its own"):
        config.flatten(Term(lambda logits, targets: logits), "term")


def test_a_loss_in_the_config_itself_is_sent_beside_it(tmp_path):
    lines = ["import dataclasses", "from kd_jax import Term", "def mine(logits_NV, targets_N): ..."]
    lines += ["@dataclasses.dataclass(frozen=True)", "class E:", "    term: Term", "experiment = E(Term(mine))"]
    (tmp_path / "a.py").write_text("\n".join(lines))
    with pytest.raises(KdError, match="term.loss: mine stands in the config; put it into a module beside it"):
        config.flatten(config.load_experiment(tmp_path / "a.py").term, "term")


def test_objectives_are_checked():
    for terms, message in (({}, "expected at least one Term"), ({"ce": Term(cross_entropy, weight=float("nan"))}, "terms.ce.weight")):
        with pytest.raises(KdError, match=message):
            check(terms, 100)


def test_config_files_that_are_not(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(KdError, match="defines no `experiment`"):
        config.load_experiment(tmp_path / "a.py")
    with pytest.raises(KdError, match="no such file"):
        config.load_experiment(tmp_path / "b.py")


def test_the_experiment_survives_as_data():
    """As generate reads it: this project's own configurations come back, foreign names stay names."""
    smoke = apply_overrides(str(CONFIGS[-1]), [])
    revived = config.from_data(json.loads(json.dumps(config.to_data(smoke))))
    for field in ("evaluation", "task", "buckets", "shapes", "comparison"):
        assert operator.attrgetter(field)(revived) == operator.attrgetter(field)(smoke)
    assert {n: r.model for n, r in revived.recipes.items()} == {n: r.model for n, r in smoke.recipes.items()}
    assert revived.teacher.terms["ce"].loss == "kd_jax.losses.cross_entropy.cross_entropy"


@pytest.mark.parametrize(
    "name",
    ["os.system", "kd_jax.artifacts.manifest.write_text", "kd_jax.artifacts.manifest.os.system", "kd_jax.nothing.X"],
)
def test_data_executes_nothing(name, tmp_path):
    data = {"class": name, "fields": {"path": str(tmp_path / "x"), "text": "run"}}
    if name.startswith("kd_jax."):
        with pytest.raises(KdError, match="no configuration of kd_jax|cannot build it"):
            config.from_data(data)
    else:
        assert config.from_data(data) == {"class": name, "fields": data["fields"]}
    assert not list(tmp_path.iterdir())
