"""What the teacher writes of the training split, and the splits made of it (Kim & Rush 2016, arXiv 1606.07947)."""

import functools
import time
from typing import Any

import numpy as np

from kd_jax import config
from kd_jax.artifacts import runlog
from kd_jax.artifacts.manifest import Folder
from kd_jax.data import pipeline, pseudo_targets, store
from kd_jax.data.layouts import Row
from kd_jax.data.pseudo_targets import PseudoTargets
from kd_jax.data.tokenizers import EOS, Tokenizer
from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.text import output_length
from kd_jax.errors import KdError
from kd_jax.models.base import Model
from kd_jax.tasks.base import ENCODED
from kd_jax.teaching import base
from kd_jax.teaching.base import Record, Teacher
from kd_jax.types import Inputs, Params, Payload


def write_hypotheses(teacher: Teacher, beam: int, force: bool) -> Folder:
    """Writes the teacher's beam of every training example, whatever will be chosen of it."""
    folder, evaluation = teacher.workdir.hypotheses(beam), teacher.experiment.evaluation
    decoding = {"length_penalty": evaluation.length_penalty, "length_ratio": evaluation.length_ratio, "beam": beam}
    if not base.begin_store(folder, "nbest", teacher.consumed(None, "train") | decoding, force):
        return folder
    began = time.perf_counter()
    split = pipeline.Split(teacher.workdir.data, "train")
    step = functools.partial(nbest_step, model=teacher.model, beam=beam, evaluation=evaluation)
    compiled = teacher.devices.compile(step)

    def say(batches: pipeline.EvalBatches, number: int) -> Record:
        prompts = teacher.devices.cut(batches.prompts(number))
        return teacher.devices.gather(compiled(teacher.params, prompts))

    def record(row: Row, b: int, said: Record) -> Record:
        return pseudo_targets.pack_hypotheses(said["ids"][b], said["logp"][b], EOS)

    schema = pseudo_targets.NBEST | pipeline.DIGEST
    with runlog.progress(f"write train, beam {beam}", len(split)) as bar:
        make = base.records(teacher, split, teacher.experiment.shapes, say, record, bar)
        digest = store.write(folder.path, "nbest", schema, len(split), make, base.RECORDS_PER_SHARD, teacher.writer)
    if digest is None:
        raise KdError(
            f"{folder.path}: this writer's shards are done; run this once more when the other writers are done"
        )
    folder.finish({"digest": digest, "records": len(split)}, time.perf_counter() - began)
    return folder


def nbest_step(params: Params, inputs: Inputs, *, model: Model, beam: int, evaluation: Any) -> Payload:
    """{"ids" [B, K, T], "logp" [B, K]}: hypotheses, best first, and their log-probabilities."""
    ends = {"eos": EOS, "length": output_length(evaluation, inputs), "alpha": evaluation.length_penalty}
    hypotheses = beam_search(model, params, inputs, beam=beam, **ends)
    return {"ids": hypotheses.ids_BKT, "logp": hypotheses.logp_BK}


def write_targets(teacher: Teacher, targets: PseudoTargets, force: bool) -> None:
    """Writes the training split with what the rule chooses of the hypotheses."""
    folder, experiment = teacher.workdir.split(targets.name), teacher.experiment
    beams = write_hypotheses(teacher, targets.beam, force)
    inputs = config.flatten(targets, "targets") | teacher.consumed(None, "train")
    if not folder.begin(inputs | {"consumed.nbest": beams.outputs()["digest"]}, force):
        runlog.say(f"pseudo-targets: already written, {folder.path}")
        return
    began = time.perf_counter()
    split = pipeline.Split(teacher.workdir.data, "train", {"nbest": store.Store(beams.path, "nbest")})
    tokenizer = Tokenizer(teacher.workdir.data.file("tokenizer.model"))
    examples, references = [], 0
    with runlog.progress(f"choose {targets.name}", len(split)) as bar:
        for i in range(len(split)):
            row = split.read(i)
            hypotheses = pseudo_targets.unpack_hypotheses(row.records["nbest"])
            references += not hypotheses
            reference = tokenizer.decode(row.encoded.completion[row.encoded.counts][:-1].tolist())
            closeness = functools.partial(_closeness, experiment.task, tokenizer, reference)
            # Where no hypothesis ended, the reference stays.
            chosen = targets.choose(hypotheses, row.records["nbest"]["logp"], closeness) if hypotheses else []
            written = [(row.encoded._replace(completion=ids, counts=np.ones(len(ids), bool)), w) for ids, w in chosen]
            for encoded, weight in written or [(row.encoded, 1.0)]:
                examples.append(encoded._asdict() | {"weight": np.asarray([weight], np.float32)})
            bar.advance(1)
    schema = ENCODED | pseudo_targets.WEIGHT
    digest = store.write(folder.path, "train", schema, len(examples), lambda start, stop: examples[start:stop])
    np.save(folder.path / "train.lengths.npy", pipeline.lengths_of(examples))
    outputs = {"digest": digest, "examples": len(examples), "references_kept": references}
    folder.finish(outputs, time.perf_counter() - began)
    runlog.say(
        f"pseudo-targets: {len(examples)} examples, {references} of them references (no hypothesis ended); "
        f"{folder.path}"
    )


def _closeness(task: Any, tokenizer: Tokenizer, reference: str, ids_T: np.ndarray) -> float:
    return task.closeness(tokenizer.decode(ids_T[:-1].tolist()), reference)
