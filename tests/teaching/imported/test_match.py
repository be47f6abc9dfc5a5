"""Stored sequences are matched to examples by their token ids."""

import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.teaching.imported.match import ExampleIndex, target_logprobs
from tests.teaching.imported.pairs import SPECIAL, Pairs, record_of


@pytest.mark.parametrize("start", [[], [1]])
@pytest.mark.parametrize("end", [[], [2], [2, 0, 0]])
def test_sequence_is_found_with_and_without_start_end_and_padding(start, end):
    index = ExampleIndex(Pairs(), "whole", SPECIAL)
    record = record_of([*start, 5, 6, 2, 7, 8, 9, *end], range(1, len(start) + 7))
    match = index.find(record)
    assert match.indices == [0] and match.offset == len(start)
    targets = index.targets(Pairs().read(0).encoded)
    assert targets.tolist() == [3, 4, 5, 6]
    ids, logp = target_logprobs(record, targets + match.offset)
    assert ids[:, 0].tolist() == [7, 8, 9, 2] and (logp[:, 0] >= np.float32(-0.2)).all()


def test_target_without_a_position_names_nothing():
    ids, logp = target_logprobs(record_of([5, 6, 2, 7], [1, 3]), np.asarray([2, 3, 4]))
    assert ids.tolist() == [[-1, -1], [7, 8], [-1, -1]] and np.isneginf(logp[[0, 2]]).all()


def test_completion_is_found_if_its_examples_share_a_prompt():
    index = ExampleIndex(Pairs(), "completion", SPECIAL)
    match = index.find(record_of([1, 8, 2]))
    assert match.indices == [2, 3] and index.targets(Pairs().read(2).encoded).tolist() == [0, 1]
    with pytest.raises(KdError, match="got that of examples 0 and 1, whose prompts differ"):
        index.find(record_of([7, 8, 9, 2]))
    assert ExampleIndex(Pairs(), "whole", SPECIAL).find(record_of([1, 8, 2])) is None
