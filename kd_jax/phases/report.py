"""Write report.json, report.md and report.html: what distillation gained."""

import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax import config
from kd_jax.artifacts import manifest, runlog
from kd_jax.evaluation import degeneration, page, plots, tables, verdict
from kd_jax.experiment import Experiment, cache_folder, wanted_signals

FIGURES = (
    "parameters",
    "parameters_outside_embeddings",
    "bleu",
    "bleu_ci",
    "chrf",
    "chrf_ci",
    "bleu_beam",
    "cross_entropy",
    "kl_to_teacher",
    "agreement",
    "acceptance",
    "calibration_error",
    "decode_tokens_per_second",
    "decode_tokens_per_second_single",
    "decode_sentences_per_second",
    "decode_sentences_per_second_single",
    "train_tokens_per_second",
    "loss_before_first_step",
    "signature",
    "sentences",
    "over_long",
)
METRICS = (
    {"name": "bleu", "label": "BLEU", "higher_is_better": True, "digits": 2},
    {"name": "chrf", "label": "chrF", "higher_is_better": True, "digits": 2},
)
COMPARISON = {"baseline": "student_scratch", "distilled": "student_kd"}


def run(experiment: Experiment, workdir: Path, force: bool = False) -> None:
    """Reads what the phases left and writes workdir/report; always anew, since it costs nothing.

    Raises:
      KdError: if a phase has not finished.
    """
    began = time.perf_counter()
    folder, names = workdir / "report", ["teacher", *experiment.students]
    phases = finished_phases(experiment, workdir)
    texts = {name: manifest.read_lines(workdir / "evaluation" / f"{name}.jsonl") for name in names}
    report = read(experiment, workdir, phases, texts)
    curves = {name: runlog.read(model_folder(workdir, name) / "metrics.jsonl") for name in names}
    shown = samples(texts, experiment.evaluation.samples)
    manifest.start(folder, "report", {}, force)
    write(folder, report, document(report, shown, curves, config.to_text(experiment)))
    manifest.finish(folder, "report", {"models": names}, time.perf_counter() - began)
    runlog.say(closing(report))
    runlog.say(f"\nreport: {folder / 'report.html'} (and report.md, report.json)")


def read(
    experiment: Experiment,
    workdir: Path,
    phases: Mapping[str, Mapping[str, Any]],
    texts: Mapping[str, Sequence[Mapping[str, str]]],
) -> dict[str, Any]:
    """The report's figures from what the phases left.

    Args:
      phases: as `finished_phases`.
      texts: model -> its rows of "reference" and "greedy".
    """
    models = {}
    for name, rows in texts.items():
        scores = manifest.read_json(workdir / "evaluation" / f"{name}.json")
        trained = phases["teacher" if name == "teacher" else f"student.{name}"]
        greedy, references = [row["greedy"] for row in rows], [row["reference"] for row in rows]
        models[name] = {key: scores[key] for key in FIGURES} | {
            "bytes": sum(trained["outputs"]["files"].values()),
            "seconds": trained["seconds"],
            "warnings": degeneration.warnings(greedy, references),
        }
    comparison = COMPARISON if models.keys() >= set(COMPARISON.values()) else None
    data = phases["prepare"]["outputs"]
    return {
        "name": experiment.name,
        "task": experiment.task.name,
        "dataset": data["dataset"],
        "seed": experiment.seed,
        "headline": METRICS[0],
        "metrics": METRICS,
        "comparison": comparison,
        "models": models,
        "gap_recovered": verdict.gap_recovered(models, comparison, METRICS[0]),
        "caches": {
            name.removeprefix("cache."): phase["outputs"] | {"seconds": phase["seconds"]}
            for name, phase in phases.items()
            if name.startswith("cache.")
        },
        "wall_seconds": wall_seconds(phases),
        "counts": data["counts"],
        "dropped_as_seen_in_training": data["dropped_as_seen_in_training"],
        "versions": phases["evaluate"]["versions"],
    }


def samples(texts: Mapping[str, Sequence[Mapping[str, str]]], count: int) -> list[dict[str, str]]:
    """At most `count` examples, evenly spread: "source", "reference", and each model's greedy text."""
    rows = next(iter(texts.values()))
    return [
        {key: rows[i][key] for key in ("source", "reference")} | {name: one[i]["greedy"] for name, one in texts.items()}
        for i in range(0, len(rows), max(1, len(rows) // count))[:count]
    ]


def document(
    report: Mapping[str, Any],
    samples: Sequence[Mapping[str, str]],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    resolved: str,
) -> page.Document:
    """The report in words, tables and plots.

    Args:
      report: as `read`.
      samples: as `samples`.
      curves: model -> rows of its metrics log.
      resolved: the experiment's text.
    """
    return page.Document(
        title=f"{report['name']}: {report['task']}, {report['dataset']}",
        lead=verdict.lead(report),
        warnings=verdict.warnings(report),
        summary=tables.summary(report),
        details=tables.details(report),
        times=tables.times(report),
        notes=tables.notes(report),
        samples=samples,
        models=list(report["models"]),
        plots=plots.figures(report, curves),
        versions=report["versions"],
        resolved=resolved,
    )


def write(folder: Path, report: Mapping[str, Any], document: page.Document) -> None:
    """Leaves report.json, report.md and report.html."""
    manifest.write_json(folder / "report.json", report)
    manifest.write_text(folder / "report.md", page.markdown(document))
    manifest.write_text(folder / "report.html", page.html(document))


def closing(report: Mapping[str, Any]) -> str:
    """What a terminal shows at the end, 80 columns wide."""
    warnings = [textwrap.fill(f"warning: {warning}", 80) for warning in verdict.warnings(report)]
    return "\n".join(["", textwrap.fill(verdict.lead(report), 80), *warnings, "", tables.text_table(report)])


def model_folder(workdir: Path, name: str) -> Path:
    """Where a model was trained."""
    return workdir / "teacher" if name == "teacher" else workdir / "students" / name


def finished_phases(experiment: Experiment, workdir: Path) -> dict[str, dict[str, Any]]:
    """Phase (with the model's or the signal's name) -> manifest, in the order of a run."""
    phases = {
        "prepare": manifest.read(workdir / "data", "prepare"),
        "teacher": manifest.read(workdir / "teacher", "teacher"),
    }
    for targets, signals in wanted_signals(experiment).items():
        for signal in signals:
            name = f"cache.{targets.name}/{signal}" if targets else f"cache.{signal}"
            phases[name] = manifest.read(cache_folder(workdir, targets, signal), "cache")
    for name in experiment.students:
        phases[f"student.{name}"] = manifest.read(workdir / "students" / name, "student")
    return phases | {"evaluate": manifest.read(workdir / "evaluation", "evaluate")}


def wall_seconds(phases: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Phase -> seconds, students and caches added up."""
    seconds: dict[str, float] = {}
    for name, phase in phases.items():
        key = name.split(".")[0]
        seconds[key] = (seconds[key] if key in seconds else 0.0) + phase["seconds"]
    return seconds
