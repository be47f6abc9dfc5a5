"""Distillation with noisy references: 30% of the training sentences have another sentence's translation.

    python -m kd_jax ablate experiments/configs/pays_noisy.py --workdir runs/pays_noisy --seeds 0 1 2

The teacher trains on them too. Validation and test splits stay the same.
"""

import dataclasses

from extra.noise import WrongReferences

from kd_jax import Comparison, Debian, Decoding, PseudoTargets, Translation, load_experiment

quickstart = load_experiment(__file__.replace("pays_noisy", "quickstart_references"))
ce, kd = quickstart.students["student_init"], quickstart.students["student_kd"]
kd_alone = {"kd": dataclasses.replace(kd.terms["kd"], weight=1.0)}

experiment = dataclasses.replace(
    quickstart,
    name="pays_noisy",
    source=WrongReferences(Debian("en-fr", kinds=("synopsis",))),
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    students={
        "ce": ce,
        "kd": kd,
        "kd_alone": dataclasses.replace(kd, terms=kd_alone),
        "pseudo": dataclasses.replace(ce, targets=PseudoTargets("best")),
    },
    comparison=Comparison("ce", "kd", controls=("ce",)),
)
