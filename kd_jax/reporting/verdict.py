"""A report in words: what to decide first, then every comparison and its cost."""

from collections.abc import Mapping, Sequence

from matplotlib.ticker import EngFormatter

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.evaluation.figures import ROUND_TRIP, ModelFigures
from kd_jax.experiment import Comparison
from kd_jax.reporting.paired import BETTER, SAME, UNDIRECTED, WORSE, Difference
from kd_jax.reporting.report import MetricInfo, Report
from kd_jax.reporting.rounding import decimals

NO_TEACHER = "The teacher was imported as log-probabilities, so it has no row, and the gap to it is unknown."
MAX_MODELS = 8  # that plots, samples and warnings show one by one: the teacher and a colour for each student
MAX_CONTROLS = 6  # of those that stand out among more models
MAX_NAMES = 5  # in a list of a sentence
size = EngFormatter(unit="B", places=1)
count = EngFormatter(places=1)
SIZES = ("{} times smaller than", "{} times larger than", "as large as")
SPEEDS = ("{} times as fast", "{} times slower", "as fast")
RELATIONS = {
    BETTER: "is better than",
    WORSE: "is worse than",
    SAME: "does not differ detectably from",
    UNDIRECTED: "has no verdict against",
}


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


def leader(report: Report) -> str | None:
    """Return the leading student of a report; None without students."""
    return leading_student(report.headline_values, report.comparison, report.headline.higher_is_better)


def controls(report: Report) -> list[str]:
    """Return the students that show what distillation added to the leading one.

    They are the comparison's controls and its baseline. Without named controls they are all other students that read
    nothing of the teacher in training, or else all other students.
    """
    comparison = report.comparison
    others = [student for student in report.headline_values if student not in (TEACHER, leader(report))]
    if comparison is not None and comparison.controls:
        return [student for student in others if student in (comparison.baseline, *comparison.controls)]
    return [student for student in others if not report.teacher_signals[student]] or others


def best_control(report: Report) -> str | None:
    """Return the best control by the headline; None without one.

    For a metric without a direction it is the comparison's baseline, or the first control.
    """
    candidates, values = controls(report), report.headline_values
    if report.headline.higher_is_better is None:
        baseline = report.comparison.baseline if report.comparison is not None else None
        return baseline if baseline in candidates else next(iter(candidates), None)
    best = max if report.headline.higher_is_better else min
    return best(candidates, key=lambda student: values[student], default=None)


def highlighted(report: Report) -> list[str]:
    """Return the models that plots, samples and warnings show one by one, in the order of the report.

    All of up to 8 models. Of more models: the teacher, the leading student, and up to 6 controls, which are the best
    one, the baseline and those that the comparison names.
    """
    if len(report.models) <= MAX_MODELS:
        return list(report.models)
    comparison = report.comparison
    named = (comparison.baseline, *comparison.controls) if comparison is not None else ()
    first = list(dict.fromkeys(name for name in (best_control(report), *named) if name))[:MAX_CONTROLS]
    return [name for name in report.models if name in (TEACHER, leader(report), *first)]


def sampled(report: Report) -> list[str]:
    """Return the models whose texts stand side by side.

    All of up to 8 models. Of more models: the teacher, the leading student and the best control.
    """
    names = (TEACHER, leader(report), best_control(report))
    return [name for name in report.models if len(report.models) <= MAX_MODELS or name in names]


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
    """Return what somebody who must decide reads first, in at most three sentences.

    Which model, how much smaller and faster than the teacher it is, what it loses, and whether distillation was worth
    its cost.
    """
    name, metric = leader(report), report.headline
    if name is None:
        return f"Only the teacher was trained: {_score(report.models[TEACHER], metric)}."
    if report.comparison is None and metric.higher_is_better is None:
        return f"No student is the best, because {metric.label} has no direction, and the config has no comparison."
    return " ".join([_size_and_speed(report, name), _loss(report, name), _worth(report, name)])


def _size_and_speed(report: Report, name: str) -> str:
    """Return the model, how many times smaller it is outside the embeddings, and how many times as fast."""
    model, students = report.models[name], len(report.headline_values) - (TEACHER in report.models)
    subject = name
    if report.comparison is None:
        subject = f"The best of {students} students, {name}," if students > 1 else f"The student, {name},"
    if TEACHER not in report.models:
        parameters, speed = count(model.training.parameters_outside_embeddings), model.speed
        return (
            f"{subject} has {parameters} parameters outside the embeddings, and decodes "
            f"{speed.decode_tokens_per_second:,.0f} tokens a second in batches and "
            f"{speed.decode_tokens_per_second_single:,.0f} at batch 1."
        )
    teacher = report.models[TEACHER]
    ratio = teacher.training.parameters_outside_embeddings / model.training.parameters_outside_embeddings
    batched = model.speed.decode_tokens_per_second / teacher.speed.decode_tokens_per_second
    single = model.speed.decode_tokens_per_second_single / teacher.speed.decode_tokens_per_second_single
    return (
        f"{subject} is {_times(ratio, *SIZES)} the teacher outside the embeddings, and decodes "
        f"{_times(batched, *SPEEDS)} in batches and {_times(single, *SPEEDS)} at batch 1."
    )


def _times(ratio: float, more: str, less: str, same: str) -> str:
    """Return a ratio in words; one below 1 as its inverse.

    Examples:
      >>> [_times(ratio, *SPEEDS) for ratio in (2.04, 0.4, 0.97, 31.4)]
      ['2.0 times as fast', '2.5 times slower', 'as fast', '31 times as fast']
    """
    form, factor = (more, ratio) if ratio >= 1 else (less, 1 / ratio)
    shown = f"{factor:.0f}" if factor >= 9.95 else f"{factor:.1f}"
    return same if shown == "1.0" else form.format(shown)


def _loss(report: Report, name: str) -> str:
    """Return what the model loses or gains against the teacher."""
    metric = report.headline
    if TEACHER not in report.models:
        score = _score(report.models[name], metric)
        return f"It has {score}; the gap to its teacher, imported as log-probabilities, is unknown."
    difference = report.differences[TEACHER]
    if difference.verdict == UNDIRECTED:
        return f"Against the teacher it has {_paired_difference(difference, metric)}."
    if difference.verdict == SAME:
        return f"This test sees no difference from the teacher ({_paired_difference(difference, metric)})."
    return f"It is {_gain(difference, metric, f'{difference.verdict} than the teacher')}."


def _worth(report: Report, name: str) -> str:
    """Return what distillation was worth relative to the best control, and what it cost."""
    metric, signals, control = report.headline, report.teacher_signals, best_control(report)
    if report.comparison is None and not signals[name]:
        return _without_distillation(report, name)
    if control is None:
        return f"There is no other student, so nothing shows what distillation added{_extra_cost(report, name, None)}."
    named = report.comparison is not None and report.comparison.controls
    against = f"the best {'other student' if signals[control] and not named else 'control'}, {control}"
    difference = report.differences[control]
    shown = _paired_difference(difference, metric)
    if difference.verdict == BETTER:
        sentence = f"Distillation was worth {_gain(difference, metric, f'over {against}')}"
    elif difference.verdict == WORSE:
        sentence = f"Distillation was not worth it: {name} is {_gain(difference, metric, f'worse than {against}')}"
    elif difference.verdict == SAME:
        sentence = f"Distillation added nothing that this test can see over {against} ({shown})"
    else:
        sentence = (
            f"Nothing says whether distillation was worth it, because {metric.label} has no direction (against "
            f"{control} {shown})"
        )
    return f"{sentence}{_extra_cost(report, name, control)}."


def _without_distillation(report: Report, name: str) -> str:
    """Return how the best student, which reads nothing of the teacher in training, compares with distilled ones."""
    values, metric = report.headline_values, report.headline
    distilled = {student: values[student] for student, signals in report.teacher_signals.items() if signals}
    best = leading_student(distilled, None, metric.higher_is_better)
    if best is None:
        return "No student reads anything of the teacher in training, so nothing shows what distillation adds."
    difference = report.differences[best]
    return (
        f"It reads nothing of the teacher in training, and {RELATIONS[difference.verdict]} the best distilled student, "
        f"{best} ({_paired_difference(difference, metric)})."
    )


def _extra_cost(report: Report, name: str, control: str | None) -> str:
    """Return what distillation cost: the teacher's outputs, and more training than that of the control."""
    outputs = {**report.caches, **report.pseudo_targets}
    own = [outputs[signal] for signal in report.teacher_signals[name] if signal in outputs]
    costs = []
    if own:
        seconds, num_bytes = sum(one.seconds for one in own), sum(one.bytes for one in own)
        costs.append(f"{duration(seconds)} and {size(num_bytes)} for the teacher's outputs")
    if control is not None:
        more = _training_seconds(report.models[name]) - _training_seconds(report.models[control])
        if round(more) > 0:
            costs.append(f"{duration(more)} more training")
    return f"; it cost {', and '.join(costs)}" if costs else ""


def details(report: Report) -> list[str]:
    """Return paragraphs: the student against every control and the teacher, costs, and models with int8 weights.

    Models with int8 weights have a paragraph each and no part in the others.
    """
    metric, models, name = report.headline, report.trained, leader(report)
    if name is None:
        return [_int8(report, name) for name in report.int8]
    if report.comparison is not None:
        paragraphs = [" ".join([_against_controls(report, report.comparison), *_gap(report, report.comparison)])]
    else:
        place = "best student" if metric.higher_is_better is not None else f"student with the lowest {metric.label}"
        paragraphs = [f"The {place} is {name}: {_score(models[name], metric)}."]
    paragraphs += [_against_teacher(report, name) if TEACHER in models else NO_TEACHER, _cost(report, name)]
    return [*paragraphs, *(_int8(report, in_int8) for in_int8 in report.int8)]


def warnings(report: Report) -> list[str]:
    """Return the warnings: first each text without a model that beats a model, then the models' own warnings.

    Among many models only those that stand out have theirs here; `other_warnings` has the rest.
    """
    metric, models, shown = report.headline, report.trained, highlighted(report)
    lines = []
    for baseline, beaten in _winning_texts(report).items():
        figures = [report.baselines[baseline][metric.name], *(models[name].metrics[metric.name] for name in beaten)]
        digits = decimals([figure.interval for figure in figures], metric.digits)
        value, *others = (f"{figure.of_model():.{digits}f}" for figure in figures)
        if value in others:  # the figures look the same in print
            value, *others = (f"{figure.of_model():.{metric.digits}f}" for figure in figures)
        names = _join([f"{name} ({other})" for name, other in zip(beaten, others, strict=True)])
        lines.append(f"{baseline} needs no model and has {metric.label} {value}, better than {names}")
    lines += [f"{name}: {warning}" for name in shown for warning in report.models[name].warnings]
    others = [name for name, model in report.models.items() if model.warnings and name not in shown]
    if others:
        count_of = "1 more model has" if len(others) == 1 else f"{len(others)} more models have"
        lines.append(f"{count_of} warnings, at the end of the report: {join_some(others)}")
    return lines


def other_warnings(report: Report) -> list[str]:
    """Return the warnings of the models that `warnings` does not show one by one."""
    shown = highlighted(report)
    return [
        f"{name}: {warning}" for name, model in report.models.items() if name not in shown for warning in model.warnings
    ]


def _winning_texts(report: Report) -> dict[str, list[str]]:
    """Return baseline that needs no model -> those of the teacher and the leading student that it beats."""
    metric, values, winners = report.headline, report.headline_values, {}
    if metric.higher_is_better is None:
        return winners
    for baseline, figures in report.baselines.items():
        value = figures[metric.name].value
        if value is None or baseline == ROUND_TRIP:
            continue
        models = [name for name in (TEACHER, leader(report)) if name in values]
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
    if not verdicts:
        return f"The distilled student, {name}, has {_score(models[name], metric)}."
    by_verdict = {kind: [control for control, verdict in verdicts.items() if verdict == kind] for kind in RELATIONS}

    def show(control: str) -> str:
        figure = _figure(models[control], metric)
        # Figures that look the same in print, of models that differ, need the difference beside them.
        if verdicts[control] != SAME and figure == _figure(models[name], metric):
            figure += f"; {_paired_difference(report.differences[control], metric)}"
        return f"{control} ({figure})"

    def clause(kind: str, students: Sequence[str]) -> str:
        if len(students) <= MAX_NAMES:
            return f"{RELATIONS[kind]} {_join(list(map(show, students)))}"
        higher = bool(metric.higher_is_better)
        best = sorted(students, key=lambda student: models[student].value(metric.name), reverse=higher)
        figures = [f"{student} {_figure(models[student], metric)}" for student in best]
        return f"{RELATIONS[kind]} {len(students)} of {len(verdicts)} other students ({join_some(figures)})"

    clauses = [clause(kind, students) for kind, students in by_verdict.items() if students]
    sentence = f"The distilled student, {name} ({_score(models[name], metric)}), {_join(clauses)}."
    same, worse = ([one for one in by_verdict[kind] if one in controls(report)] for kind in (SAME, WORSE))
    if same:
        sentence += f" This test detects no gain from distillation over {join_some(same)}."
    if worse:
        sentence += f" Distillation reduced quality relative to {join_some(worse)}."
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
    shares = {
        name: gap_recovered(values, Comparison(comparison.baseline, distilled=name), metric.higher_is_better) or 0.0
        for name in values
        if name not in (TEACHER, comparison.baseline, comparison.distilled)
    }
    best = sorted(shares, key=lambda name: -shares[name]) if len(shares) > MAX_NAMES else shares
    shown = [f"{name}: {shares[name]:.0%}" for name in best]
    others = f" ({join_some(shown, last=', ')})" if shares else ""
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
    models, control = report.trained, best_control(report)
    students = [student for student in dict.fromkeys((name, control, *models)) if student not in (TEACHER, None)]
    training = [f"{student} {duration(_training_seconds(models[student]))}" for student in students[:MAX_NAMES]]
    if others := students[MAX_NAMES:]:
        seconds = sum(_training_seconds(models[student]) for student in others)
        training.append(f"{len(others)} more students {duration(seconds)}")
    outputs = {f"the cache {cache}": one for cache, one in report.caches.items()}
    outputs |= {f"the pseudo-targets {targets}": one for targets, one in report.pseudo_targets.items()}
    costs = [f"{output} took {duration(one.seconds)} and {size(one.bytes)}" for output, one in outputs.items()]
    if len(costs) > MAX_NAMES:
        others = list(outputs.values())[MAX_NAMES:]
        seconds, num_bytes = sum(one.seconds for one in others), sum(one.bytes for one in others)
        costs[MAX_NAMES:] = [f"{len(others)} more of these took {duration(seconds)} and {size(num_bytes)}"]
    teacher_time = teacher_size = ""
    if TEACHER in models:
        teacher_time = f", after {duration(_training_seconds(models[TEACHER]))} for the teacher"
        teacher_size = f", the teacher {size(models[TEACHER].training.bytes)}"
    return (
        f"Cost: training took {_join(training)}{teacher_time}"
        + (f"; {_join(costs)}" if costs else "")
        + f". On disk {name} has {size(models[name].training.bytes)}{teacher_size}."
    )


def _training_seconds(model: ModelFigures) -> float:
    assert model.training.seconds is not None  # all but int8 models have one
    return model.training.seconds


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
    """Return a difference with its interval, such as "+0.8 BLEU, 95% interval -0.2 to +1.8"."""
    digits = decimals([difference.interval], metric.digits)
    mean, low, high = (f"{value:+.{digits}f}" for value in (difference.mean, *difference.interval))
    return f"{mean} {metric.label}, 95% interval {low} to {high}"


def _gain(difference: Difference, metric: MetricInfo, than: str) -> str:
    """Return a difference that excludes 0, without its sign: "1.2 BLEU worse than X (95% interval 0.4 to 2.0)"."""
    digits = decimals([difference.interval], metric.digits)
    low, high = sorted(map(abs, difference.interval))
    interval = f"95% interval {low:.{digits}f} to {high:.{digits}f}"
    return f"{abs(difference.mean):.{digits}f} {metric.label} {than} ({interval})"


def _figure(model: ModelFigures, metric: MetricInfo) -> str:
    figure = model.metrics[metric.name]
    return f"{figure.of_model():.{decimals([figure.interval], metric.digits)}f}"


def _score(model: ModelFigures, metric: MetricInfo) -> str:
    interval = model.metrics[metric.name].interval
    digits = decimals([interval], metric.digits)
    shown = f", 95% interval {interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else ""
    return f"{metric.label} {_figure(model, metric)}{shown}"


def join_some(items: Sequence[str], separator: str = ", ", last: str = " and ") -> str:
    """Return at most five of some items, and how many more there are; `last` stands before the last of so few.

    Examples:
      >>> join_some(list("abc")), join_some(list("abcdefg"))
      ('a, b and c', 'a, b, c, d, e and 2 more')
    """
    if len(items) > MAX_NAMES:
        return f"{separator.join(items[:MAX_NAMES])} and {len(items) - MAX_NAMES} more"
    return _join(items, separator, last)


def _join(items: Sequence[str], separator: str = ", ", last: str = " and ") -> str:
    return last.join(filter(None, [separator.join(items[:-1]), items[-1]]))
