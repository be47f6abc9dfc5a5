"""Sequence-level distillation: the teacher's hypotheses of a split, and training splits made of them.

Kim and Rush 2016, arXiv 1606.07947.
"""

import array
import functools
import time
from collections.abc import Generator, Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from kd_jax import config
from kd_jax.artifacts import manifest
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline, store
from kd_jax.batches.layouts import Segment
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE
from kd_jax.batches.targets import (
    NBEST,
    WEIGHT,
    PseudoTargets,
    TrainTargets,
    pack_hypotheses,
    unpack_hypotheses,
)
from kd_jax.decoding.base import is_end, suppress
from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.text import TextTokens, output_length
from kd_jax.errors import KdError
from kd_jax.models.base import Architecture, Model
from kd_jax.provenance import input_fields
from kd_jax.runtime import hosts, progress
from kd_jax.tasks.base import ENCODED, Decoding, Encoded, append_completion
from kd_jax.teaching.records import Record, begin_store, infer_records, write_records
from kd_jax.teaching.teacher import Teacher
from kd_jax.types import Inputs, Params, Payload
from kd_jax.user_code import code_digests

DECODING_FIELDS = (  # that decide hypotheses
    "length_penalty",
    "length_ratio",
    "length",
    "min_length",
    "no_repeat_ngram",
    "no_source_ngram",
    "sampling.repetition_penalty",
)


def write_hypotheses(teacher: Teacher, split_name: str, beam: int, force: bool) -> Folder:
    """Write the teacher's n-best list of every example of a split; return the folder.

    The list does not depend on the rule that chooses targets from it.
    """
    experiment, data = teacher.experiment, teacher.data
    folder, decoding = teacher.workdir.hypotheses(split_name, beam), experiment.task.decoding
    fields = input_fields(experiment)
    read = ("prompt_buckets", *(f"task.decoding.{field}" for field in DECODING_FIELDS))
    inputs = (
        teacher.manifest_inputs(TrainTargets(), split_name) | {name: fields[name] for name in read} | {"beam": beam}
    )
    if not begin_store(folder, "nbest", inputs, force):
        return folder
    start_time = time.perf_counter()
    split = pipeline.Split(teacher.workdir.data, split_name)
    step = functools.partial(
        nbest_step,
        model=teacher.model,
        architecture=experiment.teacher.model,
        beam=beam,
        decoding=decoding,
        tokens=TextTokens.of(teacher.tokenizer),
    )
    compiled = teacher.devices.compile(step)

    def infer(prompts: Inputs) -> Record:
        return teacher.devices.to_host(compiled(teacher.params, teacher.devices.shard(prompts)))

    def to_record(example: Segment, b: int, outputs: Record) -> Record:
        return pack_hypotheses(outputs["ids"][b], outputs["logp"][b], data["eos"])

    with progress.bar(f"write {split_name}, beam {beam}", len(split)) as bar:

        def make(start: int, stop: int) -> Iterator[Record]:
            indices = range(start, stop)
            prompts, widths = [split.read(i).encoded.prompt for i in indices], experiment.prompt_widths
            batches = pipeline.PromptBatches(
                prompts, teacher.layout, widths, INFERENCE_BATCH_SIZE, teacher.devices.count, indices
            )
            return infer_records(split, indices, batches, infer, to_record, bar)

        digest = write_records(teacher, folder, "nbest", NBEST | pipeline.DIGEST, len(split), make)
    if digest is None:
        raise KdError(f"{folder.path}: expected the shards of all writers, got some. Run the command again later.")
    folder.finish({"digest": digest, "records": len(split)}, time.perf_counter() - start_time)
    return folder


def nbest_step(
    params: Params,
    inputs: Inputs,
    *,
    model: Model,
    architecture: Architecture,
    beam: int,
    decoding: Decoding,
    tokens: TextTokens,
) -> Payload:
    """Return {"ids" [B, K, T], "logp" [B, K]}: hypotheses, best first, and their log-probabilities.

    Every end token becomes the first one, with which students' targets end. No end is forced: a text that is cut off is
    no target.
    """
    hypotheses = beam_search(
        suppress(model, tokens.suppress_tokens),
        params,
        inputs,
        eos=tokens.ends,
        length=output_length(decoding, architecture, inputs),
        beam=beam,
        alpha=decoding.length_penalty,
        rules=tokens._replace(force_end=False).rules(decoding),
    )
    ids_BKT = jnp.where(is_end(hypotheses.ids_BKT, tokens.ends), tokens.ends[0], hypotheses.ids_BKT)
    return {"ids": ids_BKT, "logp": hypotheses.logp_BK}


def write_targets(teacher: Teacher, targets: TrainTargets, force: bool) -> None:
    """Write the training split with the targets that the rule chooses from the hypotheses."""
    folder, rule = teacher.workdir.split(targets.name), targets.pseudo
    assert rule is not None
    splits = targets.splits(teacher.data["splits"])
    nbest_folders = {split: write_hypotheses(teacher, split, rule.beam, force) for split in splits}
    inputs = config.flatten(rule, "targets") | teacher.manifest_inputs(TrainTargets(), "train")
    inputs |= {"references": targets.references} if targets.references else {}
    inputs |= {f"consumed.nbest.{split}": nbest.outputs()["digest"] for split, nbest in nbest_folders.items()}
    inputs |= code_digests(rule, teacher.experiment.task)  # the task's similarity chooses among hypotheses
    if not folder.begin(inputs, force):
        progress.log(f"pseudo-targets: already written, {folder.path}")
        return
    hosts.run_on_main(lambda: _write_split(teacher, rule, targets.references, nbest_folders, folder))


def _write_split(
    teacher: Teacher, rule: PseudoTargets, references: int, nbest_folders: Mapping[str, Folder], folder: Folder
) -> None:
    start_time = time.perf_counter()
    lengths, without_hypothesis = array.array("i"), 0
    has_reference_N = pipeline.references_mask_of(teacher.workdir.data, references)

    def examples() -> Iterator[tuple[Encoded, float]]:
        nonlocal without_hypothesis
        if rule.of == "unlabelled":
            labelled = pipeline.with_references(teacher.workdir.data, references)
            yield from ((labelled.read(i).encoded, 1.0) for i in range(len(labelled)))
        for name, nbest in nbest_folders.items():
            mask_N = None  # of the examples to write targets for
            if name == "train" and rule.of != "both":
                mask_N = has_reference_N if rule.of == "train" else ~has_reference_N
            split = pipeline.Split(teacher.workdir.data, name, {"nbest": store.Store(nbest.path, "nbest")}, mask_N)
            with progress.bar(f"choose targets of {name}", len(split)) as bar:
                chosen = _choose_targets(teacher, rule, split, has_reference_N if name == "train" else None, bar)
                without_hypothesis += yield from chosen

    def records() -> Iterator[Record]:
        for encoded, weight in examples():
            lengths.extend((len(encoded.prompt), len(encoded.completion)))
            yield encoded._asdict() | {"weight": np.asarray([weight], np.float32)}

    digest = store.write_stream(folder.path, "train", ENCODED | WEIGHT, records())
    lengths_N2 = np.asarray(lengths, np.int32).reshape(-1, 2)
    manifest.write_array(folder.path / "train.lengths.npy", lengths_N2)
    outputs = {"digest": digest, "examples": len(lengths_N2), "without_hypothesis": without_hypothesis}
    folder.finish(outputs, time.perf_counter() - start_time)
    progress.log(
        f"pseudo-targets: {len(lengths_N2)} examples; {without_hypothesis} without a finished hypothesis (these keep "
        f"their references; those without one are dropped); {folder.path}"
    )


def _choose_targets(
    teacher: Teacher, rule: PseudoTargets, split: pipeline.Split, has_reference_N: np.ndarray | None, bar: progress.Bar
) -> Generator[tuple[Encoded, float], None, int]:
    """Yield (example with a chosen target, weight); return how many examples have no finished hypothesis.

    `has_reference_N` says which examples of the whole split keep their reference then, None for none.
    """
    task, tokenizer, without_hypothesis = teacher.experiment.task, teacher.tokenizer, 0
    for i in range(len(split)):
        example = split.read(i)
        encoded, prompt = example.encoded, example.encoded.prompt
        hypotheses = unpack_hypotheses(example.records["nbest"])
        if hypotheses:
            reference = tokenizer.decode(encoded.completion[len(tokenizer.forced_prefix) : -1].tolist())

            def closeness(ids_T: np.ndarray, reference: str = reference) -> float:
                return task.similarity(tokenizer.decode(ids_T[:-1].tolist()), reference)

            for ids, weight in rule.choose(hypotheses, example.records["nbest"]["logp"], closeness):
                yield append_completion(prompt, encoded.counts[: len(prompt)], tokenizer.forced_prefix, ids), weight
        elif has_reference_N is not None and has_reference_N[example.index]:
            yield encoded, 1.0
        without_hypothesis += not hypotheses
        bar.advance(1)
    return without_hypothesis
