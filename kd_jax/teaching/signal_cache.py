"""What a trained teacher leaves on disk: signals of every token, hypotheses, splits made of them."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts import checkpoint, manifest, runlog
from kd_jax.data import pipeline, pseudo_targets, store
from kd_jax.data.pseudo_targets import PseudoTargets
from kd_jax.data.tokenizers import EOS, START, Tokenizer
from kd_jax.decoding import search as decode
from kd_jax.decoding.text import output_length
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment, data_folder
from kd_jax.objective.fused_head import map_head
from kd_jax.parallel.base import host, parallel
from kd_jax.types import Batch, Model, Params, Payload, Signal

BATCH = 64
RECORDS_PER_SHARD = 4096
Record = dict[str, np.ndarray]


class Teacher:
    """The trained teacher on the devices, loaded when it is first asked for."""

    def __init__(
        self, experiment: Experiment, workdir: Path, writer: tuple[int, int] | None = None, stand_in: bool = False
    ):
        """Raises KdError if the teacher is not trained.

        Args:
          experiment, workdir: the run.
          writer: as store.write's; None for this host's.
          stand_in: whether the caller sets `params` itself, so that no trained teacher is looked for.
        """
        self.experiment, self.workdir, self.writer = experiment, workdir, writer or host()
        self.data = manifest.read(workdir / "data", "prepare")["outputs"]
        self.digest = "" if stand_in else manifest.read(workdir / "teacher", "teacher")["outputs"]["digest"]
        self.spread = parallel(experiment.backend)
        self.model = experiment.teacher.model.build(self.data["vocab_size"])

    @functools.cached_property
    def params(self) -> Params:
        return self.spread.replicate(checkpoint.load_params(self.workdir / "teacher", "teacher", self.model))

    def consumed(self, split_digest: str) -> dict[str, Any]:
        """What a manifest keeps of where a signal came from."""
        inputs = {"teacher": self.digest, "split": split_digest, "tokenizer": self.data["tokenizer"]}
        return {f"consumed.{name}": value for name, value in inputs.items()}

    def split_digest(self, targets: PseudoTargets | None, split: str) -> str:
        """Of the split's examples, so of their truncation too."""
        if targets is None:
            return self.data["splits"][split]
        return manifest.read(data_folder(self.workdir, targets), "cache")["outputs"]["digest"]


def write_signal(
    teacher: Teacher, folder: Path, signal: Signal, targets: PseudoTargets | None, split_name: str, force: bool
) -> None:
    """Writes one signal's cache of one split, or goes on with it, or finds it done, or mends it.

    A finished cache of more than is wanted (a larger k, further temperatures) is taken as it is. Shards
    whose bytes have changed are named and made anew.
    """
    if not force and (folder / "manifest.json").exists():
        kept = _kept_signal(manifest.read(folder, "cache")["inputs"], signal)
        signal = signal if kept is None else kept.covering(signal)  # only what is lacking will differ
    schema = dict(signal.schema(teacher.data["vocab_size"])) | pipeline.DIGEST
    inputs = config.flatten(signal, "signal") | teacher.consumed(teacher.split_digest(targets, split_name))
    inputs |= {"split": split_name, "buckets": list(teacher.experiment.buckets)}
    inputs |= {f"stored.{name}": field.dtype for name, field in schema.items()}
    if not _begin(folder, "records", inputs, force):
        return
    began = time.perf_counter()
    split = pipeline.Split(data_folder(teacher.workdir, targets), split_name)
    with runlog.progress(f"cache {folder.name}", len(split)) as bar:
        records = signal_records(teacher, split, signal, bar)
        digest = store.write(folder, "records", schema, len(split), records, RECORDS_PER_SHARD, teacher.writer)
    if digest is None:
        runlog.say(f"{folder}: this writer's shards are done; the last writer to finish completes the cache")
        return
    written = store.Store(folder, "records")
    tokens = sum(len(split.examples[i]["target"]) for i in range(len(split)))
    outputs = {"digest": digest, "records": len(written), "target_tokens": tokens, "bytes": written.bytes()}
    outputs["bytes_per_target_token"] = outputs["bytes"] / tokens
    manifest.finish(folder, "cache", outputs, time.perf_counter() - began)
    runlog.say(f"cache: {tokens} target tokens, {outputs['bytes_per_target_token']:.1f} bytes each; {folder}")


def signal_records(
    teacher: Teacher, split: pipeline.Split, signal: Signal, bar: Any
) -> Callable[[int, int], Iterator[Record]]:
    """(start, stop) -> the signal's records of those examples, for store.write."""
    parts = {"model": teacher.model, "signal": signal, "seed": teacher.experiment.seed}
    step = teacher.spread.spread(functools.partial(signal_step, **parts))

    def record(row: int, target: int, payload: Record) -> Record:
        return {name: values[row, :target] for name, values in payload.items()}

    return functools.partial(_records, teacher, split, step, record, bar)


def _kept_signal(inputs: Mapping[str, Any], wanted: Signal) -> Signal | None:
    """The signal that a cache was made for; None if it is of another class."""
    if inputs["signal"] != config.qualified_name(type(wanted), "signal"):
        return None
    fields = {field.name: inputs[f"signal.{field.name}"] for field in dataclasses.fields(wanted)}
    return type(wanted)(**{name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()})


def _begin(folder: Path, name: str, inputs: Mapping[str, Any], force: bool) -> bool:
    """Whether there is work to do; a finished store is looked through, and damaged shards are deleted."""
    if manifest.start(folder, "cache", inputs, force):
        return True
    damaged = store.remove_damaged(folder, name)
    if not damaged:
        runlog.say(f"cache: already written, {folder}")
        return False
    runlog.say(f"cache: damaged, made anew: {', '.join(str(path) for path in damaged)}")
    return True


def signal_step(
    params: Params, batch: Batch, *, model: Model, signal: Signal, seed: int, all_sum: Any = None
) -> Payload:
    """What the teacher says about each target of the batch, [B, T, ...] per field.

    What a signal draws depends on (seed, example, position) alone, so a shard made anew is the same.
    """
    del all_sum  # nothing is added up here
    hidden_BTD = model.apply(params, batch)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys_B = fold(jax.random.fold_in(jax.random.key(seed), 4), batch.index_B)
    keys_BT = jax.vmap(fold, (0, None))(keys_B, np.arange(hidden_BTD.shape[1]))
    hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    draw = lambda logits_NV, keys_N: signal.reduce(logits_NV, jax.random.wrap_key_data(keys_N))  # noqa: E731
    payload = map_head(draw, hidden_ND, model.head(params), jax.random.key_data(keys_BT.reshape(-1)))
    return {name: x.reshape(*hidden_BTD.shape[:2], *x.shape[1:]) for name, x in payload.items()}


def _records(
    teacher: Teacher, split: pipeline.Split, step: Any, record: Callable[..., Record], bar: Any, start: int, stop: int
) -> Iterator[Record]:
    """The records of examples start to stop - 1, in their order, whatever order the length buckets came in.

    Args:
      step: (params, batch) -> [B, ...] arrays.
      record: (row, target length, those arrays) -> the row's record.
    """
    spread, records = teacher.spread, {}
    for batch in pipeline.EvalBatches(split, teacher.experiment.buckets, BATCH, spread.devices, range(start, stop)):
        said = spread.gather(step(teacher.params, spread.shard(batch)))
        for row, i in enumerate(batch.index_B):
            if i >= 0:
                example, _ = split.read(i)
                made = record(row, len(example["target"]), said)
                records[int(i)] = made | {"digest": pipeline.example_digest(example)}
        bar.advance(int((batch.index_B >= 0).sum()))
    yield from (records[i] for i in range(start, stop))


def write_hypotheses(teacher: Teacher, beam: int, force: bool) -> Path:
    """Writes the teacher's beam of every training example to workdir/pseudo/beamN, whatever will be chosen of it."""
    folder, evaluation = teacher.workdir / "pseudo" / f"beam{beam}", teacher.experiment.evaluation
    decoding = {"length_penalty": evaluation.length_penalty, "length_ratio": evaluation.length_ratio}
    inputs = teacher.consumed(teacher.split_digest(None, "train")) | decoding
    inputs |= {"beam": beam, "split": "train", "buckets": list(teacher.experiment.buckets)}
    if not _begin(folder, "nbest", inputs, force):
        return folder
    began = time.perf_counter()
    split = pipeline.Split(teacher.workdir / "data", "train")
    step = functools.partial(nbest_step, model=teacher.model, beam=beam, evaluation=evaluation)
    schema = pseudo_targets.NBEST | pipeline.DIGEST

    def record(row: int, target: int, said: Record) -> Record:
        return pseudo_targets.pack_hypotheses(said["ids"][row], said["logp"][row], EOS)

    with runlog.progress(f"translate train, beam {beam}", len(split)) as bar:
        records = functools.partial(_records, teacher, split, teacher.spread.spread(step), record, bar)
        digest = store.write(folder, "nbest", schema, len(split), records, RECORDS_PER_SHARD, teacher.writer)
    if digest is None:
        raise KdError(f"{folder}: this writer's shards are done; run this once more when the other writers are done")
    manifest.finish(folder, "cache", {"digest": digest, "records": len(split)}, time.perf_counter() - began)
    return folder


def nbest_step(
    params: Params, batch: Batch, *, model: Model, beam: int, evaluation: Any, all_sum: Any = None
) -> Payload:
    """{"ids" [B, K, T], "logp" [B, K]}: hypotheses, best first, and their log-probabilities."""
    del all_sum  # nothing is added up here
    length = output_length(evaluation, batch.source_BS.shape[1])
    ends = {"start": START, "eos": EOS, "length": length, "beam": beam, "alpha": evaluation.length_penalty}
    found = decode.beam_search(model, params, batch.source_BS, batch.source_mask_BS, **ends)
    return {"ids": found.ids_BKT, "logp": found.scores_BK * decode.penalties(found.ids_BKT, evaluation.length_penalty)}


def write_targets(teacher: Teacher, targets: PseudoTargets, force: bool) -> None:
    """Writes workdir/pseudo/NAME: the training split with what the rule chooses of the hypotheses."""
    folder, experiment = data_folder(teacher.workdir, targets), teacher.experiment
    beams = manifest.read(write_hypotheses(teacher, targets.beam, force), "cache")["outputs"]["digest"]
    inputs = config.flatten(targets, "targets") | teacher.consumed(teacher.split_digest(None, "train"))
    if not manifest.start(folder, "cache", inputs | {"consumed.nbest": beams}, force):
        runlog.say(f"pseudo-targets: already written, {folder}")
        return
    began = time.perf_counter()
    split = pipeline.Split(teacher.workdir / "data", "train", {"nbest": _nbest(teacher.workdir, targets)})
    tokenizer = Tokenizer(teacher.workdir / "data" / "tokenizer.model")
    examples, kept = [], 0
    with runlog.progress(f"choose {targets.name}", len(split)) as bar:
        for i in range(len(split)):
            example, records = split.read(i)
            hypotheses = pseudo_targets.unpack_hypotheses(records["nbest"])
            kept += not hypotheses
            reference = tokenizer.decode(example["target"][:-1].tolist())
            closeness = functools.partial(_closeness, experiment.task, tokenizer, reference)
            # Where no hypothesis ended, the reference stays.
            chosen = targets.choose(hypotheses, records["nbest"]["logp"], closeness) if hypotheses else []
            for ids, weight in chosen or [(example["target"], 1.0)]:
                made = {"target": ids, "mask": np.ones(len(ids), bool), "weight": np.asarray([weight], np.float32)}
                examples.append(example | made)
            bar.advance(1)
    schema = experiment.task.schema() | pseudo_targets.WEIGHT
    digest = store.write(folder, "train", schema, len(examples), lambda start, stop: examples[start:stop])
    np.save(folder / "train.lengths.npy", pipeline.lengths_of(examples))
    outputs = {"digest": digest, "examples": len(examples), "references_kept": kept}
    manifest.finish(folder, "cache", outputs, time.perf_counter() - began)
    runlog.say(f"pseudo-targets: {len(examples)} examples, {kept} of them references (no hypothesis ended); {folder}")


def _closeness(task: Any, tokenizer: Tokenizer, reference: str, ids_T: np.ndarray) -> float:
    return task.closeness(tokenizer.decode(ids_T[:-1].tolist()), reference)


def _nbest(workdir: Path, targets: PseudoTargets) -> store.Store:
    return store.Store(workdir / "pseudo" / f"beam{targets.beam}", "nbest")
