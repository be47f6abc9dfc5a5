"""Import stored log-probabilities of a teacher elsewhere, in the place of a teacher that is trained here."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax import config
from kd_jax.artifacts import manifest
from kd_jax.artifacts.checkpoint import Checkpoints
from kd_jax.artifacts.manifest import IMPORT_PHASE, Folder
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches import store
from kd_jax.batches.on_policy import Rounds
from kd_jax.batches.pipeline import Split
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment
from kd_jax.runtime import progress
from kd_jax.signals.topk import TopK
from kd_jax.teaching.imported.base import (
    LogprobSource,
    RequiredSignal,
    required_round_signal,
    required_signal,
    required_validation_signal,
)
from kd_jax.teaching.imported.cache import CollectedSplit, check_complete, collect, write_cache
from kd_jax.teaching.imported.match import SpecialIds
from kd_jax.teaching.imported.readers.formats import FORMATS
from kd_jax.teaching.rounds import TEXTS
from kd_jax.tokenizers import base as tokenizers

SETTINGS = ("format", "temperature", "mode", "sequence")  # of a LogprobSource: how scores are read


def run(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    files: Sequence[Path],
    source: LogprobSource,
    force: bool = False,
    student: str = "",
) -> None:
    """Write the signal caches that `cache` would write, and workdir/teacher as a record of the teacher elsewhere.

    An audit is printed. Then the students train without a teacher's parameters; `teacher` and `cache` do nothing.

    Args:
      experiment: the experiment that the workdir was made with.
      workdir: the run's folder; its data must be prepared.
      files: files of one format with the training examples, and the validation examples if evaluation.cached_k is set;
        or with the texts of a student's round.
      source: how the files were made.
      force: import again.
      student: the student whose texts are in the files, for its first round without scores; "" for the data's examples.

    Raises:
      KdError: if a student needs more of a teacher, a trained teacher is in the workdir, a file cannot be read (names
        the record), too many targets are missing, or the mass outside the top k is needed and unknown.
    """
    source.check()
    required, data = required_signal(experiment), workdir.data.outputs()
    if source.sequence == "completion" and experiment.task.prompted and experiment.task.counted == "all":
        raise KdError(
            "--sequence: expected whole, since task.counted is all and prompts are targets too, got completion."
        )
    digests = {str(path): _digest(path) for path in files}
    if student:
        _import_round(experiment, workdir, files, source, force, student, digests)
        return
    name, source_inputs = teacher_digest(source, digests.values()), _source_inputs(source, digests, data)
    teacher = Folder(workdir.model(TEACHER).path, IMPORT_PHASE)
    splits: dict[str, RequiredSignal] = {}
    folders: dict[str, Folder] = {}
    signal_inputs: dict[str, Any] = {"evaluation.cached_k": experiment.evaluation.cached_k}
    if required:
        splits["train"], folders["train"] = required, _folder(workdir.cache("", required.signal.name))
        signal_inputs |= config.flatten(required.signal, "signal")
    if experiment.evaluation.cached_k:
        splits["validation"] = required_validation_signal(experiment, data["vocab_size"])
        folders["validation"] = _folder(workdir.validation_cache)
    if not splits:
        raise KdError(
            "--student: expected a student, since all that read the teacher learn in rounds and evaluation.cached_k "
            f"is 0, got none. Add --student {next(iter(_students_in_rounds(experiment)))}."
        )
    consumed = {f"consumed.split.{split}": data["splits"][split] for split in splits}
    rests = sorted(required.rests) if required else []
    if not teacher.begin(source_inputs | signal_inputs | consumed | {"rests": rests}, force) and not _damaged(folders):
        progress.log(f"import-logprobs: already done, {teacher.path}")
        return
    began = time.perf_counter()
    read = {split: (Split(workdir.data, split), one) for split, one in splits.items()}
    special = SpecialIds(data["start"], data["eos"], data["pad"])
    collected = collect(files, source, data["vocab_size"], special, read, workdir.path)
    figures = _audit(collected, source)
    for split, one in collected.items():
        k = one.required.signal.k if split == "train" else min(one.required.signal.k, one.audit.min_named)
        inputs = source_inputs | {"consumed.teacher": name, "consumed.split": data["splits"][split], "split": split}
        write_cache(folders[split], one, k, source, inputs, data["vocab_size"], force)
    tokenizers.copy(experiment.tokenizer, workdir.data, teacher.path)
    teacher.finish({"digest": name, "audit": figures}, time.perf_counter() - began)


def teacher_digest(source: LogprobSource, files: Iterable[str]) -> str:
    """Return the identity of a teacher elsewhere: files of these digests, read this way.

    Moved files, or another tolerance, do not change it.
    """
    settings = {field: getattr(source, field) for field in SETTINGS}
    return hashlib.blake2b(json.dumps([settings, sorted(files)]).encode(), digest_size=16).hexdigest()


def _source_inputs(source: LogprobSource, digests: Mapping[str, str], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest records of the files; `data` are the outputs of `prepare`."""
    inputs = {f"imported.{field}": value for field, value in dataclasses.asdict(source).items()}
    return inputs | {"imported.files": dict(digests), "consumed.tokenizer": data["tokenizer"]}


def _students_in_rounds(experiment: ResolvedExperiment) -> list[str]:
    return [name for name, recipe in experiment.students.items() if isinstance(recipe.targets, Rounds)]


def _import_round(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    files: Sequence[Path],
    source: LogprobSource,
    force: bool,
    student: str,
    digests: Mapping[str, str],
) -> None:
    """Write the cache of a student's first round without one; see `run`. `digests` are those of the files."""
    in_rounds, data, began = _students_in_rounds(experiment), workdir.data.outputs(), time.perf_counter()
    if student not in in_rounds:
        expected = f"one of {', '.join(in_rounds)}" if in_rounds else "a student with targets=Rounds()"
        raise KdError(f"--student: expected {expected}, got {student}. Name it, or leave --student out.")
    required = required_round_signal(experiment, student)
    _check_other_imports(experiment, workdir)
    number = _round_to_import(experiment, workdir, student, force)
    texts, cache = workdir.round(student, number), _round_folder(workdir, student, number)
    where = f"{student}, round {number + 1} ({texts.path / TEXTS})"
    name = teacher_digest(source, digests.values())
    _check_other_rounds(workdir, student, number, source, digests)
    if cache.finished() and not force:
        if cache.inputs()["consumed.scores"] != name:
            raise KdError(
                f"--student: expected a round without scores, got {where}, which has others. Run `student --only "
                f"{student}`, which goes on, or add --force to import it again."
            )
        if not _damaged({where: cache}):
            progress.log(f"import-logprobs: already done, {cache.path}")
            return
    special = SpecialIds(data["start"], data["eos"], data["pad"])
    read = {where: (Split(texts, "train"), required)}
    collected = collect(files, source, data["vocab_size"], special, read, workdir.path)[where]
    progress.print_result("\n".join(collected.audit.figures(FORMATS[source.format].normalised).lines(where)))
    check_complete(where, collected, source.missing)
    _record_teacher(experiment, workdir, source, time.perf_counter() - began)
    inputs = _source_inputs(source, digests, data) | {
        "consumed.scores": name,
        "consumed.split": texts.outputs()["digest"],
        "split": "train",
    }
    write_cache(cache, collected, required.signal.k, source, inputs, data["vocab_size"], force)


def _round_folder(workdir: Workdir, student: str, number: int) -> Folder:
    """Return the cache of a round as this phase writes it."""
    return _folder(workdir.round_cache(student, number, TopK.name))


def _round_to_import(experiment: ResolvedExperiment, workdir: Workdir, student: str, force: bool) -> int:
    """Return the number of the first round with texts and without scores, else of the last one with texts."""
    rule = experiment.students[student].targets
    assert isinstance(rule, Rounds)
    written = [number for number in range(rule.count) if workdir.round(student, number).finished()]
    if not written:
        raise KdError(f"--student: expected texts of {student} for a round, got none. Run `sample --only {student}`.")
    for number in written:
        if not _round_folder(workdir, student, number).finished():
            return number
    first_step = rule.first_steps(experiment.students[student].training.steps)[written[-1]]
    if force and (workdir.model(student).finished() or _steps_done(workdir, student) > first_step):
        raise KdError(
            f"--force: expected a round that {student} has not trained on, got round {written[-1] + 1}. Run `student "
            f"--force --only {student}` to train it from its first round."
        )
    return written[-1]


def _steps_done(workdir: Workdir, student: str) -> int:
    """Return the step of a student's last checkpoint."""
    with Checkpoints(workdir.model(student).path) as checkpoints:
        return checkpoints.latest_step() or 0


def _check_other_imports(experiment: ResolvedExperiment, workdir: Workdir) -> None:
    """Check that the teacher is elsewhere, and that the caches outside rounds are imported if there are any."""
    folder = workdir.model(TEACHER)
    if folder.finished() and not workdir.teacher_is_imported:
        raise KdError(
            f"{folder.path}: expected a teacher elsewhere beside --student, got one that was trained here. Choose "
            "another --workdir, or leave the scores of rounds to `student`."
        )
    needed = {"training": required_signal(experiment), "validation": experiment.evaluation.cached_k}
    splits = [split for split, need in needed.items() if need]
    if not folder.finished() and splits:
        raise KdError(
            f"--student: expected the scores of the {' and '.join(splits)} examples first, got no finished folder "
            f"{folder.path}. Run `import-logprobs` without --student; with --evaluation.cached-k 0 the validation "
            "examples are not needed."
        )


def _check_other_rounds(
    workdir: Workdir, student: str, number: int, source: LogprobSource, digests: Mapping[str, str]
) -> None:
    """Check that scores are not those of an earlier round, and are read as those of the first one."""
    for other in range(number):
        folder = _round_folder(workdir, student, other)
        if folder.finished() and sorted(folder.inputs().get("imported.files", {}).values()) == sorted(digests.values()):
            path = workdir.round(student, number).path / TEXTS
            raise KdError(
                f"{next(iter(digests))}: expected the scores of {path}, got the files of round {other + 1}. Score the "
                "texts of this round."
            )
    first = _round_folder(workdir, student, 0)
    if not number or not first.finished():
        return
    before = first.inputs()
    for field in SETTINGS:
        value, now = before.get(f"imported.{field}", "signals of a teacher here"), getattr(source, field)
        if value != now:
            raise KdError(
                f"--{field}: expected {value}, as in round 1 of {student}, got {now}. Score the texts as there, or run "
                f"`student --force --only {student}`."
            )


def _record_teacher(experiment: ResolvedExperiment, workdir: Workdir, source: LogprobSource, seconds: float) -> None:
    """Write workdir/teacher for a run that needs no scores but those of rounds, which belong to the rounds."""
    teacher = Folder(workdir.model(TEACHER).path, IMPORT_PHASE)
    if teacher.finished():
        return
    teacher.begin({**_source_inputs(source, {}, workdir.data.outputs()), "evaluation.cached_k": 0})
    tokenizers.copy(experiment.tokenizer, workdir.data, teacher.path)
    teacher.finish({"digest": teacher_digest(source, ()), "audit": {}}, seconds)


def _digest(path: Path) -> str:
    """Return the digest of a file's bytes; raise KdError if there is no such file."""
    if not path.is_file():
        raise KdError(f"{path}: expected a file of stored log-probabilities, got none. Check the path.")
    return manifest.file_digest(path)


def _folder(cache: Folder) -> Folder:
    """Return a cache's folder as this phase writes it."""
    return Folder(cache.path, IMPORT_PHASE, cache.student)


def _damaged(folders: Mapping[str, Folder]) -> bool:
    """Delete damaged shards of a finished import; return whether there were any."""
    damaged = [path for folder in folders.values() for path in store.remove_damaged(folder.path, "records")]
    if damaged:
        progress.log(f"import-logprobs: damaged files, to be written again: {', '.join(map(str, damaged))}")
    return bool(damaged)


def _audit(collected: Mapping[str, CollectedSplit], source: LogprobSource) -> dict[str, Any]:
    """Print the audit; return split -> figures, or raise KdError if too many targets are missing."""
    normalised = FORMATS[source.format].normalised
    figures = {split: one.audit.figures(normalised) for split, one in collected.items()}
    for split in collected:
        progress.print_result("\n".join(figures[split].lines(split)))
    if "train" in collected:
        check_complete("train", collected["train"], source.missing)
    if "validation" in collected and collected["validation"].audit.missing():
        one = collected["validation"].audit
        raise KdError(
            f"evaluation.cached_k: expected all {one.targets} targets of the validation split in the files, got "
            f"{one.covered}. Add the missing ones, or run `prepare` again with --evaluation.cached-k 0, which redoes "
            "nothing."
        )
    return {split: dataclasses.asdict(one) for split, one in figures.items()}
