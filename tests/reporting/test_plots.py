"""Plots: legible on light and dark backgrounds, without overlaps, each model with one style."""

import dataclasses
import itertools
from xml.etree import ElementTree

import pytest

from kd_jax.evaluation.figures import MetricFigure
from kd_jax.reporting import plots
from tests.reporting.ablations import ablation
from tests.reporting.reports import model, report

CURVES = {
    "teacher": [{"step": 0, "valid_cross_entropy": 8.0}, {"step": 20, "loss": 5.0}, {"step": 40, "loss": 4.0}],
    "student_kd": [{"step": 20, "loss": 3.0}],
}


def luminance(colour):
    """Relative luminance of #rrggbb: WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("background", ["#ffffff", "#0f172a"])
@pytest.mark.parametrize("colour", plots.COLOURS)
def test_colours_have_contrast_with_both_backgrounds(colour, background):
    dark, light = sorted(map(luminance, (colour, background)))
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_svg_takes_the_pages_text_colour():
    for svg in plots.report_plots(report(), CURVES).values():
        assert "currentColor" in svg and plots.INK not in svg
        assert "#000000" not in svg and "#ffffff" not in svg and "<script" not in svg


def test_svg_is_one_element_with_unique_ids():
    ids = [
        {node.attrib["id"] for node in ElementTree.fromstring(svg).iter() if "id" in node.attrib}
        for svg in plots.report_plots(report(), CURVES).values()
    ]
    assert len(ids) == 3 and all(not a & b for a, b in itertools.combinations(ids, 2))


def similar_students(count, name):
    """A report of students with almost equal speed and score."""
    models = {
        name.format(i): model(22 + 0.01 * i, width=2, speed={"decode_tokens_per_second": 10_000.0 + i})
        for i in range(count)
    }
    return report(models={"teacher": model(22.0)} | models)


@pytest.mark.parametrize(
    "of_run",
    [report(), similar_students(7, "student_{}"), similar_students(4, "student_with_a_name_to_tell_{}")],
    ids=["quickstart", "many", "long names"],
)
def test_labels_do_not_overlap_and_stay_inside(of_run):
    figure = plots.trade_off(of_run)
    figure.draw_without_rendering()
    axes, (legend,) = figure.axes[0], figure.legends
    ticks = [
        label
        for labels, (low, high), along in (
            (axes.get_xticklabels(), axes.get_xlim(), 0),
            (axes.get_yticklabels(), axes.get_ylim(), 1),
        )
        for label in labels
        if low <= label.get_position()[along] <= high  # the others are not drawn
    ]
    texts = [*legend.get_texts(), *ticks, axes.xaxis.label, axes.yaxis.label]
    boxes = [text.get_window_extent() for text in texts]
    assert {text.get_text() for text in legend.get_texts()} == {*of_run.models, "copy"}
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)


def test_model_has_one_style_in_every_plot():
    """Also where the teacher has no curve."""
    styles = plots.styles(report().models)
    (line,) = plots.curve({"student_kd": CURVES["student_kd"]}, "loss", "nats", report().models).axes[0].lines
    assert (line.get_color(), line.get_marker()) == styles["student_kd"]
    assert len({style.colour for style in styles.values()}) == len(styles) == 4


def test_curve_skips_rows_without_the_value():
    lines = plots.curve(CURVES, "loss", "nats", report().models).axes[0].lines
    assert [line.get_xydata().tolist() for line in lines] == [[[20, 5], [40, 4]], [[20, 3]]]


def test_no_curve_without_a_log():
    assert list(plots.report_plots(report(), {"teacher": []})) == ["Quality against speed"]


def test_trade_off_without_intervals():
    models = {
        name: dataclasses.replace(figures, metrics={"bleu": MetricFigure(figures.value("bleu"))})
        for name, figures in report().models.items()
    }
    axes = plots.trade_off(report(models=models)).axes[0]
    assert not axes.collections and "interval" not in axes.get_ylabel()


def test_forest_shows_differences_intervals_and_seeds():
    differences = ablation().differences["bleu"]["control_smoothed"]
    axes = plots.forest(differences, "BLEU, difference").axes[0]
    spans = [lines.get_segments()[0][:, 0].tolist() for lines in axes.collections]
    assert spans == [list(one.interval) for one in differences.values()]
    points = [line.get_xdata().tolist() for line in axes.lines if len(line.get_xdata()) in (1, 3)]
    assert points == [x for one in differences.values() for x in (list(one.seeds), [one.mean])]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(differences)
    low, high = axes.get_ylim()
    assert low > high  # the first row is the uppermost


def test_verdicts_differ_in_shape_and_colour():
    assert len({style.marker for style in plots.VERDICT_STYLES.values()} | {plots.PLAIN.marker}) == 3
    legend = plots.forest(ablation().differences["bleu"]["control_smoothed"], "x").legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["better", "no difference seen"]
