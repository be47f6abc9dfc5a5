"""Experiments on the TFDS catalogue run on random text with the catalogue's features, without downloads."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from kd_jax import load_experiment, resolve
from kd_jax.artifacts.manifest import read_lines
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches.store import Store
from kd_jax.phases import prepare
from kd_jax.phases.check import check
from kd_jax.sources.tfds_reader import find_builder
from kd_jax.tokenizers.sentencepiece import SentencePiece

CONFIGS = sorted((Path(__file__).parents[2] / "experiments/configs/tfds").glob("*.py"))
SPLITS = {  # of the datasets, by the catalogue
    "c4_realnewslike": ("train", "validation"),
    "cnn_dailymail": ("train", "validation", "test"),
    "gsm8k": ("train", "test", "train_socratic", "test_socratic"),
    "lm1b": ("train", "test"),
    "samsum": ("train", "validation", "test"),
    "wikipedia": ("train",),
    "wmt14_translate": ("train", "validation", "test"),
    "wmt19_translate": ("train", "validation"),
    "xsum": ("train", "validation", "test"),
}
SIZE = 800  # examples of each split, so that a share of 0.5% is not empty
WORDS = (
    "the",
    "a",
    "house",
    "boat",
    "bird",
    "stone",
    "is",
    "was",
    "near",
    "over",
    "red",
    "green",
    "small",
    "and",
    "then",
)


def make_text(rng):
    """Return two or three random sentences."""
    sentences = (" ".join(rng.choice(WORDS, rng.integers(4, 12))) for _ in range(rng.integers(2, 4)))
    return " ".join(f"{sentence.capitalize()}." for sentence in sentences)


def prepare_mock(dataset, splits, folder, monkeypatch):
    """Prepare a dataset of this name, with random text in each feature."""
    builder = find_builder(dataset, str(folder))
    features = builder.info.features
    assert all(feature.np_dtype == np.object_ and feature.shape == () for feature in features.values())
    rng = np.random.default_rng(0)

    def examples():
        return {split: ((i, {name: make_text(rng) for name in features}) for i in range(SIZE)) for split in splits}

    monkeypatch.setattr(builder, "_split_generators", lambda *_, **__: examples())
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))


def load_small(path, folder):
    """Load the experiment with its dataset in `folder` and a small tokenizer."""
    experiment = load_experiment(path)
    source = dataclasses.replace(experiment.source, data_dir=str(folder))
    return resolve(dataclasses.replace(experiment, source=source, tokenizer=SentencePiece(vocab_size=48)))


def test_all_configs_are_tested():
    assert [path.stem for path in CONFIGS] == sorted(SPLITS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_prepare_encodes_all_splits(path, tmp_path, monkeypatch):
    check(resolve(load_experiment(path)))
    experiment = load_small(path, tmp_path / "tfds")
    assert experiment.name == path.stem
    prepare_mock(experiment.source.dataset, SPLITS[path.stem], tmp_path / "tfds", monkeypatch)
    workdir = Workdir(tmp_path / "run")
    prepare.run(experiment, workdir)
    task, folder = experiment.task, workdir.data.path
    for split in ("train", "validation", "test"):
        encoded = Store(folder, split)
        assert len(encoded) and all(len(encoded[i]["completion"]) for i in range(len(encoded)))
    for row in read_lines(folder / "test.jsonl"):
        assert row.keys() == set(task.fields()) and all(row.values())
