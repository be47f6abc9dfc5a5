"""Distillation in one step or in two rounds: 2 of the 6 layers of debian_lm's teacher.

    python -m kd_jax run experiments/configs/rounds.py --workdir runs/rounds

Question: is a student better if it is pruned twice, 6 layers to 4 and 4 to 2, with distillation after each round, than
if it is pruned once, at equal total steps? Minitron (arXiv 2407.14679) prunes a large model in rounds.

- one_step: 2 layers from the teacher, 800 steps.
- round_1, round_2: 4 layers from the teacher, 400 steps; then 2 layers from round_1, 400 steps.
- half_step: 2 layers from the teacher, 400 steps; round_2 differs from it only in its start.
- one_step_ce: one_step with cross-entropy alone.

Both ways keep the teacher's first and last layer. Equal steps are not equal time: a step of round_1 has four layers.
Each round has a learning-rate schedule of its own. About 55 minutes on two idle cores, estimated. Figures: not run yet.
"""

import dataclasses

from kd_jax import Comparison, FromStudent, load_experiment

lm = load_experiment(__file__.replace("rounds", "debian_lm"))
ce, one_step = lm.students["student_init"], lm.students["student_kd"]
half = dataclasses.replace(one_step.training, steps=one_step.training.steps // 2, eval_every=200)
half_step = dataclasses.replace(one_step, training=half)

experiment = dataclasses.replace(
    lm,
    name="rounds",
    students={
        "one_step_ce": ce,
        "one_step": one_step,
        "half_step": half_step,
        "round_1": dataclasses.replace(half_step, model=dataclasses.replace(one_step.model, layers=4)),
        "round_2": dataclasses.replace(half_step, init=FromStudent("round_1")),
    },
    comparison=Comparison(baseline="one_step_ce", distilled="round_2"),
)
