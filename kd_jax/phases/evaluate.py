"""Let every model write the test split; measure quality, closeness to the teacher, and speed."""

import functools
import time
from collections.abc import Callable
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
from kd_jax.errors import KdError
from kd_jax.evaluation import closeness, quality
from kd_jax.evaluation.candidates import Candidate, Programs, load_candidates
from kd_jax.evaluation.speed import decoding_speeds, drafting_speed
from kd_jax.experiment import ResolvedExperiment
from kd_jax.models.base import Architecture
from kd_jax.reporting import verdict
from kd_jax.runtime import hosts, progress
from kd_jax.runtime.backends import local_devices
from kd_jax.runtime.devices import Devices
from kd_jax.signals.topk import TopK
from kd_jax.tokenizers import base as tokenizers
from kd_jax.types import Batch, Params, Sum

FROM_TRAINING = (
    "parameters",
    "parameters_outside_embeddings",
    "bytes",
    "loss_before_first_step",
    "train_tokens_per_second",
)


class Setting(NamedTuple):
    """What every model is measured with: the run, its compiled functions, the split as ids and as text."""

    experiment: ResolvedExperiment
    workdir: Workdir
    programs: Programs
    split: Split
    measured: quality.EvalSet
    prompts: list[np.ndarray]
    tokenizer: tokenizers.Tokenizer
    devices: Devices


def run(experiment: ResolvedExperiment, workdir: Workdir, force: bool = False) -> None:
    """Leaves MODEL.json with each model's figures, MODEL.jsonl with its texts, and the baselines' figures.

    Raises:
      KdError: if a model is not trained yet.
    """
    folder, evaluation, task = workdir.evaluation, experiment.evaluation, experiment.task
    if not folder.begin(_inputs(experiment, workdir), force):
        progress.log(f"evaluation: already done, {folder.path}")
        return
    began = time.perf_counter()
    models = load_candidates(experiment, workdir)
    setting = _setting(experiment, workdir)
    devices = setting.devices
    on_devices = {candidate.name: setting.programs.put(candidate, devices) for candidate in models}
    figures: dict[str, dict[str, Any]] = {}
    for candidate in models:
        params = on_devices[candidate.name]
        figures[candidate.name] = _quality(setting, candidate, params)
        if workdir.teacher_is_imported:
            figures[candidate.name] |= _student_metrics(setting, candidate, params)
        else:
            figures[candidate.name] |= _closeness(setting, candidate, on_devices[TEACHER], params)
        figures[candidate.name] |= _from_training(workdir, candidate)
        said = [f"{m.label} {figures[candidate.name][m.name]:.{m.digits}f}" for m in task.metrics]
        progress.log(f"{candidate.name}: {', '.join(said)}")
    widths, tokenizer = experiment.prompt_widths, setting.tokenizer
    timed = evaluation, models, setting.programs, setting.prompts, widths, tokenizer, task.decoding.ways[0], devices
    speeds = hosts.run_on_main(lambda: decoding_speeds(*timed))
    for name, drafting in hosts.run_on_main(lambda: _drafting(setting, models, figures)).items():
        figures[name] |= drafting
    for name in figures:
        progress.log(f"{name}: {speeds[name]['decode_tokens_per_second']:.0f} tokens a second in batches")
    if hosts.is_main_process():
        for name in figures:
            manifest.write_json(folder.path / f"{name}.json", figures[name] | speeds[name])
        manifest.write_json(folder.path / "baselines.json", _baselines(setting))
    folder.finish({"models": list(figures)}, time.perf_counter() - began)


def _setting(experiment: ResolvedExperiment, workdir: Workdir) -> Setting:
    data, evaluation, task = workdir.data, experiment.evaluation, experiment.task
    split, tokenizer = Split(data, evaluation.split), tokenizers.load(experiment.tokenizer, data)
    measured = quality.EvalSet.load(data, evaluation.split, evaluation.texts)
    prompts = [task.encode_prompt(task.prompt(measured.examples[i]), tokenizer) for i in measured.written]
    teacher = experiment.teacher.model.build(tokenizer.vocab_size)
    programs = Programs(task.decoding, teacher, tokenizer)
    devices = local_devices(experiment.backend, experiment.mesh)
    return Setting(experiment, workdir, programs, split, measured, prompts, tokenizer, devices)


def _quality(setting: Setting, candidate: Candidate, params: Params) -> dict[str, Any]:
    """A model's texts and likelihoods, left in files, and what the task's metrics make of them."""
    experiment, programs, devices = setting.experiment, setting.programs, setting.devices
    task, path = experiment.task, setting.workdir.evaluation.path
    layout = _layout(setting, candidate.architecture)
    batches = PromptBatches(
        setting.prompts, layout, experiment.prompt_widths, experiment.evaluation.batch_size, devices.count
    )
    ways = task.decoding.ways
    written = quality.texts(candidate, params, programs, batches, ways, setting.tokenizer, devices)
    if hosts.is_main_process():
        manifest.write_lines(path / f"{candidate.name}.jsonl", quality.side_by_side(task, setting.measured, written))
    outcomes = {way: setting.measured.outcome(task, texts) for way, texts in written.items()}
    tokens = None
    if any(metric.reads == "tokens" for metric in task.metrics):
        owners = files.read_array(setting.workdir.data.file(f"{experiment.evaluation.split}.owners.npy"))
        nll_N, tokens_N = quality.likelihoods(candidate, params, programs, _batches(setting, layout), owners, devices)
        if hosts.is_main_process():
            manifest.write_arrays(path / f"{candidate.name}.npz", nll=nll_N, tokens=tokens_N)
        tokens = quality.of_tokens(task, setting.measured, nll_N, tokens_N)
    return quality.scores(task.metrics, outcomes, tokens, experiment.evaluation.bootstrap)


def _drafting(
    setting: Setting, models: list[Candidate], figures: dict[str, dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """The leading student's name -> its figures as the teacher's draft; {} where it cannot draft for it."""
    experiment, by_name = setting.experiment, {candidate.name: candidate for candidate in models}
    comparison = experiment.comparison and vars(experiment.comparison)
    trained = {name: figures[name] for name in experiment.recipes if name in figures}
    name = verdict.leading(trained, comparison, experiment.task.metrics[0]._asdict())
    if not experiment.evaluation.draft or name is None or TEACHER not in by_name:
        return {}
    teacher, student = by_name[TEACHER], by_name[name]
    if teacher.architecture.family != student.architecture.family:
        return {}
    texts = setting.prompts, experiment.prompt_widths, setting.tokenizer, experiment.task.decoding
    measured = drafting_speed(experiment.evaluation, teacher, student, *texts)
    progress.log(
        f"{name}: as the teacher's draft {measured['draft_acceptance']:.0%} of its tokens are accepted, "
        f"{measured['draft_speedup']:.2f} times the teacher's greedy speed"
    )
    return {name: measured}


def _baselines(setting: Setting) -> dict[str, dict[str, Any]]:
    """Figures of what needs no model, on the examples that the models wrote."""
    task, measured = setting.experiment.task, setting.measured
    figures = {}
    for name, text_of in task.baselines.items():
        outcome = measured.outcome(task, [text_of(measured.examples[i]) for i in measured.written])
        resamples = setting.experiment.evaluation.bootstrap
        figures[name] = quality.scores(task.metrics, {task.decoding.ways[0]: outcome}, None, resamples)
    return figures


def _from_training(workdir: Workdir, candidate: Candidate) -> dict[str, Any]:
    """What the report repeats of a model's training; one with int8 weights had none of its own, but another size."""
    trained = workdir.model(candidate.trained).manifest()
    figures = {key: trained["outputs"][key] for key in FROM_TRAINING} | {"seconds": trained["seconds"]}
    if candidate.name == candidate.trained:
        return figures
    of_training = ("loss_before_first_step", "train_tokens_per_second", "seconds")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(candidate.params))
    return figures | dict.fromkeys(of_training) | {"bytes": size}


def _layout(setting: Setting, architecture: Architecture) -> Layout:
    return architecture.layout(setting.tokenizer.start, setting.tokenizer.forced_prefix)


def _batches(setting: Setting, layout: Layout | JointLayout) -> EvalBatches:
    """The split in rows of a layout."""
    experiment = setting.experiment
    size, count = experiment.evaluation.batch_size, setting.devices.count
    return EvalBatches(setting.split, layout, experiment.shapes, size, count)


def _inputs(experiment: ResolvedExperiment, workdir: Workdir) -> dict[str, Any]:
    """What decides the figures."""
    data, evaluation = workdir.data.outputs(), experiment.evaluation
    digests = {name: workdir.model(name).outputs()["digest"] for name in experiment.recipes}
    consumed = {"split": data["splits"][evaluation.split], "tokenizer": data["tokenizer"]}
    consumed |= {f"model.{name}": digest for name, digest in digests.items()}
    if evaluation.cached_k:
        cache = workdir.validation_cache.manifest()
        if cache["inputs"]["consumed.teacher"] != digests[TEACHER]:
            raise KdError("cache validation_topk: made by another teacher than this run's; do `cache --force`")
        consumed["validation_topk"] = cache["outputs"]["digest"]
    inputs = config.flatten(evaluation, "evaluation") | config.flatten(experiment.task, "task")
    inputs |= {"buckets": [list(bucket) for bucket in experiment.shapes], "prompts": list(experiment.prompt_widths)}
    return inputs | {f"consumed.{name}": digest for name, digest in consumed.items()}


def _closeness(setting: Setting, candidate: Candidate, teacher_params: Params, params: Params) -> dict[str, Any]:
    """A model's closeness to the teacher on the evaluated split; a student's also, "offline", from the cache."""
    architecture = candidate.architecture
    layouts = (_layout(setting, setting.experiment.teacher.model), _layout(setting, architecture))
    batches = _batches(setting, JointLayout(layouts))
    step = functools.partial(setting.programs.compare(architecture, setting.devices), (teacher_params, params))
    sums = _added(step, batches, setting.devices, f"compare {candidate.name}")
    figures = closeness.mean_metrics(sums) | _extent(setting, candidate)
    if candidate.name != TEACHER and setting.experiment.evaluation.cached_k:
        figures["offline"] = _offline(setting, candidate, params)
    return figures


def _student_metrics(setting: Setting, candidate: Candidate, params: Params) -> dict[str, Any]:
    """A student's figures where the teacher is elsewhere: closeness to it is known "offline" alone, from the cache."""
    step = functools.partial(setting.programs.student_metrics(candidate.architecture, setting.devices), params)
    batches = _batches(setting, _layout(setting, candidate.architecture))
    figures = closeness.mean_metrics(_added(step, batches, setting.devices, f"measure {candidate.name}"))
    figures |= _extent(setting, candidate) | dict.fromkeys(("kl_to_teacher", "agreement", "acceptance"))
    if setting.experiment.evaluation.cached_k:
        figures["offline"] = _offline(setting, candidate, params)
    return figures


def _extent(setting: Setting, candidate: Candidate) -> dict[str, int]:
    """How many examples are measured, and how many of them are longer than the last bucket."""
    shapes = setting.experiment.shapes
    over_long = int((assign_buckets(setting.split.lengths, shapes, candidate.architecture.layout) == len(shapes)).sum())
    if over_long:
        progress.log(
            f"{candidate.name}: {over_long} examples beyond the longest bucket are taken whole, in longer ones"
        )
    return {"examples": len(setting.measured.examples), "over_long": over_long}


def _offline(setting: Setting, candidate: Candidate, params: Params) -> dict[str, float]:
    """A student's closeness to the teacher on the validation split, from the cache: no teacher runs."""
    cache = Store(setting.workdir.validation_cache.path, "records")
    signal = TopK(k=cache.schema["ids"].shape[0])
    split = Split(setting.workdir.data, "validation", {signal.name: cache})
    step = setting.programs.compare_cached(candidate.architecture, signal, setting.devices)
    batches = _batches(setting._replace(split=split), _layout(setting, candidate.architecture))
    title = f"compare {candidate.name} offline"
    return closeness.mean_metrics(_added(functools.partial(step, params), batches, setting.devices, title))


def _added(step: Callable[[Batch], Any], batches: EvalBatches, devices: Devices, title: str) -> closeness.Sums:
    """What a step measures of each batch, added up."""

    def sums(_: np.ndarray, batch: Any) -> dict[str, Any]:
        return jax.tree.map(lambda x: x.tolist(), jax.device_get(devices.unreplicate(step(devices.shard(batch)))))

    def read(part: dict[str, Any]) -> closeness.Sums:
        return {name: Sum(np.asarray(value, np.float32), np.asarray(n, np.int32)) for name, (value, n) in part.items()}

    parts = map(read, quality.map_batches(title, batches, sums))
    return jax.tree.map(lambda *each: sum(each), *parts)
