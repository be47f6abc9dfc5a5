"""Texts and likelihoods of a split, and their scores."""

import types

import numpy as np
import pytest

from kd_jax.artifacts import manifest
from kd_jax.artifacts.manifest import Folder
from kd_jax.errors import KdError
from kd_jax.evaluation.figures import MetricFigure
from kd_jax.evaluation.quality import (
    map_batches,
    negative_log_likelihoods,
    read_outcome,
    read_text_rows,
    score_metrics,
    text_rows,
)
from kd_jax.tasks.eval_set import EvalSet
from kd_jax.tasks.metrics import Metric, Outcome, ratio
from kd_jax.tasks.translation import Translation

EXAMPLES = [{"en": f"s{i}", "fr": f"r{i}"} for i in range(7)]
LENGTH = Metric(
    "length",
    "length",
    None,
    1,
    "texts",
    lambda outcome: np.array([[len(text), 1.0] for text in outcome.texts]),
    ratio,
)
NATS = Metric("nats", "nats", False, 1, "tokens", lambda outcome: np.stack([outcome.nll_N, outcome.tokens_N], 1), ratio)


class Batches(list):
    """Batches with the plan of an EvalBatches."""

    @property
    def plan(self):
        return [(8, np.array([2 * i, 2 * i + 1])) for i in range(len(self))]


@pytest.fixture
def folder(tmp_path):
    """A finished phase with a split's examples and one model's texts and likelihoods."""
    folder = Folder(tmp_path, "prepare")
    folder.begin({})
    manifest.write_lines(tmp_path / "test.jsonl", EXAMPLES)
    rows = [{"number": i, "source": "s", "reference": "r", "greedy": "a" * i, "beam": ""} for i in (1, 4)]
    manifest.write_lines(tmp_path / "kd.jsonl", rows)
    manifest.write_arrays(tmp_path / "kd.npz", nll=np.arange(7.0), tokens=np.ones(7, np.int64))
    folder.finish({}, 1.0)
    return folder


@pytest.mark.parametrize("count, indices", [(0, range(7)), (2, [0, 6]), (3, [0, 3, 6]), (9, range(7))])
def test_eval_set_is_evenly_spaced(folder, count, indices):
    assert EvalSet.load(folder, "test", count).text_indices == list(indices)


def test_read_outcome_has_the_first_ways_texts_or_the_likelihoods(folder):
    eval_set = EvalSet.load(folder, "test", 0)._replace(text_indices=[1, 4])
    texts = read_outcome(Translation(), eval_set, folder, "kd", "texts")
    assert texts.texts == ["a", "aaaa"] and texts.references == [["r1"], ["r4"]]
    tokens = read_outcome(Translation(), eval_set, folder, "kd", "tokens")
    assert tokens.nll_N.tolist() == list(range(7)) and len(tokens.references) == 7


def test_map_batches_keeps_the_order_of_the_batches():
    values = map_batches("test", Batches("ab"), lambda indices, batch: (batch, indices.tolist()))
    assert values == [("a", [0, 1]), ("b", [2, 3])]


def test_likelihoods_of_a_texts_parts_are_added():
    """Encoded examples 0, 1 and 3 are parts of text 0; the second batch has one row of padding."""
    batches = Batches([types.SimpleNamespace(mask_BT=np.tri(3, 4, k, bool)) for k in (0, 1)])
    programs = types.SimpleNamespace(
        negative_log_likelihood=lambda architecture, devices: lambda params, batch: batch.mask_BT.sum(-1) * params
    )
    devices = types.SimpleNamespace(shard=lambda x: x, to_host=lambda x: x)
    candidate = types.SimpleNamespace(name="kd", architecture=None)
    owners = np.array([0, 0, 1, 0])
    nll, tokens = negative_log_likelihoods(candidate, 0.5, programs, batches, owners, devices)
    assert tokens.tolist() == [1 + 2 + 3, 2] and nll.tolist() == [3.0, 1.0]


def test_scores_have_intervals_and_the_first_text_metrics_beam():
    greedy, beam = (Outcome([{}] * 2, texts, [["r"]] * 2) for texts in (["a", "abc"], ["abcd", "ab"]))
    tokens = Outcome([{}] * 2, [], [], np.array([1.0, 2.0]), np.array([1, 1]))
    other = LENGTH._replace(name="other")
    figures = score_metrics([NATS, LENGTH, other], {"greedy": greedy, "beam": beam}, tokens, resamples=20)
    assert list(figures) == ["nats", "length", "other"]
    assert figures["nats"].value == 1.5 and figures["nats"].beam is None
    assert figures["length"].value == 2.0 and figures["length"].beam == 3.0 and figures["other"].beam is None
    low, high = figures["length"].interval
    assert 1 <= low <= 2 <= high <= 3


def test_scores_without_likelihoods_or_resamples():
    figures = score_metrics([NATS, LENGTH], {"greedy": Outcome([{}], ["ab"], [["r"]])}, None, resamples=0)
    assert figures == {"nats": MetricFigure(None), "length": MetricFigure(2.0)}


def test_text_rows_have_every_way():
    rows = text_rows(Translation(), EvalSet(EXAMPLES, [2, 5]), {"greedy": ["a", "b"], "beam": ["c", "d"]})
    assert rows == [
        {"number": 2, "source": "s2", "reference": "r2", "greedy": "a", "beam": "c"},
        {"number": 5, "source": "s5", "reference": "r5", "greedy": "b", "beam": "d"},
    ]


DAMAGE = {
    "no rows": lambda rows: [],
    "a row less": lambda rows: rows[1:],
    "another example": lambda rows: [rows[0] | {"number": 10**6}, *rows[1:]],
    "no text": lambda rows: [*rows[:-1], rows[-1] | {"greedy": None}],
    "a list": lambda rows: [*rows[:-1], []],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_texts_of_other_examples_are_refused(tmp_path, damage):
    """Also where every digest was redone: such rows give no figures."""
    eval_set, folder = EvalSet(EXAMPLES, [2, 5]), Folder(tmp_path, "evaluate")
    rows = text_rows(Translation(), eval_set, {"greedy": ["a", "b"]})
    folder.begin({})
    for name, one in {"whole": rows, "damaged": DAMAGE[damage](rows)}.items():
        manifest.write_lines(tmp_path / f"{name}.jsonl", one)
    folder.finish({}, 0.0)
    assert read_text_rows(Translation(), eval_set, folder, "whole") == rows
    with pytest.raises(KdError, match=r"damaged.jsonl: expected .* Run `evaluate` again with --force"):
        read_text_rows(Translation(), eval_set, folder, "damaged")


@pytest.mark.parametrize("arrays", [{"nll": np.ones(6)}, {"nll": np.ones((7, 1))}, {}])
def test_likelihoods_of_other_examples_are_refused(tmp_path, arrays):
    folder = Folder(tmp_path, "evaluate")
    folder.begin({})
    manifest.write_arrays(tmp_path / "kd.npz", tokens=np.ones(7, np.int64), **arrays)
    folder.finish({}, 0.0)
    with pytest.raises(KdError, match=r"kd.npz: expected nll of 7 examples, got (shape|none)"):
        read_outcome(Translation(), EvalSet(EXAMPLES, range(7)), folder, "kd", "tokens")
