"""A report in one paragraph: what distillation gained and what it cost, or that nothing was gained."""

from collections.abc import Mapping, Sequence

from matplotlib.ticker import EngFormatter

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.evaluation.figures import ROUND_TRIP, ModelFigures
from kd_jax.experiment import Comparison
from kd_jax.reporting.paired import BETTER, SAME, WORSE, Difference
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
    teacher, baseline = values[TEACHER], values[comparison.baseline]
    if not _is_better(teacher, baseline, higher_is_better):
        return None
    return (values[comparison.distilled] - baseline) / (teacher - baseline)


def gap_is_meaningful(report: Report) -> bool:
    """Return whether a share of the gap to the teacher says anything.

    The teacher must be better than the baseline beyond doubt, and no text without a model may beat teacher or student.
    """
    return report.teacher_gain is not None and report.teacher_gain.verdict == BETTER and not _winning_texts(report)


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
    """Return the warnings: first each text without a model that beats a model, then every model's own warnings."""
    metric, models = report.headline, report.trained
    lines = []
    for baseline, beaten in _winning_texts(report).items():
        names = _join([f"{name} ({_figure(models[name], metric)})" for name in beaten])
        value = _show(report.baselines[baseline][metric.name].of_model(), metric)
        lines.append(f"{baseline} needs no model and has {metric.label} {value}, better than {names}")
    return [*lines, *(f"{name}: {warning}" for name, model in report.models.items() for warning in model.warnings)]


def _winning_texts(report: Report) -> dict[str, list[str]]:
    """Return baseline that needs no model -> those of the teacher and the leading student that it beats."""
    metric, values = report.headline, report.headline_values
    leading = leading_student(values, report.comparison, metric.higher_is_better)
    winners = {}
    for baseline, figures in report.baselines.items():
        value = figures[metric.name].value
        if value is None or baseline == ROUND_TRIP:
            continue
        models = [name for name in (TEACHER, leading) if name in values]
        beaten = [name for name in models if _is_better(value, values[name], metric.higher_is_better)]
        if beaten:
            winners[baseline] = beaten
    return winners


def _is_better(value: float, other: float, higher_is_better: bool | None) -> bool:
    return value > other if higher_is_better else value < other


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
    return (
        f"With int8 weights {comparison.of} ({name}: {_figure(model, metric)}) has {size(model.training.bytes)} "
        f"instead of {size(of.training.bytes)}, {_relative_speed(model, of)}, and "
        f"{RELATIONS[comparison.difference.verdict]} itself with float weights "
        f"({_paired_difference(comparison.difference, metric)})."
    )


def _against_controls(report: Report, comparison: Comparison) -> str:
    models, metric, name = report.trained, report.headline, comparison.distilled
    verdicts = {control: report.differences[control].verdict for control in models if control not in (TEACHER, name)}
    by_verdict = {kind: [control for control, verdict in verdicts.items() if verdict == kind] for kind in RELATIONS}

    def show(control: str) -> str:
        figure = _figure(models[control], metric)
        # Figures that look the same in print, of models that differ, need the difference beside them.
        if verdicts[control] != SAME and figure == _figure(models[name], metric):
            figure += f"; {_paired_difference(report.differences[control], metric)}"
        return f"{control} ({figure})"

    clauses = [
        f"{RELATIONS[kind]} {_join(list(map(show, controls)))}" for kind, controls in by_verdict.items() if controls
    ]
    sentence = f"The distilled student, {name} ({_score(models[name], metric)}), {_join(clauses)}."
    if by_verdict[SAME]:
        sentence += f" This test detects no gain from distillation over {_join(by_verdict[SAME])}."
    if by_verdict[WORSE]:
        sentence += f" Distillation reduced quality relative to {_join(by_verdict[WORSE])}."
    return sentence


def _gap(report: Report, comparison: Comparison) -> list[str]:
    """Return the distilled student's share of the gap to the teacher, and that of every other student."""
    values, metric = report.headline_values, report.headline
    if report.gap_recovered is None:
        if report.teacher_gain is None:
            return []
        winners = _winning_texts(report)
        reason = (
            f"{_join(list(winners))} needs no model and scores better than {_join(next(iter(winners.values())))}"
            if winners
            else f"the teacher {RELATIONS[report.teacher_gain.verdict]} {comparison.baseline}"
        )
        return [f"The share of the gap from {comparison.baseline} to the teacher is not stated, because {reason}."]
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
    difference = report.differences[TEACHER]
    sentences = (
        f"Against the teacher ({_figure(teacher, metric)}), {name} has {share:.0%} of the parameters outside "
        f"the embeddings, {_relative_speed(model, teacher)}, and {RELATIONS[difference.verdict]} it "
        f"({_paired_difference(difference, metric)})."
    )
    if drafting := model.drafting:
        speed = (
            f"{drafting.draft_speedup:.2f} times as fast"
            if drafting.draft_speedup >= 1
            else f"more slowly: in {1 / drafting.draft_speedup:.2f} times the time"
        )
        sentences += (
            f" As the teacher's draft in speculative decoding, the student has {drafting.draft_acceptance:.0%} of its "
            f"tokens accepted, and the teacher writes its greedy texts {speed} at batch 1."
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


def _relative_speed(model: ModelFigures, other: ModelFigures) -> str:
    """Return how fast a model decodes, in batches and at batch 1, relative to another; a slowdown reads as one."""
    batched = model.speed.decode_tokens_per_second / other.speed.decode_tokens_per_second
    single = model.speed.decode_tokens_per_second_single / other.speed.decode_tokens_per_second_single
    if (batched < 1) == (single < 1):
        word = "slower" if batched < 1 else "faster"
        return f"is {word} ({batched:.2f} times the tokens a second, {single:.2f} times at batch 1)"
    words = ("slower", "faster") if batched < 1 else ("faster", "slower")
    return (
        f"is {words[0]} in batches ({batched:.2f} times the tokens a second) and {words[1]} at batch 1 "
        f"({single:.2f} times)"
    )


def _paired_difference(difference: Difference, metric: MetricInfo) -> str:
    """Return a difference with its interval, such as "+0.81 BLEU, 95% interval -0.2 to +1.8"."""
    # Two significant digits, not the metric's: an interval may exclude 0 by far less than the table shows.
    mean, low, high = (f"{value:+.2g}" for value in (difference.mean, *difference.interval))
    return f"{mean} {metric.label}, 95% interval {low} to {high}"


def _figure(model: ModelFigures, metric: MetricInfo) -> str:
    return _show(model.value(metric.name), metric)


def _show(value: float, metric: MetricInfo) -> str:
    return f"{value:.{metric.digits}f}"


def _score(model: ModelFigures, metric: MetricInfo) -> str:
    interval, digits = model.metrics[metric.name].interval, max(0, metric.digits - 1)
    shown = f", 95% interval {interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else ""
    return f"{metric.label} {_figure(model, metric)}{shown}"


def _join(items: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
