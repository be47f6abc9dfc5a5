"""Translate the test split with every model; measure quality, closeness to the teacher, and speed."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts import checkpoint, manifest, runlog
from kd_jax.data.pipeline import EvalBatches, Split
from kd_jax.data.store import Store
from kd_jax.data.tokenizers import Tokenizer
from kd_jax.decoding import search as decode
from kd_jax.decoding.text import to_text, translate_step
from kd_jax.errors import KdError
from kd_jax.evaluation import closeness as metrics
from kd_jax.experiment import Evaluation, Experiment
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.parallel.base import Parallel, parallel
from kd_jax.signals.topk import TopK
from kd_jax.types import Array, Batch, Model, Params, Payload, Sum

REPEATS = 5
# Sentences whose [T, V] probabilities are compared at once.
COMPARED = 8


def run(experiment: Experiment, workdir: Path, force: bool = False) -> None:
    """Leaves workdir/evaluation: MODEL.json with the figures, MODEL.jsonl with the translations.

    Raises:
      KdError: if a model is not trained yet.
    """
    folder, data = workdir / "evaluation", manifest.read(workdir / "data", "prepare")["outputs"]
    evaluation = experiment.evaluation
    split_name = experiment.evaluation.split
    trained = {"teacher": manifest.read(workdir / "teacher", "teacher")["outputs"]}
    trained |= {name: manifest.read(workdir / "students" / name, "student")["outputs"] for name in experiment.students}
    inputs = config.flatten(experiment.evaluation, "evaluation") | {"buckets": list(experiment.buckets)}
    inputs |= {"consumed.split": data["splits"][split_name], "consumed.tokenizer": data["tokenizer"]}
    inputs |= {f"consumed.{name}": outputs["digest"] for name, outputs in trained.items()}
    if evaluation.cached_k:
        made = manifest.read(workdir / "cache" / "validation_topk", "cache")
        if made["inputs"]["consumed.teacher"] != trained["teacher"]["digest"]:
            raise KdError("cache validation_topk: made by another teacher than this run's; do `cache --force`")
        inputs["consumed.validation_topk"] = made["outputs"]["digest"]
    if not manifest.start(folder, "evaluate", inputs, force):
        runlog.say(f"evaluation: already done, {folder}")
        return
    began = time.perf_counter()
    spread = parallel(experiment.backend)
    split, tokenizer = Split(workdir / "data", split_name), Tokenizer(workdir / "data" / "tokenizer.model")
    rows = manifest.read_lines(workdir / "data" / f"{split_name}.jsonl")
    models = load_models(experiment, workdir, data["vocab_size"])
    params = {name: spread.replicate(models[name][1]) for name in models}
    batches = list(EvalBatches(split, experiment.buckets, experiment.evaluation.batch_size, spread.devices))
    over_long = int((split.lengths > experiment.buckets[-1]).sum())
    if over_long:
        runlog.say(f"evaluation: {over_long} sentences beyond the longest bucket are translated whole, in longer ones")
    functions = Functions(experiment, data["vocab_size"], spread)
    for name, (shape, _) in models.items():
        figures, texts = quality(experiment, functions, params, name, shape, batches, tokenizer, rows)
        if name != "teacher" and evaluation.cached_k:
            figures["offline"] = offline(experiment, workdir, functions, params[name], shape)
        outputs = trained[name]
        kept = ("parameters", "parameters_outside_embeddings", "train_tokens_per_second", "loss_before_first_step")
        figures |= {key: outputs[key] for key in kept} | {"over_long": over_long}
        manifest.write_json(folder / f"{name}.json", figures)
        manifest.write_lines(folder / f"{name}.jsonl", texts)
        runlog.say(f"{name}: BLEU {figures['bleu']:.2f}, beam {figures['bleu_beam']:.2f}, chrF {figures['chrf']:.2f}")
    speeds = decoding_speeds(experiment.evaluation, functions, models, params, split, experiment.buckets, spread)
    for name, figures in speeds.items():
        path = folder / f"{name}.json"
        manifest.write_json(path, manifest.read_json(path) | figures)
        runlog.say(f"{name}: {figures['decode_tokens_per_second']:.0f} tokens a second in batches")
    manifest.finish(folder, "evaluate", {"models": list(models)}, time.perf_counter() - began)


def load_models(experiment: Experiment, workdir: Path, vocab_size: int) -> dict[str, tuple[EncoderDecoder, Params]]:
    """Name -> (shape, best parameters), the teacher first."""
    shape = experiment.teacher.model
    models = {"teacher": (shape, checkpoint.load_params(workdir / "teacher", "teacher", shape.build(vocab_size)))}
    for name, recipe in experiment.students.items():
        params = checkpoint.load_params(workdir / "students" / name, "student", recipe.model.build(vocab_size))
        models[name] = recipe.model, params
    return models


class Functions:
    """Compiled functions, one for each shape of network: models of one shape share them."""

    def __init__(self, experiment: Experiment, vocab_size: int, spread: Parallel):
        self._evaluation, self._vocab_size, self.spread = experiment.evaluation, vocab_size, spread
        self._teacher = experiment.teacher.model.build(vocab_size)
        self.compare = functools.cache(self._compare)
        self.compare_cached = functools.cache(self._compare_cached)
        self.translate = functools.cache(self._translate)

    def _compare(self, shape: EncoderDecoder) -> Callable:
        student = shape.build(self._vocab_size)
        return self.spread.spread(functools.partial(compare_step, teacher=self._teacher, student=student))

    def _compare_cached(self, shape: EncoderDecoder, signal: TopK) -> Callable:
        student = shape.build(self._vocab_size)
        return self.spread.spread(functools.partial(compare_cached_step, student=student, signal=signal))

    def _translate(self, shape: EncoderDecoder, beam: int, spread: Parallel) -> Callable:
        model = shape.build(self._vocab_size)
        return spread.spread(functools.partial(translate_step, model=model, beam=beam, evaluation=self._evaluation))


def compare_step(params: tuple[Params, Params], batch: Batch, *, teacher: Model, student: Model, all_sum=lambda x: x):
    """Sums over the batch's targets: the student's cross-entropy, KL(teacher || student), top-1 agreement."""
    heads = teacher.head(params[0]), student.head(params[1])

    def one(hidden_TD: tuple[Array, Array], targets_T: Array, mask_T: Array):
        return metrics.compare(heads[0].logits(hidden_TD[0]), heads[1].logits(hidden_TD[1]), targets_T, mask_T)

    hidden = teacher.apply(params[0], batch), student.apply(params[1], batch)
    sums = jax.lax.map(lambda x: one(*x), (hidden, batch.targets_BT, batch.mask_BT), batch_size=COMPARED)
    return all_sum(jax.tree.map(lambda x: x.sum(0), sums))


def compare_cached_step(params: Params, batch: Batch, *, student: Model, signal: TopK, all_sum=lambda x: x):
    """The same Sums from what a cache holds of the teacher, with their errors; the student alone runs."""
    head = student.head(params)

    def one(hidden_TD: Array, payload: Payload, targets_T: Array, mask_T: Array):
        return metrics.compare_cached(signal, payload, head.logits(hidden_TD), targets_T, mask_T)

    rows = student.apply(params, batch), batch.payload[signal.name], batch.targets_BT, batch.mask_BT
    sums = jax.lax.map(lambda x: one(*x), rows, batch_size=COMPARED)
    return all_sum(jax.tree.map(lambda x: x.sum(0), sums))


def offline(
    experiment: Experiment, workdir: Path, functions: Functions, params: Params, shape: EncoderDecoder
) -> dict[str, float]:
    """A student's closeness to the teacher on the validation split, from the cache: no teacher runs."""
    cache = Store(workdir / "cache" / "validation_topk", "records")
    signal, spread = TopK(k=cache.schema["ids"].shape[0]), functions.spread
    split = Split(workdir / "data", "validation", {signal.name: cache})
    batches = EvalBatches(split, experiment.buckets, experiment.evaluation.batch_size, spread.devices)
    step = functions.compare_cached(shape, signal)
    sums = [jax.device_get(spread.first(step(params, spread.shard(batch)))) for batch in batches]
    return _means(jax.tree.map(lambda *parts: sum(parts), *sums))


def quality(
    experiment: Experiment,
    functions: Functions,
    params: Mapping[str, Params],
    name: str,
    shape: EncoderDecoder,
    batches: list[Batch],
    tokenizer: Tokenizer,
    rows: list[dict[str, str]],
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """(one model's figures of quality, its translations beside the references)."""
    evaluation, task, spread = experiment.evaluation, experiment.task, functions.spread
    sums = []
    texts: dict[int, dict[int, str]] = {1: {}, evaluation.beam: {}}
    with runlog.progress(f"evaluate {name}", len(batches)) as bar:
        for batch in batches:
            on_device = spread.shard(batch._replace(payload={}))
            sums.append(
                jax.device_get(spread.first(functions.compare(shape)((params["teacher"], params[name]), on_device)))
            )
            for beam, found in texts.items():
                ids_BT = spread.gather(functions.translate(shape, beam, spread)(params[name], on_device))
                found |= {
                    int(i): to_text(ids, tokenizer) for i, ids in zip(batch.index_B, ids_BT, strict=True) if i >= 0
                }
            bar.advance(1)
    added = jax.tree.map(lambda *parts: sum(parts), *sums)
    translations = [
        {
            "id": row["id"],
            "source": row[task.source],
            "reference": row[task.target],
            "greedy": texts[1][row["id"]],
            "beam": texts[evaluation.beam][row["id"]],
        }
        for row in rows
    ]
    references = [row["reference"] for row in translations]
    figures = task.score([row["greedy"] for row in translations], references, evaluation.bootstrap)
    figures["bleu_beam"] = task.score([row["beam"] for row in translations], references)["bleu"]
    figures |= _means(added) | {"sentences": len(rows)}
    return figures, translations


def _means(sums: Mapping[str, Sum]) -> dict[str, float]:
    error = metrics.calibration_error(sums["calibration_error"])
    return {name: float(one.mean()) for name, one in sums.items() if name != "calibration_error"} | {
        "calibration_error": error
    }


def decoding_speeds(
    evaluation: Evaluation,
    functions: Functions,
    models: Mapping[str, tuple[EncoderDecoder, Params]],
    params: Mapping[str, Params],
    split: Split,
    buckets: tuple[int, ...],
    spread: Parallel,
) -> dict[str, dict[str, float]]:
    """Greedy tokens a second of every model, in batches and one sentence at a time.

    The models take turns on the same sentences, those of the fullest bucket, after a first round that
    compiles; medians over the repeats. The end of the sentence counts as a token.
    """
    place = np.searchsorted(buckets, split.lengths)
    members = np.flatnonzero(place == np.bincount(place, minlength=len(buckets))[: len(buckets)].argmax())
    one_device = parallel("jit")
    figures: dict[str, dict[str, float]] = {name: {} for name in models}
    for suffix, where, size, count in (
        ("", spread, evaluation.batch_size, 4 * evaluation.batch_size),
        ("_single", one_device, 1, evaluation.speed_sentences),
    ):
        batches = [where.shard(b) for b in EvalBatches(split, buckets, size, where.devices, members[:count])]
        placed = params if where is spread else {name: where.replicate(models[name][1]) for name in models}
        calls = {
            name: functools.partial(_timed, functions.translate(shape, 1, where), placed[name], batches, where)
            for name, (shape, _) in models.items()
        }
        for call in calls.values():
            call()
        rounds = [{name: call() for name, call in calls.items()} for _ in range(REPEATS)]
        for name in models:
            seconds, tokens = statistics.median(r[name][0] for r in rounds), rounds[0][name][1]
            figures[name][f"decode_tokens_per_second{suffix}"] = tokens / seconds
            figures[name][f"decode_sentences_per_second{suffix}"] = min(count, len(members)) / seconds
    return figures


def _timed(translate: Callable, params: Params, batches: list[Batch], spread: Parallel) -> tuple[float, int]:
    """(seconds until all batches are translated, tokens written)."""
    began = time.perf_counter()
    written = jax.block_until_ready([translate(params, batch) for batch in batches])
    seconds = time.perf_counter() - began
    return seconds, sum(int((spread.gather(ids) != decode.PAD).sum()) for ids in written)
