"""The result of an ablation: students against their controls over several seeds, in words and tables."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.errors import KdError
from kd_jax.reporting.paired import BETTER, SAME, UNDIRECTED, WORSE, Difference
from kd_jax.reporting.report import MetricInfo
from kd_jax.reporting.rounding import decimals
from kd_jax.runtime import progress
from kd_jax.tasks.base import Task
from kd_jax.tasks.metrics import Metric

Table = list[list[str]]
KL = MetricInfo("kl_to_teacher", "KL to teacher", False, 3)
OWN_KL = (  # where the evaluation has them
    MetricInfo("own_kl", "KL on own texts", False, 3),
    MetricInfo("own_reverse_kl", "reverse KL on own texts", False, 3),
)
RELATIONS = {
    BETTER: "better than",
    WORSE: "worse than",
    SAME: "not detectably different from",
    UNDIRECTED: "without verdict against",
}


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The figures of ablation.json.

    Attributes:
      metrics: that models are compared by, the deciding one first.
      controls: names of the students that the others are compared with.
      models: model -> metric or "kl_to_teacher" -> value of each seed.
      baselines: baseline -> metric -> value of each seed; None where a metric does not apply.
      differences: metric -> control -> model -> model minus control.
      wall_seconds: seed -> phase -> seconds.
    """

    name: str
    task: str
    dataset: str
    split: str
    examples: int
    resamples: int
    seeds: tuple[int, ...]
    metrics: tuple[MetricInfo, ...]
    all_metrics: tuple[MetricInfo, ...]
    distilled: str
    controls: tuple[str, ...]
    models: Mapping[str, Mapping[str, Sequence[float]]]
    baselines: Mapping[str, Mapping[str, Sequence[float | None]]]
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    warnings: tuple[str, ...]
    wall_seconds: Mapping[str, Mapping[str, float]]
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return ablation.json as a dictionary."""
        return dataclasses.asdict(self)


def select_metrics(task: Task, name: str) -> tuple[Metric, ...]:
    """Return the task's metric of that name; "" for its headline, "all" for all of them."""
    metrics = {metric.name: metric for metric in task.metrics}
    if name == "all":
        return tuple(metrics.values())
    if name and name not in metrics:
        raise KdError(f"--metric: expected one of {', '.join(metrics)} ({task.name}) or all, got {name}.")
    return (metrics[name or next(iter(metrics))],)


def lead(result: Ablation) -> str:
    """Return the first paragraph: the distilled student against each control."""
    metric, name = result.metrics[0], result.distilled
    against = {control: models[name] for control, models in result.differences[metric.name].items() if name in models}
    clauses = [
        f"{RELATIONS[one.verdict]} {control} ({show_difference(one, metric)})" for control, one in against.items()
    ]
    mean = np.mean(result.models[name][metric.name])
    direction = {True: "", False: ", where less is better", None: ", a metric without direction"}
    sentences = [
        f"Over {_count(len(result.seeds), 'seed')}, {name} has {metric.label} {mean:.{metric.digits}f} on average"
        f"{direction[metric.higher_is_better]}. Paired by example and seed it is {'; '.join(clauses)}."
    ]
    same = [control for control, one in against.items() if one.verdict == SAME]
    worse = [control for control, one in against.items() if one.verdict == WORSE]
    if same:
        sentences.append(f"This test detects no gain from distillation over {', '.join(same)}.")
    if worse:
        sentences.append(f"Distillation reduced quality relative to {', '.join(worse)}.")
    if len(result.seeds) == 1:
        sentences.append("One seed gives no variance between trainings: run three or more.")
    return " ".join(sentences)


def show_difference(one: Difference, metric: MetricInfo) -> str:
    """Return a difference and its interval, such as "+0.5, 95% +0.1 to +0.9"."""
    digits = decimals([one.interval], metric.digits)
    mean, low, high = (f"{value:+.{digits}f}" for value in (one.mean, *one.interval))
    return f"{mean}, 95% {low} to {high}"


def paired_table(result: Ablation, metric: MetricInfo, control: str) -> Table:
    """Return a row for each model that a control is compared with, heading row first."""
    differences, rows = result.differences[metric.name][control], []
    digits = decimals([one.interval for one in differences.values()], metric.digits)
    for name, one in differences.items():
        low, high = one.interval
        rows.append(
            [
                name,
                f"{np.mean(result.models[name][metric.name]):.{metric.digits}f}",
                f"{one.mean:+.{digits}f}",
                f"{low:+.{digits}f} to {high:+.{digits}f}",
                one.verdict,
                " / ".join(f"{value:+.{digits}f}" for value in one.seeds),
            ]
        )
    seeds = " / ".join(map(str, result.seeds))
    return [["model", metric.label, "difference", "95% interval", "verdict", f"of seeds {seeds}"], *rows]


def figures_table(result: Ablation) -> Table:
    """Return all metrics of all models and baselines, mean and each seed's value, heading row first."""
    measured = {name for figures in result.models.values() for name in figures}
    metrics = [*result.all_metrics, KL, *(metric for metric in OWN_KL if metric.name in measured)]

    def cell(values_S: Sequence[float | None], digits: int) -> str:
        values = [value for value in values_S if value is not None]
        if len(values) < len(values_S) or not values:
            return UNDIRECTED
        each = " / ".join(f"{value:.{digits}f}" for value in values)
        return f"{np.mean(values):.{digits}f} ({each})" if len(values) > 1 else each

    rows = [
        [name, *(cell(figures.get(metric.name, ()), metric.digits) for metric in metrics)]
        for name, figures in {**result.models, **result.baselines}.items()
    ]
    return [["model", *(metric.label for metric in metrics)], *rows]


def times_table(result: Ablation) -> Table:
    """Return phase and time of each seed, heading row first."""
    seconds = result.wall_seconds
    phases = list(dict.fromkeys(phase for of_seed in seconds.values() for phase in of_seed))
    rows = [[phase, *(progress.format_seconds(of_seed[phase]) for of_seed in seconds.values())] for phase in phases]
    total = ["all", *(progress.format_seconds(sum(of_seed.values())) for of_seed in seconds.values())]
    return [["phase", *(f"seed {seed}" for seed in seconds)], *rows, total]


def notes(result: Ablation) -> list[str]:
    """Return paragraphs on how the differences and their intervals are computed."""
    if len(result.seeds) == 1:
        seeds = "With one seed the variance between trainings is not included."
    else:
        seeds = (
            f"The variance between the {len(result.seeds)} seeds, divided by their number, is added. The intervals are "
            "Student's t with the rule of Cochran and Cox, which weights the quantiles of examples and seeds by their "
            "variances; a bootstrap of so few seeds would be too narrow."
        )
    tests = sum(len(models) for controls in result.differences.values() for models in controls.values())
    signatures = "".join(f"; {metric.label}: {metric.signature}" for metric in result.metrics if metric.signature)
    return [
        "A control is compared with the models that have its network and its training. Differences are model minus "
        "control in the metric's own sign, on the same examples with the same seed. "
        f"Intervals: the variance over {result.resamples:,} resamples of the examples, the same for all models "
        f"and seeds. {seeds}",
        "Better or worse: the interval excludes 0 and every seed agrees. Without any true difference, up to one "
        f"comparison in {33 if len(result.seeds) == 2 else 40} is called better, and as many worse; this report has "
        f"{_count(tests, 'comparison')}.",
        "Controls that ablate adds if they are missing: the distilled student's model, start, steps and data with "
        "cross-entropy alone, plain (control_ce) and with label smoothing 0.1 (control_smoothed).",
        f"Evaluated on {_count(result.examples, 'example')} of the {result.split} split{signatures}.",
    ]


def _count(number: int, noun: str) -> str:
    """Return a count, such as "1 seed" or "3 seeds"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
