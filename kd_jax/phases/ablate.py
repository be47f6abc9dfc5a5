"""One experiment with several seeds, and every student held against the controls: what does distillation add?"""

import dataclasses
import textwrap
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts import manifest, runlog
from kd_jax.artifacts.workdir import Workdir
from kd_jax.errors import KdError
from kd_jax.evaluation import ablation, page, paired, plots, quality
from kd_jax.evaluation import verdict as words
from kd_jax.experiment import Experiment
from kd_jax.phases import cache, evaluate, prepare, report, student, teacher
from kd_jax.tasks.metrics import Metric

FIGURES = ("name", "label", "higher_is_better", "digits", "signature")


def run(
    experiment: Experiment, workdir: Workdir, seeds: Sequence[int], metrics: Sequence[Metric], force: bool = False
) -> None:
    """Runs what is missing of workdir/seedN for each seed, then writes workdir/ablation.

    Args:
      experiment: with controls (kd_jax.evaluation.controls.with_controls).
      workdir: of the ablation.
      seeds: each decides parameters, order and dropout of a run; the data are the same.
      metrics: that the models are compared by; the first decides.
      force: measure afresh, as after a student was added; what is trained stays.

    Raises:
      KdError: as the phases do, naming the seed.
    """
    began = time.perf_counter()
    for place, seed in enumerate(seeds, 1):
        runlog.say(f"seed {seed} ({place} of {len(seeds)}): {workdir.seed(seed).path}")
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
    runlog.show(closing(result))
    runlog.show(f"\nablation: {folder.path / 'report.html'} (and report.md, ablation.json)")


def run_seed(experiment: Experiment, workdir: Workdir, force: bool) -> None:
    """All phases, each skipped where it is done.

    In this process: the compiled programs on disk serve the next seed too, and those in memory are let go.
    """
    for phase in (prepare, teacher, cache, student):
        phase.run(experiment, workdir)
    evaluate.run(experiment, workdir, force)
    report.run(experiment, workdir)
    jax.clear_caches()


def read(
    experiment: Experiment, workdirs: Sequence[Workdir], seeds: Sequence[int], metrics: Sequence[Metric]
) -> dict[str, Any]:
    """Figures, and differences from the controls, from what the runs left."""
    reports = [manifest.read_json(workdir.report.file("report.json")) for workdir in workdirs]
    task, names = experiment.task, list(experiment.recipes)
    shown = [{key: value for key, value in m._asdict().items() if key in FIGURES} for m in task.metrics]
    figures = [*(metric.name for metric in task.metrics), "kl_to_teacher"]
    differences, examples = {}, 0
    with runlog.progress("compare", len(metrics) * len(names)) as bar:
        for metric in metrics:
            scores = {}
            for name in names:
                scores[name] = paired.scores(metric, outcomes(experiment, workdirs, name, metric), experiment.evaluation.bootstrap)
                bar.advance(1)
            examples = examples or scores[names[0]].examples
            differences[metric.name] = against_controls(scores, experiment.comparison.controls, metric)
    return {
        "name": experiment.name,
        "task": task.name,
        "dataset": reports[0]["dataset"],
        "split": experiment.evaluation.split,
        "examples": examples,
        "resamples": experiment.evaluation.bootstrap,
        "seeds": list(seeds),
        "metrics": [one for metric in metrics for one in shown if one["name"] == metric.name],
        "all_metrics": shown,
        "distilled": experiment.comparison.distilled,
        "controls": list(experiment.comparison.controls),
        "models": {n: {key: [one["models"][n][key] for one in reports] for key in figures} for n in names},
        "baselines": {
            n: {m.name: [one["baselines"][n][m.name] for one in reports] for m in task.metrics} for n in task.baselines
        },
        "differences": differences,
        "warnings": [f"seed {seed}, {w}" for seed, one in zip(seeds, reports, strict=True) for w in words.warnings(one)],
        "wall_seconds": {str(seed): one["wall_seconds"] for seed, one in zip(seeds, reports, strict=True)},
        "versions": reports[-1]["versions"],
    }
