"""An ablation's result: three seeds, two controls, two metrics, one of them without direction."""

import dataclasses

from kd_jax.reporting.ablation import Ablation
from kd_jax.reporting.paired import Difference
from kd_jax.reporting.report import MetricInfo

BLEU = MetricInfo("bleu", "BLEU", True, 2, "tok:13a")
LENGTH = MetricInfo("length_ratio", "length ratio", None, 2)


def difference(mean, half, verdict):
    """A difference with its interval; the seeds differ by 0.1."""
    return Difference(mean, (mean - half, mean + half), (mean, mean + 0.1, mean - 0.1), verdict)


def ablation(**changed):
    """The distilled student is better than one control and not detectably different from the other."""
    names = ("teacher", "student_kd", "control_ce", "control_smoothed")
    bleu = {
        "control_ce": {"teacher": difference(2.0, 0.5, "better"), "student_kd": difference(0.9, 0.6, "better")},
        "control_smoothed": {
            "teacher": difference(1.5, 0.6, "better"),
            "student_kd": difference(0.2, 0.6, "no difference seen"),
        },
    }
    length = {control: {name: difference(0.1, 0.05, "–") for name in models} for control, models in bleu.items()}
    result = Ablation(
        name="mine",
        task="translation",
        dataset="d",
        split="test",
        examples=1068,
        resamples=1000,
        seeds=(0, 1, 2),
        metrics=(BLEU, LENGTH),
        all_metrics=(BLEU, LENGTH),
        distilled="student_kd",
        controls=("control_ce", "control_smoothed"),
        models={
            name: {"bleu": [22.0, 23.0, 24.0], "length_ratio": [1.0] * 3, "kl_to_teacher": [0.3] * 3} for name in names
        },
        baselines={"copy": {"bleu": [3.0] * 3, "length_ratio": [None] * 3}},
        differences={"bleu": bleu, "length_ratio": length},
        warnings=(),
        wall_seconds={str(seed): {"teacher": 60.0, "student": 30.0} for seed in (0, 1, 2)},
        versions={"jax": "0.10.2"},
    )
    return dataclasses.replace(result, **changed)
