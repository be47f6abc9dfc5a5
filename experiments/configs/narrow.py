"""Students narrower than the quickstart's teacher: does it matter which heads, neurons and channels they start with?

    python -m kd_jax teacher experiments/configs/narrow.py --workdir runs/narrow
    python -m kd_jax shrink experiments/configs/narrow.py --workdir runs/narrow
    python -m kd_jax student experiments/configs/narrow.py --workdir runs/narrow

Two sizes, as deep as the teacher: three quarters and half as wide in everything. Each starts from the most important
parts, from random ones and from chance, and trains for 350 steps on the data alone. RESULTS.md has the figures.
"""

import dataclasses

from kd_jax import Comparison, FromTeacher, Random, load_experiment

quickstart = load_experiment(__file__.replace("narrow", "quickstart"))
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
