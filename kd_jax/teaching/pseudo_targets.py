"""What the teacher writes of a split, and the training splits made of it (Kim & Rush 2016, arXiv 1606.07947)."""

import array
import functools
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np

from kd_jax import config
from kd_jax.artifacts import manifest
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline, store, targets
from kd_jax.batches.layouts import Segment
from kd_jax.batches.targets import PseudoTargets
from kd_jax.decoding.base import suppress
from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.text import output_length
from kd_jax.errors import KdError
from kd_jax.models.base import Architecture, Model
from kd_jax.runtime import hosts, progress
from kd_jax.tasks.base import ENCODED, Decoding, Encoded, completed
from kd_jax.teaching import base
from kd_jax.teaching.base import Record, Teacher
from kd_jax.tokenizers import base as tokenizers
from kd_jax.types import Inputs, Params, Payload

Target = tuple[Encoded, float]  # an example and its weight


def write_hypotheses(teacher: Teacher, split_name: str, beam: int, force: bool) -> Folder:
    """Writes the teacher's beam of every example of a split, whatever will be chosen of it."""
    folder, decoding = teacher.workdir.hypotheses(split_name, beam), teacher.experiment.task.decoding
    settings = {"length_penalty": decoding.length_penalty, "length_ratio": decoding.length_ratio}
    settings |= {"length": decoding.length, "beam": beam, "prompts": list(teacher.experiment.prompt_widths)}
    if not base.begin_store(folder, "nbest", teacher.consumed(None, split_name) | settings, force):
        return folder
    began = time.perf_counter()
    split = pipeline.Split(teacher.workdir.data, split_name)
    architecture = teacher.experiment.teacher.model
    parts = {"model": teacher.model, "architecture": architecture, "beam": beam, "decoding": decoding}
    parts |= {"eos": teacher.data["eos"], "suppress_tokens": teacher.tokenizer.suppress_tokens}
    compiled = teacher.devices.compile(functools.partial(nbest_step, **parts))

    def batches_of(indices: range) -> pipeline.PromptBatches:
        prompts = [split.read(i).encoded.prompt for i in indices]
        widths, devices = teacher.experiment.prompt_widths, teacher.devices.count
        return pipeline.PromptBatches(prompts, teacher.layout, widths, base.BATCH, devices, indices)

    def say(prompts: Inputs) -> Record:
        return teacher.devices.to_host(compiled(teacher.params, teacher.devices.shard(prompts)))

    def record(example: Segment, b: int, said: Record) -> Record:
        return targets.pack_hypotheses(said["ids"][b], said["logp"][b], teacher.data["eos"])

    schema = targets.NBEST | pipeline.DIGEST
    with progress.bar(f"write {split_name}, beam {beam}", len(split)) as bar:
        make = base.records(split, batches_of, say, record, bar)
        digest = base.write_store(teacher, folder, "nbest", schema, len(split), make)
    if digest is None:
        raise KdError(
            f"{folder.path}: this writer's shards are done; run this once more when the other writers are done"
        )
    folder.finish({"digest": digest, "records": len(split)}, time.perf_counter() - began)
    return folder


def nbest_step(
    params: Params,
    inputs: Inputs,
    *,
    model: Model,
    architecture: Architecture,
    beam: int,
    decoding: Decoding,
    eos: int,
    suppress_tokens: tuple[int, ...] = (),
) -> Payload:
    """{"ids" [B, K, T], "logp" [B, K]}: hypotheses, best first, and their log-probabilities."""
    ends = {"eos": eos, "length": output_length(decoding, architecture, inputs), "alpha": decoding.length_penalty}
    hypotheses = beam_search(suppress(model, suppress_tokens), params, inputs, beam=beam, **ends)
    return {"ids": hypotheses.ids_BKT, "logp": hypotheses.logp_BK}


def write_targets(teacher: Teacher, targets: PseudoTargets, force: bool) -> None:
    """Writes the training split with what the rule chooses of the hypotheses."""
    folder, data = teacher.workdir.split(targets.name), teacher.data
    targets.check_splits(data["splits"])
    beams = {split: write_hypotheses(teacher, split, targets.beam, force) for split in targets.splits}
    inputs = config.flatten(targets, "targets") | teacher.consumed(None, "train")
    inputs |= {f"consumed.nbest.{split}": beam.outputs()["digest"] for split, beam in beams.items()}
    if not folder.begin(inputs, force):
        progress.log(f"pseudo-targets: already written, {folder.path}")
        return
    hosts.run_on_main(lambda: _write_chosen(teacher, targets, beams, folder))


def _write_chosen(teacher: Teacher, targets: PseudoTargets, beams: Mapping[str, Folder], folder: Folder) -> None:
    began = time.perf_counter()
    lengths, without = array.array("i"), 0  # without: examples that no hypothesis ended for

    def examples() -> Iterator[Target]:
        nonlocal without
        if "train" not in targets.splits:
            references = pipeline.Split(teacher.workdir.data, "train")
            yield from ((references.read(i).encoded, 1.0) for i in range(len(references)))
        for split, beam in beams.items():
            without += yield from _chosen(teacher, targets, split, beam)

    def records() -> Iterator[Record]:
        for encoded, weight in examples():
            lengths.extend((len(encoded.prompt), len(encoded.completion)))
            yield encoded._asdict() | {"weight": np.asarray([weight], np.float32)}

    digest = store.write_all(folder.path, "train", ENCODED | targets.WEIGHT, records())
    lengths_N2 = np.asarray(lengths, np.int32).reshape(-1, 2)
    manifest.write_array(folder.path / "train.lengths.npy", lengths_N2)
    folder.finish({"digest": digest, "examples": len(lengths_N2), "unended": without}, time.perf_counter() - began)
    progress.log(
        f"pseudo-targets: {len(lengths_N2)} examples; of {without} no hypothesis ended, so their references stay, "
        f"or, where they have none, they are left out; {folder.path}"
    )


def _chosen(teacher: Teacher, targets: PseudoTargets, split_name: str, beam: Folder) -> Generator[Target, None, int]:
    """Examples of a split with the teacher's targets and their weights; returns how many have no ended hypothesis."""
    task, tokenizer = teacher.experiment.task, teacher.tokenizer
    split = pipeline.Split(teacher.workdir.data, split_name, {"nbest": store.Store(beam.path, "nbest")})
    unended = 0
    with progress.bar(f"choose {targets.name}", len(split)) as bar:
        for i in range(len(split)):
            example = split.read(i)
            encoded, prompt = example.encoded, example.encoded.prompt
            hypotheses = targets.unpack_hypotheses(example.records["nbest"])
            if hypotheses:
                reference = tokenizer.decode(encoded.completion[len(tokenizer.forced_prefix) : -1].tolist())
                closeness = functools.partial(_closeness, task, tokenizer, reference)
                for ids, weight in targets.choose(hypotheses, example.records["nbest"]["logp"], closeness):
                    yield completed(prompt, encoded.counts[: len(prompt)], tokenizer.forced_prefix, ids), weight
            elif len(encoded.completion):
                yield encoded, 1.0
            unended += not hypotheses
            bar.advance(1)
    return unended


def _closeness(task: Any, tokenizer: tokenizers.Tokenizer, reference: str, ids_T: np.ndarray) -> float:
    return task.closeness(tokenizer.decode(ids_T[:-1].tolist()), reference)
