"""Fewer references than inputs: 4,000 sentences have a translation, the other 13,600 are there in English alone.

    python -m kd_jax ablate experiments/configs/pays_unlabelled.py --workdir runs/pays_unlabelled --seeds 0 1 2

The teacher sees the 4,000 references alone; what it writes for the rest is what students can learn from besides. All
have the same start and steps.
"""

import dataclasses

from kd_jax import Comparison, Debian, Decoding, PseudoTargets, Translation, load_experiment

quickstart = load_experiment(__file__.replace("pays_unlabelled", "quickstart"))
ce, kd = quickstart.students["student_init"], quickstart.students["student_kd"]
written = PseudoTargets("best", of="unlabelled")  # beside the references

experiment = dataclasses.replace(
    quickstart,
    name="pays_unlabelled",
    source=Debian("en-fr", kinds=("synopsis",), labelled=4000),
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    students={
        "ce": ce,
        "kd": kd,
        "pseudo": dataclasses.replace(ce, targets=written),
        "pseudo_kd": dataclasses.replace(kd, targets=written),
    },
    comparison=Comparison("ce", "pseudo_kd", controls=("ce",)),
)
