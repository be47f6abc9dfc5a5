"""Pseudo-targets: the choice among hypotheses, and their records."""

import numpy as np

from kd_jax.batches.targets import PseudoTargets, pack_hypotheses, unpack_hypotheses

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
