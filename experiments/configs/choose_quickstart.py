"""The grid search for the quickstart's settings, on the validation split.

    python -m kd_jax run experiments/configs/choose_quickstart.py --workdir runs/choose_quickstart

Students from the teacher's layers with the quickstart's steps vary learning rate, weight and temperature of the
teacher's term.
"""

import dataclasses

from kd_jax import Decoding, Evaluation, Term, TopK, Translation, cross_entropy, forward_kl, load_experiment

quickstart = load_experiment(__file__.replace("choose_quickstart", "quickstart_references"))
student = quickstart.students["student_kd"]


def student_with(rate=3e-3, weight=0.5, temperature=1.0, k=32):
    """Return the distilled student with other settings."""
    signal = TopK(k=k, temperature=temperature)
    terms = {"ce": Term(cross_entropy, weight=1 - weight), "kd": Term(forward_kl, weight=weight, signal=signal)}
    if weight in (0.0, 1.0):  # one term alone
        terms = {"ce": Term(cross_entropy)} if weight == 0.0 else {"kd": terms["kd"]}
    optimizer = dataclasses.replace(student.training.optimizer, learning_rate=rate)
    training = dataclasses.replace(student.training, optimizer=optimizer)
    return dataclasses.replace(student, terms=terms, training=training)


experiment = dataclasses.replace(
    quickstart,
    name="choose_quickstart",
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    students={
        "ce_rate2": student_with(weight=0.0, rate=2e-3),
        "ce_rate3": student_with(weight=0.0),
        "ce_rate5": student_with(weight=0.0, rate=5e-3),
        "kd_rate2": student_with(rate=2e-3),
        "kd_rate3": student_with(),
        "kd_rate5": student_with(rate=5e-3),
        "kd_weight7": student_with(weight=0.7),
        "kd_weight9": student_with(weight=0.9),
        "kd_alone": student_with(weight=1.0),
        "kd_warm": student_with(temperature=2.0),
    },
    comparison=None,
    evaluation=Evaluation(split="validation", speed_texts=4, bootstrap=200),
)
