"""The audit of files: shifts, mass, tails, repeats."""

import numpy as np
import pytest

from kd_jax.teaching.imported.audit import Audit
from kd_jax.teaching.imported.match import ExampleIndex, TargetLogprobs
from tests.teaching.imported.pairs import SPECIAL, Pairs, record_of


def test_shifted_positions_give_a_warning():
    tokens = [1, 5, 6, 2, 7, 8, 9, 2]
    index = ExampleIndex(Pairs(), "whole", SPECIAL)
    for shift in (-1, 0, 1):
        record = record_of(tokens)
        record = record._replace(target_N=record.target_N - shift)
        audit = Audit(4, 11)
        audit.add_ranks(record, index.find(record))
        warnings = [line for line in audit.figures(True).lines("train") if line.startswith("warning")]
        assert len(warnings) == (shift != 0) and all(f"shifted by {shift:+d}" in line for line in warnings)


def test_mass_tail_and_repeats_are_counted():
    audit = Audit(examples=3, targets=6)
    ids, logp = np.asarray([[3, 5], [4, -1]]), np.log(np.asarray([[0.5, 0.25], [0.75, 1.0]], np.float32))
    logp[1, 1] = -np.inf
    first = TargetLogprobs(ids, logp)
    audit.add(first, 60, True)
    audit.add_repeat(first, TargetLogprobs(ids[:, ::-1], logp[:, ::-1]))
    assert audit.difference == 0
    audit.add_repeat(first, TargetLogprobs(ids, logp + np.asarray([[0.0, 0.5], [0.0, 0.0]], np.float32)))
    figures = audit.figures(True)
    assert figures.mass_covered == pytest.approx(0.75) and figures.tail == "by subtraction"
    assert (figures.min_named, figures.max_named, figures.matched, figures.covered) == (1, 2, 1, 2)
    assert figures.repeats == 2 and figures.repeats_differ_by == pytest.approx(0.5)
    assert audit.missing() == pytest.approx(4 / 6) and audit.figures(False).tail == "unknown"
    text = " ".join(figures.lines("train"))
    assert "1 of 3 examples, 2 of 6 targets; 2 examples and 4 targets missing" in text and "75.00% of the mass" in text
