"""Matching by ids, and an audit that tells what is wrong with files."""

from types import SimpleNamespace

import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.tasks.base import Encoded
from kd_jax.teaching.imported.audit import Audit, lines
from kd_jax.teaching.imported.match import Examples, Marks, said_of
from kd_jax.teaching.imported.readers.base import rectangular

MARKS = Marks(start=1, eos=2, pad=0)
PAIRS = [([5, 6, 2], [7, 8, 9, 2]), ([6, 2], [7, 8, 9, 2]), ([5, 6, 2], [8, 2]), ([5, 6, 2], [8, 2])]


class Pairs:
    """A split of PAIRS, of which the completions count."""

    def __len__(self):
        return len(PAIRS)

    def read(self, i):
        prompt, completion = (np.asarray(ids, np.int32) for ids in PAIRS[i])
        counts = np.arange(len(prompt) + len(completion)) >= len(prompt)
        return SimpleNamespace(encoded=Encoded(prompt, completion, counts))


def stored(tokens, targets=None):
    """Each position names the token that it predicts, and the next id."""
    targets = range(1, len(tokens)) if targets is None else targets
    entries = lambda t: [(tokens[t], -0.1), (tokens[t] + 1, -3.0)] if t < len(tokens) else [(2, -0.2)]  # noqa: E731
    return rectangular("f, record 1", tokens, [(t, entries(t)) for t in targets])


@pytest.mark.parametrize("start", [[], [1]])
@pytest.mark.parametrize("end", [[], [2], [2, 0, 0]])
def test_a_sequence_is_found_with_and_without_its_start_end_and_padding(start, end):
    examples = Examples(Pairs(), "whole", MARKS)
    record = stored([*start, 5, 6, 2, 7, 8, 9, *end], range(1, len(start) + 7))
    match = examples.find(record)
    assert match.numbers == [0] and match.offset == len(start)
    encoded = Pairs().read(0).encoded
    assert examples.targets(encoded).tolist() == [3, 4, 5, 6]
    ids, logp = said_of(record, examples.targets(encoded) + match.offset)
    assert ids[:, 0].tolist() == [7, 8, 9, 2] and (logp[:, 0] >= np.float32(-0.2)).all()


def test_a_target_that_no_position_is_about_has_nothing_named():
    ids, logp = said_of(stored([5, 6, 2, 7], [1, 3]), np.asarray([2, 3, 4]))
    assert ids.tolist() == [[-1, -1], [7, 8], [-1, -1]] and np.isneginf(logp[[0, 2]]).all()


def test_completions_alone_are_found_where_one_prompt_has_them():
    examples = Examples(Pairs(), "completion", MARKS)
    match = examples.find(stored([1, 8, 2]))
    assert match.numbers == [2, 3] and examples.targets(Pairs().read(2).encoded).tolist() == [0, 1]
    with pytest.raises(KdError, match="completions of examples 0 and 1, whose prompts differ"):
        examples.find(stored([7, 8, 9, 2]))
    assert Examples(Pairs(), "whole", MARKS).find(stored([1, 8, 2])) is None


def test_positions_that_are_about_another_token_are_suspected():
    tokens = [1, 5, 6, 2, 7, 8, 9, 2]
    examples = Examples(Pairs(), "whole", MARKS)
    for shift in (-1, 0, 1):
        record = stored(tokens)
        record = record._replace(target_N=record.target_N - shift)
        audit = Audit(4, 11)
        audit.add_ranks(record, examples.find(record))
        warnings = [line for line in lines("train", audit.figures(True)) if line.startswith("warning")]
        assert len(warnings) == (shift != 0) and all(f"shifted by {shift:+d}" in line for line in warnings)


def test_mass_tail_and_repeats_are_counted():
    audit = Audit(examples=3, targets=6)
    ids, logp = np.asarray([[3, 5], [4, -1]]), np.log(np.asarray([[0.5, 0.25], [0.75, 1.0]], np.float32))
    logp[1, 1] = -np.inf
    audit.add(ids, logp, 60, True)
    audit.add_repeat((ids, logp), (ids[:, ::-1], logp[:, ::-1]))
    assert audit.difference == 0
    audit.add_repeat((ids, logp), (ids, logp + np.asarray([[0.0, 0.5], [0.0, 0.0]], np.float32)))
    figures = audit.figures(True)
    assert figures["mass_covered"] == pytest.approx(0.75) and figures["tail"] == "by subtraction"
    assert (figures["fewest"], figures["most"], figures["matched"], figures["said"]) == (1, 2, 1, 2)
    assert figures["repeats"] == 2 and figures["repeats_differ_by"] == pytest.approx(0.5)
    assert audit.missing() == pytest.approx(4 / 6) and audit.tail(False) == "unknown"
    said = " ".join(lines("train", figures))
    assert "1 of 3 examples, 2 of 6 targets; 2 examples and 4 targets missing" in said and "75.00% of the mass" in said
