"""Sequence-level distillation: the teacher's hypotheses as targets, with the signals of their tokens."""

import dataclasses

import numpy as np
import pytest

from kd_jax.batches.pipeline import Split, TrainBatches
from kd_jax.batches.store import Store
from kd_jax.batches.targets import PseudoTargets
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.objective.terms import Term
from kd_jax.phases import cache, student
from kd_jax.signals.topk import TopK
from kd_jax.tokenizers.sentencepiece import START
from tests.helpers.runs import linked_run


@pytest.mark.parametrize("rule", ["best", "nbest", "interpolated"])
def test_pseudo_targets_with_signals_train_a_student(experiment, workdir, tmp_path, rule):
    targets = PseudoTargets(rule, beam=3)
    terms = {"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=TopK(k=4))}
    recipe = dataclasses.replace(experiment.students["student_kd"], targets=targets, terms=terms)
    changed, run = (
        dataclasses.replace(experiment, students={"it": recipe}),
        linked_run(workdir, tmp_path, "data", "teacher"),
    )
    cache.run(changed, run)
    split = Split(run.split(targets.name), "train", {"topk": Store(run.cache(targets.name, "topk").path, "records")})
    options = {"tokens_per_batch": 512, "divisor": 1, "seed": 0, "packed": False}
    batch = TrainBatches(split, recipe.model.layout(START), experiment.shapes, **options)[0]
    assert batch.mask_BT.any() and batch.payload["topk"]["ids"].shape[-1] == 4
    rows = [split.read(i) for i in range(len(split))]
    np.testing.assert_allclose(np.mean([row.weight for row in rows]), 1.0, rtol=1e-5)
    for b, i in enumerate(batch.inputs.index_B):
        assert (batch.weight_BT[b][batch.mask_BT[b]] == np.float32(rows[i].weight)).all()
    assert len(split) == 120 if rule != "nbest" else len(split) > 120
    # The first token of the best hypothesis is nearly always among the teacher's top k.
    if rule == "best":
        first = [row.encoded.completion[0] in row.records["topk"]["ids"][0] for row in rows]
        assert np.mean(first) > 0.9
    student.run(changed, run)
