"""Run one experiment with several seeds, and compare students with their controls."""

import dataclasses
import itertools
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence

import jax

from kd_jax import config
from kd_jax.artifacts import manifest
from kd_jax.artifacts.manifest import IMPORT_PHASE
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.errors import KdError
from kd_jax.evaluation.figures import MetricFigure
from kd_jax.evaluation.quality import read_outcome
from kd_jax.experiment import ResolvedExperiment
from kd_jax.phases import cache, evaluate, prepare, report, student, teacher
from kd_jax.reporting import ablation, page, paired, plots, verdict
from kd_jax.reporting.ablation import Ablation
from kd_jax.reporting.paired import Difference, Scores
from kd_jax.reporting.report import MetricInfo, read_report
from kd_jax.runtime import progress
from kd_jax.tasks.eval_set import EvalSet
from kd_jax.tasks.metrics import Metric


def run(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    seeds: Sequence[int],
    metrics: Sequence[Metric],
    force: bool = False,
) -> None:
    """Run the missing phases of workdir/seedN for each seed, then write workdir/ablation.

    Args:
      experiment: with controls (kd_jax.reporting.controls.with_controls).
      workdir: of the ablation.
      seeds: of parameters, order and dropout of each run; the data are the same.
      metrics: that models are compared by; the first decides.
      force: evaluate again, as after a student was added; trained models stay.

    Raises:
      KdError: as the phases do, naming the seed; or if a seed's teacher was imported.
    """
    began = time.perf_counter()
    for seed in seeds:
        if workdir.seed(seed).teacher_is_imported:
            raise KdError(
                f"seed {seed}: expected a teacher to compare with, got one of `{IMPORT_PHASE}`. Run `student`, "
                "`evaluate` and `report` for each seed instead."
            )
    for place, seed in enumerate(seeds, 1):
        progress.log(f"seed {seed} ({place} of {len(seeds)}): {workdir.seed(seed).path}")
        try:
            run_seed(dataclasses.replace(experiment, seed=seed), workdir.seed(seed), force)
        except KdError as error:
            raise KdError(f"seed {seed}: {error}") from error
    result = build_ablation(experiment, [workdir.seed(seed) for seed in seeds], seeds, metrics)
    folder = workdir.ablation
    folder.begin({}, force=folder.finished())
    document = build_document(result, config.to_text(experiment))
    manifest.write_json(folder.path / "ablation.json", result.to_json())
    manifest.write_text(folder.path / "report.md", page.markdown(document))
    manifest.write_text(folder.path / "report.html", page.html(document))
    folder.finish({"seeds": list(seeds)}, time.perf_counter() - began)
    progress.print_result(closing_text(result))
    progress.print_result(f"\nablation: {folder.path / 'report.html'} (and report.md, ablation.json)")


def run_seed(experiment: ResolvedExperiment, workdir: Workdir, force: bool) -> None:
    """Run all phases in this process; finished ones are skipped."""
    for phase in (prepare, teacher, cache, student):
        phase.run(experiment, workdir)
    evaluate.run(experiment, workdir, force)
    report.run(experiment, workdir)
    jax.clear_caches()  # frees memory; the next seed reads the compiled programs from disk


def build_ablation(
    experiment: ResolvedExperiment, workdirs: Sequence[Workdir], seeds: Sequence[int], metrics: Sequence[Metric]
) -> Ablation:
    """Compute figures and differences from the runs' files; `seeds` has one seed for each workdir."""
    task, comparison = experiment.task, experiment.comparison
    assert comparison is not None  # with_controls adds one
    reports = [read_report(workdir.report.file("report.json")) for workdir in workdirs]
    by_seed = list(zip(seeds, reports, strict=True))
    scores = all_scores(experiment, workdirs, metrics)
    models = {}
    for name in experiment.recipes:
        kl = [one.models[name].closeness.kl_to_teacher for one in reports]
        models[name] = _values_by_metric([one.models[name].metrics for one in reports]) | {"kl_to_teacher": kl}
        own = [one.models[name].own for one in reports]
        if experiment.evaluation.own_texts:
            for key in ("own_kl", "own_reverse_kl"):
                models[name][key] = [one and getattr(one, key) for one in own]
    return Ablation(
        name=experiment.name,
        task=task.name,
        dataset=reports[0].dataset,
        split=experiment.evaluation.split,
        examples=scores[metrics[0].name][TEACHER].examples,
        resamples=experiment.evaluation.bootstrap,
        seeds=tuple(seeds),
        metrics=tuple(map(MetricInfo.of, metrics)),
        all_metrics=tuple(map(MetricInfo.of, task.metrics)),
        distilled=comparison.distilled,
        controls=comparison.controls,
        models=models,
        baselines={name: _values_by_metric([one.baselines[name] for one in reports]) for name in task.baselines},
        differences={
            metric.name: control_differences(experiment, comparison.controls, scores[metric.name], metric)
            for metric in metrics
        },
        warnings=tuple(f"seed {seed}, {warning}" for seed, one in by_seed for warning in verdict.warnings(one)),
        wall_seconds={str(seed): one.wall_seconds for seed, one in by_seed},
        versions=reports[-1].versions,
    )


def _values_by_metric(figures_S: Sequence[Mapping[str, MetricFigure]]) -> dict[str, list[float | None]]:
    """Return metric -> value of each seed."""
    return {name: [figures[name].value for figures in figures_S] for name in figures_S[0]}


def all_scores(
    experiment: ResolvedExperiment, workdirs: Sequence[Workdir], metrics: Sequence[Metric]
) -> dict[str, dict[str, Scores]]:
    """Compute metric -> model -> scores from the evaluations' texts and likelihoods."""
    task, evaluation = experiment.task, experiment.evaluation
    eval_sets = [EvalSet.load(workdir.data, evaluation.split, evaluation.texts) for workdir in workdirs]
    scores: dict[str, dict[str, Scores]] = {metric.name: {} for metric in metrics}
    with progress.bar("compare", len(metrics) * len(experiment.recipes)) as bar:
        for metric, name in itertools.product(metrics, experiment.recipes):
            outcomes = [
                read_outcome(task, eval_set, workdir.evaluation, name, metric.reads)
                for eval_set, workdir in zip(eval_sets, workdirs, strict=True)
            ]
            scores[metric.name][name] = paired.scores(metric, outcomes, evaluation.bootstrap)
            bar.advance(1)
    return scores


def control_differences(
    experiment: ResolvedExperiment, controls: Iterable[str], scores: Mapping[str, Scores], metric: Metric
) -> dict[str, dict[str, Difference]]:
    """Return control -> other student with its network and training -> student minus control."""
    students, differences = experiment.students, {}
    for control in students:
        if control not in controls:
            continue
        differences[control] = {
            name: paired.difference(scores[name], scores[control], metric.higher_is_better)
            for name, recipe in students.items()
            if name != control
            and (recipe.model, recipe.training) == (students[control].model, students[control].training)
        }
    return differences


def build_document(result: Ablation, resolved: str) -> page.Document:
    """Return the ablation in words, tables and plots; `resolved` is the experiment as text."""
    sections: dict[str, list[page.Block]] = {}
    for metric, control in itertools.product(result.metrics, result.controls):
        differences = result.differences[metric.name][control]
        figure = plots.forest(differences, f"{metric.label}, difference from {control}")
        svg = plots.to_svg(figure, f"{metric.name}-{control}")
        sections[f"{metric.label} against {control}"] = [
            page.Table(ablation.paired_table(result, metric, control)),
            page.Plots({"95% intervals, and a stroke for each seed": svg}),
        ]
    return page.Document(
        title=f"Ablation of {result.name}: {result.task}, {result.dataset}",
        lead=ablation.lead(result),
        warnings=result.warnings,
        sections={
            **sections,
            "Method": [page.Notes(ablation.notes(result))],
            "All figures: mean of the seeds, and each": [page.Table(ablation.figures_table(result))],
            "Time": [page.Table(ablation.times_table(result))],
        },
        versions=result.versions,
        resolved=resolved,
    )


def closing_text(result: Ablation) -> str:
    """Return the terminal's last lines, 80 columns wide, without the differences of each seed."""
    lines = ["", textwrap.fill(ablation.lead(result), 80)]
    if result.warnings:
        lines.append(f"Warnings of single seeds: {len(result.warnings)}; see the report.")
    for metric, control in itertools.product(result.metrics, result.controls):
        head, *rows = [row[:-1] for row in ablation.paired_table(result, metric, control)]
        lines += ["", progress.format_table([f"against {control}", *head[1:]], rows, width=80)]
    return "\n".join(lines)
