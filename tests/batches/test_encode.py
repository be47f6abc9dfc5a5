"""Encoding a split: shards, long texts in several records, unlabelled examples, resumed runs."""

import dataclasses

import numpy as np
import pytest

from kd_jax.batches import encode
from kd_jax.batches.encode import EncodeJob, encode_split
from kd_jax.batches.store import Store
from kd_jax.tasks.base import Encoded
from tests.helpers.runs import file_digests


@dataclasses.dataclass(frozen=True)
class Letters:
    """A tokeniser (and its settings) of code points."""

    def load(self, folder):
        return self

    def encode(self, text):
        return np.asarray([ord(letter) for letter in text], np.int32)


@dataclasses.dataclass(frozen=True)
class Windows:
    """A task that cuts a text into windows of 4 tokens; the text is the prompt of an unlabelled example."""

    def prompt(self, example):
        return example["text"]

    def encode_prompt(self, text, tokenizer):
        return tokenizer.encode(text)

    def encode(self, example, tokenizer):
        ids = tokenizer.encode(example["text"])
        for start in range(0, len(ids), 4):
            window = ids[start : start + 4]
            yield Encoded(window[:0], window, np.ones(len(window), bool))


EXAMPLES = [{"text": "x" * (i % 9 + 1)} for i in range(10)]


def job(path, monkeypatch):
    monkeypatch.setattr(encode, "MIN_SHARD_EXAMPLES", 3)
    path.mkdir()
    return EncodeJob(path, Letters(), Windows(), {"train": EXAMPLES, "unlabelled": EXAMPLES})


def test_records_lengths_and_owners(tmp_path, monkeypatch):
    digest = encode_split(job(tmp_path / "a", monkeypatch), "train")
    store, owners = Store(tmp_path / "a", "train"), np.load(tmp_path / "a/train.owners.npy")
    assert store.digest == digest
    expected = [(i, len(EXAMPLES[i]["text"][start : start + 4])) for i in range(10) for start in range(0, i % 9 + 1, 4)]
    assert owners.tolist() == [i for i, _ in expected]
    assert [len(store[n]["completion"]) for n in range(len(store))] == [length for _, length in expected]
    assert np.load(tmp_path / "a/train.lengths.npy").tolist() == [[0, length] for _, length in expected]
    assert not list((tmp_path / "a").glob("*.parts.npy"))


def test_unlabelled_examples_have_no_completion(tmp_path, monkeypatch):
    encode_split(job(tmp_path / "a", monkeypatch), "unlabelled")
    store = Store(tmp_path / "a", "unlabelled")
    assert len(store) == 10 and not any(len(store[i]["completion"]) or store[i]["counts"].any() for i in range(10))
    assert [len(store[i]["prompt"]) for i in range(10)] == [len(example["text"]) for example in EXAMPLES]


def test_stopped_encoding_resumes_with_the_missing_shards(tmp_path, monkeypatch):
    encode_split(job(tmp_path / "a", monkeypatch), "train")
    stopped, encode_shard, numbers = job(tmp_path / "b", monkeypatch), encode.encode_shard, []

    def stop_at_third(job, shard):
        if shard.number == 2:
            raise KeyboardInterrupt
        return encode_shard(job, shard)

    def count(job, shard):
        numbers.append(shard.number)
        return encode_shard(job, shard)

    monkeypatch.setattr(encode, "encode_shard", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        encode_split(stopped, "train")
    monkeypatch.setattr(encode, "encode_shard", count)
    encode_split(stopped, "train")
    assert numbers == [2, 3] and file_digests(tmp_path / "a") == file_digests(tmp_path / "b")
