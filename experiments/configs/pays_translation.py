"""Where does distillation pay in translation? The quickstart's teacher, and students by start, size and length.

    python -m kd_jax ablate experiments/configs/pays_translation.py --workdir runs/pays_translation --seeds 0 1 2

From the teacher's layers (`init`), from chance (`scratch`), three times as long (`long`), and small: half as wide and
one layer deep, from chance. Each with cross-entropy alone, its control, and with the teacher. Nothing was tuned for it:
these are the quickstart's settings. The figures stand in experiments/benchmarks/RESULTS.md.
"""

import dataclasses

from kd_jax import Comparison, Decoding, EncoderDecoder, PseudoTargets, Random, Translation, load

quickstart = load(__file__.replace("pays_translation", "quickstart"))
init_ce, init_kd = quickstart.students["student_init"], quickstart.students["student_kd"]


def longer(recipe, times):
    """The same for more steps."""
    training = recipe.training
    training = dataclasses.replace(training, steps=times * training.steps, eval_every=times * training.eval_every)
    return dataclasses.replace(recipe, training=training)


def small(recipe, **changed):
    """A quarter of the width's parameters, one layer on each side, twice as long."""
    model = EncoderDecoder(encoder_layers=1, decoder_layers=1, d_model=64, heads=2, d_ff=256, dropout=0.0)
    return dataclasses.replace(longer(recipe, 2), model=model, init=Random(), **changed)


experiment = dataclasses.replace(
    quickstart,
    name="pays_translation",
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    students={
        "init_ce": init_ce,
        "init_kd": init_kd,
        "scratch_ce": dataclasses.replace(init_ce, init=Random()),
        "scratch_kd": dataclasses.replace(init_kd, init=Random()),
        "long_ce": longer(init_ce, 3),
        "long_kd": longer(init_kd, 3),
        "small_ce": small(init_ce),
        "small_kd": small(init_kd),
        "small_pseudo": small(init_ce, targets=PseudoTargets("best")),
    },
    comparison=Comparison("scratch_ce", "init_kd", controls=("init_ce", "scratch_ce", "long_ce", "small_ce")),
)
