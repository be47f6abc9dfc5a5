"""Signal caches from files of log-probabilities: read once, matched, audited, written in the split's order."""

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from kd_jax import config
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline, store
from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.teaching.imported.audit import Audit
from kd_jax.teaching.imported.base import LogprobSource, RequiredSignal
from kd_jax.teaching.imported.match import ExampleIndex, SpecialIds, TargetLogprobs, target_logprobs
from kd_jax.teaching.imported.readers.base import NO_TOKEN, LogprobRecord, check_record
from kd_jax.teaching.imported.readers.formats import FORMATS
from kd_jax.teaching.imported.top_k import check_rests_known, top_k_fields
from kd_jax.teaching.records import RECORDS_PER_SHARD, Record, begin_store
from kd_jax.teaching.signal_cache import store_outputs


class CollectedSplit(NamedTuple):
    """The log-probabilities of one split, collected from the files.

    Attributes:
      index: the examples by their token ids.
      required: the signal that is read.
      audit: of the records that were read.
      offsets: example's number -> where its TargetLogprobs stand in `file`, a temporary file without a name.
    """

    split: pipeline.Split
    index: ExampleIndex
    required: RequiredSignal
    audit: Audit
    offsets: dict[int, int]
    file: BinaryIO

    def targets(self, i: int) -> np.ndarray:
        """Return the positions of example i's targets that count, among the ids by which it is found."""
        return self.index.targets(self.split.read(i).encoded)

    def load(self, i: int) -> TargetLogprobs:
        """Return the log-probabilities of example i; nothing is named where the files do not have it."""
        if i not in self.offsets:
            count = len(self.targets(i))
            return TargetLogprobs(np.full((count, 1), NO_TOKEN, np.int32), np.full((count, 1), -np.inf, np.float32))
        self.file.seek(self.offsets[i])
        return TargetLogprobs(np.load(self.file), np.load(self.file))

    def save(self, i: int, logprobs: TargetLogprobs) -> None:
        """Append the log-probabilities of example i to the file."""
        self.offsets[i] = self.file.seek(0, 2)
        for array in logprobs:
            np.save(self.file, array)


def collect(
    files: Sequence[Path],
    source: LogprobSource,
    vocab_size: int,
    special: SpecialIds,
    splits: Mapping[str, tuple[pipeline.Split, RequiredSignal]],
    scratch: Path,
) -> dict[str, CollectedSplit]:
    """Read all files once; return name -> collected split.

    `splits` are name -> (split, the signal that is read). `scratch` is a folder with room for a temporary file.
    """
    collected = {}
    for name, (split, required) in splits.items():
        index, audit = ExampleIndex(split, source.sequence, special), Audit(len(split), split.count_targets())
        file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # it stays open as long as the collected split
        collected[name] = CollectedSplit(split, index, required, audit, {}, file)
    file_format, count, unmatched = FORMATS[source.format], 0, None
    with progress.bar("read log-probabilities", len(files)) as bar:
        for path in files:
            for record in file_format.read(path):
                count += 1
                check_record(record, vocab_size, file_format.normalised, source.sum_error)
                # A list: the record is added to every split that has it.
                if not any([_add_record(one, record, vocab_size, source) for one in collected.values()]):
                    unmatched = unmatched or record
            bar.advance(1)
    if not any(one.offsets for one in collected.values()):
        if unmatched is None:
            raise KdError(f"{files[0]}: expected records of log-probabilities, got {count}. Check the files.")
        first = next(iter(collected.values()))
        ids = first.index.tokens(first.split.read(0).encoded)[:8].tolist()
        raise KdError(
            f"{unmatched.where}: expected token ids that begin as those of an example, for instance {ids}, got "
            f"{unmatched.tokens_S[:8].tolist()}; none of {count} records belongs to an example. Check the tokeniser, "
            "the template and --sequence."
        )
    return collected


def _add_record(collected: CollectedSplit, record: LogprobRecord, vocab_size: int, source: LogprobSource) -> bool:
    """Add a record to the examples with its sequence; return whether there are any."""
    audit, match = collected.audit, collected.index.find(record)
    if match is None:
        return False
    logprobs = {i: target_logprobs(record, collected.targets(i) + match.offset) for i in match.indices}
    first = match.indices[0]  # all of them have the same tokens
    if first in collected.offsets:
        audit.add_repeat(collected.load(first), logprobs[first])
        return True
    audit.add_ranks(record, match)
    for i, one in logprobs.items():
        check_rests_known(record.where, one.ids_nK, vocab_size, source, collected.required)
        audit.add(one, vocab_size, FORMATS[source.format].normalised)
        collected.save(i, one)
    return True


def check_complete(name: str, collected: CollectedSplit, max_missing: float) -> None:
    """Check that the files hold enough targets (all but the share `max_missing`), and at least k tokens of each."""
    audit, k = collected.audit, collected.required.signal.k
    if audit.missing() > max_missing:
        first = next(i for i in range(audit.examples) if not (collected.load(i).ids_nK != NO_TOKEN).any(-1).all())
        raise KdError(
            f"{name}: expected log-probabilities of all {audit.targets} targets, got {audit.covered} "
            f"({audit.missing():.2%} are missing, first of example {first}). Store them too, or set --missing "
            f"{min(1, audit.missing() + 1e-4):.4f}."
        )
    if audit.max_named < k:
        raise KdError(f"signal.k: expected at most {audit.max_named}, the most tokens named, got {k}. Set a smaller k.")


def write_cache(
    folder: Folder,
    collected: CollectedSplit,
    k: int,
    source: LogprobSource,
    inputs: Mapping[str, Any],
    vocab_size: int,
    force: bool,
) -> None:
    """Write or repair the split's cache with k entries a record, in the form of the phase `cache`."""
    start_time, split = time.perf_counter(), collected.split
    temperatures = collected.required.rest_temperatures(source)
    signal = dataclasses.replace(collected.required.signal, k=k)
    schema = {**signal.fields(vocab_size, temperatures), **pipeline.DIGEST}
    inputs = config.flatten(signal, "signal") | dict(inputs)
    inputs |= {f"stored.{name}": field.dtype for name, field in schema.items()}
    if not begin_store(folder, "records", inputs, force):
        return

    def make(start: int, stop: int) -> Iterator[Record]:
        for i in range(start, stop):
            fields = top_k_fields(collected.load(i), k, vocab_size, source, temperatures)
            with np.errstate(over="ignore"):  # logits below the range of float16 become -inf, without mass
                fields["logits"] = fields["logits"].astype(np.float16)
            yield fields | {"digest": pipeline.example_digest(split.read(i).encoded)}

    digest = store.write(folder.path, "records", schema, len(split), make, RECORDS_PER_SHARD)
    assert digest is not None  # this process is the only writer
    figures = dataclasses.asdict(collected.audit.figures(FORMATS[source.format].normalised))
    folder.finish(store_outputs(folder, digest, split) | figures, time.perf_counter() - start_time)
    progress.log(f"import-logprobs: {len(split)} records with the top {k}; {folder.path}")
