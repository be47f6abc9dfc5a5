"""Plots: legible on light and dark backgrounds, without overlaps, each model with one style."""

import dataclasses
import functools
import itertools
from xml.etree import ElementTree

import pytest

from kd_jax.evaluation.figures import MetricFigure
from kd_jax.reporting import plots
from tests.reporting.ablations import ablation
from tests.reporting.reports import many_students, model, report

CURVES = {
    "teacher": [{"step": 0, "valid_cross_entropy": 8.0}, {"step": 20, "loss": 5.0}, {"step": 40, "loss": 4.0}],
    "student_kd": [{"step": 20, "loss": 3.0}],
}


def all_plots(of_run):
    return {**plots.quality_plots(of_run), **plots.learning_curves(of_run, CURVES)}


def luminance(colour):
    """Relative luminance of #rrggbb: WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("background", ["#ffffff", "#0f172a"])
@pytest.mark.parametrize("colour", [*plots.COLOURS, plots.OTHER.colour])
def test_colours_have_contrast_with_both_backgrounds(colour, background):
    dark, light = sorted(map(luminance, (colour, background)))
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_svg_takes_the_pages_text_colour():
    for svg in all_plots(report()).values():
        assert "currentColor" in svg and plots.INK not in svg
        assert "#000000" not in svg and "#ffffff" not in svg and "<script" not in svg


def test_svg_is_one_element_with_unique_ids():
    ids = [
        {node.attrib["id"] for node in ElementTree.fromstring(svg).iter() if "id" in node.attrib}
        for svg in all_plots(report()).values()
    ]
    assert len(ids) == 4 and all(not a & b for a, b in itertools.combinations(ids, 2))


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
@pytest.mark.parametrize("against", ["parameters", "speed"])
def test_labels_do_not_overlap_and_stay_inside(of_run, against):
    figure = plots.trade_off(of_run, against)
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
    (line,) = plots.curve({"student_kd": CURVES["student_kd"]}, "loss", "nats", styles).axes[0].lines
    assert (line.get_color(), line.get_marker()) == styles["student_kd"]
    assert len({style.colour for style in styles.values()}) == len(styles) == 4


def test_curve_skips_rows_without_the_value():
    lines = plots.curve(CURVES, "loss", "nats", plots.styles(report().models)).axes[0].lines
    assert [line.get_xydata().tolist() for line in lines] == [[[20, 5], [40, 4]], [[20, 3]]]


def test_no_curve_without_a_log():
    assert plots.learning_curves(report(), {"teacher": []}) == {}
    (caption,) = plots.learning_curves(report(), {"teacher": CURVES["teacher"][1:]})
    assert caption == "Training loss, each model's own terms"


def test_figures_of_own_texts_have_curves_of_the_students_that_write_them():
    logs = {**CURVES, "student_init": [{"step": 1, "own_kl": 0.9, "own_cut": 0.25}, {"step": 9, "own_kl": 0.5}]}
    svgs = plots.learning_curves(report(), logs)
    own = ["KL to the teacher on a student's own texts", "Share of own texts without an end"]
    assert list(svgs)[2:] == own
    assert not set(own) & plots.learning_curves(report(), CURVES).keys()
    for caption, points in zip(own, ([[1, 0.9], [9, 0.5]], [[1, 0.25]]), strict=True):
        key, label = plots.CURVES[caption]
        figure = plots.curve({"student_init": logs["student_init"]}, key, label, plots.styles(report().models))
        (line,) = figure.axes[0].lines
        assert line.get_xydata().tolist() == points and line.get_label() == "student_init"
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names == ["student_init"] and plots.to_svg(figure, key) == svgs[caption]


@pytest.mark.parametrize("against", ["parameters", "speed"])
def test_trade_off_shows_every_model_with_its_interval(against):
    """All points are within the axes; the quickstart's students have the same parameters and the same speed."""
    axes = plots.trade_off(report(), against).axes[0]
    points = {line.get_label(): line.get_xydata()[0].tolist() for line in axes.lines if line.get_linestyle() == "None"}
    x = {"parameters": (1_313_024, 656_512), "speed": (4000, 10_000)}[against]
    bleu = {"teacher": 22.09, "student_scratch": 8.86, "student_init": 23.45, "student_kd": 22.90}
    assert points == {name: [x[name != "teacher"], value] for name, value in bleu.items()}
    ends = [lines.get_segments()[0][:, 1].tolist() for lines in axes.collections]
    assert ends == [pytest.approx([value - 1.5, value + 1.5]) for value in bleu.values()]
    low, high = axes.get_ylim()
    assert low < 3.21 and high > 24.95  # from the copied sources to the upper end of student_init
    places = {line.get_label(): line.get_transform().transform(line.get_xydata())[0][0] for line in axes.lines[:4]}
    assert places["student_scratch"] + 5 < places["student_init"] < places["student_kd"] - 5  # pixels


@pytest.mark.parametrize("times, scale", [(3.9, "linear"), (4.1, "log"), (5000, "log")])
def test_axis_of_parameters_is_logarithmic_beyond_four_times(times, scale):
    models = report().models | {
        "teacher": model(30.0, training={"parameters_outside_embeddings": int(times * 656_512)})
    }
    figure = plots.trade_off(report(models=models), "parameters")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert axes.get_xscale() == scale and 2 <= len(ticks) <= 9 and low < 656_512 and high > times * 656_512
    assert plots.trade_off(report(models=models), "speed").axes[0].get_xscale() == "linear"


def test_fifty_students_share_a_grey_entry_of_the_legend():
    one = many_students()
    curves = {name: [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}] for name in one.models}
    figures = [*map(functools.partial(plots.trade_off, one), ("parameters", "speed"))]
    figures.append(plots.curve(curves, "loss", "nats", plots.report_styles(one)))
    for figure in figures:
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels[:5] == ["teacher", "s0_ce", "s40_ce", "s49_kd", "47 other models"] and len(labels) < 7
    axes = figures[0].axes[0]
    assert sum(line.get_color() == plots.OTHER.colour for line in axes.lines) == 47
    low, high = axes.get_ylim()
    assert low < -1.5 and high > 31.5  # the ends of s0_ce and of the teacher


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
