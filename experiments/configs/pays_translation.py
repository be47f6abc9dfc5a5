"""Where does distillation pay in translation? The quickstart's teacher, and students by start, size and length.

    python -m kd_jax ablate experiments/configs/pays_translation.py --workdir runs/pays_translation --seeds 0 1 2

From the teacher's layers (`init`), from chance (`scratch`), three times as long (`long`), and small: half as wide and
one layer deep, from chance. Each with cross-entropy alone, its control, and with the teacher. Nothing was tuned for it:
these are the quickstart's settings.
"""

import dataclasses

from extra.students import CONTROLS, by_setting

from kd_jax import Comparison, Decoding, EncoderDecoder, PseudoTargets, Translation, load_experiment

quickstart = load_experiment(__file__.replace("pays_translation", "quickstart"))
small = EncoderDecoder(encoder_layers=1, decoder_layers=1, d_model=64, heads=2, d_ff=256, dropout=0.0)
students = by_setting(quickstart.students["student_init"], quickstart.students["student_kd"], small)

experiment = dataclasses.replace(
    quickstart,
    name="pays_translation",
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    students=students | {"small_pseudo": dataclasses.replace(students["small_ce"], targets=PseudoTargets("best"))},
    comparison=Comparison("scratch_ce", "init_kd", controls=CONTROLS),
)
