"""A report's figures as rows of text: a summary, the details, and a table for a terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.ticker import EngFormatter

from kd_jax.evaluation.figures import MetricFigure, ModelFigures
from kd_jax.reporting.report import MetricInfo, Report
from kd_jax.reporting.rounding import decimals
from kd_jax.reporting.verdict import MAX_MODELS, highlighted, join_some
from kd_jax.runtime import progress

Table = list[list[str]]
ABSENT = "–"


class Row(NamedTuple):
    """One model or baseline; `model` is None for a baseline."""

    metrics: Mapping[str, MetricFigure]
    model: ModelFigures | None


class Column(NamedTuple):
    """One column: headings of pages and of a terminal, and row -> text."""

    heading: str
    short: str
    cell: Callable[[Row], str]


def model_column(
    heading: str, get: Callable[[ModelFigures], float | None], show: str | Callable[[float], str], short: str = ""
) -> Column:
    """Return a column of a model's figure; a dash stands for a baseline and for a missing figure.

    `show` is a format specification, or figure -> text. `short` is the heading for a terminal.
    """

    def cell(row: Row) -> str:
        figure = None if row.model is None else get(row.model)
        if figure is None:
            return ABSENT
        return format(figure, show) if isinstance(show, str) else show(figure)

    return Column(heading, short, cell)


def metric_column(metric: MetricInfo, rows: Iterable[Mapping[str, MetricFigure]]) -> Column:
    """Return a column of a metric with its interval; `rows` are the metrics of all rows, which decide the decimals."""
    digits = _column_decimals(metric, rows)
    value = _value_column(metric, digits)

    def cell(row: Row) -> str:
        interval = row.metrics[metric.name].interval
        return value.cell(row) + (f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else "")

    return Column(f"{metric.label} [95%]", f"{metric.label} [95%]", cell)


def value_column(metric: MetricInfo, rows: Iterable[Mapping[str, MetricFigure]], beam: bool = False) -> Column:
    """Return a column of a metric with the decimals of its interval, but without the interval.

    Args:
      metric: of the task.
      rows: the metrics of all rows.
      beam: whether it is of the texts of the beam search.
    """
    return _value_column(metric, _column_decimals(metric, rows), beam)


def _column_decimals(metric: MetricInfo, rows: Iterable[Mapping[str, MetricFigure]]) -> int:
    return decimals([row[metric.name].interval for row in rows], metric.digits)


def _value_column(metric: MetricInfo, digits: int, beam: bool = False) -> Column:
    def cell(row: Row) -> str:
        figure = row.metrics[metric.name]
        value = figure.beam if beam else figure.value
        return ABSENT if value is None else f"{value:.{digits}f}"

    return Column(f"{metric.label} beam" if beam else metric.label, metric.label, cell)


def summary_columns(report: Report) -> list[Column]:
    """Return the columns that a reader compares first."""
    first, *others = report.metrics
    count, rows = EngFormatter(places=1), _metrics_of_rows(report)
    return [
        model_column(
            "parameters outside embeddings", lambda m: m.training.parameters_outside_embeddings, count, "params"
        ),
        metric_column(first, rows),
        *(value_column(metric, rows) for metric in others[:1]),
        model_column("KL to teacher", lambda m: m.closeness.kl_to_teacher, ".3f", "KL"),
        model_column("decode tok/s", lambda m: m.speed.decode_tokens_per_second, ",.0f", "tok/s"),
        model_column("tok/s at batch 1", lambda m: m.speed.decode_tokens_per_second_single, ",.0f", "batch 1"),
        model_column("training time", lambda m: m.training.seconds, progress.format_seconds, "training"),
    ]


def detail_columns(report: Report) -> list[Column]:
    """Return all other columns."""
    first, *others = report.metrics
    models, rows = report.models.values(), _metrics_of_rows(report)
    columns = [
        model_column("parameters", lambda m: m.training.parameters, EngFormatter(places=1)),
        model_column("on disk", lambda m: m.training.bytes, EngFormatter(unit="B", places=1)),
    ]
    if any(model.metrics[first.name].beam is not None for model in models):
        columns.append(value_column(first, rows, beam=True))
    columns += [
        *(metric_column(metric, rows) for metric in others),
        model_column("cross-entropy", lambda m: m.closeness.cross_entropy, ".3f"),
        model_column("agreement", lambda m: m.closeness.agreement, ".1%"),
        model_column("acceptance", lambda m: m.closeness.acceptance, ".1%"),
        model_column("calibration error", lambda m: m.closeness.calibration_error, ".3f"),
        model_column("texts/s", lambda m: m.speed.decode_texts_per_second, ",.0f"),
        model_column("texts/s at batch 1", lambda m: m.speed.decode_texts_per_second_single, ",.0f"),
    ]
    if any(model.own for model in models):
        columns += [
            model_column("KL on own texts", lambda m: m.own and m.own.own_kl, ".3f"),
            model_column("reverse KL on own texts", lambda m: m.own and m.own.own_reverse_kl, ".3f"),
            model_column("overlap of the top 20 there", lambda m: m.own and m.own.own_top_20, ".1%"),
        ]
    if any(model.drafting for model in models):
        columns += [
            model_column("accepted drafts", lambda m: m.drafting and m.drafting.draft_acceptance, ".1%"),
            model_column("teacher's speed with its drafts", lambda m: m.drafting and m.drafting.draft_speedup, ".2f"),
        ]
    if any(model.training.sampling_seconds is not None for model in models):
        columns.append(model_column("sampling time", lambda m: m.training.sampling_seconds, progress.format_seconds))
    return [
        *columns,
        model_column("train tok/s", lambda m: m.training.train_tokens_per_second, ",.0f"),
        model_column("loss before first step", lambda m: m.training.loss_before_first_step, ".3f"),
    ]


def summary(report: Report) -> Table:
    """Return a heading row, then one row per model and baseline."""
    return _table(report, summary_columns(report))


def details(report: Report) -> Table:
    """Return the other figures, heading row first: a column per model, or with many models a row per model."""
    table = _table(report, detail_columns(report))
    if len(report.models) > MAX_MODELS:
        return table
    return [list(row) for row in zip(*table, strict=True)]


def times(report: Report) -> Table:
    """Return the time of each phase and the total, heading row first."""
    seconds = {**report.wall_seconds, "all": sum(report.wall_seconds.values())}
    return [["phase", "time"], *([phase, progress.format_seconds(value)] for phase, value in seconds.items())]


def text_table(report: Report, width: int = 80) -> str:
    """Return the summary for a terminal, with as many columns from the left as fit into `width` characters."""
    columns = summary_columns(report)
    table = [["model", *(column.short for column in columns)], *_table(report, columns)[1:]]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width and len(widths) > 1:
        widths.pop()
    head, *rows = [row[: len(widths)] for row in table]
    return progress.format_table(head, rows)


def notes(report: Report) -> list[str]:
    """Return paragraphs on the data, the intervals and the headings."""
    teacher = next(iter(report.models.values()))
    splits = []
    for name, count in report.counts.items():
        dropped = report.dropped_as_seen_in_training[name]
        removed = f" ({dropped:,} more were removed: their sources are in the training split)" if dropped else ""
        splits.append(f"{name} {count:,}{removed}")
    signature = f", {report.headline.signature}" if report.headline.signature else ""
    paragraphs = [
        f"Examples: {', '.join(splits)}. Evaluated on {teacher.examples:,} "
        f"({teacher.over_long:,} longer than the last bucket){signature}; seed {report.seed}.",
        "The text compares the student with another model by the 95% interval of their difference, paired by example; "
        "the table has each model's own interval. Neither covers the variance between trainings, which the command "
        "ablate measures. Decimals: as many as the intervals support, in a column those of its narrowest one.",
        "KL: nats a token. Agreement: share of target positions where student and teacher have the same most likely "
        "token. Acceptance: 1 - total variation, the rate at which the teacher accepts draft tokens of the student. "
        "Calibration error: expected, 15 bins. Speeds: medians; models take turns on the same prompts.",
    ]
    for name, model in report.models.items():
        if model.drafting:
            paragraphs.append(
                f"Accepted drafts: {name} drafts {model.drafting.draft_tokens} tokens a round; the teacher accepts "
                "those that it would have written itself (speculative decoding: the text is its greedy text). "
                "Speed: relative to the teacher's greedy decoding without drafts, at batch 1."
            )
    outputs = [
        f"cache {name}: {cache.target_tokens:,} target tokens at {cache.bytes_per_target_token:.0f} bytes"
        for name, cache in report.caches.items()
    ]
    outputs += [f"pseudo-targets {name}: {one.examples:,} examples" for name, one in report.pseudo_targets.items()]
    if outputs:
        paragraphs.append(f"{join_some(outputs, '; ', '; ')}.")
    if report.int8:
        models = "; ".join(f"{name} is {one.of}" for name, one in report.int8.items())
        paragraphs.append(
            f"{models} with int8 weights: each matrix has 8 bits a weight and a float scale for each output channel, "
            "and is converted to float where it is used. Size: bytes of the parameters."
        )
    return paragraphs


def _metrics_of_rows(report: Report) -> list[Mapping[str, MetricFigure]]:
    return [*(model.metrics for model in report.models.values()), *report.baselines.values()]


def _order(report: Report) -> list[str]:
    """Return the names of models: as in the experiment, but of many the highlighted ones first, then the best."""
    names, metric = list(report.models), report.headline
    if len(names) <= MAX_MODELS:
        return names
    first, sign = highlighted(report), 1 if metric.higher_is_better is False else -1
    others = sorted(set(names) - set(first), key=lambda name: (sign * report.models[name].value(metric.name), name))
    return [*first, *others]


def _table(report: Report, columns: Sequence[Column]) -> Table:
    rows = {name: Row(report.models[name].metrics, report.models[name]) for name in _order(report)}
    rows |= {name: Row(metrics, None) for name, metrics in report.baselines.items()}
    head = ["model", *(column.heading for column in columns)]
    return [head, *([name, *(column.cell(row) for column in columns)] for name, row in rows.items())]
