"""The report as text, Markdown and one HTML page that needs nothing else."""

import base64
import html as escaping
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kd_jax.artifacts import runlog

Report = Mapping[str, Any]
COLOURS = ("#334155", "#d97706", "#0d9488", "#7c3aed", "#dc2626", "#2563eb", "#65a30d", "#db2777")


def _interval(model: Mapping[str, Any]) -> str:
    low, high = model["bleu_ci"]
    return f"{model['bleu']:.2f} [{low:.1f}, {high:.1f}]"


# Heading -> how a model's figures are shown under it.
COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "parameters": lambda m: f"{m['parameters'] / 1e6:.2f} M",
    "outside embeddings": lambda m: f"{m['parameters_outside_embeddings'] / 1e6:.2f} M",
    "BLEU greedy [95%]": _interval,
    "BLEU beam": lambda m: f"{m['bleu_beam']:.2f}",
    "chrF": lambda m: f"{m['chrf']:.2f}",
    "cross-entropy": lambda m: f"{m['cross_entropy']:.3f}",
    "KL to teacher": lambda m: f"{m['kl_to_teacher']:.3f}",
    "agreement": lambda m: f"{m['agreement']:.1%}",
    "acceptance": lambda m: f"{m['acceptance']:.1%}",
    "calibration error": lambda m: f"{m['calibration_error']:.3f}",
    "decode tok/s": lambda m: f"{m['decode_tokens_per_second']:,.0f}",
    "at batch 1": lambda m: f"{m['decode_tokens_per_second_single']:,.0f}",
    "train tok/s": lambda m: "–" if m["train_tokens_per_second"] is None else f"{m['train_tokens_per_second']:,.0f}",
}


def rows(report: Report) -> list[list[str]]:
    """The table: a heading row, then one row per model."""
    models = report["models"]
    return [["model", *COLUMNS], *([name, *(show(m) for show in COLUMNS.values())] for name, m in models.items())]


def title(report: Report) -> str:
    """Which experiment, on what."""
    return f"{report['name']}: {report['task']}, {report['dataset']}"


def headline(report: Report) -> str:
    """What was gained, in words; it says so too where nothing was."""
    models, gap = report["models"], report["gap_recovered"]
    if not {"student_kd", "student_scratch"} <= models.keys():
        best = max((name for name in models if name != "teacher"), key=lambda n: models[n]["bleu"], default="teacher")
        return (
            f"Best student: {best}, BLEU {models[best]['bleu']:.2f}; the teacher has {models['teacher']['bleu']:.2f}."
        )
    teacher, kd, scratch = (models[name] for name in ("teacher", "student_kd", "student_scratch"))
    apart = kd["bleu_ci"][0] > scratch["bleu_ci"][1]
    behind = kd["bleu_ci"][1] < scratch["bleu_ci"][0]
    verdict = "passes" if apart else "falls behind" if behind else "cannot be told from"
    size = kd["parameters_outside_embeddings"] / teacher["parameters_outside_embeddings"]
    speed = kd["decode_tokens_per_second"] / teacher["decode_tokens_per_second"]
    recovered = "" if gap is None else f" {gap:.0%} of the gap to the teacher ({teacher['bleu']:.2f}) is recovered,"
    return (
        f"The distilled student (BLEU {kd['bleu']:.2f}) {verdict} the same student trained without the teacher "
        f"({scratch['bleu']:.2f});{recovered} with {size:.0%} of the teacher's parameters outside the embeddings "
        f"and {speed:.1f} times its decoding speed."
    )


def text_table(report: Report) -> str:
    """The table for a terminal: the columns that matter most."""
    kept = [0, 2, 3, 4, 7, 8, 11]
    table = [[row[i] for i in kept] for row in rows(report)]
    widths = [max(len(row[i]) for row in table) for i in range(len(kept))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(report: Report, samples: Sequence[Mapping[str, str]]) -> str:
    """The report as Markdown."""
    head, *body = rows(report)
    table = [head, ["---"] * len(head), *body]
    lines = [f"# {title(report)}", "", headline(report), ""]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    lines += ["", f"{_notes(report)}", "", "## Time", "", "| phase | time |", "| --- | --- |"]
    lines += [f"| {phase} | {runlog.clock(seconds)} |" for phase, seconds in _times(report).items()]
    lines += ["", "## Samples", ""]
    for sample in samples:
        lines += [f"- **{name}**: {text}" for name, text in sample.items()] + [""]
    return "\n".join(lines)


def _times(report: Report) -> dict[str, float]:
    return dict(report["wall_seconds"]) | {"all": sum(report["wall_seconds"].values())}


def _notes(report: Report) -> str:
    teacher = report["models"]["teacher"]
    caches = "; ".join(
        f"cache {name}: {one['target_tokens']:,} target tokens at {one['bytes_per_target_token']:.0f} bytes"
        for name, one in report["caches"].items()
    )
    return (
        f"{teacher['sentences']} sentences ({teacher['over_long']} beyond the longest bucket), "
        f"sacreBLEU {teacher['signature']}; KL in nats a token; agreement: share of target positions "
        f"where student and teacher hold the same token for the likeliest; acceptance: 1 - total variation, "
        f"the share of the student's draft tokens that the teacher would take; calibration error: expected, "
        f"15 bins; speeds: greedy, models in turn on the same sentences, medians. {caches}. Seed {report['seed']}."
    )


def html(report: Report, samples: Sequence[Mapping[str, str]], curves: Mapping[str, list], resolved: str) -> str:
    """One self-contained page."""
    head, *body = rows(report)
    esc = escaping.escape
    cells = "".join(f"<th>{esc(cell)}</th>" for cell in head)
    table = "".join("<tr>" + "".join(f"<td>{esc(cell)}</td>" for cell in row) + "</tr>" for row in body)
    times = "".join(f"<tr><td>{esc(p)}</td><td>{runlog.clock(s)}</td></tr>" for p, s in _times(report).items())
    shown = "".join(
        "<dl>" + "".join(f"<dt>{esc(name)}</dt><dd>{esc(text) or '–'}</dd>" for name, text in sample.items()) + "</dl>"
        for sample in samples
    )
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return PAGE.format(
        title=esc(title(report)),
        headline=esc(headline(report)),
        table=f"<table><tr>{cells}</tr>{table}</table>",
        notes=esc(_notes(report)),
        trade_off=_image(lambda axes: draw_trade_off(axes, report), "quality against decoding speed", 1),
        curves=_image(lambda *axes: draw_curves(axes, curves), "training curves", 2),
        samples=shown,
        times=f"<table class='narrow'><tr><th>phase</th><th>time</th></tr>{times}</table>",
        versions=esc(versions),
        resolved=esc(resolved),
    )


def draw_trade_off(axes: Any, report: Report) -> None:
    """BLEU with its interval against greedy tokens a second; the marker's area is the size of the network."""
    for (name, m), colour in zip(report["models"].items(), COLOURS * 9, strict=False):
        low, high = m["bleu_ci"]
        speed = m["decode_tokens_per_second"]
        axes.errorbar(speed, (low + high) / 2, yerr=(high - low) / 2, color=colour, capsize=4, fmt="none", alpha=0.7)
        axes.scatter(
            speed, m["bleu"], s=120 * m["parameters"] / report["models"]["teacher"]["parameters"], color=colour
        )
        axes.annotate(name, (speed, m["bleu"]), xytext=(9, 5), textcoords="offset points", fontsize=9, color=colour)
    axes.set_xlim(left=0, right=1.35 * max(m["decode_tokens_per_second"] for m in report["models"].values()))
    axes.set_xlabel("greedy decoding, tokens a second")
    axes.set_ylabel("BLEU, 95% interval")


def draw_curves(axes: Sequence[Any], curves: Mapping[str, list]) -> None:
    """Left: the validation split's cross-entropy. Right: the loss that was trained on, whatever its terms."""
    for (name, log), colour in zip(curves.items(), COLOURS * 9, strict=False):
        valid = [(row["step"], row["valid_cross_entropy"]) for row in log if "valid_cross_entropy" in row]
        train = [(row["step"], row["loss"]) for row in log if "loss" in row]
        axes[0].plot(*zip(*valid, strict=True), marker="o", markersize=3, color=colour, label=name)
        axes[1].plot(*zip(*train, strict=True), color=colour, linewidth=1, label=name)
    for one, title in zip(
        axes, ("validation cross-entropy, nats a token", "training loss (terms differ)"), strict=True
    ):
        one.set_title(title, fontsize=10)
        one.set_xlabel("step")
    axes[0].legend(fontsize=8, frameon=False)


def _image(draw: Callable[..., None], alt: str, panels: int) -> str:
    """A plot as an <img> with its data inside."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * panels + 2, 3.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    draw(*axes)
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    return f'<img alt="{alt}" src="data:image/svg+xml;base64,{base64.b64encode(data.getvalue()).decode()}">'


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 68rem; margin: 2.5rem auto; padding: 0 1.2rem;
  color: #1e293b; background: #fff; }}
h1 {{ font-size: 1.5rem; margin-bottom: .4rem; }} h2 {{ font-size: 1.1rem; margin-top: 2.4rem; }}
.lead {{ font-size: 1.12rem; max-width: 52rem; }} .note, footer {{ color: #64748b; font-size: .85rem; }}
.scroll {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-size: .88rem; width: 100%; }}
.narrow {{ width: auto; }} th, td {{ padding: .35rem .5rem; border-bottom: 1px solid #e2e8f0; text-align: right;
  white-space: nowrap; }} th {{ font-weight: 600; color: #475569; white-space: normal; vertical-align: bottom; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ max-width: 100%; height: auto; background: #fff; border-radius: .5rem; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; padding: .8rem 0;
  border-bottom: 1px solid #e2e8f0; font-size: .92rem; }}
dt {{ color: #64748b; }} dd {{ margin: 0; }} pre {{ overflow-x: auto; font-size: .78rem; }}
@media (max-width: 40rem) {{ dl {{ grid-template-columns: 1fr; }} dd {{ margin-bottom: .4rem; }} }}
@media (prefers-color-scheme: dark) {{ body {{ background: #0f172a; color: #e2e8f0; }}
  th {{ color: #94a3b8; }} th, td, dl {{ border-color: #1e293b; }} }}
</style></head><body>
<h1>{title}</h1>
<p class="lead">{headline}</p>
<div class="scroll">{table}</div>
<p class="note">{notes}</p>
<h2>Quality against speed</h2>{trade_off}
<h2>Training</h2>{curves}
<h2>Samples, greedy</h2>{samples}
<h2>Time</h2>{times}
<h2>Experiment</h2><details><summary>every field, resolved</summary><pre>{resolved}</pre></details>
<footer><p>{versions}</p></footer>
</body></html>
"""
