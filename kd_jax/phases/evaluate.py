"""Evaluate every model of a run: quality, closeness to the teacher, and speed."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts import files, manifest
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.buckets import assign_buckets
from kd_jax.batches.layouts import JointLayout, Layout
from kd_jax.batches.pipeline import EvalBatches, PromptBatches, Split
from kd_jax.batches.store import Store
from kd_jax.evaluation.candidates import Candidate, Programs, load_candidates
from kd_jax.evaluation.closeness import Sums, mean_metrics
from kd_jax.evaluation.figures import (
    ROUND_TRIP,
    CachedCloseness,
    Closeness,
    DecodingSpeed,
    DraftingFigures,
    MetricFigure,
    ModelFigures,
    OwnTextFigures,
    TrainingFigures,
    metrics_to_json,
)
from kd_jax.evaluation.own_texts import compare_own_texts
from kd_jax.evaluation.quality import (
    generate_texts,
    map_batches,
    negative_log_likelihoods,
    score_metrics,
    text_rows,
)
from kd_jax.evaluation.speed import decoding_speeds, drafting_speed
from kd_jax.experiment import ResolvedExperiment
from kd_jax.models.base import Architecture
from kd_jax.provenance import check_upstream, input_fields
from kd_jax.reporting.rounding import decimals
from kd_jax.reporting.verdict import leading_student
from kd_jax.runtime import hosts, progress
from kd_jax.runtime.backends import local_devices
from kd_jax.runtime.devices import Devices
from kd_jax.signals.topk import TopK
from kd_jax.tasks.eval_set import EvalSet, round_trip_score
from kd_jax.tokenizers import base as tokenizers
from kd_jax.types import Batch, Params, Sum
from kd_jax.user_code import code_digests

MetricFigures = Mapping[str, MetricFigure]
REPORT_FIELDS = ("evaluation.samples",)  # read by `report` alone


class Context(NamedTuple):
    """Inputs of every model's evaluation: `split` has the examples as token ids, `eval_set` as text."""

    experiment: ResolvedExperiment
    workdir: Workdir
    programs: Programs
    split: Split
    eval_set: EvalSet
    prompts: list[np.ndarray]
    tokenizer: tokenizers.Tokenizer
    devices: Devices

    def layout(self, architecture: Architecture) -> Layout:
        """Return the layout of a model's rows."""
        return architecture.layout(self.tokenizer.start, self.tokenizer.forced_prefix)

    def batches(self, split: Split, layout: Layout | JointLayout) -> EvalBatches:
        """Return a split in rows of a layout."""
        return EvalBatches(
            split, layout, self.experiment.shapes, self.experiment.evaluation.batch_size, self.devices.count
        )


def run(experiment: ResolvedExperiment, workdir: Workdir, force: bool = False) -> None:
    """Write MODEL.json (figures), MODEL.jsonl (texts) and MODEL.npz (likelihoods), and the baselines' figures.

    Args:
      experiment: of the run.
      workdir: of the run.
      force: evaluate again from the start.

    Raises:
      KdError: if a model is not trained yet, or was made from a folder that has changed since.
    """
    folder, evaluation, task = workdir.evaluation, experiment.evaluation, experiment.task
    read = [*map(workdir.model, experiment.recipes)] + ([workdir.validation_cache] if evaluation.cached_k else [])
    check_upstream(experiment, workdir, read)
    if not folder.begin(manifest_inputs(experiment, workdir), force):
        progress.log(f"evaluation: already done, {folder.path}")
        return
    began = time.perf_counter()
    candidates = load_candidates(experiment, workdir)
    context = load_context(experiment, workdir)
    params = {candidate.name: context.programs.replicate_params(candidate, context.devices) for candidate in candidates}
    metrics: dict[str, MetricFigures] = {}
    closeness: dict[str, Closeness] = {}
    offline: dict[str, CachedCloseness | None] = {}
    own: dict[str, OwnTextFigures | None] = {}
    for candidate in candidates:
        name = candidate.name
        metrics[name] = score_model(context, candidate, params[name])
        if workdir.teacher_is_imported:
            closeness[name] = measure_student(context, candidate, params[name])
        else:
            closeness[name] = compare_with_teacher(context, candidate, params[TEACHER], params[name])
        use_cache = evaluation.cached_k and name != TEACHER
        offline[name] = compare_with_cache(context, candidate, params[name]) if use_cache else None
        if _writes_own_texts(context, candidate):
            both = params[name], params[TEACHER]
            own[name] = compare_own_texts(
                experiment, context.split, context.tokenizer, candidate, both, context.devices
            )
        shown = []
        for metric in task.metrics:
            figure = metrics[name][metric.name]
            shown.append(f"{metric.label} {figure.value:.{decimals([figure.interval], metric.digits)}f}")
        progress.log(f"{name}: {', '.join(shown)}")
    speeds = _decoding_speeds(context, candidates)
    drafting = _drafting(context, candidates, metrics)
    for candidate in candidates:
        name = candidate.name
        progress.log(f"{name}: {speeds[name].decode_tokens_per_second:.0f} tokens a second in batches")
        figures = ModelFigures(
            metrics=metrics[name],
            closeness=closeness[name],
            examples=len(context.eval_set.examples),
            over_long=_over_long(context, candidate),
            offline=offline[name],
            training=_training_figures(workdir, candidate),
            speed=speeds[name],
            drafting=drafting.get(name),
            own=own.get(name),
        )
        if hosts.is_main_process():
            manifest.write_json(folder.path / f"{name}.json", figures.to_json())
    if hosts.is_main_process():
        baselines = {name: metrics_to_json(figures) for name, figures in score_baselines(context).items()}
        manifest.write_json(folder.path / "baselines.json", baselines)
    folder.finish({"models": [candidate.name for candidate in candidates]}, time.perf_counter() - began)


def _writes_own_texts(context: Context, candidate: Candidate) -> bool:
    """Return whether a model's own texts are compared: a student of the teacher's family, with its trained weights."""
    experiment = context.experiment
    return (
        experiment.evaluation.own_texts > 0
        and not context.workdir.teacher_is_imported
        and candidate.name in experiment.students
        and candidate.architecture.family == experiment.teacher.model.family
    )


def load_context(experiment: ResolvedExperiment, workdir: Workdir) -> Context:
    """Load what all models are evaluated with."""
    data, evaluation, task = workdir.data, experiment.evaluation, experiment.task
    tokenizer = tokenizers.load(experiment.tokenizer, data)
    eval_set = EvalSet.load(data, evaluation.split, evaluation.texts)
    teacher = experiment.teacher.model.build(tokenizer.vocab_size)
    return Context(
        experiment=experiment,
        workdir=workdir,
        programs=Programs(task.decoding, teacher, tokenizer),
        split=Split(data, evaluation.split),
        eval_set=eval_set,
        prompts=[task.encode_prompt(task.prompt(eval_set.examples[i]), tokenizer) for i in eval_set.text_indices],
        tokenizer=tokenizer,
        devices=local_devices(experiment.backend, experiment.mesh),
    )


def manifest_inputs(experiment: ResolvedExperiment, workdir: Workdir) -> dict[str, Any]:
    """Return everything that the figures depend on."""
    data, evaluation, fields = workdir.data.outputs(), experiment.evaluation, input_fields(experiment)
    consumed = {"split": data["splits"][evaluation.split], "tokenizer": data["tokenizer"]}
    consumed |= {f"model.{name}": workdir.model(name).outputs()["digest"] for name in experiment.recipes}
    if evaluation.cached_k:
        consumed["validation_topk"] = workdir.validation_cache.outputs()["digest"]
    inputs = config.flatten(evaluation, "evaluation") | config.flatten(experiment.task, "task")
    inputs |= {name: fields[name] for name in ("buckets", "prompt_buckets")} | code_digests(experiment.task)
    inputs |= {f"consumed.{name}": digest for name, digest in consumed.items()}
    return {name: value for name, value in inputs.items() if name not in REPORT_FIELDS}


def score_model(context: Context, candidate: Candidate, params: Params) -> MetricFigures:
    """Write a model's texts and likelihoods to files, and score them by the task's metrics."""
    experiment, devices = context.experiment, context.devices
    task, path = experiment.task, context.workdir.evaluation.path
    layout = context.layout(candidate.architecture)
    batches = PromptBatches(
        context.prompts, layout, experiment.prompt_widths, experiment.evaluation.batch_size, devices.count
    )
    texts = generate_texts(candidate, params, context.programs, batches, task.decoding.ways, context.tokenizer, devices)
    if hosts.is_main_process():
        manifest.write_lines(path / f"{candidate.name}.jsonl", text_rows(task, context.eval_set, texts))
    outcomes = {way: context.eval_set.text_outcome(task, generated) for way, generated in texts.items()}
    tokens = None
    if any(metric.reads == "tokens" for metric in task.metrics):
        owners = files.read_array(context.workdir.data.file(f"{experiment.evaluation.split}.owners.npy"))
        rows = context.batches(context.split, layout)
        nll_N, tokens_N = negative_log_likelihoods(candidate, params, context.programs, rows, owners, devices)
        if hosts.is_main_process():
            manifest.write_arrays(path / f"{candidate.name}.npz", nll=nll_N, tokens=tokens_N)
        tokens = context.eval_set.likelihood_outcome(task, nll_N, tokens_N)
    return score_metrics(task.metrics, outcomes, tokens, experiment.evaluation.bootstrap)


def score_baselines(context: Context) -> dict[str, MetricFigures]:
    """Score the texts that need no model, on the examples that texts are generated for.

    The references as the tokenizer writes them are among these if it cannot write them without loss.
    """
    task, eval_set = context.experiment.task, context.eval_set
    outcomes = {
        name: eval_set.text_outcome(task, [text_of(eval_set.examples[i]) for i in eval_set.text_indices])
        for name, text_of in task.baselines.items()
    }
    round_trip = eval_set.round_trip(task, context.tokenizer)
    if round_trip_score(task.metrics[0], round_trip) is not None:
        outcomes[ROUND_TRIP] = round_trip
    way, resamples = task.decoding.ways[0], context.experiment.evaluation.bootstrap
    return {name: score_metrics(task.metrics, {way: outcome}, None, resamples) for name, outcome in outcomes.items()}


def compare_with_teacher(context: Context, candidate: Candidate, teacher_params: Params, params: Params) -> Closeness:
    """Compare a model with the teacher on the evaluated split."""
    architecture = candidate.architecture
    layouts = context.layout(context.experiment.teacher.model), context.layout(architecture)
    step = functools.partial(context.programs.compare(architecture, context.devices), (teacher_params, params))
    batches = context.batches(context.split, JointLayout(layouts))
    return Closeness(**_mean_metrics(step, batches, context.devices, f"compare {candidate.name}"))


def measure_student(context: Context, candidate: Candidate, params: Params) -> Closeness:
    """Compute a student's own metrics, for an imported teacher that cannot run."""
    step = functools.partial(context.programs.student_metrics(candidate.architecture, context.devices), params)
    batches = context.batches(context.split, context.layout(candidate.architecture))
    return Closeness(**_mean_metrics(step, batches, context.devices, f"measure {candidate.name}"))


def compare_with_cache(context: Context, candidate: Candidate, params: Params) -> CachedCloseness:
    """Compare a student with the teacher's cache of the validation split."""
    cache = Store(context.workdir.validation_cache.path, "records")
    signal = TopK(k=cache.schema["ids"].shape[0])
    split = Split(context.workdir.data, "validation", {signal.name: cache})
    program = context.programs.compare_cached(candidate.architecture, signal, context.devices)
    batches = context.batches(split, context.layout(candidate.architecture))
    title = f"compare {candidate.name} offline"
    return CachedCloseness(**_mean_metrics(functools.partial(program, params), batches, context.devices, title))


def _mean_metrics(step: Callable[[Batch], Any], batches: EvalBatches, devices: Devices, title: str) -> dict[str, float]:
    """Return the means of a step's Sums over all batches."""

    def to_json(_: np.ndarray, batch: Any) -> dict[str, Any]:
        return jax.tree.map(lambda x: x.tolist(), jax.device_get(devices.unreplicate(step(devices.shard(batch)))))

    def from_json(part: dict[str, Any]) -> Sums:
        return {
            # numpy arrays, which Sum allows on the host
            name: Sum(np.asarray(value, np.float32), np.asarray(n, np.int32))  # pyright: ignore[reportArgumentType]
            for name, (value, n) in part.items()
        }

    parts = map(from_json, map_batches(title, batches, to_json))
    return mean_metrics(jax.tree.map(lambda *each: sum(each), *parts))


def _over_long(context: Context, candidate: Candidate) -> int:
    """Count the examples longer than the last bucket; they are evaluated in longer rows."""
    shapes = context.experiment.shapes
    buckets = assign_buckets(context.split.lengths, shapes, context.layout(candidate.architecture))
    over_long = int((buckets == len(shapes)).sum())
    if over_long:
        progress.log(f"{candidate.name}: {over_long} examples longer than the last bucket, evaluated uncut")
    return over_long


def _training_figures(workdir: Workdir, candidate: Candidate) -> TrainingFigures:
    """Return size and training cost from a model's manifest; int8 weights have a size of their own and no training."""
    training = workdir.model(candidate.trained_name).manifest()
    outputs = training["outputs"]
    figures = TrainingFigures(
        parameters=outputs["parameters"],
        parameters_outside_embeddings=outputs["parameters_outside_embeddings"],
        bytes=outputs["bytes"],
        loss_before_first_step=outputs["loss_before_first_step"],
        train_tokens_per_second=outputs["train_tokens_per_second"],
        seconds=training["seconds"],
        sampling_seconds=outputs.get("sampling_seconds"),
    )
    if candidate.name == candidate.trained_name:
        return figures
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(candidate.params))
    return dataclasses.replace(
        figures,
        bytes=size,
        loss_before_first_step=None,
        train_tokens_per_second=None,
        seconds=None,
        sampling_seconds=None,
    )


def _decoding_speeds(context: Context, candidates: Sequence[Candidate]) -> dict[str, DecodingSpeed]:
    """Time all models on the main process."""
    experiment = context.experiment

    def measure() -> dict[str, dict[str, float]]:
        speeds = decoding_speeds(
            experiment.evaluation,
            candidates,
            context.programs,
            context.prompts,
            experiment.prompt_widths,
            context.tokenizer,
            experiment.task.decoding.ways[0],
            context.devices,
        )
        return {name: dataclasses.asdict(speed) for name, speed in speeds.items()}

    return {name: DecodingSpeed(**speed) for name, speed in hosts.run_on_main(measure).items()}


def _drafting(
    context: Context, candidates: Sequence[Candidate], metrics: Mapping[str, MetricFigures]
) -> dict[str, DraftingFigures]:
    """Return the leading student's figures as the teacher's draft, by its name; {} if it cannot draft."""
    experiment, by_name = context.experiment, {candidate.name: candidate for candidate in candidates}
    headline = experiment.task.metrics[0]
    values = {name: metrics[name][headline.name].of_model() for name in experiment.recipes if name in metrics}
    name = leading_student(values, experiment.comparison, headline.higher_is_better)
    if not experiment.evaluation.draft or name is None or TEACHER not in by_name:
        return {}
    teacher, student = by_name[TEACHER], by_name[name]
    if teacher.architecture.family != student.architecture.family:
        return {}

    def measure() -> dict[str, Any]:
        figures = drafting_speed(
            experiment.evaluation,
            teacher,
            student,
            context.prompts,
            experiment.prompt_widths,
            context.tokenizer,
            experiment.task.decoding,
        )
        return dataclasses.asdict(figures)

    figures = DraftingFigures(**hosts.run_on_main(measure))
    progress.log(
        f"{name}: as the teacher's draft {figures.draft_acceptance:.0%} of its tokens are accepted, "
        f"{figures.draft_speedup:.2f} times the teacher's greedy speed"
    )
    return {name: figures}
