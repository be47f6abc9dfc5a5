"""Plots as inline SVG: their ink is the page's, their colours read on a light and on a dark ground."""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_jax.reporting.paired import BETTER, WORSE

INK = "#010203"  # stands for the page's text colour: `to_svg` makes it currentColor
# At least 3:1 against white and against the dark page's #0f172a (WCAG 2.2, 1.4.11).
COLOURS = ("#d97706", "#0d9488", "#8b5cf6", "#ef4444", "#3b82f6", "#65a30d", "#ec4899")
MARKERS = "sD^vPX*"
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
SIZE = (5.2, 3.9)  # inches: shrunk to a phone's 360 pixels, its letters still measure 9
CURVES = {  # caption -> value of the metrics logs
    "Cross-entropy on the validation split": "valid_cross_entropy",
    "Training loss, each model's own terms": "loss",
}
VERDICTS = {BETTER: {"color": COLOURS[1], "marker": "^"}, WORSE: {"color": COLOURS[3], "marker": "v"}}
LONG_NAME = 22  # characters: two such names fit side by side under a plot


def styles(models: Iterable[str]) -> dict[str, dict[str, str]]:
    """Model -> colour and marker, the first (the teacher) in ink: the same in every plot of a report."""
    first, *others = models
    coloured = {
        name: {"color": colour, "marker": marker}
        for name, colour, marker in zip(others, cycle(COLOURS), cycle(MARKERS), strict=False)
    }
    return {first: {"color": INK, "marker": "o"}} | coloured


def trade_off(report: Mapping[str, Any]) -> Figure:
    """The headline with its interval against greedy tokens a second; the teacher in ink."""
    metric, models = report["headline"], report["models"]

    def draw(axes: Axes) -> None:
        for name, style in styles(models).items():
            score, interval = (models[name][key] for key in (metric["name"], f"{metric['name']}_ci"))
            speed = models[name]["decode_tokens_per_second"]
            if interval is not None:
                axes.vlines(speed, *interval, color=style["color"], alpha=0.5, linewidth=2)
            axes.plot(speed, score, linestyle="", label=name, **style)
        for name, figures in report["baselines"].items():
            if figures[metric["name"]] is not None:
                axes.axhline(figures[metric["name"]], linestyle=":", color=INK, alpha=0.6, linewidth=1.2, label=name)
        axes.set_xlim(0, 1.1 * max(model["decode_tokens_per_second"] for model in models.values()))

    interval = "" if all(m[f"{metric['name']}_ci"] is None for m in models.values()) else ", 95% interval"
    return _figure(draw, [*models, *report["baselines"]], "decoding, tokens a second", f"{metric['label']}{interval}")


def curve(curves: Mapping[str, Sequence[Mapping[str, Any]]], key: str, label: str, models: Iterable[str]) -> Figure:
    """One value of the metrics logs against the step, a line for each model.

    Args:
      curves: model -> rows of its metrics log.
      key: the value; rows without it are passed over, since not every step has every value.
      label: of the vertical axis.
      models: all names, the teacher first.
    """
    style = styles(models)

    def draw(axes: Axes) -> None:
        for name, log in curves.items():
            points = [(row["step"], row[key]) for row in log if key in row]
            steps, values = [step for step, _ in points], [value for _, value in points]
            spaced = max(1, len(points) // 8)
            axes.plot(steps, values, label=name, linewidth=1.5, markersize=4, markevery=spaced, **style[name])

    return _figure(draw, list(curves), "step", label)


def forest(differences: Mapping[str, Mapping[str, Any]], label: str) -> Figure:
    """Differences with their 95% intervals, a row for each model, and each seed's as a stroke.

    Args:
      differences: model -> "mean", "interval", "seeds", "verdict".
      label: of the horizontal axis.
    """
    verdicts = dict.fromkeys(one["verdict"] for one in differences.values())
    marks = {verdict: {"color": INK, "marker": "o"} for verdict in verdicts} | VERDICTS

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, linestyle=":", linewidth=1.2)
        for row, one in enumerate(differences.values()):
            mark = marks[one["verdict"]]
            axes.hlines(row, *one["interval"], color=mark["color"], alpha=0.5, linewidth=2)
            axes.plot(one["seeds"], [row] * len(one["seeds"]), "|", color=mark["color"], markersize=9)
            axes.plot(one["mean"], row, linestyle="", **mark)
        for verdict in verdicts:
            axes.plot([], [], linestyle="", label=verdict, **marks[verdict])
        axes.set_yticks(range(len(differences)), list(differences))
        axes.set_ylim(len(differences) - 0.5, -0.5)

    return _figure(draw, list(verdicts), label, "", height=1.6 + 0.3 * len(differences))


def figures(report: Mapping[str, Any], curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Caption -> SVG, in the order of the page; no curves where no log has them."""
    svgs = {"Quality against speed": to_svg(trade_off(report), "speed")}
    for caption, key in CURVES.items():
        if any(key in row for log in curves.values() for row in log):
            svgs[caption] = to_svg(curve(curves, key, "nats a token", report["models"]), key)
    return svgs


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element to stand inside a page, its ids apart from other figures'.

    Args:
      figure: whose ink is INK.
      name: one word, unique on the page.
    """
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
    """One panel, its legend below it: names beside the points would overlap where models are alike."""
    with matplotlib.rc_context(dict.fromkeys(INKED, INK)):
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
