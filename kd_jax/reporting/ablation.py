"""What an ablation says: students against their controls, in words and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.errors import KdError
from kd_jax.reporting.paired import BETTER, SAME, UNDIRECTED, WORSE
from kd_jax.runtime import progress
from kd_jax.tasks.base import Task
from kd_jax.tasks.metrics import Metric

Result = Mapping[str, Any]  # as phases/ablate.py leaves it in ablation.json
Table = list[list[str]]
RELATIONS = {
    BETTER: "better than",
    WORSE: "worse than",
    SAME: "not seen to differ from",
    UNDIRECTED: "to be read beside",
}


def chosen_metrics(task: Task, name: str) -> tuple[Metric, ...]:
    """The task's metric of that name; "" for its headline, "all" for all of them.

    Raises:
      KdError: if it has no such metric; names those there are.
    """
    metrics = {metric.name: metric for metric in task.metrics}
    if name == "all":
        return tuple(metrics.values())
    if name and name not in metrics:
        raise KdError(f"--metric {name}: {task.name} has {', '.join(metrics)}; wanted one of them, or all")
    return (metrics[name or next(iter(metrics))],)


def lead(result: Result) -> str:
    """The distilled student against each control, in words."""
    metric, name, seeds = result["metrics"][0], result["distilled"], result["seeds"]
    against = {c: by_name[name] for c, by_name in result["differences"][metric["name"]].items() if name in by_name}
    clauses = [f"{RELATIONS[one['verdict']]} {c} ({shown(one, metric)})" for c, one in against.items()]
    mean = np.mean(result["models"][name][metric["name"]])
    direction = {True: "", False: ", less is better", None: ", neither more nor less is better"}
    sentences = [
        f"Over {_count(seeds, 'seed')}, {name} has {metric['label']} {mean:.{metric['digits']}f} on average"
        f"{direction[metric['higher_is_better']]}. Paired by example and seed it is {'; '.join(clauses)}."
    ]
    level, behind = ([c for c, one in against.items() if one["verdict"] == v] for v in (SAME, WORSE))
    if level:
        sentences.append(f"Distillation added nothing that this test can see over {', '.join(level)}.")
    if behind:
        sentences.append(f"Beside {', '.join(behind)}, distillation cost quality.")
    if len(seeds) == 1:
        sentences.append("One seed says nothing about other trainings: take three or more.")
    return " ".join(sentences)


def shown(one: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """A difference and its interval, such as "+0.52, 95% +0.10 to +0.94"."""
    mean, low, high = (f"{x:+.{metric['digits']}f}" for x in (one["mean"], *one["interval"]))
    return f"{mean}, 95% {low} to {high}"


def paired(result: Result, metric: Mapping[str, Any], control: str) -> Table:
    """The students that a control is compared with, heading row first."""
    digits, rows = metric["digits"], []
    for name, one in result["differences"][metric["name"]][control].items():
        low, high = one["interval"]
        each = " / ".join(f"{x:+.{digits}f}" for x in one["seeds"])
        mean = f"{np.mean(result['models'][name][metric['name']]):.{digits}f}"
        rows.append([name, mean, f"{one['mean']:+.{digits}f}", f"{low:+.{digits}f} to {high:+.{digits}f}"])
        rows[-1] += [one["verdict"], each]
    seeds = " / ".join(map(str, result["seeds"]))
    return [["model", metric["label"], "difference", "95% interval", "verdict", f"of seeds {seeds}"], *rows]


def figures(result: Result) -> Table:
    """All metrics of all models and baselines, heading row first: the mean, and each seed's."""
    metrics = [*result["all_metrics"], {"name": "kl_to_teacher", "label": "KL to teacher", "digits": 3}]

    def cell(value_S: Sequence[float | None], digits: int) -> str:
        if None in value_S:
            return UNDIRECTED
        each = " / ".join(f"{x:.{digits}f}" for x in value_S)
        return f"{np.mean(value_S):.{digits}f} ({each})" if len(value_S) > 1 else each

    rows = [
        [name, *(cell(by_metric[m["name"]] if m["name"] in by_metric else [None], m["digits"]) for m in metrics)]
        for name, by_metric in (result["models"] | result["baselines"]).items()
    ]
    return [["model", *(metric["label"] for metric in metrics)], *rows]


def times(result: Result) -> Table:
    """Phase and time of each seed."""
    seconds = result["wall_seconds"]
    phases = list(dict.fromkeys(phase for of_seed in seconds.values() for phase in of_seed))
    rows = [[phase, *(progress.format_seconds(of_seed[phase]) for of_seed in seconds.values())] for phase in phases]
    total = ["all", *(progress.format_seconds(sum(of_seed.values())) for of_seed in seconds.values())]
    return [["phase", *(f"seed {seed}" for seed in seconds)], *rows, total]


def notes(result: Result) -> list[str]:
    """How the differences were made, and how far they carry."""
    one_seed = len(result["seeds"]) == 1
    spread = (
        "With one seed that is all: how much another training would differ is not in them."
        if one_seed
        else f"To it the variance between the {len(result['seeds'])} seeds is added, divided by their number: with so "
        "few of them a two-level bootstrap would be too sure of itself, so the intervals are Student's t "
        "(Welch-Satterthwaite), and wide where the seeds disagree."
    )
    tests = sum(len(by_name) for controls in result["differences"].values() for by_name in controls.values())
    signatures = [f"{m['label']}: {m['signature']}" for m in result["metrics"] if m["signature"]]
    return [
        "A control is compared with the students that have its network and its training. Differences are student minus "
        "control in the metric's own sign, on the same examples with the same seed. "
        f"Intervals: the variance over {result['resamples']:,} resamples of the examples, drawn alike for all models "
        f"and seeds. {spread}",
        "Better or worse: the interval lies beyond 0 and every seed agrees. Where nothing differs, one in forty is "
        f"called better all the same, and as many worse; here are {_count(range(tests), 'comparison')}.",
        "Controls that ablate adds where they are missing: the distilled student's model, start, steps and data with "
        "cross-entropy alone, plain (control_ce) and with label smoothing 0.1 (control_smoothed).",
        f"Measured on {_count(range(result['examples']), 'example')} of the {result['split']} split"
        + "".join(f"; {signature}" for signature in signatures)
        + ".",
    ]


def _count(things: Sequence[Any], noun: str) -> str:
    """Such as "1 seed" or "3 seeds"."""
    return f"{len(things):,} {noun}{'s' * (len(things) != 1)}"
