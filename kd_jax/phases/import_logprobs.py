"""Take what a teacher elsewhere said of the examples out of files, in the place of one that is trained here."""

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
from kd_jax.teaching.imported import audit
from kd_jax.teaching.imported.base import LogprobSource, wanted_of, wanted_of_validation
from kd_jax.teaching.imported.cache import Collected, collect, refuse_incomplete, write
from kd_jax.teaching.imported.match import Marks
from kd_jax.teaching.imported.readers.formats import FORMATS
from kd_jax.tokenizers import base as tokenizers


def run(experiment: ResolvedExperiment, workdir: Workdir, files: Sequence[Path], source: LogprobSource, force: bool = False) -> None:
    """Leaves the signal caches that `cache` would leave, and workdir/teacher as the name of the teacher elsewhere.

    An audit is shown. The students then train without a trained teacher; `teacher` and `cache` have nothing to do.

    Args:
      experiment: as the workdir keeps it; its data must be prepared.
      workdir, force: as every phase's.
      files: of one format, with the training examples, and the validation examples where evaluation.cached_k asks.
      source: how they came to be.

    Raises:
      KdError: for a student that needs more of a teacher, a trained teacher that is here, a file that cannot be read
        (names the record), too much that is missing, or a rest that is needed and unknown.
    """
    source.check()
    wanted, data = wanted_of(experiment), workdir.data.outputs()
    if source.sequence == "completion" and experiment.task.prompted and experiment.task.counted == "all":
        raise KdError("--sequence completion: task.counted is all, so prompts are targets too; wanted --sequence whole")
    digests = {str(path): _digest(path) for path in files}
    teacher = Folder(workdir.model(TEACHER).path, IMPORT_PHASE)
    # Who the teacher is: these files, read this way; a move of the files or a new tolerance makes no other.
    told = {name: vars(source)[name] for name in ("format", "temperature", "mode", "sequence")}
    name = hashlib.blake2b(json.dumps([told, sorted(digests.values())]).encode(), digest_size=16).hexdigest()
    stated = {f"imported.{field}": value for field, value in dataclasses.asdict(source).items()}
    stated |= {"imported.files": digests, "consumed.tokenizer": data["tokenizer"]}
    asked = config.flatten(wanted.signal, "signal") | {"evaluation.cached_k": experiment.evaluation.cached_k}
    splits = {"train": wanted}
    folders = {"train": _folder(workdir.cache("", wanted.signal.name))}
    if experiment.evaluation.cached_k:
        splits["validation"] = wanted_of_validation(experiment, data["vocab_size"])
        folders["validation"] = _folder(workdir.validation_cache)
    consumed = {f"consumed.split.{split}": data["splits"][split] for split in splits}
    if not teacher.begin(stated | asked | consumed | {"rests": sorted(wanted.rests)}, force) and not _damaged(folders):
        progress.log(f"import-logprobs: already done, {teacher.path}")
        return
    began = time.perf_counter()
    read = {split: (Split(workdir.data, split), one) for split, one in splits.items()}
    marks = Marks(data["start"], data["eos"], data["pad"])
    collected = collect(files, source, data["vocab_size"], marks, read, workdir.path)
    figures = _audited(collected, source)
    for split, one in collected.items():
        k = wanted.signal.k if split == "train" else min(one.wanted.signal.k, one.audit.fewest)
        inputs = stated | {"consumed.teacher": name, "consumed.split": data["splits"][split], "split": split}
        write(folders[split], one, k, source, inputs, data["vocab_size"], force)
    tokenizers.copy(experiment.tokenizer, workdir.data, teacher.path)
    teacher.finish({"digest": name, "audit": figures}, time.perf_counter() - began)


def _digest(path: Path) -> str:
    """Of a file's bytes; raises KdError where there is none."""
    if not path.is_file():
        raise KdError(f"{path}: no such file; wanted files of stored log-probabilities")
    return manifest.file_digest(path)


def _folder(cache: Folder) -> Folder:
    """A cache's folder as this phase's."""
    return Folder(cache.path, IMPORT_PHASE)


def _damaged(folders: Mapping[str, Folder]) -> bool:
    """Whether a shard of a finished import is not as it was written; such are deleted, to be made anew."""
    damaged = [path for folder in folders.values() for path in store.remove_damaged(folder.path, "records")]
    if damaged:
        progress.log(f"import-logprobs: damaged, made anew: {', '.join(map(str, damaged))}")
    return bool(damaged)


def _audited(collected: Mapping[str, Collected], source: LogprobSource) -> dict[str, Any]:
    """Split -> figures; they are shown, and only then a split that too little is said of is refused."""
    normalised = FORMATS[source.format].normalised
    figures = {split: one.audit.figures(normalised) for split, one in collected.items()}
    for split in collected:
        progress.print_result("\n".join(audit.lines(split, figures[split])))
    refuse_incomplete("train", collected["train"], source.missing)
    if "validation" in collected and collected["validation"].audit.missing():
        one = collected["validation"].audit
        raise KdError(
            f"evaluation.cached_k: wants all of the validation split, and the files say nothing of "
            f"{one.targets - one.said} of its {one.targets} targets; add them, or `prepare` once more with "
            "--evaluation.cached-k 0 (which prepares nothing anew)"
        )
    return figures
