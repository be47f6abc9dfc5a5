"""The report's figures as rows of text: a table to read first, a table of the rest, one for a terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.ticker import EngFormatter

from kd_jax.runtime import progress

Report = Mapping[str, Any]
Model = Mapping[str, Any]
Table = list[list[str]]
ABSENT = "–"
INT8 = (
    "{} with int8 weights: each matrix in 8 bits with a scale for every output channel, made float again where it is "
    "used; nothing else differs, and its size is that of its parameters."
)


class Column(NamedTuple):
    """A heading, its short form for a terminal, the figure's key, and how it is shown beside all of a model's."""

    heading: str
    short: str
    key: str
    show: Callable[[Model], str]

    def cell(self, figures: Model) -> str:
        """A baseline has few figures, and no model has all."""
        return ABSENT if figures[self.key] is None else self.show(figures)


def plain(key: str, pattern: str | Callable[[Any], str], heading: str, short: str = "") -> Column:
    """A figure through a format pattern, or a function."""
    show = pattern if callable(pattern) else lambda value: format(value, pattern)
    return Column(heading, short, key, lambda figures: show(figures[key]))


def scored(metric: Mapping[str, Any]) -> Column:
    """A metric with its interval, where it has one."""
    name, digits, coarse = metric["name"], metric["digits"], max(0, metric["digits"] - 1)

    def show(figures: Model) -> str:
        interval = figures[f"{name}_ci"]
        shown = "" if interval is None else f" [{interval[0]:.{coarse}f}, {interval[1]:.{coarse}f}]"
        return f"{figures[name]:.{digits}f}{shown}"

    return Column(f"{metric['label']} [95%]", f"{metric['label']} [95%]", name, show)


def summary_columns(report: Report) -> list[Column]:
    """What a reader compares first."""
    first, *others = report["metrics"]
    count = EngFormatter(places=1)
    return [
        plain("parameters_outside_embeddings", count, "parameters outside embeddings", "params"),
        scored(first),
        *(plain(m["name"], f".{m['digits']}f", m["label"], m["label"]) for m in others[:1]),
        plain("kl_to_teacher", ".3f", "KL to teacher", "KL"),
        plain("decode_tokens_per_second", ",.0f", "decode tok/s", "tok/s"),
        plain("decode_tokens_per_second_single", ",.0f", "tok/s at batch 1", "batch 1"),
        plain("seconds", progress.format_seconds, "training time", "training"),
    ]


def detail_columns(report: Report) -> list[Column]:
    """The rest."""
    first, *others = report["metrics"]
    count, size = EngFormatter(places=1), EngFormatter(unit="B", places=1)
    beam = f"{first['name']}_beam"
    beams = any(beam in model for model in report["models"].values())  # not every task has one
    return [
        plain("parameters", count, "parameters"),
        plain("bytes", size, "on disk"),
        *([plain(beam, f".{first['digits']}f", f"{first['label']} beam")] if beams else []),
        *map(scored, others),
        plain("cross_entropy", ".3f", "cross-entropy"),
        plain("agreement", ".1%", "agreement"),
        plain("acceptance", ".1%", "acceptance"),
        plain("calibration_error", ".3f", "calibration error"),
        plain("decode_texts_per_second", ",.0f", "texts/s"),
        plain("decode_texts_per_second_single", ",.0f", "texts/s at batch 1"),
        *_drafting_columns(report),
        plain("train_tokens_per_second", ",.0f", "train tok/s"),
        plain("loss_before_first_step", ".3f", "loss before first step"),
    ]


def _drafting_columns(report: Report) -> list[Column]:
    """The student's figures as the teacher's draft, where they were measured."""
    if not any("draft_speedup" in model for model in report["models"].values()):
        return []
    return [
        plain("draft_acceptance", ".1%", "accepted drafts"),
        plain("draft_speedup", ".2f", "teacher's speed with its drafts"),
    ]


def summary(report: Report) -> Table:
    """A heading row, then one row per model: what is compared first."""
    return _table(report, summary_columns(report))


def details(report: Report) -> Table:
    """The rest of the figures, turned: a heading row of models, then one row per figure, so that any number fits."""
    return [list(row) for row in zip(*_table(report, detail_columns(report)), strict=True)]


def times(report: Report) -> Table:
    """Phase and time, and all together."""
    seconds = report["wall_seconds"]
    body = [[phase, progress.format_seconds(one)] for phase, one in (seconds | {"all": sum(seconds.values())}).items()]
    return [["phase", "time"], *body]


def text_table(report: Report, width: int = 80) -> str:
    """The summary for a terminal: as many of its columns, from the left, as fit the width.

    Args:
      report: as phases/report.py builds it.
      width: in characters.
    """
    columns = summary_columns(report)
    table = [["model", *(column.short for column in columns)], *_table(report, columns)[1:]]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width and len(widths) > 1:
        widths.pop()
    lines = [_line(row[: len(widths)], widths) for row in table]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def notes(report: Report) -> list[str]:
    """What the figures were measured on, and what the headings mean."""
    teacher = next(iter(report["models"].values()))
    counts, dropped = report["counts"], report["dropped_as_seen_in_training"]
    splits = [
        f"{name} {count:,}"
        + (f" ({dropped[name]:,} more were left out: their sources were seen in training)" if dropped[name] else "")
        for name, count in counts.items()
    ]
    caches = [
        f"cache {name}: {one['target_tokens']:,} target tokens at {one['bytes_per_target_token']:.0f} bytes"
        for name, one in report["caches"].items()
    ]
    in_int8 = [f"{name} is {one['of']}" for name, one in report["int8"].items()]
    signature = f", {report['headline']['signature']}" if report["headline"]["signature"] else ""
    return [
        f"Examples: {', '.join(splits)}. Measured on {teacher['examples']:,} "
        f"({teacher['over_long']:,} beyond the longest bucket){signature}; seed {report['seed']}.",
        "In words, the student is held against another model by the 95% interval of their difference, paired by "
        "example; the table's intervals are each model's own. Another training would differ too: see `ablate`.",
        "KL in nats a token; agreement: share of target positions where student and teacher hold the same token for "
        "the likeliest; acceptance: 1 - total variation, the share of the student's draft tokens that the teacher "
        "would take; calibration error: expected, 15 bins; speeds: models in turn on the same prompts, medians.",
        *(
            f"Accepted drafts: of the tokens that {name} wrote for the teacher, {model['draft_tokens']} a round, those "
            "that the teacher would have written itself (speculative decoding: the text is the teacher's greedy one); "
            "speed against the teacher's greedy decoding alone, at batch 1."
            for name, model in report["models"].items()
            if "draft_speedup" in model
        ),
        *([f"{'; '.join(caches)}."] if caches else []),
        *([INT8.format("; ".join(in_int8))] if in_int8 else []),
    ]


def _table(report: Report, columns: Sequence[Column]) -> Table:
    head = ["model", *(column.heading for column in columns)]
    models = report["models"]
    nothing = dict.fromkeys(key for figures in models.values() for key in figures)
    rows = {name: nothing | figures for name, figures in (models | report["baselines"]).items()}
    return [head, *([name, *(column.cell(figures) for column in columns)] for name, figures in rows.items())]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *figures = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join([name.strip().ljust(widths[0]), *figures])
