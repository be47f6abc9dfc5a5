"""A report as phases/report.py builds it: the quickstart's figures, which a test changes."""

from kd_jax.reporting.paired import BETTER, SAME

BLEU = {"name": "bleu", "label": "BLEU", "higher_is_better": True, "digits": 2, "signature": "nrefs:1|tok:13a"}
CHRF = {"name": "chrf", "label": "chrF", "higher_is_better": True, "digits": 2, "signature": "nrefs:1"}
COMPARISON = {"baseline": "student_scratch", "distilled": "student_kd"}


def model(bleu, width=1.5, **changed):
    """Figures of one model; the interval is `bleu` plus and minus `width`."""
    return {
        "parameters": 1_168_512,
        "parameters_outside_embeddings": 656_512,
        "bytes": 4_400_000,
        "bleu": bleu,
        "bleu_ci": [bleu - width, bleu + width],
        "chrf": 51.88,
        "chrf_ci": [50.6, 53.2],
        "bleu_beam": bleu + 1,
        "cross_entropy": 2.473,
        "kl_to_teacher": 0.34,
        "agreement": 0.758,
        "acceptance": 0.751,
        "calibration_error": 0.018,
        "decode_tokens_per_second": 10_000.0,
        "decode_tokens_per_second_single": 6000.0,
        "decode_texts_per_second": 700.0,
        "decode_texts_per_second_single": 438.0,
        "train_tokens_per_second": None,
        "seconds": 116.0,
        "loss_before_first_step": 4.763,
        "examples": 1068,
        "over_long": 2,
        "warnings": [],
    } | changed


def differences(**verdicts):
    """What the leading student has more than each other model; the lead reads the verdicts alone."""
    return {name: {"mean": 0.0, "interval": [0.0, 0.0], "seeds": [0.0], "verdict": x} for name, x in verdicts.items()}


def report(**changed):
    """The quickstart: initialisation alone did as well as distillation."""
    teacher = {
        "parameters_outside_embeddings": 1_313_024,
        "bytes": 7_100_000,
        "decode_tokens_per_second": 4000.0,
        "decode_tokens_per_second_single": 3000.0,
        "seconds": 336.0,
    }
    return {
        "name": "quickstart",
        "task": "translation",
        "dataset": "debian",
        "seed": 0,
        "headline": BLEU,
        "metrics": [BLEU, CHRF],
        "comparison": COMPARISON,
        "models": {
            "teacher": model(22.09, **teacher),
            "student_scratch": model(8.86, seconds=106.0),
            "student_init": model(23.45, seconds=89.0),
            "student_kd": model(22.90),
        },
        "baselines": {"copy": {"bleu": 3.21, "bleu_ci": [2.6, 3.8], "chrf": 17.05, "chrf_ci": [16.0, 18.1]}},
        "differences": differences(teacher=SAME, student_scratch=BETTER, student_init=SAME),
        "int8": {},
        "gap_recovered": 1.06,
        "caches": {
            "topk": {
                "target_tokens": 242_854,
                "bytes": 29_622_272,
                "bytes_per_target_token": 121.98,
                "seconds": 60.2,
            }
        },
        "wall_seconds": {"teacher": 336.0, "student": 311.0},
        "counts": {"train": 17_632, "validation": 530, "test": 1068},
        "dropped_as_seen_in_training": {"train": 0, "validation": 0, "test": 0},
        "versions": {"jax": "0.10.2"},
    } | changed


def students(**bleus):
    """A report's models: the teacher at 30, and these students."""
    return {"teacher": model(30.0)} | {name: model(bleu) for name, bleu in bleus.items()}
