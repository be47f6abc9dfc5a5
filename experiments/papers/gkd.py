"""GKD: a translator that learns from its own translations, judged by the teacher.

Paper: Agarwal et al. 2023, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
arXiv 2306.13649, section 3 (algorithm 1) and section 4.

Question: does a student come further if the teacher judges texts that the student writes, in place of references or of
the teacher's own texts; how large should their share be; and which divergence?

    python -m kd_jax ablate experiments/papers/gkd.py --workdir runs/gkd --seeds 0 1 2

About 50 minutes a seed on two idle cores, estimated from a run beside other work. The KL on own texts, and the time of
each student's training, are in each seed's report.

The paper reports, in its abstract and figures: own texts above the teacher's texts and references, for all student
sizes of T5; shares of 0.5 and 1 above 0; the better divergence depends on the task, and matters less than the share.

What differs here: a teacher of 1.4 million parameters outside the embeddings that knows 17,632 references, where the
students have 2,000 (quickstart.py), and 12% of its size; all of them continue `start`, which has learnt from the
references. 1,200 updates each, so the on-policy ones take longer. `all_prompts` and its like have the English of all
sentences as prompts, as `seqkd` has through the teacher's translations: the paper's students have the same prompts in
every case, here `half` and `all` beside `kd`.

Figures: not run yet.
"""

import dataclasses
from pathlib import Path

from kd_jax import (
    Comparison,
    FromStudent,
    FromTeacher,
    OnPolicy,
    Online,
    PseudoTargets,
    Smaller,
    Term,
    cross_entropy,
    forward_kl,
    load_experiment,
    reverse_kl,
)

quickstart = load_experiment(Path(__file__).parents[1] / "configs/quickstart.py")
student = quickstart.students["student_kd"]
ce, forward, reverse = (
    {"ce": Term(cross_entropy)},
    {"kd": Term(forward_kl, signal=Online())},
    {"kd": Term(reverse_kl, signal=Online())},
)
start = dataclasses.replace(
    student,
    init=FromTeacher(),
    terms=ce,
    targets=None,
    training=dataclasses.replace(student.training, steps=400, eval_every=200),
)
again = dataclasses.replace(
    start,
    model=Smaller(),
    init=FromStudent("start"),
    training=dataclasses.replace(student.training, steps=1200, eval_every=300),
)
kd = dataclasses.replace(again, terms=forward)
teacher_texts = PseudoTargets(of="both", beam=2)

experiment = dataclasses.replace(
    quickstart,
    name="gkd",
    students={
        "start": start,
        "ce": again,
        "kd": kd,
        "half": dataclasses.replace(kd, targets=OnPolicy(share=0.5)),
        "all": dataclasses.replace(kd, targets=OnPolicy(share=1.0)),
        "all_reverse": dataclasses.replace(kd, terms=reverse, targets=OnPolicy(share=1.0)),
        "seqkd": dataclasses.replace(again, targets=teacher_texts),
        "seqkd_kd": dataclasses.replace(kd, targets=teacher_texts),
        "half_prompts": dataclasses.replace(kd, targets=OnPolicy(share=0.5, others=teacher_texts)),
        "all_prompts": dataclasses.replace(kd, targets=OnPolicy(share=1.0, unlabelled=True)),
    },
    comparison=Comparison("ce", "all_prompts", controls=("start", "ce", "kd", "seqkd_kd")),
    evaluation=dataclasses.replace(quickstart.evaluation, speed_texts=4, own_texts=400),
)
