"""Write report.json, report.md and report.html: what distillation gained."""

import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kd_jax import config
from kd_jax.artifacts import manifest, metrics_log
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.evaluation import degeneration
from kd_jax.evaluation.candidates import trained_models
from kd_jax.evaluation.quality import EvalSet, read_outcome
from kd_jax.experiment import ResolvedExperiment, required_signals, targets_name
from kd_jax.reporting import page, paired, plots, tables, verdict
from kd_jax.reporting.paired import Scores
from kd_jax.runtime import progress


def run(experiment: ResolvedExperiment, workdir: Workdir, force: bool = False) -> None:
    """Reads what the phases left and writes workdir/report; always anew, since it costs nothing, whatever `force` is.

    Raises:
      KdError: if a phase has not finished, or what it left is not as it was written.
    """
    began = time.perf_counter()
    folder, trained = workdir.report, trained_models(experiment, workdir)
    names = [*trained, *experiment.evaluation.in_int8]
    texts = {name: manifest.read_lines(workdir.evaluation.file(f"{name}.jsonl")) for name in names}
    report = read(experiment, workdir, finished_phases(experiment, workdir), texts)
    curves = {name: metrics_log.read(workdir.model(name).file("metrics.jsonl")) for name in trained}
    shown = samples(texts, experiment.task.decoding.ways[0], experiment.evaluation.samples)
    folder.begin({}, force=folder.finished())
    write(folder, report, document(report, shown, curves, config.to_text(experiment)))
    folder.finish({"models": names}, time.perf_counter() - began)
    progress.print_result(closing(report))
    progress.print_result(f"\nreport: {folder.path / 'report.html'} (and report.md, report.json)")


def read(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    phases: Mapping[str, Mapping[str, Any]],
    texts: Mapping[str, Sequence[Mapping[str, str]]],
) -> dict[str, Any]:
    """The report's figures from what the phases left.

    Args:
      phases: as `finished_phases`.
      texts: model -> its rows of "reference" and what was written.
    """
    models, way = {}, experiment.task.decoding.ways[0]
    for name, rows in texts.items():
        written, references = [row[way] for row in rows], [row["reference"] for row in rows]
        figures = manifest.read_json(workdir.evaluation.file(f"{name}.json"))
        models[name] = figures | {"warnings": degeneration.warnings(written, references)}
    shown = ("name", "label", "higher_is_better", "digits", "signature")
    metrics = [{key: value for key, value in m._asdict().items() if key in shown} for m in experiment.task.metrics]
    comparison = experiment.comparison and vars(experiment.comparison)
    data, in_int8 = phases["prepare"]["outputs"], experiment.evaluation.in_int8
    trained = {name: one for name, one in models.items() if name not in in_int8}
    leading, scores = verdict.leading(trained, comparison, metrics[0]), headline_scores(experiment, workdir, models)
    return {
        "name": experiment.name,
        "task": experiment.task.name,
        "dataset": data["dataset"],
        "seed": experiment.seed,
        "headline": metrics[0],
        "metrics": metrics,
        "comparison": comparison,
        "models": models,
        "baselines": manifest.read_json(workdir.evaluation.file("baselines.json")),
        "differences": {
            other: difference(experiment, scores[leading], scores[other])
            for other in trained
            if leading and other != leading
        },
        "int8": {
            name: {"of": of, "difference": difference(experiment, scores[name], scores[of])}
            for name, of in in_int8.items()
        },
        "gap_recovered": verdict.gap_recovered(trained, comparison, metrics[0]),
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


def headline_scores(experiment: ResolvedExperiment, workdir: Workdir, names: Iterable[str]) -> dict[str, Scores]:
    """What each model has of the headline metric, on the same examples."""
    metric, evaluation = experiment.task.metrics[0], experiment.evaluation
    measured = EvalSet.load(workdir.data, evaluation.split, evaluation.texts)
    return {
        name: paired.scores(
            metric,
            [read_outcome(experiment.task, measured, workdir.evaluation, name, metric.reads)],
            evaluation.bootstrap,
        )
        for name in names
    }


def difference(experiment: ResolvedExperiment, ours: Scores, theirs: Scores) -> dict[str, Any]:
    """How much more of the headline metric one model has than another, paired by example."""
    return paired.difference(ours, theirs, experiment.task.metrics[0].higher_is_better)._asdict()


def samples(texts: Mapping[str, Sequence[Mapping[str, str]]], way: str, count: int) -> list[dict[str, str]]:
    """At most `count` examples, evenly spread: "source", "reference", and what each model wrote that way."""
    rows = next(iter(texts.values()))
    return [
        {key: rows[i][key] for key in ("source", "reference")} | {name: one[i][way] for name, one in texts.items()}
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
        sections={
            "": [page.Table(tables.summary(report)), page.Notes(tables.notes(report))],
            "Plots": [page.Plots(plots.figures(report, curves))],
            "The other figures": [page.Table(tables.details(report))],
            "Samples": [page.Samples(samples, list(report["models"]))],
            "Time": [page.Table(tables.times(report))],
        },
        versions=report["versions"],
        resolved=resolved,
    )


def write(folder: Folder, report: Mapping[str, Any], document: page.Document) -> None:
    """Leaves report.json, report.md and report.html."""
    manifest.write_json(folder.path / "report.json", report)
    manifest.write_text(folder.path / "report.md", page.markdown(document))
    manifest.write_text(folder.path / "report.html", page.html(document))


def closing(report: Mapping[str, Any]) -> str:
    """What a terminal shows at the end, 80 columns wide."""
    warnings = [textwrap.fill(f"warning: {warning}", 80) for warning in verdict.warnings(report)]
    return "\n".join(["", textwrap.fill(verdict.lead(report), 80), *warnings, "", tables.text_table(report)])


def finished_phases(experiment: ResolvedExperiment, workdir: Workdir) -> dict[str, dict[str, Any]]:
    """Phase (with the model's or the signal's name) -> manifest, in the order of a run."""
    teacher = workdir.model(TEACHER)
    folders = {"prepare": workdir.data, teacher.manifest()["phase"]: teacher}
    for targets, signals in required_signals(experiment).items():
        for signal in signals:
            name = f"cache.{targets.name}/{signal}" if targets else f"cache.{signal}"
            folders[name] = workdir.cache(targets_name(targets), signal)
    folders |= {f"student.{name}": workdir.model(name) for name in experiment.students}
    folders["evaluate"] = workdir.evaluation
    return {name: folder.manifest() for name, folder in folders.items()}


def wall_seconds(phases: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Phase -> seconds, students and caches added up."""
    seconds: dict[str, float] = {}
    for name, phase in phases.items():
        key = name.split(".")[0]
        seconds[key] = (seconds[key] if key in seconds else 0.0) + phase["seconds"]
    return seconds
