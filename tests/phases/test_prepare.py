"""Early refusals, equal files from any number of processes, resuming, memory."""

import dataclasses
import os
import sys

import numpy as np
import pytest

from kd_jax import Generation, SentencePiece
from kd_jax.artifacts import manifest
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches import encode
from kd_jax.batches.beam_runner import BeamRunner
from kd_jax.batches.store import Store
from kd_jax.batches.targets import PseudoTargets
from kd_jax.batches.workers import Processes
from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.phases import prepare
from tests.helpers.runs import file_digests, smoke, write_corpus


def test_a_held_out_example_longer_than_a_models_context_is_refused(root, tmp_path):
    """Held-out examples are taken whole, whatever the buckets."""
    experiment = smoke(root, ["--buckets", "8"])
    model = DecoderOnly(2, positions="learned", context=16)
    experiment = dataclasses.replace(experiment, students={"it": dataclasses.replace(experiment.teacher, model=model)})
    with pytest.raises(
        KdError, match="source: validation: expected examples of at most 16 tokens for it, got [0-9]+ in "
    ):
        prepare.run(experiment, Workdir(tmp_path))
    assert not Workdir(tmp_path).data.finished()


@pytest.mark.parametrize("of", ["unlabelled", "both"])
def test_pseudo_targets_of_a_split_that_the_source_lacks_are_refused(root, tmp_path, of):
    experiment = smoke(root, [])
    student = dataclasses.replace(experiment.students["student_kd"], targets=PseudoTargets(of=of))
    with pytest.raises(KdError, match="students.it.targets.of: expected a source with a split unlabelled"):
        prepare.run(dataclasses.replace(experiment, students={"it": student}), Workdir(tmp_path))


@pytest.fixture(params=["translation", "generation"])
def large(request, root, tmp_path, monkeypatch):
    """An experiment on three shards; generation cuts each long text, so that shards differ in size."""
    monkeypatch.setattr(encode, "MIN_SHARD_EXAMPLES", 200)
    source = write_corpus(tmp_path / "train.jsonl", 600)
    tokenizer = SentencePiece(100, sample=5000)
    experiment = dataclasses.replace(smoke(root, []), source=source, tokenizer=tokenizer, students={})
    if request.param == "translation":
        return experiment
    return dataclasses.replace(experiment, task=Generation(text="en", window=16, context=4))


@pytest.mark.parametrize("who", ["processes", "beam"])
def test_many_workers_write_the_same_bytes_as_one(large, tmp_path, who):
    if who == "beam":
        pytest.importorskip("apache_beam")
    several = Processes(2) if who == "processes" else BeamRunner("DirectRunner", "", tmp_path / "many/data/beam")
    prepare.run(large, Workdir(tmp_path / "one"))
    prepare.run(large, Workdir(tmp_path / "many"), workers=several)
    one, two = tmp_path / "one/data", tmp_path / "many/data"
    assert file_digests(one) == file_digests(two)
    assert {"train-00002.arrayrecord", "validation.jsonl"} <= file_digests(one).keys()
    assert not list(one.glob("*.part*"))
    outputs = [{**Workdir(one.parent).data.manifest(), "seconds": 0, "created": 0} for one in (one, two)]
    assert outputs[0] == outputs[1]


def test_every_example_is_found_by_its_number(large, tmp_path):
    """Across shards of different sizes: the tokens of an example's parts are its text's."""
    prepare.run(large, Workdir(tmp_path / "work"))
    folder = Workdir(tmp_path / "work").data
    owners, lengths = (np.load(folder.file(f"validation.{name}.npy")) for name in ("owners", "lengths"))
    texts = manifest.read_lines(folder.file("validation.jsonl"))
    records, tokenizer = Store(folder.path, "validation"), large.tokenizer.load(folder.path)
    assert len(records) == len(owners) == len(lengths) and sorted(set(owners)) == list(range(len(texts)))
    train, train_lengths = Store(folder.path, "train"), np.load(folder.file("train.lengths.npy"))
    assert [(len(x["prompt"]), len(x["completion"])) for x in map(train.__getitem__, range(len(train)))] == list(
        map(tuple, train_lengths)
    )
    for number, text in enumerate(texts):
        mine = [records[i] for i in np.flatnonzero(owners == number)]
        written = np.concatenate([one["completion"] for one in mine])
        assert tokenizer.decode(written[:-1].tolist()) == text["en" if large.task.name == "generation" else "fr"]


def test_a_stopped_prepare_keeps_complete_shards(large, tmp_path, monkeypatch):
    whole, stopped = (Workdir(tmp_path / name) for name in ("whole", "stopped"))
    prepare.run(large, whole)
    encode_shard, encoded = encode.encode_shard, []

    def stopping(job, shard):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(shard[:2])
        return encode_shard(job, shard)

    monkeypatch.setattr(encode, "encode_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(large, stopped)
    assert encoded == [("train", 0), ("train", 1)] and not stopped.data.finished()
    times = {path: path.stat().st_mtime_ns for path in stopped.data.path.glob("*.arrayrecord")}
    (stopped.data.path / "train-00002.arrayrecord.1.part").write_bytes(b"half")
    monkeypatch.setattr(encode, "encode_shard", encode_shard)
    prepare.run(large, stopped)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items()) and len(times) == 2
    assert file_digests(stopped.data.path) == file_digests(whole.data.path)


PREPARE = """
import dataclasses, pathlib, sys
from kd_jax import Files, SentencePiece
from kd_jax.artifacts.workdir import Workdir
from kd_jax.phases import prepare
from tests.helpers.runs import smoke
experiment = dataclasses.replace(
    smoke(pathlib.Path(), []), source=Files(train=(sys.argv[1],)), tokenizer=SentencePiece(100, sample=50_000)
)
prepare.run(experiment, Workdir(pathlib.Path(sys.argv[2])))
"""


def test_memory_does_not_grow_with_the_corpus(root, tmp_path, monkeypatch):
    """80,000 more examples, whose texts are 6 MB (60 MB as objects), add at most 12 MiB."""
    monkeypatch.chdir(root)
    largest = {}
    for count in (20_000, 100_000):
        path = tmp_path / f"{count}.jsonl"
        write_corpus(path, count)
        words = [sys.executable, "-c", PREPARE, str(path), str(tmp_path / str(count))]
        pid = os.spawnv(os.P_NOWAIT, sys.executable, words)
        _, status, usage = os.wait4(pid, 0)
        assert status == 0
        largest[count] = usage.ru_maxrss / 1024
    assert largest[100_000] < largest[20_000] + 12, largest
