"""Distillation for translation in several settings: first parameters, sizes and lengths of training.

    python -m kd_jax ablate experiments/configs/pays_translation.py --workdir runs/pays_translation --seeds 0 1 2

Students start from the teacher's layers (`init`) or from random parameters (`scratch`), train three times as long
(`long`), or have half the width and one layer (`small`). Each one trains with the teacher and, as its control, with
cross-entropy alone. All settings are the quickstart's, without tuning.
"""

import dataclasses

from extra.students import CONTROLS, by_setting

from kd_jax import Comparison, Decoding, EncoderDecoder, PseudoTargets, Translation, load_experiment

quickstart = load_experiment(__file__.replace("pays_translation", "quickstart_references"))
small = EncoderDecoder(encoder_layers=1, decoder_layers=1, d_model=64, heads=2, d_ff=256, dropout=0.0)
students = by_setting(quickstart.students["student_init"], quickstart.students["student_kd"], small)

experiment = dataclasses.replace(
    quickstart,
    name="pays_translation",
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    students=students | {"small_pseudo": dataclasses.replace(students["small_ce"], targets=PseudoTargets("best"))},
    comparison=Comparison("scratch_ce", "init_kd", controls=CONTROLS),
)
