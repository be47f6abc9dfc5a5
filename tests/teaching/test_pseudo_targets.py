"""Sequence-level distillation: the teacher's hypotheses as targets, with the signals of their tokens."""

import dataclasses

import numpy as np
import pytest

from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches.pipeline import EvalBatches, Split, TrainBatches, with_references
from kd_jax.batches.store import Store
from kd_jax.batches.targets import PseudoTargets
from kd_jax.errors import KdError
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.objective.terms import Term
from kd_jax.phases import cache, student
from kd_jax.signals.topk import TopK
from kd_jax.students.importance import importance
from kd_jax.tasks.base import Decoding
from kd_jax.teaching.teacher import Teacher
from kd_jax.teaching.width_scores import width_scores
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.model import train_split
from tests.helpers.runs import linked_run, smoke


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
    split = Split(
        run.split(recipe.train_targets.name),
        "train",
        {"topk": Store(run.cache(recipe.train_targets.name, "topk").path, "records")},
    )
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


REFERENCES, COUNT, LONGEST_TEXT = 50, 400, 7
SHORT = ["--evaluation.cached-k", "0", "--students.student_scratch.training.steps", "3"]
SHORT += ["--students.student_scratch.training.optimizer.warmup", "1"]


@pytest.fixture(scope="module")
def shares(smoke_run, root, tmp_path_factory, lax_promotion):
    """Students with the references of 50 of 120 examples, and texts of the teacher for some of them."""
    experiment = smoke(root, SHORT)
    recipe = dataclasses.replace(experiment.students["student_scratch"], references=REFERENCES)
    students = {of: dataclasses.replace(recipe, targets=PseudoTargets(beam=2, of=of)) for of in OF}
    students |= {"references": recipe, "every": dataclasses.replace(recipe, references=COUNT)}
    students |= {"all": dataclasses.replace(recipe, references=0)}
    run = linked_run(Workdir(smoke_run), tmp_path_factory.mktemp("shares") / "run", "data", "teacher")
    # Texts of so few tokens: some searches find no end.
    task = dataclasses.replace(experiment.task, decoding=Decoding(length_ratio=0.0, length=LONGEST_TEXT))
    changed = dataclasses.replace(experiment, students=students, task=task)
    cache.run(changed, run)
    return changed, run


OF = ("train", "unlabelled", "both")


def prompts_and_targets(split):
    examples = [split.read(i).encoded for i in range(len(split))]
    return [(tuple(one.prompt.tolist()), tuple(one.completion.tolist())) for one in examples]


def test_a_share_of_the_references_decides_what_a_student_reads(shares):
    experiment, run = shares
    everything = prompts_and_targets(Split(run.data, "train"))
    reads = {name: prompts_and_targets(train_split(run, one, {})) for name, one in experiment.students.items()}
    own = reads["references"]
    prompts = {prompt for prompt, _ in own}
    assert len(own) == REFERENCES and own == [pair for pair in everything if pair[0] in prompts]
    assert reads["all"] == reads["every"] == everything
    # What the teacher wrote, by a search of each prompt; a text without an end is none.
    hypotheses = Split(run.data, "train", {"nbest": Store(run.hypotheses("train", 2).path, "nbest")})
    records = [hypotheses.read(i) for i in range(COUNT)]
    texts = {
        tuple(one.encoded.prompt.tolist()): tuple(one.records["nbest"]["ids"][: one.records["nbest"]["lengths"][0]])
        for one in records
        if len(one.records["nbest"]["lengths"])
    }
    assert 0 < len(texts) < COUNT and set(texts.items()) - set(everything)
    replaced = [(prompt, texts.get(prompt, target)) for prompt, target in everything]
    assert reads["train"] == [pair for pair in replaced if pair[0] in prompts]
    assert reads["both"] == [pair for pair in replaced if pair[0] in prompts or pair[0] in texts]
    written = [(prompt, texts[prompt]) for prompt, _ in everything if prompt not in prompts and prompt in texts]
    assert reads["unlabelled"] == own + written


def test_all_references_by_number_are_the_same_bits(shares):
    experiment, run = shares
    for name in ("all", "every"):
        student.run(experiment, run, only=name)
    digests = [run.model(name).outputs()["digest"] for name in ("all", "every")]
    assert digests[0] == digests[1]


def test_too_many_references_are_refused_where_the_data_are_finished(shares):
    experiment, run = shares
    recipe = dataclasses.replace(experiment.students["references"], references=10**6)
    changed = dataclasses.replace(experiment, students={"many": recipe})
    with pytest.raises(KdError, match="references: expected at most the"):
        student.run(changed, run)


def test_importance_is_measured_on_the_share(experiment, workdir):
    """Equal to the scores of those examples alone."""
    teacher = Teacher(experiment, workdir)
    scores = width_scores(teacher, "importance", 1000, REFERENCES)
    split = with_references(workdir.data, REFERENCES)
    alone = EvalBatches(Split(workdir.data, "train"), teacher.layout, experiment.shapes, 16, 1, split.numbers)
    expected = importance(teacher.model, teacher.params, alone, teacher.devices, experiment.teacher.model.head_width)
    for name, score in expected.items():
        np.testing.assert_allclose(scores[name], score, rtol=1e-5)
    others = width_scores(teacher, "importance", 1000)
    assert not np.allclose(scores["channels"], others["channels"], rtol=1e-3)
