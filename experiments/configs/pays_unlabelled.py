"""Distillation with unlabelled data: 4,000 sentences have a translation, and 13,600 are in English only.

    python -m kd_jax ablate experiments/configs/pays_unlabelled.py --workdir runs/pays_unlabelled --seeds 0 1 2

The teacher trains on the 4,000 translations and writes translations of the others for the students. All students have
the same first parameters and steps.
"""

import dataclasses

from kd_jax import Comparison, Debian, Decoding, PseudoTargets, Translation, load_experiment

quickstart = load_experiment(__file__.replace("pays_unlabelled", "quickstart_references"))
ce, kd = quickstart.students["student_init"], quickstart.students["student_kd"]
pseudo_targets = PseudoTargets("best", of="unlabelled")  # besides the references

experiment = dataclasses.replace(
    quickstart,
    name="pays_unlabelled",
    source=Debian("en-fr", kinds=("synopsis",), labelled=4000),
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    students={
        "ce": ce,
        "kd": kd,
        "pseudo": dataclasses.replace(ce, targets=pseudo_targets),
        "pseudo_kd": dataclasses.replace(kd, targets=pseudo_targets),
    },
    comparison=Comparison("ce", "pseudo_kd", controls=("ce",)),
)
