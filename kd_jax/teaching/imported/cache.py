"""From files of log-probabilities to signal caches: read once, matched, audited, then written in the split's order."""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from kd_jax import config
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline, store
from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.teaching.records import RECORDS_PER_SHARD, Record, begin_store
from kd_jax.teaching.imported.audit import Audit
from kd_jax.teaching.imported.base import LogprobSource, RequiredSignal
from kd_jax.teaching.imported.match import Examples, Marks, said_of
from kd_jax.teaching.imported.readers import base as logprobs
from kd_jax.teaching.imported.readers.base import NO_TOKEN, LogprobRecord
from kd_jax.teaching.imported.readers.formats import FORMATS
from kd_jax.teaching.imported.top_k import refuse_unknown, top_k
from kd_jax.teaching.signal_cache import store_outputs

SHOWN = 8  # ids of a sequence in a message
Said = tuple[np.ndarray, np.ndarray]  # (ids int32 [n, K], logp float32 [n, K]) of an example's targets that count


class Collected(NamedTuple):
    """What the files say of one split.

    Attributes:
      examples: the split.
      wanted: of it.
      audit: of what was read.
      places: example's number -> where its Said stands in `file`.
      file: a temporary one, which no name leads to.
    """

    examples: Examples
    wanted: RequiredSignal
    audit: Audit
    places: dict[int, int]
    file: BinaryIO

    def said(self, i: int) -> Said:
        """Of example i; nothing is named where the files have not got it."""
        if i not in self.places:
            count = len(self.examples.targets(self.examples.split.read(i).encoded))
            return np.full((count, 1), NO_TOKEN, np.int32), np.full((count, 1), -np.inf, np.float32)
        self.file.seek(self.places[i])
        return np.load(self.file), np.load(self.file)

    def keep(self, i: int, said: Said) -> None:
        """Writes it behind what is there."""
        self.places[i] = self.file.seek(0, 2)
        for array in said:
            np.save(self.file, array)


def collect(
    files: Sequence[Path],
    source: LogprobSource,
    vocab_size: int,
    marks: Marks,
    splits: Mapping[str, tuple[pipeline.Split, RequiredSignal]],
    near: Path,
) -> dict[str, Collected]:
    """Reads all files once.

    Args:
      files: of one format.
      source: how they came to be.
      vocab_size, marks: of the tokeniser.
      splits: name -> (split, what is wanted of it).
      near: a folder with room for a temporary file.

    Raises:
      KdError: names the record that is refused; or shows that no record is an example's.
    """
    collected = {}
    for name, (split, wanted) in splits.items():
        examples = Examples(split, source.sequence, marks)
        audit = Audit(len(split), sum(int(split.examples[i]["counts"].sum()) for i in range(len(split))))
        file = tempfile.TemporaryFile(dir=near)  # noqa: SIM115  # it lives as long as what is collected
        collected[name] = Collected(examples, wanted, audit, {}, file)
    form, number, strangers = FORMATS[source.format], 0, []
    with progress.bar("read log-probabilities", len(files)) as bar:
        for path in files:
            for stored in form.read(path):
                number += 1
                logprobs.check(stored, vocab_size, form.normalised, source.sum_error)
                if not any([_take(one, stored, vocab_size, source) for one in collected.values()]):
                    strangers.append(stored)
                    del strangers[1:]
            bar.advance(1)
    if not any(one.places for one in collected.values()):
        raise KdError(_nobodys(files, number, strangers, next(iter(collected.values()))))
    return collected


def _take(collected: Collected, stored: LogprobRecord, vocab_size: int, source: LogprobSource) -> bool:
    """Whether the record is an example's of this split; what it says of it is kept, but if that was said before."""
    examples, audit = collected.examples, collected.audit
    match = examples.find(stored)
    if match is None:
        return False
    said_of_each = {
        i: said_of(stored, examples.targets(examples.split.read(i).encoded) + match.offset) for i in match.numbers
    }
    first = match.numbers[0]  # all of them have the same tokens
    if first in collected.places:
        audit.add_repeat(collected.said(first), said_of_each[first])
        return True
    audit.add_ranks(stored, match)
    for i, said in said_of_each.items():
        refuse_unknown(stored.where, said[0], vocab_size, source, collected.wanted)
        audit.add(*said, vocab_size, FORMATS[source.format].normalised)
        collected.keep(i, said)
    return True


def _nobodys(files: Sequence[Path], number: int, strangers: Sequence[LogprobRecord], collected: Collected) -> str:
    """That nothing matches, with the first ids of both sides."""
    if not strangers:
        return f"{files[0]}: {number} records; wanted some"
    ours = collected.examples.tokens(collected.examples.split.read(0).encoded)[:SHOWN].tolist()
    theirs = strangers[0].tokens_S[:SHOWN].tolist()
    return (
        f"{strangers[0].where}: begins with the token ids {theirs}; none of {number} records is an example's, whose "
        f"first begins with {ours}: was it another tokeniser or template, or --sequence completion?"
    )


def refuse_incomplete(name: str, collected: Collected, most_missing: float) -> None:
    """Refuses a split that too little is said of.

    Raises:
      KdError: for a larger share of missing targets, with the first example that has one; for fewer tokens than k at
        every target.
    """
    audit, k = collected.audit, collected.wanted.signal.k
    if audit.missing() > most_missing:
        first = next(i for i in range(audit.examples) if not _complete(collected.said(i)))
        raise KdError(
            f"{name}: {audit.targets - audit.said} of {audit.targets} targets ({audit.missing():.2%}) are missing, of "
            f"example {first} first; store them too, or allow them with --missing {min(1, audit.missing() + 1e-4):.4f}"
        )
    if audit.most < k:
        raise KdError(f"signal.k: {k}, and the files name at most {audit.most} tokens; wanted at most that many")


def _complete(said: Said) -> bool:
    return bool((said[0] != NO_TOKEN).any(-1).all())


def write(
    folder: Folder,
    collected: Collected,
    k: int,
    source: LogprobSource,
    inputs: Mapping[str, Any],
    vocab_size: int,
    force: bool,
) -> None:
    """Writes the split's cache, as the phase `cache` writes it, or mends it.

    Args:
      folder: of the cache.
      collected: what the files say.
      k: entries kept, at most the wanted signal's.
      source: how the files came to be.
      inputs: what the manifest keeps beside the signal.
      vocab_size: of the tokeniser.
      force: make it anew.
    """
    began, split, temperatures = time.perf_counter(), collected.examples.split, collected.wanted.stored(source)
    signal = dataclasses.replace(collected.wanted.signal, k=k)
    schema = signal.fields(vocab_size, temperatures) | pipeline.DIGEST
    inputs = config.flatten(signal, "signal") | dict(inputs)
    inputs |= {f"stored.{name}": field.dtype for name, field in schema.items()}
    if not begin_store(folder, "records", inputs, force):
        return
    make = _records(collected, k, source, vocab_size, temperatures)
    digest = store.write(folder.path, "records", schema, len(split), make, RECORDS_PER_SHARD)
    figures = collected.audit.figures(FORMATS[source.format].normalised)
    folder.finish(store_outputs(folder, digest, split) | figures, time.perf_counter() - began)
    progress.log(f"import-logprobs: {len(split)} records with the top {k}; {folder.path}")


def _records(
    collected: Collected, k: int, source: LogprobSource, vocab_size: int, temperatures: tuple[float, ...]
) -> Callable[[int, int], Iterator[Record]]:
    """(start, stop) -> the records of those examples, for store.write."""

    def make(start: int, stop: int) -> Iterator[Record]:
        for i in range(start, stop):
            encoded = collected.examples.split.read(i).encoded
            fields = top_k(*collected.said(i), k, vocab_size, source, temperatures)
            with np.errstate(over="ignore"):  # what float16 cannot hold has no mass
                fields["logits"] = fields["logits"].astype(np.float16)
            yield fields | {"digest": pipeline.example_digest(encoded)}

    return make
