"""TAID: a target that moves from the student to the teacher, against fixed divergences.

Paper: Shing et al. 2025, "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in
Language Models", arXiv 2501.16937, section 3.

Question: at equal updates, is a target between student and teacher better than the teacher itself, under forward,
reverse and skewed KL?

    python -m kd_jax ablate experiments/papers/taid.py --workdir runs/taid --seeds 0 1 2

About 25 minutes a seed on two idle cores, estimated.

The paper reports, in its abstract, that TAID is better than earlier methods for several sizes and architectures, in
instruction tuning and in pretraining. Its tables were not checked. So the expected order is: TAID above the others.

What differs here: t grows linearly from 0.4 to 1; the paper adapts its pace to the change of the loss. The student is
not pretrained: it starts from two of the teacher's six layers, with the most important half of their width. The
distributions are the teacher's top 64 and the rest as one token. 1,000 updates on 10,000 texts. The skew is 0.1
(DistiLLM, arXiv 2402.03898), without its student-generated data. All students but `ce` learn from the teacher alone.

Figures: not run yet.
"""

import dataclasses
from pathlib import Path

from kd_jax import (
    Comparison,
    Evaluation,
    FromTeacher,
    Schedule,
    Term,
    TopK,
    forward_kl,
    load_experiment,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    taid,
)

lm = load_experiment(Path(__file__).parents[1] / "configs/pays_lm.py")
half = dataclasses.replace(lm.teacher.model, layers=2, d_model=64, heads=2, head_dim=32, d_ff=176, dropout=0.0)
ce = dataclasses.replace(lm.students["small_ce"], model=half, init=FromTeacher())


def student(loss, **options):
    """Return the student that learns from the teacher alone, by this loss."""
    return dataclasses.replace(ce, terms={"kd": Term(loss, signal=TopK(k=64), options=options)})


experiment = dataclasses.replace(
    lm,
    name="taid",
    students={
        "ce": ce,
        "forward_kl": student(forward_kl),
        "reverse_kl": student(reverse_kl),
        "skewed_forward_kl": student(skewed_forward_kl, alpha=0.1),
        "skewed_reverse_kl": student(skewed_reverse_kl, alpha=0.1),
        "taid": student(taid, t=Schedule(0.4, 1.0, steps=ce.training.steps)),
    },
    comparison=Comparison("ce", "taid", controls=("ce", "forward_kl")),
    evaluation=Evaluation(texts=200, speed_texts=4, draft=0),
)
