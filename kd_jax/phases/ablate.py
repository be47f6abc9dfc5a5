"""One experiment with several seeds, and students held against their controls: what does distillation add?"""

import dataclasses
import itertools
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from kd_jax import config
from kd_jax.artifacts import manifest
from kd_jax.artifacts.manifest import IMPORT_PHASE
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.errors import KdError
from kd_jax.evaluation.quality import EvalSet, read_outcome
from kd_jax.experiment import ResolvedExperiment
from kd_jax.phases import cache, evaluate, prepare, report, student, teacher
from kd_jax.reporting import ablation, page, paired, plots
from kd_jax.reporting import verdict as words
from kd_jax.reporting.paired import Scores
from kd_jax.runtime import progress
from kd_jax.tasks.metrics import Metric

SHOWN = ("name", "label", "higher_is_better", "digits", "signature")


def run(
    experiment: ResolvedExperiment, workdir: Workdir, seeds: Sequence[int], metrics: Sequence[Metric], force: bool = False
) -> None:
    """Runs what is missing of workdir/seedN for each seed, then writes workdir/ablation.

    Args:
      experiment: with controls (kd_jax.reporting.controls.with_controls).
      workdir: of the ablation.
      seeds: each decides parameters, order and dropout of a run; the data are the same.
      metrics: that the models are compared by; the first decides.
      force: measure afresh, as after a student was added; what is trained stays.

    Raises:
      KdError: as the phases do, naming the seed; or for a seed whose teacher is elsewhere.
    """
    began = time.perf_counter()
    for seed in seeds:
        if workdir.seed(seed).teacher_is_imported:
            raise KdError(
                f"seed {seed}: the teacher is elsewhere (`{IMPORT_PHASE}`), and an ablation compares with it; run the "
                "students of each seed with `student`, `evaluate` and `report` instead"
            )
    for place, seed in enumerate(seeds, 1):
        progress.log(f"seed {seed} ({place} of {len(seeds)}): {workdir.seed(seed).path}")
        try:
            run_seed(dataclasses.replace(experiment, seed=seed), workdir.seed(seed), force)
        except KdError as error:
            raise KdError(f"seed {seed}: {error}") from error
    result = read(experiment, [workdir.seed(seed) for seed in seeds], seeds, metrics)
    folder = workdir.ablation
    folder.begin({}, force=folder.finished())
    manifest.write_json(folder.path / "ablation.json", result)
    told = document(result, config.to_text(experiment))
    manifest.write_text(folder.path / "report.md", page.markdown(told))
    manifest.write_text(folder.path / "report.html", page.html(told))
    folder.finish({"seeds": list(seeds)}, time.perf_counter() - began)
    progress.print_result(closing(result))
    progress.print_result(f"\nablation: {folder.path / 'report.html'} (and report.md, ablation.json)")


def run_seed(experiment: ResolvedExperiment, workdir: Workdir, force: bool) -> None:
    """All phases, each skipped where it is done.

    In this process: the compiled programs on disk serve the next seed too, and those in memory are let go.
    """
    for phase in (prepare, teacher, cache, student):
        phase.run(experiment, workdir)
    evaluate.run(experiment, workdir, force)
    report.run(experiment, workdir)
    jax.clear_caches()


def read(
    experiment: ResolvedExperiment, workdirs: Sequence[Workdir], seeds: Sequence[int], metrics: Sequence[Metric]
) -> dict[str, Any]:
    """Figures, and differences from the controls, from what the runs left."""
    reports = [manifest.read_json(workdir.report.file("report.json")) for workdir in workdirs]
    task, compared = experiment.task, experiment.comparison
    shown = {m.name: {key: value for key, value in m._asdict().items() if key in SHOWN} for m in task.metrics}
    scores = all_scores(experiment, workdirs, metrics)
    first = scores[metrics[0].name][TEACHER]
    return {
        "name": experiment.name,
        "task": task.name,
        "dataset": reports[0]["dataset"],
        "split": experiment.evaluation.split,
        "examples": first.examples,
        "resamples": experiment.evaluation.bootstrap,
        "seeds": list(seeds),
        "metrics": [shown[metric.name] for metric in metrics],
        "all_metrics": list(shown.values()),
        "distilled": compared.distilled,
        "controls": list(compared.controls),
        "models": {name: by_seed(reports, "models", name, [*shown, "kl_to_teacher"]) for name in experiment.recipes},
        "baselines": {name: by_seed(reports, "baselines", name, shown) for name in task.baselines},
        "differences": {m.name: against_controls(experiment, scores[m.name], m) for m in metrics},
        "warnings": [
            f"seed {seed}, {w}" for seed, one in zip(seeds, reports, strict=True) for w in words.warnings(one)
        ],
        "wall_seconds": {str(seed): one["wall_seconds"] for seed, one in zip(seeds, reports, strict=True)},
        "versions": reports[-1]["versions"],
    }


def by_seed(reports: Sequence[Mapping[str, Any]], kind: str, name: str, keys: Iterable[str]) -> dict[str, list[Any]]:
    """A model's or a baseline's figures: key -> one of each seed."""
    return {key: [report[kind][name][key] for report in reports] for key in keys}


def all_scores(
    experiment: ResolvedExperiment, workdirs: Sequence[Workdir], metrics: Sequence[Metric]
) -> dict[str, dict[str, Scores]]:
    """Metric -> model -> its scores, from the texts and the likelihoods that the evaluations left."""
    task, evaluation = experiment.task, experiment.evaluation
    splits = [EvalSet.load(workdir.data, evaluation.split, evaluation.texts) for workdir in workdirs]
    scores: dict[str, dict[str, Scores]] = {metric.name: {} for metric in metrics}
    with progress.bar("compare", len(metrics) * len(experiment.recipes)) as bar:
        for metric, name in itertools.product(metrics, experiment.recipes):
            outcomes = [
                read_outcome(task, split, workdir.evaluation, name, metric.reads)
                for split, workdir in zip(splits, workdirs, strict=True)
            ]
            scores[metric.name][name] = paired.scores(metric, outcomes, evaluation.bootstrap)
            bar.advance(1)
    return scores


def against_controls(experiment: ResolvedExperiment, scores: Mapping[str, Scores], metric: Metric) -> dict[str, dict[str, Any]]:
    """Control -> every other student that is its equal in network and training -> the difference from it."""
    equals = {
        control: [
            name
            for name, recipe in experiment.students.items()
            if name != control and (recipe.model, recipe.training) == (of_control.model, of_control.training)
        ]
        for control, of_control in experiment.students.items()
        if control in experiment.comparison.controls
    }
    return {
        control: {
            name: paired.difference(scores[name], scores[control], metric.higher_is_better)._asdict() for name in names
        }
        for control, names in equals.items()
    }


def document(result: ablation.Result, resolved: str) -> page.Document:
    """The result in words, tables and plots.

    Args:
      result: as `read`.
      resolved: the experiment's text.
    """
    sections: dict[str, list[page.Block]] = {}
    for metric, control in itertools.product(result["metrics"], result["controls"]):
        title, differences = f"{metric['label']} against {control}", result["differences"][metric["name"]][control]
        figure = plots.forest(differences, f"{metric['label']}, difference from {control}")
        svg = plots.to_svg(figure, f"{metric['name']}-{control}")
        sections[title] = [
            page.Table(ablation.paired(result, metric, control)),
            page.Plots({"95% intervals, and a stroke for each seed": svg}),
        ]
    sections |= {
        "How it was measured": [page.Notes(ablation.notes(result))],
        "All figures, the mean of the seeds and each": [page.Table(ablation.figures(result))],
        "Time": [page.Table(ablation.times(result))],
    }
    return page.Document(
        title=f"Ablation of {result['name']}: {result['task']}, {result['dataset']}",
        lead=ablation.lead(result),
        warnings=result["warnings"],
        sections=sections,
        versions=result["versions"],
        resolved=resolved,
    )


def closing(result: ablation.Result) -> str:
    """What a terminal shows at the end, 80 columns wide: without each seed's differences, which the pages have."""
    lines = ["", textwrap.fill(ablation.lead(result), 80)]
    if result["warnings"]:
        lines.append(f"Warnings of single seeds: {len(result['warnings'])}; they stand in the report.")
    for metric, control in itertools.product(result["metrics"], result["controls"]):
        head, *rows = [row[:-1] for row in ablation.paired(result, metric, control)]
        lines += ["", progress.format_table([f"against {control}", *head[1:]], rows, width=80)]
    return "\n".join(lines)
