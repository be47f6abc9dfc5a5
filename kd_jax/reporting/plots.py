"""Plots as inline SVG in the page's text colour, legible on light and dark backgrounds."""

import io
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from kd_jax.evaluation.figures import ModelFigures
from kd_jax.reporting.paired import BETTER, WORSE, Difference
from kd_jax.reporting.report import Report
from kd_jax.reporting.verdict import highlighted

INK = "#010203"  # placeholder of the page's text colour: `to_svg` replaces it by currentColor
# Contrast of at least 3:1 with white and with the dark page's #0f172a (WCAG 2.2, 1.4.11).
COLOURS = ("#d97706", "#0d9488", "#8b5cf6", "#ef4444", "#3b82f6", "#65a30d", "#ec4899")
MARKERS = "sD^vPX*"
INK_SETTINGS = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
SIZE = (5.2, 3.9)  # inches; letters are 9 pixels high on a phone that is 360 pixels wide
CURVES = {  # caption -> key of the metrics logs, and label of the axis
    "Cross-entropy on the validation split": ("valid_cross_entropy", "nats a token"),
    "Training loss, each model's own terms": ("loss", "nats a token"),
    "KL to the teacher on a student's own texts": ("own_kl", "nats a token"),
    "Share of own texts without an end": ("own_cut", "share"),
}
COSTS: Mapping[str, tuple[str, Callable[[ModelFigures], float]]] = {  # quantity -> label and a model's value
    "parameters": ("parameters outside the embeddings", lambda model: model.training.parameters_outside_embeddings),
    "speed": ("decoding, tokens a second", lambda model: model.speed.decode_tokens_per_second),
}
LOG_SPAN = 4  # the largest over the smallest number of parameters, above which the axis is logarithmic
SIDE_BY_SIDE = 8.0  # points between models of the same value
BASELINE_LINES = (":", "--", "-.")
LEGEND_ROWS, ROW_HEIGHT = 3, 0.2  # rows that a plot of the usual height has room for, and inches for each further one
LONG_NAME = 22  # characters; two names of this length fit side by side below a plot


class Style(NamedTuple):
    """Colour and marker of a model or verdict."""

    colour: str
    marker: str


PLAIN = Style(INK, "o")
OTHER = Style("#808080", ".")  # of models that do not stand out among many
VERDICT_STYLES = {BETTER: Style(COLOURS[1], "^"), WORSE: Style(COLOURS[3], "v")}


def styles(models: Iterable[str], shown: Collection[str] | None = None) -> dict[str, Style]:
    """Return model -> colour and marker, the same in every plot; the first model has the text's colour.

    Args:
      models: names, the teacher first.
      shown: the models that stand out, None for all; the others are grey.
    """
    names = list(models)
    first, *others = [name for name in names if shown is None or name in shown]
    own = {first: PLAIN} | dict(zip(others, map(Style, cycle(COLOURS), cycle(MARKERS)), strict=False))
    return {name: own.get(name, OTHER) for name in names}


def report_styles(report: Report) -> dict[str, Style]:
    """Return the style of each model of a report."""
    return styles(report.models, highlighted(report))


def trade_off(report: Report, against: Literal["parameters", "speed"] = "speed") -> Figure:
    """Plot the headline metric with its interval against parameters outside the embeddings, or decoding speed.

    The axis of parameters is logarithmic if they span more than 4 times. Models of the same value are side by side.
    """
    metric, models, (x_label, of_model) = report.headline, report.models, COSTS[against]
    model_styles = report_styles(report)
    labels = _labels(model_styles)
    cost = {name: of_model(model) for name, model in models.items()}
    offsets = _side_by_side({name: value for name, value in cost.items() if model_styles[name] != OTHER})
    is_log = against == "parameters" and max(cost.values()) > LOG_SPAN * min(cost.values())

    def draw(axes: Axes) -> None:
        for name in labels:
            style, figure = model_styles[name], models[name].metrics[metric.name]
            # Points that are moved do not count for the limits of an axis.
            axes.update_datalim([(cost[name], end) for end in figure.interval or (figure.of_model(),)])
            moved = ScaledTranslation(offsets.get(name, 0) / 72, 0, axes.figure.dpi_scale_trans)
            is_other = style == OTHER
            if figure.interval is not None:
                axes.vlines(
                    cost[name],
                    *figure.interval,
                    color=style.colour,
                    alpha=0.25 if is_other else 0.5,
                    linewidth=1 if is_other else 2,
                    transform=axes.transData + moved,
                    zorder=1 if is_other else 3,
                )
            axes.plot(
                cost[name],
                figure.of_model(),
                linestyle="",
                label=labels[name],
                color=style.colour,
                marker=style.marker,
                transform=axes.transData + moved,
                zorder=1 if is_other else 3,
            )
        for (name, figures), line in zip(report.baselines.items(), cycle(BASELINE_LINES), strict=False):
            value = figures[metric.name].value
            if value is not None:
                axes.axhline(value, linestyle=line, color=INK, alpha=0.6, linewidth=1.2, label=name)
        axes.autoscale_view(scalex=False)
        if is_log:
            axes.set_xscale("log")
            axes.set_xlim(min(cost.values()) / 1.6, max(cost.values()) * 1.6)
            few = max(cost.values()) < 300 * min(cost.values())
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.set_xlim(0, 1.1 * max(cost.values()))
        axes.xaxis.set_major_formatter(EngFormatter() if against == "parameters" else StrMethodFormatter("{x:,.0f}"))

    if any(offsets.values()):
        x_label += "\n(equal models are side by side)"
    has_intervals = any(model.metrics[metric.name].interval is not None for model in models.values())
    y_label = f"{metric.label}, 95% interval" if has_intervals else metric.label
    return _figure(draw, [*filter(None, labels.values()), *report.baselines], x_label, y_label)


def _labels(model_styles: Mapping[str, Style]) -> dict[str, str | None]:
    """Return model -> its label in a legend, grey models last; only the first of these has a label, for all of them."""
    others = [name for name, style in model_styles.items() if style == OTHER]
    labels: dict[str, str | None] = {name: name for name in model_styles if name not in others}
    labels |= dict.fromkeys(others)
    if others:
        labels[others[0]] = f"{len(others)} other models"
    return labels


def _side_by_side(cost: Mapping[str, float]) -> dict[str, float]:
    """Return model -> by how many points it is moved to the right, 0 unless another one has the same cost."""
    offsets = {}
    for value in dict.fromkeys(cost.values()):
        equal = [name for name in cost if cost[name] == value]
        offsets |= {name: SIDE_BY_SIDE * (place - (len(equal) - 1) / 2) for place, name in enumerate(equal)}
    return offsets


def curve(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], key: str, label: str, model_styles: Mapping[str, Style]
) -> Figure:
    """Plot one value of the metrics logs against the step, a line for each model; rows without it are skipped."""
    labels = _labels({name: style for name, style in model_styles.items() if name in curves})

    def draw(axes: Axes) -> None:
        for name, text in labels.items():
            rows, style = [row for row in curves[name] if key in row], model_styles[name]
            is_other = style == OTHER
            axes.plot(
                [row["step"] for row in rows],
                [row[key] for row in rows],
                label=text,
                color=style.colour,
                marker="" if is_other else style.marker,
                alpha=0.5 if is_other else 1,
                linewidth=0.8 if is_other else 1.5,
                markersize=4,
                markevery=max(1, len(rows) // 8),
                zorder=1 if is_other else 3,
            )

    return _figure(draw, list(filter(None, labels.values())), "step", label)


def forest(differences: Mapping[str, Difference], label: str) -> Figure:
    """Plot differences with their 95% intervals, a row for each model, and a stroke for each seed."""
    verdicts = dict.fromkeys(one.verdict for one in differences.values())

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, linestyle=":", linewidth=1.2)
        for row, one in enumerate(differences.values()):
            style = VERDICT_STYLES.get(one.verdict, PLAIN)
            axes.hlines(row, *one.interval, color=style.colour, alpha=0.5, linewidth=2)
            axes.plot(one.seeds, [row] * len(one.seeds), "|", color=style.colour, markersize=9)
            axes.plot(one.mean, row, linestyle="", color=style.colour, marker=style.marker)
        for verdict in verdicts:
            style = VERDICT_STYLES.get(verdict, PLAIN)
            axes.plot([], [], linestyle="", label=verdict, color=style.colour, marker=style.marker)
        axes.set_yticks(range(len(differences)), list(differences))
        axes.set_ylim(len(differences) - 0.5, -0.5)

    return _figure(draw, list(verdicts), label, "", height=1.6 + 0.3 * len(differences))


def quality_plots(report: Report) -> dict[str, str]:
    """Return caption -> SVG: quality against parameters and against speed."""
    return {
        "Quality against parameters": to_svg(trade_off(report, "parameters"), "parameters"),
        "Quality against speed": to_svg(trade_off(report, "speed"), "speed"),
    }


def learning_curves(report: Report, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Return caption -> SVG of the metrics logs; curves that no log has are left out."""
    model_styles, figures = report_styles(report), {}
    for caption, (key, label) in CURVES.items():
        logs = {name: log for name, log in curves.items() if any(key in row for row in log)}
        if logs:
            figures[caption] = to_svg(curve(logs, key, label, model_styles), key)
    return figures


def to_svg(figure: Figure, name: str) -> str:
    """Return the figure as an <svg> element, with ids unlike those of other figures; `name` is unique on the page."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)


def _figure(
    draw: Callable[[Axes], None], names: Sequence[str], x_label: str, y_label: str, height: float = SIZE[1]
) -> Figure:
    """Return a figure of one panel with its legend below; names beside the points could overlap."""
    columns = 1 if any(len(name) > LONG_NAME for name in names) else 2
    more_rows = max(0, -(-len(names) // columns) - LEGEND_ROWS)
    with matplotlib.rc_context(dict.fromkeys(INK_SETTINGS, INK)):
        figure = Figure(figsize=(SIZE[0], height + ROW_HEIGHT * more_rows), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        draw(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure
