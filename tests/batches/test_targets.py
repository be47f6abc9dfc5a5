"""Pseudo-targets: the choice among hypotheses, and their records."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.batches.targets import (
    PseudoTargets,
    TrainTargets,
    pack_hypotheses,
    references_mask,
    unpack_hypotheses,
)
from kd_jax.errors import KdError

IDS = [np.asarray([7, 2], np.int32), np.asarray([8, 9, 2], np.int32)]


def test_rules_choose_their_targets():
    logp = np.log([0.6, 0.2])
    assert PseudoTargets("best").choose(IDS, logp, len)[0].ids is IDS[0]
    assert PseudoTargets("interpolated").choose(IDS, logp, len)[0].ids is IDS[1]
    weights = [target.weight for target in PseudoTargets("nbest").choose(IDS, logp, len)]
    np.testing.assert_allclose(weights, [1.5, 0.5])


def test_unfinished_and_repeated_hypotheses_are_not_stored():
    padded = np.asarray([[7, 2, 0, 0], [8, 9, 2, 0], [8, 9, 2, 0], [8, 8, 8, 8]], np.int32)
    packed = pack_hypotheses(padded, np.asarray([-1.0, -2.0, -3.0, -4.0]), eos=2)
    assert [ids.tolist() for ids in unpack_hypotheses(packed)] == [[7, 2], [8, 9, 2]]
    assert packed["logp"].tolist() == [-1.0, -2.0]
    assert unpack_hypotheses(pack_hypotheses(padded[3:], np.asarray([-1.0]), eos=2)) == []


@given(st.integers(1, 50), st.data())
def test_references_of_a_smaller_number_are_among_those_of_a_larger_one(examples, data):
    small, large = sorted(data.draw(st.integers(1, examples)) for _ in range(2))
    owners_N = np.sort(data.draw(st.lists(st.integers(0, examples - 1)).map(lambda ids: [*ids, *range(examples)])))
    few_N, many_N = (references_mask(owners_N, examples, count) for count in (small, large))
    assert not (few_N & ~many_N).any()
    for mask_N, count in ((few_N, small), (many_N, large)):
        kept = set(owners_N[mask_N])
        assert len(kept) == count and not kept & set(owners_N[~mask_N])  # all parts of an example, or none
    assert references_mask(owners_N, examples, 0).all() and references_mask(owners_N, examples, examples).all()


def test_references_are_a_random_share():
    share = references_mask(np.arange(10_000), 10_000, 2000)
    thirds = [third.mean() for third in np.array_split(share, 3)]
    np.testing.assert_allclose(thirds, 0.2, atol=0.03)


ALL = ("train", "validation", "test", "unlabelled")


@pytest.mark.parametrize(
    ("of", "references", "available", "expected"),
    [
        ("train", 0, ALL, ("train",)),
        ("unlabelled", 0, ALL, ("unlabelled",)),
        ("both", 0, ALL, ("train", "unlabelled")),
        ("train", 5, ALL, ("train",)),
        ("unlabelled", 5, ALL, ("train", "unlabelled")),
        ("unlabelled", 5, ALL[:3], ("train",)),
        ("both", 5, ALL[:3], ("train",)),
    ],
)
def test_which_splits_the_teacher_writes_texts_for(of, references, available, expected):
    assert TrainTargets(PseudoTargets(of=of), references).splits(available) == expected


def test_more_references_than_examples_are_refused():
    with pytest.raises(KdError, match="references: expected at most the 3 training examples, got 4"):
        references_mask(np.arange(3), 3, 4)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (TrainTargets(None, 11), "references: expected at most the 10 training examples, got 11."),
        (TrainTargets(PseudoTargets(of="unlabelled")), "targets.of: expected a source with a split unlabelled"),
    ],
)
def test_data_without_such_examples_is_refused(targets, message):
    with pytest.raises(KdError, match=message):
        targets.check({"train": 10, "validation": 1, "test": 1})
