"""Score the trained models of a run on new text, with the metrics of `evaluate`."""

import dataclasses
import difflib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.encode import EncodeJob, encode_split
from kd_jax.errors import KdError
from kd_jax.evaluation.candidates import load_candidates, trained_models
from kd_jax.evaluation.figures import MetricFigure
from kd_jax.experiment import ResolvedExperiment
from kd_jax.phases.evaluate import load_context, score_baselines, score_model
from kd_jax.phases.prepare import write_held_out
from kd_jax.phases.report import headline_scores
from kd_jax.provenance import check_model
from kd_jax.reporting import paired, tables
from kd_jax.reporting.report import MetricInfo
from kd_jax.reporting.rounding import decimals
from kd_jax.runtime import progress
from kd_jax.sources.text_files import read_files
from kd_jax.tokenizers import base as tokenizers

SPLIT = "test"  # the name of the new text in the temporary workdir


def run(experiment: ResolvedExperiment, workdir: Workdir, test: Sequence[str], model: str = "") -> None:
    """Print each model's metrics on new text, with 95% intervals and paired differences; write nothing.

    Args:
      experiment: the experiment that the workdir was made with.
      workdir: a run with trained models.
      test: one JSON-lines file with the task's fields, or one text file per field in their order.
      model: "teacher" or a student's name; "" for all models.

    Raises:
      KdError: if there is no such model, or a file is not as `source.test` expects it.
    """
    task = experiment.task
    names = [name for name in experiment.recipes if model in ("", name)]
    if not names:
        (nearest,) = difflib.get_close_matches(model, experiment.recipes, 1, 0.0) or [TEACHER]
        known = ", ".join(experiment.recipes)
        raise KdError(f"--model: expected one of {known}, got {model}. Did you mean {nearest}?")
    fields = (*task.fields(), *task.held_out_fields())
    examples = read_files(test, fields, "--test")
    evaluation = dataclasses.replace(experiment.evaluation, split=SPLIT, texts=0, int8=())
    experiment = dataclasses.replace(experiment, evaluation=evaluation)
    for name in trained_models(experiment, workdir):
        check_model(experiment, workdir, name)
    candidates = [one for one in load_candidates(experiment, workdir) if one.name in names]
    with tempfile.TemporaryDirectory() as scratch:
        # A workdir of its own, so that the new text takes the same way as a split of the run.
        new = Workdir(Path(scratch))
        new.data.begin({})
        tokenizers.copy(experiment.tokenizer, workdir.data, new.data.path)
        encode_split(EncodeJob(new.data.path, experiment.tokenizer, task, {SPLIT: examples}), SPLIT)
        write_held_out(experiment, new.data.path, SPLIT, examples)
        new.data.finish({}, 0.0)
        context = load_context(experiment, new)
        new.evaluation.begin({})
        figures: dict[str, Mapping[str, MetricFigure]] = {}
        for candidate in candidates:
            params = context.programs.replicate_params(candidate, context.devices)
            figures[candidate.name] = score_model(context, candidate, params)
        new.evaluation.finish({}, 0.0)
        scores = headline_scores(experiment, new, figures)
        figures |= score_baselines(context)
    metrics = tuple(map(MetricInfo.of, task.metrics))
    first = next(iter(scores))
    differences = {
        name: paired.difference(scores[name], scores[first], metrics[0].higher_is_better)
        for name in scores
        if name != first
    }
    progress.print_result("\n" + score_table(metrics, figures, first, differences))
    signature = f" {metrics[0].label}: {metrics[0].signature}." if metrics[0].signature else ""
    progress.print_result(f"{len(examples):,} examples of {' '.join(test)}; brackets are 95% intervals.{signature}")


def score_table(
    metrics: Sequence[MetricInfo],
    figures: Mapping[str, Mapping[str, MetricFigure]],
    first: str,
    differences: Mapping[str, paired.Difference],
) -> str:
    """Return a table of models and baselines: all metrics, and the headline minus that of the first model."""
    columns = [tables.metric_column(metric, figures.values()) for metric in metrics]
    if any(figure[metrics[0].name].beam is not None for figure in figures.values()):
        columns.append(tables.value_column(metrics[0], figures.values(), beam=True))
    head = ["model", *(column.heading for column in columns)]
    digits = decimals([one.interval for one in differences.values()], metrics[0].digits)
    rows = [[name, *(column.cell(tables.Row(figure, None)) for column in columns)] for name, figure in figures.items()]
    if differences:
        head += [f"{metrics[0].label} minus {first}", ""]
        for row in rows:
            one = differences.get(row[0])
            if one is None:
                row += ["", ""]
            else:
                low, high = (f"{value:+.{digits}f}" for value in one.interval)
                row += [f"{one.mean:+.{digits}f} [{low}, {high}]", one.verdict]
    return progress.format_table(head, rows, width=120)
