"""GKD: a translator that learns from its own translations, judged by the teacher.

Paper: Agarwal et al. 2023, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
arXiv 2306.13649, section 3 (algorithm 1) and section 4.

Question: does a distilled student come further if the teacher judges texts that the student writes, in place of the
teacher's own texts; how large should their share be; and which divergence?

    python -m kd_jax ablate experiments/papers/gkd.py --workdir runs/gkd --seeds 0 1 2

About 50 minutes a seed on two idle cores, estimated from a run beside other work. The KL on own texts, and the time of
each student's training, are in each seed's report.

The paper reports, in its abstract and figures: own texts above the teacher's texts and references, for all student
sizes of T5; shares of 0.5 and 1 above 0; the better divergence depends on the task, and matters less than the share.

What differs here: a teacher of 1.4 million parameters outside the embeddings and students of 12% of them. All students
continue `start`, the distilled student of quickstart.py, for 800 updates at a third of its rate, and have the same
prompts: `more` as before (cross-entropy and the top 32 on the teacher's translations), `kd` with the full distribution
there, the others on their own translations, in part or alone. `kd_long` has 1,200 updates, about the seconds of `all`.
`rounds` is `half` with translations that are written four times, and the teacher's top 64 from a cache.

A start that has learnt from references alone is too early: of one run of seed 0, 1,200 updates after it gave BLEU 19.0
by supervised distillation, 19.6 and 18.5 by own translations of the same 2,000 sentences with shares of 0.5 and 1, and
23.5 on the teacher's translations of all.

Figures: not run yet.
"""

import dataclasses
from pathlib import Path

from kd_jax import (
    Comparison,
    FromStudent,
    Online,
    OnPolicy,
    Rounds,
    Smaller,
    Term,
    TopK,
    forward_kl,
    load_experiment,
    reverse_kl,
)

quickstart = load_experiment(Path(__file__).parents[1] / "configs/quickstart.py")
start = quickstart.students["student_kd"]
optimizer = dataclasses.replace(start.training.optimizer, learning_rate=1e-3)
more = dataclasses.replace(
    start,
    model=Smaller(),
    init=FromStudent("start"),
    training=dataclasses.replace(start.training, steps=800, eval_every=200, optimizer=optimizer),
)
kd = dataclasses.replace(more, terms={"kd": Term(forward_kl, signal=Online())})
reverse = {"kd": Term(reverse_kl, signal=Online())}
half, own = OnPolicy(share=0.5, others=start.pseudo_targets), OnPolicy(share=1.0, others=start.pseudo_targets)
rounds = Rounds(share=0.5, count=4, examples=8000, others=start.pseudo_targets)

experiment = dataclasses.replace(
    quickstart,
    name="gkd",
    students={
        "start": start,
        "more": more,
        "kd": kd,
        "kd_long": dataclasses.replace(kd, training=dataclasses.replace(more.training, steps=1200, eval_every=300)),
        "half": dataclasses.replace(kd, targets=half),
        "all": dataclasses.replace(kd, targets=own),
        "half_reverse": dataclasses.replace(kd, terms=reverse, targets=half),
        "all_reverse": dataclasses.replace(kd, terms=reverse, targets=own),
        "rounds": dataclasses.replace(kd, terms={"kd": Term(forward_kl, signal=TopK(k=64))}, targets=rounds),
    },
    comparison=Comparison("more", "half", controls=("start", "more", "kd", "kd_long")),
    evaluation=dataclasses.replace(quickstart.evaluation, speed_texts=4, own_texts=400),
)
