"""Draw the figures of the concept pages into docs/images/generated. conf.py runs it; `python docs/figures.py` too."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

FOLDER = Path(__file__).parent / "images/generated"
BLUE, ORANGE, GREY, GREEN = "#2a6fbb", "#e07b39", "#b8bec6", "#3a8f5c"


def save(figure, name):
    """Write a figure as SVG, with the same bytes for the same content."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def boxes(axes, labels, y, colors, width=1.5, gap=0.55, height=0.7):
    """Draw labelled boxes in a row with arrows between them, and return their centres."""
    centres = []
    for i, label in enumerate(labels):
        x = i * (width + gap)
        box = FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08", fc=colors[i], ec="none"
        )
        axes.add_patch(box)
        axes.text(x + width / 2, y + height / 2, label, ha="center", va="center", color="white", fontsize=10)
        if i:
            axes.annotate(
                "",
                (x - 0.03, y + height / 2),
                (x - gap + 0.03, y + height / 2),
                arrowprops={"arrowstyle": "->", "color": "0.35"},
            )
        centres.append(x + width / 2)
    return centres


def phases():
    """Draw six phases in a row, each with the folder that it makes."""
    figure, axes = plt.subplots(figsize=(9, 1.9))
    names = ("prepare", "teacher", "cache", "student", "evaluate", "report")
    folders = ("data/", "teacher/", "cache/, pseudo/", "students/NAME/", "evaluation/", "report/")
    colors = [GREY, BLUE, BLUE, ORANGE, GREEN, GREEN]
    colors[0] = "#6c757d"
    for x, folder in zip(boxes(axes, names, 0.8, colors), folders, strict=True):
        axes.text(x, 0.55, folder, ha="center", va="top", fontsize=9, family="monospace", color="0.25")
    axes.set_xlim(-0.1, 11.9)
    axes.set_ylim(0.1, 1.6)
    axes.axis("off")
    save(figure, "phases")


def tails():
    """Draw one token's distribution under the three tail rules of a top-3 signal."""
    logits = np.array([2.5, 1.9, 1.4, 0.6, 0.3, 0.0, -0.3, -0.5])
    p = np.exp(logits) / np.exp(logits).sum()
    top, rest = p[:3], p[3:].sum()
    panels = {
        "teacher, all tokens": (p, [BLUE] * 3 + [GREY] * 5),
        'tail="bucket"': (np.append(top, rest), [BLUE] * 3 + [ORANGE]),
        'tail="zero"': (np.append(top, 0), [BLUE] * 3 + [ORANGE]),
        'tail="renormalise"': (top / top.sum(), [BLUE] * 3),
    }
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.1), sharey=True, width_ratios=(2, 1.1, 1.1, 0.9))
    for one, (title, (values, colors)) in zip(axes, panels.items(), strict=True):
        one.bar(range(len(values)), values, color=colors)
        one.set_title(title, fontsize=10)
        others = ["rest"] if len(values) == 4 else range(4, 9)
        one.set_xticks(range(len(values)), [1, 2, 3, *others][: len(values)])
        one.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("probability")
    save(figure, "tails")


def masks():
    """Draw a packed row: its tokens, segments and mask."""
    figure, axes = plt.subplots(figsize=(9, 1.7))
    rows = {
        "token": ["<s>", "a", "b", "</s>", "<s>", "c", "d", "e", "</s>", "pad", "pad"],
        "segment": [1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0],
        "mask": [0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0],
    }
    tint = {0: "#eceff2", 1: "#cfe0f3", 2: "#f7dcc8"}
    for y, (name, cells) in enumerate(reversed(rows.items())):
        axes.text(-0.3, y + 0.5, name, ha="right", va="center", fontsize=10)
        for x, cell in enumerate(cells):
            color = tint[rows["segment"][x]] if name != "mask" else ("#bfe3cc" if cell else "#eceff2")
            axes.add_patch(plt.Rectangle((x, y), 0.95, 0.9, fc=color, ec="none"))
            axes.text(x + 0.475, y + 0.45, str(cell), ha="center", va="center", fontsize=9)
    axes.set_xlim(-1.6, 11)
    axes.set_ylim(-0.1, 3.1)
    axes.axis("off")
    save(figure, "masks")


def record():
    """Draw the fields of a top-k record."""
    figure, axes = plt.subplots(figsize=(9, 1.7))
    fields = [
        ("digest", "of the example's ids", GREY),
        ("ids", "[targets, k] integers", BLUE),
        ("logits", "[targets, k] float16", BLUE),
        ("rest_t1", "[targets] log-sum-exp\nof all other logits", ORANGE),
        ("rest_t2", "the same at\ntemperature 2", ORANGE),
    ]
    for i, (name, text, color) in enumerate(fields):
        axes.add_patch(FancyBboxPatch((i * 2.1, 0), 1.9, 1, boxstyle="round,pad=0.02", fc=color, ec="none", alpha=0.25))
        axes.text(i * 2.1 + 0.95, 0.72, name, ha="center", va="center", fontsize=10, family="monospace")
        axes.text(i * 2.1 + 0.95, 0.3, text, ha="center", va="center", fontsize=8.5)
    axes.set_xlim(-0.1, 10.5)
    axes.set_ylim(-0.1, 1.1)
    axes.axis("off")
    save(figure, "record")


def main():
    """Draw all figures."""
    matplotlib.rcParams["svg.hashsalt"] = "kd_jax"
    for draw in (phases, tails, masks, record):
        draw()


if __name__ == "__main__":
    main()
