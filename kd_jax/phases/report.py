"""Write report.json, report.md and report.html: what distillation gained."""

import time
from pathlib import Path
from typing import Any

from kd_jax import config
from kd_jax.artifacts import manifest, runlog
from kd_jax.evaluation import page
from kd_jax.experiment import Experiment, cache_folder, wanted_signals

FIGURES = (
    "parameters",
    "bleu",
    "bleu_ci",
    "chrf",
    "bleu_beam",
    "cross_entropy",
    "kl_to_teacher",
    "agreement",
    "acceptance",
    "calibration_error",
    "decode_tokens_per_second",
    "train_tokens_per_second",
    "parameters_outside_embeddings",
    "loss_before_first_step",
    "decode_tokens_per_second_single",
    "decode_sentences_per_second",
    "decode_sentences_per_second_single",
    "chrf_ci",
    "signature",
    "sentences",
    "over_long",
)


def run(experiment: Experiment, workdir: Path, force: bool = False) -> None:
    """Reads what the phases left and writes workdir/report; always anew, since it costs nothing.

    Raises:
      KdError: if a phase has not finished.
    """
    began = time.perf_counter()
    folder = workdir / "report"
    phases = finished_phases(experiment, workdir)
    names = ["teacher", *experiment.students]
    scores = {name: manifest.read_json(workdir / "evaluation" / f"{name}.json") for name in names}
    models = {name: {key: scores[name][key] for key in FIGURES} for name in names}
    report = {
        "name": experiment.name,
        "task": experiment.task.name,
        "dataset": phases["prepare"]["outputs"]["dataset"],
        "seed": experiment.seed,
        "wall_seconds": wall_seconds(phases),
        "models": models,
        "gap_recovered": gap_recovered(models),
        "caches": {
            name.removeprefix("cache."): phase["outputs"] for name, phase in phases.items() if name.startswith("cache.")
        },
        "versions": phases["evaluate"]["versions"],
    }
    curves = {
        name: runlog.read(workdir / ("teacher" if name == "teacher" else f"students/{name}") / "metrics.jsonl")
        for name in names
    }
    count = experiment.evaluation.samples
    translations = {name: manifest.read_lines(workdir / "evaluation" / f"{name}.jsonl") for name in names}
    chosen = range(0, len(translations["teacher"]), max(1, len(translations["teacher"]) // count))[:count]
    samples = [
        {"source": translations["teacher"][i]["source"], "reference": translations["teacher"][i]["reference"]}
        | {name: translations[name][i]["greedy"] for name in names}
        for i in chosen
    ]
    manifest.start(folder, "report", {}, force)
    manifest.write_json(folder / "report.json", report)
    manifest.write_text(folder / "report.md", page.markdown(report, samples))
    manifest.write_text(folder / "report.html", page.html(report, samples, curves, config.to_text(experiment)))
    manifest.finish(folder, "report", {"models": names}, time.perf_counter() - began)
    runlog.say("\n" + page.headline(report) + "\n" + page.text_table(report))
    runlog.say(f"\nreport: {folder / 'report.html'} (and report.md, report.json)")


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


def wall_seconds(phases: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Phase -> seconds, students and caches added up."""
    seconds: dict[str, float] = {}
    for name, phase in phases.items():
        key = name.split(".")[0]
        seconds[key] = (seconds[key] if key in seconds else 0.0) + phase["seconds"]
    return seconds


def gap_recovered(models: dict[str, dict[str, Any]]) -> float | None:
    """(student_kd - student_scratch) / (teacher - student_scratch) in greedy BLEU.

    None where there are no such students, or the teacher is no better than the scratch student.
    """
    if not {"student_kd", "student_scratch"} <= models.keys():
        return None
    teacher, kd, scratch = (models[name]["bleu"] for name in ("teacher", "student_kd", "student_scratch"))
    return (kd - scratch) / (teacher - scratch) if teacher > scratch else None
