"""Plots as inline SVG in the page's text colour, legible on light and dark backgrounds."""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_jax.reporting.paired import BETTER, WORSE, Difference
from kd_jax.reporting.report import Report

INK = "#010203"  # placeholder of the page's text colour: `to_svg` replaces it by currentColor
# Contrast of at least 3:1 with white and with the dark page's #0f172a (WCAG 2.2, 1.4.11).
COLOURS = ("#d97706", "#0d9488", "#8b5cf6", "#ef4444", "#3b82f6", "#65a30d", "#ec4899")
MARKERS = "sD^vPX*"
INK_SETTINGS = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
SIZE = (5.2, 3.9)  # inches; letters are 9 pixels high on a phone that is 360 pixels wide
CURVES = {  # caption -> key of the metrics logs
    "Cross-entropy on the validation split": "valid_cross_entropy",
    "Training loss, each model's own terms": "loss",
}
LONG_NAME = 22  # characters; two names of this length fit side by side below a plot


class Style(NamedTuple):
    """Colour and marker of a model or verdict."""

    colour: str
    marker: str


PLAIN = Style(INK, "o")
VERDICT_STYLES = {BETTER: Style(COLOURS[1], "^"), WORSE: Style(COLOURS[3], "v")}


def styles(models: Iterable[str]) -> dict[str, Style]:
    """Return model -> colour and marker, the same in every plot; the first model has the text's colour."""
    first, *others = models
    return {first: PLAIN} | dict(zip(others, map(Style, cycle(COLOURS), cycle(MARKERS)), strict=False))


def trade_off(report: Report) -> Figure:
    """Plot the headline metric with its interval against decoding speed."""
    metric, models = report.headline, report.models

    def draw(axes: Axes) -> None:
        for name, style in styles(models).items():
            figure, speed = models[name].metrics[metric.name], models[name].speed.decode_tokens_per_second
            if figure.interval is not None:
                axes.vlines(speed, *figure.interval, color=style.colour, alpha=0.5, linewidth=2)
            score = models[name].value(metric.name)
            axes.plot(speed, score, linestyle="", label=name, color=style.colour, marker=style.marker)
        for name, figures in report.baselines.items():
            value = figures[metric.name].value
            if value is not None:
                axes.axhline(value, linestyle=":", color=INK, alpha=0.6, linewidth=1.2, label=name)
        axes.set_xlim(0, 1.1 * max(model.speed.decode_tokens_per_second for model in models.values()))

    has_intervals = any(model.metrics[metric.name].interval is not None for model in models.values())
    y_label = f"{metric.label}, 95% interval" if has_intervals else metric.label
    return _figure(draw, [*models, *report.baselines], "decoding, tokens a second", y_label)


def curve(curves: Mapping[str, Sequence[Mapping[str, Any]]], key: str, label: str, models: Iterable[str]) -> Figure:
    """Plot one value of the metrics logs against the step, a line for each model; rows without it are skipped."""
    model_styles = styles(models)

    def draw(axes: Axes) -> None:
        for name, log in curves.items():
            rows, style = [row for row in log if key in row], model_styles[name]
            axes.plot(
                [row["step"] for row in rows],
                [row[key] for row in rows],
                label=name,
                color=style.colour,
                marker=style.marker,
                linewidth=1.5,
                markersize=4,
                markevery=max(1, len(rows) // 8),
            )

    return _figure(draw, list(curves), "step", label)


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


def report_plots(report: Report, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Return caption -> SVG in the order of the page; curves that no log has are left out."""
    svgs = {"Quality against speed": to_svg(trade_off(report), "speed")}
    for caption, key in CURVES.items():
        if any(key in row for log in curves.values() for row in log):
            svgs[caption] = to_svg(curve(curves, key, "nats a token", report.models), key)
    return svgs


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
    with matplotlib.rc_context(dict.fromkeys(INK_SETTINGS, INK)):
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        draw(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        columns = 1 if any(len(name) > LONG_NAME for name in names) else 2
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure
