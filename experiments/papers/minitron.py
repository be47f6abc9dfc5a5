"""Minitron: which parts of a language model to keep, and how to train what is left.

Paper: Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679,
sections 2 and 4.

Question: at equal parameters, is a student with half of each layer's heads and neurons better than one with half of
the layers; does it matter which parts it keeps; and should it be retrained by the teacher or by the references?

    python -m kd_jax ablate experiments/papers/minitron.py --workdir runs/minitron --seeds 0 1 2

About 30 minutes a seed on two idle cores, estimated. `ablate` pairs students of one network only: compare width and
depth by the report's table of all figures.

The paper reports these orders: important parts above random ones, pruned students above those from random parameters,
width above depth after retraining, distillation above cross-entropy in retraining. Its figures were not checked. The
abstract: up to 40 times fewer training tokens a model than from random parameters, and up to 16% better MMLU.

What differs here: a teacher of six layers and width 128 in place of 15B parameters; students with half of the
teacher's attention and feed-forward parameters; 500 updates. The depth student keeps evenly spaced layers. Parts are
ranked once, on 256 examples, and there is no search over candidates. Every student with a teacher learns from it alone.

Figures: not run yet.
"""

import dataclasses
from pathlib import Path

from kd_jax import Comparison, Evaluation, FromTeacher, Random, Term, TopK, forward_kl, load_experiment

lm = load_experiment(Path(__file__).parents[1] / "configs/pays_lm.py")
teacher = dataclasses.replace(lm.teacher.model, dropout=0.0)
half_width = dataclasses.replace(teacher, heads=2, head_dim=32, d_ff=176)  # of 4 heads and 352 neurons
half_depth = dataclasses.replace(teacher, layers=3)  # of 6
ce = dataclasses.replace(lm.students["init_ce"], model=half_width)
kd = dataclasses.replace(ce, terms={"kd": Term(forward_kl, signal=TopK(k=64))})

experiment = dataclasses.replace(
    lm,
    name="minitron",
    students={
        "important_kd": kd,
        "first_kd": dataclasses.replace(kd, init=FromTeacher(width="first")),
        "random_kd": dataclasses.replace(kd, init=FromTeacher(width="random")),
        "chance_kd": dataclasses.replace(kd, init=Random()),
        "important_ce": ce,
        "depth_kd": dataclasses.replace(kd, model=half_depth),
        "depth_ce": dataclasses.replace(ce, model=half_depth),
    },
    comparison=Comparison("chance_kd", "important_kd", controls=("random_kd", "important_ce", "depth_ce")),
    evaluation=Evaluation(texts=200, speed_texts=4, draft=0),
)
