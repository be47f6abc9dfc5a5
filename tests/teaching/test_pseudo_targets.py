"""Sequence-level distillation: the teacher's hypotheses as targets, and the signals along them."""

import dataclasses

import numpy as np
import pytest

from kd_jax.batches.pipeline import Split, TrainBatches
from kd_jax.batches.store import Store
from kd_jax.batches.targets import PseudoTargets, pack_hypotheses, unpack_hypotheses
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.objective.terms import Term
from kd_jax.phases import cache, student
from kd_jax.signals.topk import TopK
from kd_jax.tokenizers.sentencepiece import START
from tests.helpers.runs import beside


@pytest.mark.parametrize("rule", ["best", "nbest", "interpolated"])
def test_pseudo_targets_train_a_student_with_the_signals_along_them(experiment, workdir, tmp_path, rule):
    targets = PseudoTargets(rule, beam=3)
    terms = {"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=TopK(k=4))}
    recipe = dataclasses.replace(experiment.students["student_kd"], targets=targets, terms=terms)
    wanted, run = dataclasses.replace(experiment, students={"it": recipe}), beside(workdir, tmp_path, "data", "teacher")
    cache.run(wanted, run)
    split = Split(run.split(targets.name), "train", {"topk": Store(run.cache(targets.name, "topk").path, "records")})
    options = {"tokens_per_batch": 512, "divisor": 1, "seed": 0, "packed": False}
    batch = TrainBatches(split, recipe.model.layout(START), experiment.shapes, **options)[0]
    assert batch.mask_BT.any() and batch.payload["topk"]["ids"].shape[-1] == 4
    rows = [split.read(i) for i in range(len(split))]
    np.testing.assert_allclose(np.mean([row.weight for row in rows]), 1.0, rtol=1e-5)
    for b, i in enumerate(batch.inputs.index_B):
        assert (batch.weight_BT[b][batch.mask_BT[b]] == np.float32(rows[i].weight)).all()
    assert len(split) == 120 if rule != "nbest" else len(split) > 120
    # The best hypothesis is what the teacher itself finds likely: its first token is nearly always the likeliest.
    if rule == "best":
        first = [row.encoded.completion[0] in row.records["topk"]["ids"][0] for row in rows]
        assert np.mean(first) > 0.9
    student.run(wanted, run)


IDS = [np.asarray([7, 2], np.int32), np.asarray([8, 9, 2], np.int32)]


def test_rules_choose_what_they_say():
    logp = np.log([0.6, 0.2])
    assert PseudoTargets("best").choose(IDS, logp, len)[0][0] is IDS[0]
    assert PseudoTargets("interpolated").choose(IDS, logp, len)[0][0] is IDS[1]
    np.testing.assert_allclose([weight for _, weight in PseudoTargets("nbest").choose(IDS, logp, len)], [1.5, 0.5])


def test_hypotheses_that_never_ended_and_repeated_ones_are_not_stored():
    padded = np.asarray([[7, 2, 0, 0], [8, 9, 2, 0], [8, 9, 2, 0], [8, 8, 8, 8]], np.int32)
    packed = pack_hypotheses(padded, np.asarray([-1.0, -2.0, -3.0, -4.0]), eos=2)
    assert [ids.tolist() for ids in unpack_hypotheses(packed)] == [[7, 2], [8, 9, 2]]
    assert packed["logp"].tolist() == [-1.0, -2.0]
    assert unpack_hypotheses(pack_hypotheses(padded[3:], np.asarray([-1.0]), eos=2)) == []
