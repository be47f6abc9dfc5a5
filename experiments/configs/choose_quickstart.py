"""The grid search for the quickstart's settings, on the validation split.

    python -m kd_jax run experiments/configs/choose_quickstart.py --workdir runs/choose_quickstart

The distilled student with the teacher's texts alone, other weights and temperatures of the teacher's distribution,
other learning rates, other beams and targets, and twice the steps; and its controls with the other learning rate.
"""

import dataclasses

from kd_jax import (
    Decoding,
    Evaluation,
    PseudoTargets,
    Term,
    TopK,
    Translation,
    cross_entropy,
    forward_kl,
    load_experiment,
)

quickstart = load_experiment(__file__.replace("choose_quickstart", "quickstart"))
kd = quickstart.students["student_kd"]


def weighted(weight, temperature=1.0):
    """Return the distilled student with another weight and temperature of the divergence."""
    signal = TopK(k=32, temperature=temperature)
    terms = {"ce": Term(cross_entropy, weight=1 - weight), "kd": Term(forward_kl, weight=weight, signal=signal)}
    return dataclasses.replace(kd, terms={name: term for name, term in terms.items() if term.weight})


def trained(student, **changed):
    """Return a student with other steps or another learning rate."""
    training = student.training
    if rate := changed.pop("rate", None):
        changed["optimizer"] = dataclasses.replace(training.optimizer, learning_rate=rate)
    return dataclasses.replace(student, training=dataclasses.replace(training, **changed))


texts_alone = weighted(0.0)
experiment = dataclasses.replace(
    quickstart,
    name="choose_quickstart",
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    students={
        "kd": kd,
        "kd_weight8": weighted(0.8),
        "kd_alone": weighted(1.0),
        "kd_warm": weighted(0.5, temperature=2.0),
        "kd_rate5": trained(kd, rate=5e-3),
        "kd_beam1": dataclasses.replace(kd, targets=dataclasses.replace(kd.targets, beam=1)),
        "kd_beam4": dataclasses.replace(kd, targets=dataclasses.replace(kd.targets, beam=4)),
        "texts": texts_alone,
        "texts_rate5": trained(texts_alone, rate=5e-3),
        "texts_long": trained(texts_alone, steps=3200, eval_every=800),
        "texts_nbest": dataclasses.replace(texts_alone, targets=PseudoTargets("nbest", of="both", beam=2)),
        "texts_and_references": dataclasses.replace(texts_alone, targets=PseudoTargets(of="unlabelled", beam=2)),
        "references_kd": dataclasses.replace(kd, targets=None),
        "init": quickstart.students["student_init"],
        "init_rate5": trained(quickstart.students["student_init"], rate=5e-3),
        "smoothed": quickstart.students["student_smoothed"],
        "smoothed_rate5": trained(quickstart.students["student_smoothed"], rate=5e-3),
    },
    comparison=None,
    evaluation=Evaluation(split="validation", speed_texts=4, bootstrap=300, draft=0),
)
