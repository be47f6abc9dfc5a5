"""Narrow students of the quickstart's teacher, which keep different heads, neurons and channels.

    python -m kd_jax teacher experiments/configs/narrow.py --workdir runs/narrow
    python -m kd_jax shrink experiments/configs/narrow.py --workdir runs/narrow
    python -m kd_jax student experiments/configs/narrow.py --workdir runs/narrow

The students have the teacher's depth, and three quarters or half of its width. They start from the most important
parts, from random parts, or from random parameters, and train for 350 steps on the data alone. Results:
experiments/benchmarks/RESULTS.md.
"""

import dataclasses

from kd_jax import Comparison, FromTeacher, Random, load_experiment

quickstart = load_experiment(__file__.replace("narrow", "quickstart_references"))
whole = dataclasses.replace(quickstart.teacher.model, dropout=0.0, head_dim=32)
sizes = {
    "most": dataclasses.replace(whole, d_model=96, heads=3, d_ff=384),
    "half": dataclasses.replace(whole, d_model=64, heads=2, d_ff=256),
}
starts = {"important": FromTeacher(), "random": FromTeacher(width="random"), "chance": Random()}
ce_alone = quickstart.students["student_scratch"]
training = dataclasses.replace(ce_alone.training, steps=350, eval_every=175)

experiment = dataclasses.replace(
    quickstart,
    name="narrow",
    students={
        f"{size}_{start}": dataclasses.replace(ce_alone, model=model, init=init, training=training)
        for size, model in sizes.items()
        for start, init in starts.items()
    },
    comparison=Comparison(baseline="half_chance", distilled="half_important"),
)
