"""A report in one paragraph: what distillation gained and what it cost, or that nothing was gained."""

from collections.abc import Mapping, Sequence

from matplotlib.ticker import EngFormatter

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.evaluation.figures import ModelFigures
from kd_jax.experiment import Comparison
from kd_jax.reporting.paired import BETTER, SAME, WORSE
from kd_jax.reporting.report import MetricInfo, Report

NO_TEACHER = "The teacher was imported as log-probabilities, so it has no row, and the gap to it is unknown."
size = EngFormatter(unit="B", places=1)
RELATIONS = {BETTER: "is better than", WORSE: "is worse than", SAME: "does not differ detectably from"}


def leading_student(
    values: Mapping[str, float], comparison: Comparison | None, higher_is_better: bool | None
) -> str | None:
    """Return the student that a report is about: the distilled one, or the best without a comparison.

    Examples:
      >>> leading_student({"teacher": 2.0, "small": 3.0, "smaller": 4.0}, None, higher_is_better=False)
      'small'
    """
    if comparison is not None:
        return comparison.distilled
    students = [name for name in values if name != TEACHER]
    best = max if higher_is_better else min
    return best(students, key=lambda name: values[name]) if students else None


def gap_recovered(
    values: Mapping[str, float], comparison: Comparison | None, higher_is_better: bool | None
) -> float | None:
    r"""Return the share of the gap between baseline and teacher that the distilled student closes.

    .. math:: \frac{distilled - baseline}{teacher - baseline}

    None without a comparison, with an imported teacher, or if the teacher is no better than the baseline.
    """
    if comparison is None or TEACHER not in values:
        return None
    baseline = values[comparison.baseline]
    gap = values[TEACHER] - baseline
    return (values[comparison.distilled] - baseline) / gap if (gap > 0 if higher_is_better else gap < 0) else None


def lead(report: Report) -> str:
    """Return the first paragraph: the student against every control and the teacher, and its cost.

    Models with int8 weights have a sentence each and no part in the others.
    """
    metric, models = report.headline, report.trained
    name = leading_student(report.headline_values, report.comparison, metric.higher_is_better)
    if name is None:
        sentences = [f"Only the teacher was trained: {_score(models[TEACHER], metric)}."]
    else:
        sentences = [f"The best student is {name}: {_score(models[name], metric)}."]
        if report.comparison is not None:
            sentences = [_against_controls(report, report.comparison), *_gap(report, report.comparison)]
        sentences.append(_against_teacher(report, name) if TEACHER in models else NO_TEACHER)
        sentences.append(_cost(report, name))
    return " ".join([*sentences, *(_int8(report, name) for name in report.int8)])


def warnings(report: Report) -> list[str]:
    """Return every model's warnings, prefixed by the model's name."""
    return [f"{name}: {warning}" for name, model in report.models.items() for warning in model.warnings]


def duration(seconds: float) -> str:
    """Format seconds as text.

    Examples:
      >>> duration(116)
      '1 min 56 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _int8(report: Report, name: str) -> str:
    """Return what int8 weights cost and gained, relative to the same model with float weights."""
    metric, comparison = report.headline, report.int8[name]
    model, of = report.models[name], report.models[comparison.of]
    batched, single = _speed_ratios(model, of)
    # Two significant digits, not the metric's: an interval may exclude 0 by far less than the table shows.
    difference = comparison.difference
    mean, low, high = (f"{value:+.2g}" for value in (difference.mean, *difference.interval))
    return (
        f"With int8 weights {comparison.of} ({name}: {_figure(model, metric)}) has {size(model.training.bytes)} "
        f"instead of {size(of.training.bytes)}, writes {batched:.2f} times the tokens a second ({single:.2f} times at "
        f"batch 1), and {RELATIONS[difference.verdict]} itself with float weights ({mean} {metric.label}, "
        f"95% interval {low} to {high})."
    )


def _against_controls(report: Report, comparison: Comparison) -> str:
    models, metric, name = report.trained, report.headline, comparison.distilled
    verdicts = {control: report.differences[control].verdict for control in models if control not in (TEACHER, name)}
    by_verdict = {kind: [control for control, verdict in verdicts.items() if verdict == kind] for kind in RELATIONS}
    clauses = [
        f"{RELATIONS[kind]} {_join([f'{control} ({_figure(models[control], metric)})' for control in controls])}"
        for kind, controls in by_verdict.items()
        if controls
    ]
    sentence = f"The distilled student, {name} ({_score(models[name], metric)}), {_join(clauses)}."
    if by_verdict[SAME]:
        sentence += f" This test detects no gain from distillation over {_join(by_verdict[SAME])}."
    if by_verdict[WORSE]:
        sentence += f" Distillation reduced quality relative to {_join(by_verdict[WORSE])}."
    return sentence


def _gap(report: Report, comparison: Comparison) -> list[str]:
    """Return the distilled student's share of the gap to the teacher, and that of every other student."""
    if report.gap_recovered is None:
        return []
    values, metric = report.headline_values, report.headline
    shares = []
    for name in values:
        if name not in (TEACHER, comparison.baseline, comparison.distilled):
            other = Comparison(comparison.baseline, distilled=name)
            shares.append(f"{name}: {gap_recovered(values, other, metric.higher_is_better):.0%}")
    others = f" ({', '.join(shares)})" if shares else ""
    return [f"It closes {report.gap_recovered:.0%} of the gap from {comparison.baseline} to the teacher{others}."]


def _against_teacher(report: Report, name: str) -> str:
    metric, model, teacher = report.headline, report.models[name], report.models[TEACHER]
    share = model.training.parameters_outside_embeddings / teacher.training.parameters_outside_embeddings
    batched, single = _speed_ratios(model, teacher)
    difference = model.value(metric.name) - teacher.value(metric.name)
    relation, side = RELATIONS[report.differences[TEACHER].verdict], "above" if difference > 0 else "below"
    sentences = (
        f"Against the teacher ({_figure(teacher, metric)}), {name} has {share:.0%} of the parameters outside "
        f"the embeddings, writes {batched:.1f} times the tokens a second ({single:.1f} times at batch 1), and "
        f"{relation} it ({abs(difference):.{metric.digits}f} {metric.label} {side})."
    )
    if model.drafting:
        sentences += (
            f" As the teacher's draft in speculative decoding, the student has {model.drafting.draft_acceptance:.0%} "
            f"of its tokens accepted, and the teacher writes its greedy texts {model.drafting.draft_speedup:.2f} times "
            "as fast at batch 1."
        )
    return sentences


def _cost(report: Report, name: str) -> str:
    models = report.trained
    students = [name, *(student for student in models if student not in (TEACHER, name))]
    training = [f"{student} {_training_time(models[student])}" for student in students]
    costs = {
        cache: f"{duration(figures.seconds)} and {size(figures.bytes)}" for cache, figures in report.caches.items()
    }
    caches = [f"the cache {cache} took {cost}" for cache, cost in costs.items()]
    teacher_time = teacher_size = ""
    if TEACHER in models:
        teacher_time = f", after {_training_time(models[TEACHER])} for the teacher"
        teacher_size = f", the teacher {size(models[TEACHER].training.bytes)}"
    return (
        f"Cost: training took {_join(training)}{teacher_time}"
        + (f"; {_join(caches)}" if caches else "")
        + f". On disk {name} has {size(models[name].training.bytes)}{teacher_size}."
    )


def _training_time(model: ModelFigures) -> str:
    assert model.training.seconds is not None  # all but int8 models have one
    return duration(model.training.seconds)


def _speed_ratios(model: ModelFigures, other: ModelFigures) -> tuple[float, float]:
    """Return (tokens a second in batches, at batch 1), each over the other model's."""
    return (
        model.speed.decode_tokens_per_second / other.speed.decode_tokens_per_second,
        model.speed.decode_tokens_per_second_single / other.speed.decode_tokens_per_second_single,
    )


def _figure(model: ModelFigures, metric: MetricInfo) -> str:
    return f"{model.value(metric.name):.{metric.digits}f}"


def _score(model: ModelFigures, metric: MetricInfo) -> str:
    interval, digits = model.metrics[metric.name].interval, max(0, metric.digits - 1)
    shown = f", 95% interval {interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else ""
    return f"{metric.label} {_figure(model, metric)}{shown}"


def _join(items: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
