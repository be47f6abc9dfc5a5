"""GKD for summaries: the students of gkd.py, which learn from their own synopses of packages.

Paper: Agarwal et al. 2023, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
arXiv 2306.13649, section 3 (algorithm 1) and section 4.1 (XSum).

Question: that of gkd.py, in summarisation: does a distilled student come further on texts of its own than on its
teacher's, and with which share and divergence?

    python -m kd_jax ablate experiments/papers/gkd_summaries.py --workdir runs/gkd_summaries --seeds 0 1 2

About 60 minutes a seed on two idle cores, estimated.

The paper reports, in its figures: own texts above the teacher's texts and references, for all sizes of T5.

What differs here: teacher and data of debian_summaries.py, whose teacher knows ten times the synopses that its student
has as references. All students continue `start`, the distilled student of debian_summaries.py with 600 of its 1,000
updates, for 400 updates at a third of its rate.

Figures: not run yet.
"""

import dataclasses
from pathlib import Path

from kd_jax import load_experiment

summaries = load_experiment(Path(__file__).parents[1] / "configs/debian_summaries.py")
gkd = load_experiment(Path(__file__).with_name("gkd.py"))
distilled = summaries.students["student_kd"]
start = dataclasses.replace(distilled, training=dataclasses.replace(distilled.training, steps=600, eval_every=300))
optimizer = dataclasses.replace(start.training.optimizer, learning_rate=start.training.optimizer.learning_rate / 3)
training = dataclasses.replace(start.training, steps=400, eval_every=200, optimizer=optimizer)


def student(name):
    """Return the student of a name in gkd.py, with half of its updates."""
    like, steps = gkd.students[name], gkd.students[name].training.steps // 2
    return dataclasses.replace(
        like,
        training=dataclasses.replace(training, steps=steps, eval_every=steps // 2),
        references=start.references,
    )


students = {name: student(name) for name in gkd.students if name != "start"}

experiment = dataclasses.replace(
    summaries,
    name="gkd_summaries",
    students={"start": start} | students,
    comparison=gkd.comparison,
    evaluation=dataclasses.replace(summaries.evaluation, texts=600, speed_texts=4, draft=0, own_texts=400),
)
