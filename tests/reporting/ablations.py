"""An ablation's result as phases/ablate.py builds it: three seeds, two controls, two metrics, one undirected."""

BLEU = {"name": "bleu", "label": "BLEU", "higher_is_better": True, "digits": 2, "signature": "tok:13a"}
LENGTH = {"name": "length_ratio", "label": "length ratio", "higher_is_better": None, "digits": 2, "signature": ""}


def one(mean, half, verdict):
    """A difference with its interval, the seeds' a little apart."""
    return {
        "mean": mean,
        "interval": [mean - half, mean + half],
        "seeds": [mean, mean + 0.1, mean - 0.1],
        "verdict": verdict,
    }


def result(**changed):
    """The distilled student is better than one control and not seen to differ from the other."""
    names = ("teacher", "student_kd", "control_ce", "control_smoothed")
    differences = {
        "control_ce": {"teacher": one(2.0, 0.5, "better"), "student_kd": one(0.9, 0.6, "better")},
        "control_smoothed": {"teacher": one(1.5, 0.6, "better"), "student_kd": one(0.2, 0.6, "no difference seen")},
    }
    undirected = {c: {n: one(0.1, 0.05, "–") for n in by_name} for c, by_name in differences.items()}
    return {
        "name": "mine",
        "task": "translation",
        "dataset": "d",
        "split": "test",
        "examples": 1068,
        "resamples": 1000,
        "seeds": [0, 1, 2],
        "metrics": [BLEU, LENGTH],
        "all_metrics": [BLEU, LENGTH],
        "distilled": "student_kd",
        "controls": ["control_ce", "control_smoothed"],
        "models": {
            n: {"bleu": [22.0, 23.0, 24.0], "length_ratio": [1.0] * 3, "kl_to_teacher": [0.3] * 3} for n in names
        },
        "baselines": {"copy": {"bleu": [3.0] * 3, "length_ratio": [None] * 3}},
        "differences": {"bleu": differences, "length_ratio": undirected},
        "warnings": [],
        "wall_seconds": {str(seed): {"teacher": 60.0, "student": 30.0} for seed in (0, 1, 2)},
        "versions": {"jax": "0.10.2"},
    } | changed
