"""What distillation gained and what it cost, in one paragraph; it says so too where nothing was gained."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import EngFormatter

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.reporting.paired import BETTER, SAME, WORSE

Report = Mapping[str, Any]
Model = Mapping[str, Any]
Metric = Mapping[str, Any]

PASSES, BEHIND, LEVEL = "passes", "falls behind", "cannot be told from"
NO_TEACHER = "The teacher is elsewhere: what it said was imported, so it has no row, and no gap to it is known."
RELATIONS = {BETTER: PASSES, WORSE: BEHIND, SAME: LEVEL}


def leading(models: Mapping[str, Model], comparison: Mapping[str, Any] | None, headline: Metric) -> str | None:
    """The student that a report is about: the comparison's, else the best by the headline; None without students.

    Examples:
      >>> models = {"teacher": {"nll": 2.0}, "small": {"nll": 3.0}, "smaller": {"nll": 4.0}}
      >>> leading(models, None, {"name": "nll", "higher_is_better": False})
      'small'
    """
    if comparison is not None:
        return comparison["distilled"]
    students = [name for name in models if name != TEACHER]
    best = max if headline["higher_is_better"] else min
    return best(students, key=lambda name: models[name][headline["name"]]) if students else None


def gap_recovered(models: Mapping[str, Model], comparison: Mapping[str, str] | None, headline: Metric) -> float | None:
    """The share of the gap between baseline and teacher that the distilled student closes.

    .. math:: \\frac{distilled - baseline}{teacher - baseline}

    Args:
      models: name -> figures.
      comparison: {"baseline", "distilled"}, names of models, or None.
      headline: "name", "higher_is_better".

    Returns:
      None without a comparison, where the teacher is elsewhere, and where the teacher is no better than the baseline.

    Examples:
      >>> scores = {"teacher": {"nll": 2.0}, "alone": {"nll": 3.0}, "kd": {"nll": 2.5}}
      >>> gap_recovered(scores, {"baseline": "alone", "distilled": "kd"}, {"name": "nll", "higher_is_better": False})
      0.5
    """
    if comparison is None or TEACHER not in models:
        return None
    names = TEACHER, comparison["baseline"], comparison["distilled"]
    teacher, baseline, distilled = (models[name][headline["name"]] for name in names)
    gap = teacher - baseline
    return (distilled - baseline) / gap if (gap > 0 if headline["higher_is_better"] else gap < 0) else None


def lead(report: Report) -> str:
    """The report's first paragraph: the student against every control, against the teacher, and its price.

    Args:
      report: as phases/report.py builds it; its first metric decides. Models with int8 weights have a sentence of
        their own each, and no part in the others.
    """
    models = {name: model for name, model in report["models"].items() if name not in report["int8"]}
    quantized = [_in_int8(report, name) for name in report["int8"]]
    return " ".join([*_of_trained({**report, "models": models}), *quantized])


def warnings(report: Report) -> list[str]:
    """Every model's warnings, each with the model's name before it."""
    return [f"{name}: {warning}" for name, model in report["models"].items() for warning in model["warnings"]]


def duration(seconds: float) -> str:
    """Seconds in words.

    Examples:
      >>> duration(116)
      '1 min 56 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes in words.

    Examples:
      >>> size(29_622_272)
      '29.6 MB'
    """
    return EngFormatter(unit="B", places=1)(count)


def _of_trained(report: Report) -> list[str]:
    models, metric, comparison = report["models"], report["metrics"][0], report["comparison"]
    name = leading(models, comparison, metric)
    if name is None:
        return [f"The teacher alone was trained: {_score(models[TEACHER], metric)}."]
    opening = [f"The best student is {name}: {_score(models[name], metric)}."]
    if comparison is not None:
        opening = [_against_controls(report), *_gap(report)]
    against = _against_teacher(report, name) if TEACHER in models else NO_TEACHER
    return [*opening, against, _cost(report, name)]


def _in_int8(report: Report, name: str) -> str:
    """What int8 weights cost and gained, against the same model with float ones."""
    metric, of, difference = report["metrics"][0], report["int8"][name]["of"], report["int8"][name]["difference"]
    model, trained = report["models"][name], report["models"][of]
    batched, single = (
        model[key] / trained[key] for key in ("decode_tokens_per_second", "decode_tokens_per_second_single")
    )
    # Two digits that count, not the metric's: an interval may lie beyond 0 by far less than the table shows.
    mean, low, high = (f"{value:+.2g}" for value in (difference["mean"], *difference["interval"]))
    return (
        f"With int8 weights {of} ({name}: {_figure(model, metric)}) takes {size(model['bytes'])} instead of "
        f"{size(trained['bytes'])}, writes {batched:.2f} times the tokens a second ({single:.2f} times at batch 1), "
        f"and {RELATIONS[difference['verdict']]} itself with float ones ({mean} {metric['label']}, "
        f"95% interval {low} to {high})."
    )


def _against_controls(report: Report) -> str:
    models, metric, name = report["models"], report["metrics"][0], report["comparison"]["distilled"]
    controls = [control for control in models if control not in (TEACHER, name)]
    standing = {control: _relation(report, control) for control in controls}
    clauses = []
    for verb in (PASSES, BEHIND, LEVEL):
        members = [f"{c} ({_figure(models[c], metric)})" for c in controls if standing[c] == verb]
        clauses += [f"{verb} {_listing(members)}"] if members else []
    sentence = f"The distilled student, {name} ({_score(models[name], metric)}), {_listing(clauses)}."
    level = [control for control in controls if standing[control] == LEVEL]
    behind = [control for control in controls if standing[control] == BEHIND]
    if level:
        sentence += f" Distillation added nothing that this test can see over {_listing(level)}."
    if behind:
        sentence += f" Beside {_listing(behind)}, distillation cost quality."
    return sentence


def _gap(report: Report) -> list[str]:
    """The distilled student's share of the gap, and beside it what every other control closes without it."""
    gap, models, comparison, metric = (report[key] for key in ("gap_recovered", "models", "comparison", "headline"))
    if gap is None:
        return []
    baseline, distilled = comparison["baseline"], comparison["distilled"]
    others = [name for name in models if name not in (TEACHER, baseline, distilled)]
    closed = [f"{n}: {gap_recovered(models, {**comparison, 'distilled': n}, metric):.0%}" for n in others]
    beside = f" ({', '.join(closed)})" if closed else ""
    return [f"Of the gap from {baseline} to the teacher it closes {gap:.0%}{beside}."]


def _against_teacher(report: Report, name: str) -> str:
    models, metric = report["models"], report["metrics"][0]
    model, teacher = models[name], models[TEACHER]
    share = model["parameters_outside_embeddings"] / teacher["parameters_outside_embeddings"]
    batched, single = (
        model[key] / teacher[key] for key in ("decode_tokens_per_second", "decode_tokens_per_second_single")
    )
    difference = model[metric["name"]] - teacher[metric["name"]]
    side = "above" if difference > 0 else "below"
    return (
        f"Against the {TEACHER} ({_figure(teacher, metric)}), {name} has {share:.0%} of the parameters outside "
        f"the embeddings, writes {batched:.1f} times the tokens a second ({single:.1f} times at batch 1), and "
        f"{_relation(report, TEACHER)} it ({abs(difference):.{metric['digits']}f} {metric['label']} {side})."
        + _drafting(model)
    )


def _drafting(model: Model) -> str:
    """What the student is worth where the teacher stays; "" where that was not measured."""
    if "draft_speedup" not in model:
        return ""
    return (
        f" Where the {TEACHER} stays, the student can draft for it: {model['draft_acceptance']:.0%} of its tokens are "
        f"accepted, and the {TEACHER}'s own greedy texts come {model['draft_speedup']:.2f} times as fast at batch 1."
    )


def _cost(report: Report, name: str) -> str:
    models, caches = report["models"], report["caches"]
    others = [student for student in models if student not in (TEACHER, name)]
    training = [f"{student} {duration(models[student]['seconds'])}" for student in (name, *others)]
    cached = [
        f"the cache {cache} took {duration(one['seconds'])} and {size(one['bytes'])}" for cache, one in caches.items()
    ]
    after, beside = "", ""
    if TEACHER in models:
        after = f", after {duration(models[TEACHER]['seconds'])} for the teacher"
        beside = f", the teacher {size(models[TEACHER]['bytes'])}"
    return (
        f"The cost: training took {_listing(training)}{after}"
        + (f"; {_listing(cached)}" if cached else "")
        + f". On disk {name} is {size(models[name]['bytes'])}{beside}."
    )


def _relation(report: Report, other: str) -> str:
    """How the leading student stands to another model, paired by example."""
    return RELATIONS[report["differences"][other]["verdict"]]


def _figure(model: Model, metric: Metric) -> str:
    return f"{model[metric['name']]:.{metric['digits']}f}"


def _score(model: Model, metric: Metric) -> str:
    interval, digits = model[f"{metric['name']}_ci"], max(0, metric["digits"] - 1)
    shown = "" if interval is None else f", 95% interval {interval[0]:.{digits}f} to {interval[1]:.{digits}f}"
    return f"{metric['label']} {_figure(model, metric)}{shown}"


def _listing(items: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
