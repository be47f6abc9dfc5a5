"""Import stored log-probabilities of a teacher elsewhere, in the place of a teacher that is trained here."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax import config
from kd_jax.artifacts import manifest
from kd_jax.artifacts.manifest import IMPORT_PHASE, Folder
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches import store
from kd_jax.batches.pipeline import Split
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment
from kd_jax.runtime import progress
from kd_jax.teaching.imported.base import LogprobSource, required_signal, required_validation_signal
from kd_jax.teaching.imported.cache import CollectedSplit, check_complete, collect, write_cache
from kd_jax.teaching.imported.match import SpecialIds
from kd_jax.teaching.imported.readers.formats import FORMATS
from kd_jax.tokenizers import base as tokenizers


def run(
    experiment: ResolvedExperiment, workdir: Workdir, files: Sequence[Path], source: LogprobSource, force: bool = False
) -> None:
    """Write the signal caches that `cache` would write, and workdir/teacher as a record of the teacher elsewhere.

    An audit is printed. Then the students train without a teacher's parameters; `teacher` and `cache` do nothing.

    Args:
      experiment: the experiment that the workdir was made with.
      workdir: the run's folder; its data must be prepared.
      files: files of one format with the training examples, and the validation examples if evaluation.cached_k is set.
      source: how the files were made.
      force: import again.

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
    teacher = Folder(workdir.model(TEACHER).path, IMPORT_PHASE)
    # The teacher's identity: these files, read this way. Moved files or another tolerance do not change it.
    identity = {
        "format": source.format,
        "temperature": source.temperature,
        "mode": source.mode,
        "sequence": source.sequence,
    }
    name = hashlib.blake2b(json.dumps([identity, sorted(digests.values())]).encode(), digest_size=16).hexdigest()
    source_inputs = {f"imported.{field}": value for field, value in dataclasses.asdict(source).items()}
    source_inputs |= {"imported.files": digests, "consumed.tokenizer": data["tokenizer"]}
    signal_inputs = config.flatten(required.signal, "signal") | {"evaluation.cached_k": experiment.evaluation.cached_k}
    splits = {"train": required}
    folders = {"train": _folder(workdir.cache("", required.signal.name))}
    if experiment.evaluation.cached_k:
        splits["validation"] = required_validation_signal(experiment, data["vocab_size"])
        folders["validation"] = _folder(workdir.validation_cache)
    consumed = {f"consumed.split.{split}": data["splits"][split] for split in splits}
    if not teacher.begin(
        source_inputs | signal_inputs | consumed | {"rests": sorted(required.rests)}, force
    ) and not _damaged(folders):
        progress.log(f"import-logprobs: already done, {teacher.path}")
        return
    began = time.perf_counter()
    read = {split: (Split(workdir.data, split), one) for split, one in splits.items()}
    special = SpecialIds(data["start"], data["eos"], data["pad"])
    collected = collect(files, source, data["vocab_size"], special, read, workdir.path)
    figures = _audit(collected, source)
    for split, one in collected.items():
        k = required.signal.k if split == "train" else min(one.required.signal.k, one.audit.min_named)
        inputs = source_inputs | {"consumed.teacher": name, "consumed.split": data["splits"][split], "split": split}
        write_cache(folders[split], one, k, source, inputs, data["vocab_size"], force)
    tokenizers.copy(experiment.tokenizer, workdir.data, teacher.path)
    teacher.finish({"digest": name, "audit": figures}, time.perf_counter() - began)


def _digest(path: Path) -> str:
    """Return the digest of a file's bytes; raise KdError if there is no such file."""
    if not path.is_file():
        raise KdError(f"{path}: expected a file of stored log-probabilities, got none. Check the path.")
    return manifest.file_digest(path)


def _folder(cache: Folder) -> Folder:
    """Return a cache's folder as this phase writes it."""
    return Folder(cache.path, IMPORT_PHASE)


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
    check_complete("train", collected["train"], source.missing)
    if "validation" in collected and collected["validation"].audit.missing():
        one = collected["validation"].audit
        raise KdError(
            f"evaluation.cached_k: expected all {one.targets} targets of the validation split in the files, got "
            f"{one.covered}. Add the missing ones, or run `prepare` again with --evaluation.cached-k 0, which redoes "
            "nothing."
        )
    return {split: dataclasses.asdict(one) for split, one in figures.items()}
