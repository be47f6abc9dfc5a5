"""A report with the quickstart's figures, which a test changes."""

import dataclasses

from kd_jax.evaluation.figures import (
    Closeness,
    DecodingSpeed,
    DraftingFigures,
    MetricFigure,
    ModelFigures,
    TrainingFigures,
)
from kd_jax.experiment import Comparison
from kd_jax.reporting.paired import BETTER, SAME, WORSE, Difference
from kd_jax.reporting.report import CacheFigures, MetricInfo, Report

BLEU = MetricInfo("bleu", "BLEU", True, 2, "nrefs:1|tok:13a")
CHRF = MetricInfo("chrf", "chrF", True, 2, "nrefs:1")
COMPARISON = Comparison(baseline="student_scratch", distilled="student_kd")
DRAFTING = DraftingFigures(draft_tokens=4, draft_acceptance=0.714, draft_tokens_per_second=900.0, draft_speedup=1.449)


def model(bleu, width=1.5, *, training=(), speed=(), **changed):
    """Figures of one model; the interval is `bleu` plus and minus `width`.

    Args:
      bleu: the headline metric.
      width: half of the interval.
      training, speed: changed fields of TrainingFigures and DecodingSpeed.
      changed: other fields of ModelFigures.
    """
    figures = ModelFigures(
        metrics={
            "bleu": MetricFigure(bleu, (bleu - width, bleu + width), beam=bleu + 1),
            "chrf": MetricFigure(51.88, (50.6, 53.2)),
        },
        closeness=Closeness(
            cross_entropy=2.473, calibration_error=0.018, kl_to_teacher=0.34, agreement=0.758, acceptance=0.751
        ),
        examples=1068,
        over_long=2,
        training=TrainingFigures(
            parameters=1_168_512,
            parameters_outside_embeddings=656_512,
            bytes=4_400_000,
            loss_before_first_step=4.763,
            train_tokens_per_second=None,
            seconds=116.0,
        ),
        speed=DecodingSpeed(
            decode_tokens_per_second=10_000.0,
            decode_texts_per_second=700.0,
            decode_tokens_per_second_single=6000.0,
            decode_texts_per_second_single=438.0,
        ),
    )
    training = dataclasses.replace(figures.training, **dict(training))
    speed = dataclasses.replace(figures.speed, **dict(speed))
    return dataclasses.replace(figures, **{"training": training, "speed": speed} | changed)


def int8_model(bleu, **speed):
    """Figures of a model with int8 weights, which has no training of its own."""
    absent = {"loss_before_first_step": None, "train_tokens_per_second": None, "seconds": None}
    return model(bleu, training={"bytes": 1_200_000} | absent, speed=speed)


def differences(**verdicts):
    """The leading student minus each other model, all of the same size."""
    return {name: difference(verdict) for name, verdict in verdicts.items()}


def difference(verdict, mean=0.81, interval=(-0.2, 1.82)):
    return Difference(mean, interval, (mean,), verdict)


def report(**changed):
    """The quickstart: the initialised student did as well as the distilled one.

    Students whose name ends in kd read the cache.
    """
    quickstart = Report(
        name="quickstart",
        task="translation",
        dataset="debian",
        seed=0,
        metrics=(BLEU, CHRF),
        comparison=COMPARISON,
        models={
            "teacher": model(
                22.09,
                training={"parameters_outside_embeddings": 1_313_024, "bytes": 7_100_000, "seconds": 336.0},
                speed={"decode_tokens_per_second": 4000.0, "decode_tokens_per_second_single": 3000.0},
            ),
            "student_scratch": model(8.86, training={"seconds": 106.0}),
            "student_init": model(23.45, training={"seconds": 89.0}),
            "student_kd": model(22.90),
        },
        baselines={"copy": {"bleu": MetricFigure(3.21, (2.6, 3.8)), "chrf": MetricFigure(17.05, (16.0, 18.1))}},
        differences=differences(teacher=SAME, student_scratch=BETTER, student_init=SAME),
        int8={},
        teacher_gain=difference(BETTER, 13.23, (11.5, 15.0)),
        gap_recovered=1.06,
        caches={
            "topk": CacheFigures(target_tokens=242_854, bytes=29_622_272, bytes_per_target_token=121.98, seconds=60.2)
        },
        pseudo_targets={},
        teacher_signals={},
        wall_seconds={"teacher": 336.0, "student": 311.0},
        counts={"train": 17_632, "validation": 530, "test": 1068},
        dropped_as_seen_in_training={"train": 0, "validation": 0, "test": 0},
        versions={"jax": "0.10.2"},
    )
    changed_report = dataclasses.replace(quickstart, **changed)
    if "teacher_signals" in changed:
        return changed_report
    trained = [name for name in changed_report.trained if name != "teacher"]
    signals = {name: ("topk",) if name.endswith("kd") else () for name in trained}
    return dataclasses.replace(changed_report, teacher_signals=signals)


def many_students(count=50):
    """A report of this many students in three sizes, without named controls; every tenth reads nothing of the teacher.

    Student i has BLEU i / 2, so the last one, which is the distilled one, is the best.
    """
    names = [f"s{i}_{'ce' if i % 10 == 0 else 'kd'}" for i in range(count)]
    models = {"teacher": model(30.0, training={"parameters_outside_embeddings": 10_000_000})}
    for i, name in enumerate(names):
        parameters = (500_000, 1_000_000, 2_000_000)[i % 3]
        models[name] = model(
            i / 2,
            training={"parameters_outside_embeddings": parameters},
            speed={"decode_tokens_per_second": 20e9 / parameters + 97 * i},
            warnings=(f"{i} of 1,068 texts are empty",),
        )
    gains = {name: (count - 1) / 2 - one.value("bleu") for name, one in models.items() if name != names[-1]}
    of_others = {
        name: difference(BETTER if gain > 1 else WORSE if gain < -1 else SAME, gain, (gain - 1, gain + 1))
        for name, gain in gains.items()
    }
    return report(
        models=models,
        comparison=Comparison(baseline=names[0], distilled=names[-1]),
        differences=of_others,
        teacher_gain=difference(BETTER, 30.0, (29.0, 31.0)),
        gap_recovered=(count - 1) / 60,
    )


def students(**bleus):
    """A report's models: the teacher with BLEU 30, and these students."""
    return {"teacher": model(30.0)} | {name: model(bleu) for name, bleu in bleus.items()}
