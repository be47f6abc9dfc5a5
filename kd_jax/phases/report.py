"""Report what distillation gained: report.json, report.md and report.html."""

import dataclasses
import json
import textwrap
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kd_jax import config
from kd_jax.artifacts import files, manifest, metrics_log
from kd_jax.artifacts.manifest import IMPORT_PHASE, Folder
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.on_policy import OnPolicy, Rounds
from kd_jax.batches.targets import TrainTargets
from kd_jax.evaluation import degeneration
from kd_jax.evaluation.candidates import trained_models
from kd_jax.evaluation.figures import ModelFigures, read_baselines, read_model_figures
from kd_jax.evaluation.quality import read_outcome, read_text_rows
from kd_jax.experiment import ResolvedExperiment, required_signals
from kd_jax.objective.terms import cached_signals
from kd_jax.phases import evaluate
from kd_jax.provenance import check_upstream
from kd_jax.reporting import page, paired, plots, tables, verdict
from kd_jax.reporting.paired import Scores
from kd_jax.reporting.report import CacheFigures, Int8Comparison, MetricInfo, PseudoTargetFigures, Report
from kd_jax.runtime import progress
from kd_jax.tasks.eval_set import EvalSet
from kd_jax.teaching.rounds import TEXTS
from kd_jax.training.on_policy import text_files

SHOWN_TEXTS = 3  # of the first and of the last file of texts that a student wrote while it trained
MAX_LINE = 2**16  # bytes of such a text; a longer line is skipped
TextRow = Mapping[str, Any]  # a line of evaluation/MODEL.jsonl: "source", "reference", and the text of each way
Manifest = Mapping[str, Any]


def run(experiment: ResolvedExperiment, workdir: Workdir) -> None:
    """Write the report of a run; an earlier one is always replaced.

    Args:
      experiment: of the run.
      workdir: of the run.

    Raises:
      KdError: if a phase is not finished, one of its files is modified, or the evaluation is of other models.
    """
    began = time.perf_counter()
    folder, trained = workdir.report, trained_models(experiment, workdir)
    inputs = report_inputs(experiment, workdir)
    names = [*trained, *experiment.evaluation.in_int8]
    eval_set = EvalSet.load(workdir.data, experiment.evaluation.split, experiment.evaluation.texts)
    texts = {name: read_text_rows(experiment.task, eval_set, workdir.evaluation, name) for name in names}
    report = build_report(experiment, workdir, read_manifests(experiment, workdir), texts)
    curves = {name: metrics_log.read(workdir.model(name).file("metrics.jsonl")) for name in trained}
    samples = select_samples(texts, experiment.task.decoding.ways[0], experiment.evaluation.samples)
    own_texts = select_own_texts(experiment, workdir, verdict.sampled(report))
    folder.begin(inputs, force=True)
    write(folder, report, build_document(report, samples, curves, config.to_text(experiment), own_texts))
    folder.finish({"models": names}, time.perf_counter() - began)
    progress.print_result(closing_text(report))
    progress.print_result(f"\nreport: {folder.path / 'report.html'} (and report.md, report.json)")


def report_inputs(experiment: ResolvedExperiment, workdir: Workdir) -> dict[str, str]:
    """Return the report's inputs; raise KdError unless the evaluation is of this experiment and its present models."""
    check_upstream(experiment, workdir, [workdir.evaluation])
    workdir.evaluation.check_inputs(evaluate.manifest_inputs(experiment, workdir))
    return {"consumed.evaluation": workdir.evaluation.digest()}


def build_report(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    manifests: Mapping[str, Manifest],
    texts: Mapping[str, Sequence[TextRow]],
) -> Report:
    """Compute the report from the files of all phases; `texts` are each model's rows."""
    task, way, in_int8 = experiment.task, experiment.task.decoding.ways[0], experiment.evaluation.in_int8
    metrics, headline = [metric.name for metric in task.metrics], task.metrics[0]
    models: dict[str, ModelFigures] = {}
    for name, rows in texts.items():
        warnings = degeneration.warnings([row[way] for row in rows], [row["reference"] for row in rows])
        figures = read_model_figures(workdir.evaluation.file(f"{name}.json"), metrics)
        models[name] = figures.with_warnings(warnings)
    values = {name: model.value(headline.name) for name, model in models.items() if name not in in_int8}
    leading = verdict.leading_student(values, experiment.comparison, headline.higher_is_better)
    scores = headline_scores(experiment, workdir, models)

    def difference(ours: str, theirs: str) -> paired.Difference:
        return paired.difference(scores[ours], scores[theirs], headline.higher_is_better)

    data, comparison = manifests["prepare"]["outputs"], experiment.comparison
    report = Report(
        name=experiment.name,
        task=task.name,
        dataset=data["dataset"],
        seed=experiment.seed,
        metrics=tuple(map(MetricInfo.of, task.metrics)),
        comparison=experiment.comparison,
        models=models,
        baselines=read_baselines(workdir.evaluation.file("baselines.json"), metrics),
        differences={other: difference(leading, other) for other in values if leading and other != leading},
        int8={name: Int8Comparison(of, difference(name, of)) for name, of in in_int8.items()},
        teacher_gain=difference(TEACHER, comparison.baseline) if comparison and TEACHER in values else None,
        gap_recovered=None,
        caches={
            name.removeprefix("cache."): CacheFigures.from_json(phase["outputs"] | {"seconds": phase["seconds"]})
            for name, phase in manifests.items()
            if name.startswith("cache.")
        },
        pseudo_targets={
            name: pseudo_target_figures(folder, manifests[f"pseudo.{name}"])
            for recipe in experiment.students.values()
            for name, folder in pseudo_target_folders(workdir, recipe.train_targets, data["counts"]).items()
        },
        teacher_signals=teacher_signals(experiment, workdir, data["counts"]),
        wall_seconds=wall_seconds(manifests),
        counts=data["counts"],
        dropped_as_seen_in_training=data["dropped_as_seen_in_training"],
        versions=manifests["evaluate"]["versions"],
    )
    if not verdict.gap_is_meaningful(report):
        return report
    gap = verdict.gap_recovered(values, comparison, headline.higher_is_better)
    return dataclasses.replace(report, gap_recovered=gap)


def headline_scores(experiment: ResolvedExperiment, workdir: Workdir, names: Iterable[str]) -> dict[str, Scores]:
    """Compute each model's headline metric on the same examples and resamples."""
    metric, evaluation = experiment.task.metrics[0], experiment.evaluation
    eval_set = EvalSet.load(workdir.data, evaluation.split, evaluation.texts)
    scores = {}
    for name in names:
        outcome = read_outcome(experiment.task, eval_set, workdir.evaluation, name, metric.reads)
        scores[name] = paired.scores(metric, [outcome], evaluation.bootstrap)
    return scores


def select_samples(texts: Mapping[str, Sequence[TextRow]], way: str, count: int) -> list[dict[str, str]]:
    """Return source, reference and each model's text of at most `count` evenly spaced examples."""
    rows = next(iter(texts.values()))
    return [
        {key: rows[i][key] for key in ("source", "reference")}
        | {name: of_model[i][way] for name, of_model in texts.items()}
        for i in range(0, len(rows), max(1, len(rows) // count))[:count]
    ]


def select_own_texts(
    experiment: ResolvedExperiment, workdir: Workdir, names: Collection[str]
) -> dict[str, list[page.OwnText]]:
    """Return heading -> texts that a student wrote at the beginning of its training, and at its end.

    Args:
      experiment: of the run.
      workdir: of the run; missing and damaged files are skipped.
      names: of models; those that write no texts are skipped.
    """
    own_texts: dict[str, list[page.OwnText]] = {}
    for name, recipe in experiment.students.items():
        files_of = own_text_files(workdir, name, recipe.targets) if name in names else {}
        texts = {f"{name}, {when}": read_own_texts(path) for when, path in files_of.items()}
        written = [heading for heading in texts if texts[heading]]  # the share of own texts may begin or end at 0
        own_texts |= {heading: texts[heading] for heading in (*written[:1], *written[-1:])}
    return own_texts


def own_text_files(workdir: Workdir, name: str, targets: Any) -> dict[str, Path]:
    """Return "step N" or "round N" -> file of texts that a student wrote then, in order; {} for other targets."""
    if isinstance(targets, OnPolicy):
        paths = text_files(workdir.model(name).path / "own_texts")
        return {f"step {int(path.stem)}": path for path in paths}
    if isinstance(targets, Rounds):
        return {f"round {number + 1}": workdir.round(name, number).path / TEXTS for number in range(targets.count)}
    return {}


def read_own_texts(path: Path, count: int = SHOWN_TEXTS) -> list[page.OwnText]:
    """Return the first texts of a file of own texts; lines that are no such text are skipped."""
    texts: list[page.OwnText] = []
    try:
        with path.open("rb") as file:
            while len(texts) < count and (line := file.readline(MAX_LINE)):
                texts += _parse_own_text(line)
    except OSError:  # missing, or no file
        return texts
    return texts


def _parse_own_text(line: bytes) -> Iterator[page.OwnText]:
    """Yield the text of a line, if it is one of the student's own."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return
    is_text = isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("text"), str)
    if is_text and row.get("own", True) is True:  # a round's file has the other examples too
        yield page.OwnText(row["prompt"], row["text"], ended=row.get("ended", True) is True)


def build_document(
    report: Report,
    samples: Sequence[Mapping[str, str]],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    resolved: str,
    own_texts: Mapping[str, Sequence[page.OwnText]] = MappingProxyType({}),
) -> page.Document:
    """Return the report in words, tables and plots; `curves` are rows of each model's metrics log.

    `own_texts` are those of `select_own_texts`.
    """
    columns = ("source", "reference", *(names := verdict.sampled(report)))
    texts = [{column: sample[column] for column in columns} for sample in samples]
    sections: dict[str, list[page.Block]] = {
        "": [page.Plots(plots.quality_plots(report)), page.Table(tables.summary(report))],
        "In detail": [page.Paragraphs(verdict.details(report)), page.Notes(tables.notes(report))],
        "Learning curves": [page.Plots(plots.learning_curves(report, curves))],
        "Other figures": [page.Table(tables.details(report))],
        "Samples": [page.Samples(texts, names)],
        **({"Texts that the students wrote while they trained": [page.OwnTexts(own_texts)]} if own_texts else {}),
        "Time": [page.Table(tables.times(report))],
    }
    if others := verdict.other_warnings(report):
        sections["Warnings of other models"] = [page.Notes(others)]
    return page.Document(
        title=f"{report.name}: {report.task}, {report.dataset}",
        lead=verdict.lead(report),
        warnings=verdict.warnings(report),
        sections=sections,
        versions=report.versions,
        resolved=resolved,
    )


def write(folder: Folder, report: Report, document: page.Document) -> None:
    """Write report.json, report.md and report.html."""
    manifest.write_json(folder.path / "report.json", report.to_json())
    manifest.write_text(folder.path / "report.md", page.markdown(document))
    manifest.write_text(folder.path / "report.html", page.html(document))


def closing_text(report: Report) -> str:
    """Return the terminal's last lines, 80 columns wide."""
    warnings = [textwrap.fill(f"warning: {warning}", 80) for warning in verdict.warnings(report)]
    return "\n".join(["", textwrap.fill(verdict.lead(report), 80), *warnings, "", tables.text_table(report)])


def read_manifests(experiment: ResolvedExperiment, workdir: Workdir) -> dict[str, dict[str, Any]]:
    """Return phase, with the name of the model, the signal or the pseudo-targets -> manifest, in the order of a run."""
    teacher, splits = workdir.model(TEACHER), workdir.data.outputs()["counts"]
    folders = {"prepare": workdir.data, teacher.manifest()["phase"]: teacher}
    for targets, signals in required_signals(experiment).items():
        pseudo = pseudo_target_folders(workdir, targets, splits)
        folders |= {f"pseudo.{name}": folder for name, folder in pseudo.items()}
        folders |= {f"cache.{cache_name(targets, signal)}": workdir.cache(targets.name, signal) for signal in signals}
    if experiment.evaluation.cached_k and workdir.validation_cache.finished():
        folders["validation_cache"] = workdir.validation_cache
    folders |= {f"student.{name}": workdir.model(name) for name in experiment.students}
    folders["evaluate"] = workdir.evaluation
    return {name: folder.manifest() for name, folder in folders.items()}


def pseudo_target_folders(workdir: Workdir, targets: TrainTargets, splits: Collection[str]) -> dict[str, Folder]:
    """Return name -> folder of the hypotheses that targets are chosen from, then of the targets.

    Args:
      workdir: of the run.
      targets: of a student; the data's own have no such folder.
      splits: names of the data's splits.
    """
    if targets.pseudo is None:
        return {}
    hypotheses = [workdir.hypotheses(split, targets.pseudo.beam) for split in targets.splits(splits)]
    return {folder.path.name: folder for folder in (*hypotheses, workdir.split(targets.name))}


def cache_name(targets: TrainTargets, signal: str) -> str:
    """Return a cache's name in the report.

    Examples:
      >>> from kd_jax.batches.targets import PseudoTargets
      >>> cache_name(TrainTargets(), "topk"), cache_name(TrainTargets(PseudoTargets()), "topk")
      ('topk', 'best_beam4/topk')
    """
    return f"{targets.name}/{signal}" if targets.pseudo else signal


def pseudo_target_figures(folder: Folder, phase: Manifest) -> PseudoTargetFigures:
    """Return size and cost of a folder of hypotheses or pseudo-targets; `phase` is its manifest."""
    outputs = phase["outputs"]
    return PseudoTargetFigures(
        examples=outputs["examples"] if "examples" in outputs else outputs["records"],
        bytes=sum(files.file_size(path) for path in folder.path.iterdir() if path.is_file()),
        seconds=phase["seconds"],
    )


def teacher_signals(
    experiment: ResolvedExperiment, workdir: Workdir, splits: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Return what each student's training reads of the teacher, as `Report.teacher_signals`."""
    signals = {}
    for name, recipe in experiment.students.items():
        targets, used = recipe.train_targets, [term.signal for term in recipe.terms.values() if term.signal]
        pseudo = pseudo_target_folders(workdir, targets, splits)
        # The caches of rounds are written while the student trains, and their seconds are the student's.
        in_rounds = isinstance(recipe.targets, Rounds)
        caches = [] if in_rounds else [cache_name(targets, signal) for signal in cached_signals(recipe.terms)]
        meanwhile = [type(signal).__name__ for signal in used if in_rounds or signal.origin == "step"]
        signals[name] = tuple(dict.fromkeys([*pseudo, *caches, *meanwhile]))
    return signals


def wall_seconds(manifests: Mapping[str, Manifest]) -> dict[str, float]:
    """Return phase -> seconds; students are added up, and so are caches and pseudo-targets.

    The seconds of `import-logprobs` have those of the caches that it writes.
    """
    seconds: dict[str, float] = {}
    for name, phase in manifests.items():
        key = name.split(".")[0]
        if key in ("pseudo", "validation_cache"):
            key = "cache"
        if key == "cache" and phase["phase"] == IMPORT_PHASE:
            continue
        seconds[key] = seconds.get(key, 0.0) + phase["seconds"]
    return seconds
