"""The grid that the quickstart's settings were chosen from, on the validation split: the test split is not read.

    python -m kd_jax run experiments/configs/choose_quickstart.py --workdir runs/choose_quickstart

Students from the teacher's layers, at the quickstart's steps: rate, weight of the teacher's part, its temperature, k.
"""

import dataclasses

from kd_jax import Decoding, Evaluation, Term, TopK, Translation, cross_entropy, forward_kl, load_experiment

quickstart = load_experiment(__file__.replace("choose_quickstart", "quickstart"))
student = quickstart.students["student_kd"]


def changed(rate=3e-3, weight=0.5, temperature=1.0, k=32):
    """The distilled student with other settings."""
    signal = TopK(k=k, temperature=temperature)
    terms = {"ce": Term(cross_entropy, weight=1 - weight), "kd": Term(forward_kl, weight=weight, signal=signal)}
    if weight in (0.0, 1.0):  # one of the two alone
        terms = {"ce": Term(cross_entropy)} if weight == 0.0 else {"kd": terms["kd"]}
    optimizer = dataclasses.replace(student.training.optimizer, learning_rate=rate)
    training = dataclasses.replace(student.training, optimizer=optimizer)
    return dataclasses.replace(student, terms=terms, training=training)


experiment = dataclasses.replace(
    quickstart,
    name="choose_quickstart",
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    students={
        "ce_rate2": changed(weight=0.0, rate=2e-3),
        "ce_rate3": changed(weight=0.0),
        "ce_rate5": changed(weight=0.0, rate=5e-3),
        "kd_rate2": changed(rate=2e-3),
        "kd_rate3": changed(),
        "kd_rate5": changed(rate=5e-3),
        "kd_weight7": changed(weight=0.7),
        "kd_weight9": changed(weight=0.9),
        "kd_alone": changed(weight=1.0),
        "kd_warm": changed(temperature=2.0),
    },
    comparison=None,
    evaluation=Evaluation(split="validation", speed_texts=4, bootstrap=200),
)
