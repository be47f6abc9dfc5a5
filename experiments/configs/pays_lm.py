"""Distillation for language modelling in several settings: debian_lm on half of its text.

    python -m kd_jax ablate experiments/configs/pays_lm.py --workdir runs/pays_lm --seeds 0 1 2 --metric all

The students are those of pays_translation.py. `--metric all` compares generated texts too.
"""

import dataclasses

from extra.students import CONTROLS, by_setting

from kd_jax import Comparison, Debian, DecoderOnly, Evaluation, load_experiment

lm = load_experiment(__file__.replace("pays_lm", "debian_lm"))


def shorter(recipe, steps, **model):
    """Return the recipe with other steps and a smaller network."""
    training = dataclasses.replace(recipe.training, steps=steps, eval_every=250)
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **model), training=training)


width = {"d_model": 128, "heads": 4, "d_ff": 352}
small = DecoderOnly(layers=1, d_model=64, heads=2, d_ff=176, dropout=0.0)
ce, kd = (shorter(lm.students[name], 500, **width) for name in ("student_init", "student_kd"))

experiment = dataclasses.replace(
    lm,
    name="pays_lm",
    source=Debian("english", limit=10_000),
    teacher=shorter(lm.teacher, 1200, **width),
    students=by_setting(ce, kd, small),
    comparison=Comparison("scratch_ce", "init_kd", controls=CONTROLS),
    evaluation=Evaluation(texts=400, speed_texts=4),
)
