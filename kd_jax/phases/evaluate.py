"""Let every model write the test split; measure quality, closeness to the teacher, and speed."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax

from kd_jax import config
from kd_jax.artifacts import manifest, runlog
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.data.pipeline import EvalBatches, Split, place
from kd_jax.data.store import Store
from kd_jax.data.tokenizers import Tokenizer
from kd_jax.errors import KdError
from kd_jax.evaluation import closeness, quality
from kd_jax.evaluation.contenders import Contender, Programs, contenders, teacher_of
from kd_jax.evaluation.speed import decoding_speeds
from kd_jax.experiment import Experiment
from kd_jax.parallel import devices
from kd_jax.parallel.base import Devices
from kd_jax.signals.topk import TopK
from kd_jax.types import Batch, Params

FROM_TRAINING = ("parameters", "parameters_outside_embeddings", "bytes", "loss_before_first_step")


def run(experiment: Experiment, workdir: Workdir, force: bool = False) -> None:
    """Leaves MODEL.json with each model's figures, and MODEL.jsonl with its texts.

    Raises:
      KdError: if a model is not trained yet.
    """
    folder, data, evaluation = workdir.evaluation, workdir.data, experiment.evaluation
    if not folder.begin(_inputs(experiment, workdir), force):
        runlog.say(f"evaluation: already done, {folder.path}")
        return
    began = time.perf_counter()
    spread = devices(experiment.backend)
    models = contenders(experiment, workdir)
    programs = Programs(evaluation, teacher_of(models), data.outputs()["vocab_size"])
    split, tokenizer = Split(data, evaluation.split), Tokenizer(data.file("tokenizer.model"))
    examples = manifest.read_lines(data.file(f"{evaluation.split}.jsonl"))
    references = [experiment.task.reference(example) for example in examples]
    over_long = int((place(split.lengths, experiment.shapes) == len(experiment.shapes)).sum())
    if over_long:
        runlog.say(f"evaluation: {over_long} examples beyond the longest bucket are taken whole, in longer ones")
    figures: dict[str, dict[str, Any]] = {}
    on_devices = {contender.name: spread.put(contender.params) for contender in models}
    for contender in models:
        name, params = contender.name, on_devices[contender.name]
        batches = EvalBatches(
            split, contender.architecture.layout, experiment.shapes, evaluation.batch_size, spread.count
        )
        written = quality.texts(contender, params, programs, batches, sorted({1, evaluation.beam}), tokenizer, spread)
        figures[name] = quality.scores(
            experiment.task, written[1], written[evaluation.beam], references, evaluation.bootstrap
        )
        figures[name] |= _closeness(programs, contender, on_devices[TEACHER], params, batches, spread)
        if name != TEACHER and evaluation.cached_k:
            figures[name]["offline"] = _offline(experiment, workdir, programs, contender, params, spread)
        trained = workdir.model(name).manifest()
        figures[name] |= {key: trained["outputs"][key] for key in FROM_TRAINING}
        figures[name]["train_tokens_per_second"] = trained["outputs"]["train_tokens_per_second"]
        figures[name] |= {"seconds": trained["seconds"], "sentences": len(examples), "over_long": over_long}
        rows = quality.side_by_side(experiment.task, examples, evaluation, written)
        manifest.write_lines(folder.path / f"{name}.jsonl", rows)
        said = (f"{metric.label} {figures[name][metric.name]:.{metric.digits}f}" for metric in experiment.task.metrics)
        runlog.say(f"{name}: {', '.join(said)}")
    speeds = decoding_speeds(evaluation, models, programs, split, experiment.shapes, spread)
    for name in figures:
        manifest.write_json(folder.path / f"{name}.json", figures[name] | speeds[name])
        runlog.say(f"{name}: {speeds[name]['decode_tokens_per_second']:.0f} tokens a second in batches")
    folder.finish({"models": list(figures)}, time.perf_counter() - began)


def _inputs(experiment: Experiment, workdir: Workdir) -> dict[str, Any]:
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
    inputs |= {"buckets": [list(bucket) for bucket in experiment.shapes]}
    return inputs | {f"consumed.{name}": digest for name, digest in consumed.items()}


def _closeness(
    programs: Programs,
    contender: Contender,
    teacher_params: Params,
    params: Params,
    batches: EvalBatches,
    spread: Devices,
) -> dict[str, float]:
    """A model's closeness to the teacher on the evaluated split."""
    step = programs.compare(contender.architecture, spread)
    both = functools.partial(step, (teacher_params, params))
    return closeness.means(_added(both, batches, spread, f"compare {contender.name}"))


def _offline(
    experiment: Experiment,
    workdir: Workdir,
    programs: Programs,
    contender: Contender,
    params: Params,
    spread: Devices,
) -> dict[str, float]:
    """A student's closeness to the teacher on the validation split, from the cache: no teacher runs."""
    cache = Store(workdir.validation_cache.path, "records")
    signal = TopK(k=cache.schema["ids"].shape[0])
    split = Split(workdir.data, "validation", {signal.name: cache})
    batches = EvalBatches(
        split,
        contender.architecture.layout,
        experiment.shapes,
        experiment.evaluation.batch_size,
        spread.count,
    )
    step = programs.compare_cached(contender.architecture, signal, spread)
    return closeness.means(
        _added(functools.partial(step, params), batches, spread, f"compare {contender.name} offline")
    )


def _added(step: Callable[[Batch], Any], batches: EvalBatches, spread: Devices, title: str) -> closeness.Sums:
    """What a step measures of each batch, added up."""
    parts = []
    with runlog.progress(title, len(batches)) as bar:
        for (bucket, _), batch in zip(batches.plan(), batches, strict=True):
            with bar.meeting(bucket):
                parts.append(jax.device_get(spread.first(step(spread.cut(batch)))))
            bar.advance(1)
    return jax.tree.map(lambda *each: sum(each), *parts)
