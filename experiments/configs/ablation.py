"""Eleven students of the quickstart's teacher with equal steps, one for each kind of knowledge.

    python -m kd_jax ablate experiments/configs/ablation.py --workdir runs/ablation --seeds 0 1 2

All students except `ce_scratch` start from the teacher's layers. `shrink_finetune` and `ce_smoothed` are their
controls: the same student, first parameters, data order and steps, with cross-entropy alone, plain and with label
smoothing. Results: experiments/benchmarks/RESULTS.md.
"""

import dataclasses

from kd_jax import (
    AttentionRelations,
    Comparison,
    Evaluation,
    HiddenStates,
    PseudoTargets,
    Sampled,
    Term,
    TopK,
    cross_entropy,
    forward_kl,
    load_experiment,
    mse,
)

quickstart = load_experiment(__file__.replace("ablation.py", "quickstart_references.py"))
scratch, start = quickstart.students["student_scratch"], quickstart.students["student_init"]


def student(targets=None, **terms):
    """Return the quickstart's student from the teacher's layers, with cross-entropy at half weight and `terms`."""
    half = {"ce": Term(cross_entropy, weight=0.5)} if terms else {"ce": Term(cross_entropy)}
    return dataclasses.replace(start, terms=half | terms, targets=targets)


def topk(tail="bucket"):
    return Term(forward_kl, weight=0.5, signal=TopK(k=32, tail=tail))


features = {
    "hidden": Term(mse, weight=0.1, signal=HiddenStates(stack="decoder", layers=((0, 2),))),
    "relations": Term(forward_kl, weight=0.1, signal=AttentionRelations(stack="encoder", layers=((1, 2),), heads=8)),
}
experiment = dataclasses.replace(
    quickstart,
    name="ablation",
    students={
        "ce_scratch": scratch,
        "shrink_finetune": start,
        "ce_smoothed": dataclasses.replace(start, terms={"ce": Term(cross_entropy, options={"label_smoothing": 0.1})}),
        "topk_bucket": student(kd=topk()),
        "topk_renormalise": student(kd=topk("renormalise")),
        "topk_zero": student(kd=topk("zero")),
        "sampled": student(kd=Term(forward_kl, weight=0.5, signal=Sampled(draws=50))),
        "pseudo": student(PseudoTargets("best")),
        "interpolated": student(PseudoTargets("interpolated")),
        "pseudo_topk": student(PseudoTargets("best"), kd=topk()),
        "features_topk": student(kd=topk(), **features),
    },
    comparison=Comparison(baseline="ce_scratch", distilled="topk_bucket", controls=("shrink_finetune", "ce_smoothed")),
    evaluation=Evaluation(bootstrap=200, speed_texts=4),
)
