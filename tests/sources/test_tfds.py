"""Tfds without TensorFlow, on datasets that the tests define; nothing is downloaded."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from kd_jax.errors import KdError
from kd_jax.sources import tfds_reader
from kd_jax.sources.tfds import Tfds
from tests.helpers.sources import assert_check_raises, assert_round_trip

SIZE = 200


class TinyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset of the catalogue with SIZE examples in each of `parts`; `row` returns example i."""

    VERSION = tfds.core.Version("1.0.0")
    features = {"a": tfds.features.Text(), "b": tfds.features.Text()}
    parts = ("train", "validation", "test")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features))

    def _split_generators(self, dl_manager):
        return {part: self._generate_examples(part) for part in self.parts}

    def _generate_examples(self, part):
        yield from ((i, self.row(part, i)) for i in range(SIZE))

    def row(self, part, i):
        return {"a": f"été {part} {i}", "b": f"b {i}"}


class TinyPairs(TinyBuilder):
    """All three splits."""


class TinyTrain(TinyBuilder):
    """Without validation and test splits."""

    parts = ("train", "dev")


class TinyNested(TinyBuilder):
    """Fields of all kinds."""

    features = {
        "translation": tfds.features.Translation(["en", "de"]),
        "id": tfds.features.Tensor(shape=(), dtype=np.str_),
        "label": tfds.features.ClassLabel(num_classes=2),
        "score": tfds.features.Scalar(np.float32),
        "names": tfds.features.Sequence(tfds.features.Text()),
        "answers": tfds.features.Sequence({"text": tfds.features.Text()}),
    }

    def row(self, part, i):
        texts = {"translation": {"en": f"a boat {i}", "de": f"ein Boot {i}"}, "id": f"{part}-{i}"}
        return texts | {"label": 0, "score": 0.5, "names": ["x"], "answers": [{"text": "y"}]}


class TinyImages(TinyBuilder):
    """With an image, whose encoding needs TensorFlow."""

    features = TinyBuilder.features | {"picture": tfds.features.Image()}

    def row(self, part, i):
        return super().row(part, i) | {"picture": np.zeros((2, 2, 3), np.uint8)}


class TinyManual(TinyBuilder):
    """With files that must be downloaded by hand."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask for them at https://example.org."

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.manual_dir)}


class TinySlow(TinyBuilder):
    """With a slow preparation, which is counted."""

    prepared = 0

    def _split_generators(self, dl_manager):
        type(self).prepared += 1
        time.sleep(0.5)
        return super()._split_generators(dl_manager)


class TinyDownload(TinyBuilder):
    """With files on a server that does not answer."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.download("http://127.0.0.1:9/text"))}


def read_splits(tmp_path, dataset, fields, **options):
    """Return the splits of a dataset; the task's fields are those of the source."""
    return Tfds(dataset, fields, data_dir=str(tmp_path), **options).splits(tuple(fields))


def test_splits_of_a_dataset(tmp_path):
    examples = read_splits(tmp_path, "tiny_pairs", {"en": "a", "fr": "b"}, limit=4)
    assert {split: len(rows) for split, rows in examples.items()} == {"train": 4, "validation": 4, "test": 4}
    for split, rows in examples.items():
        assert all(row["en"].startswith(f"été {split} ") and row["fr"].startswith("b ") for row in rows)
    sliced = read_splits(
        tmp_path, "tiny_pairs", {"en": "a"}, train="train[:10%]+test[:10%]", validation="validation[:1]"
    )
    assert [len(sliced[split]) for split in ("train", "validation", "test")] == [40, 1, SIZE]
    assert not read_splits(tmp_path, "tiny_pairs", {"en": "a"}, validation="train[5:5]")["validation"]


def test_concurrent_runs_prepare_once(tmp_path, capsys):
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: read_splits(tmp_path, "tiny_slow", {"en": "a"}), range(2)))
    assert TinySlow.prepared == 1 and both[0] == both[1] and len(both[0]["train"]) == SIZE
    assert "tiny_slow/1.0.0: another process works on it; waiting" in capsys.readouterr().err


def test_nested_fields(tmp_path):
    fields = {"en": "translation/en", "de": "translation/de", "id": "id"}
    rows = read_splits(tmp_path, "tiny_nested", fields, limit=SIZE)["test"]
    numbers = {row["id"].removeprefix("test-") for row in rows}
    assert numbers == {str(i) for i in range(SIZE)}
    assert all(row["en"].split()[-1] == row["de"].split()[-1] == row["id"].split("-")[1] for row in rows)


@pytest.mark.parametrize(
    "path, message",
    [
        ("translation", "Translation"),
        ("label", "ClassLabel"),
        ("score", "Scalar.*float32"),
        ("names", "Sequence.*Text"),
        ("answers/text", "Sequence"),
        ("translation/fr", "no field"),
        ("id/text", "Tensor"),
    ],
)
def test_field_that_is_not_text_raises_before_the_download(tmp_path, path, message):
    texts = "expected a text of tiny_nested/1.0.0 .translation/en, translation/de, id."
    with pytest.raises(KdError, match=rf"source.fields.en: {texts}, got '{path}', {message}"):
        read_splits(tmp_path, "tiny_nested", {"en": path})
    assert not list(tmp_path.iterdir())


def test_missing_field_of_the_task():
    with pytest.raises(KdError, match="source.fields: expected the task's fields en, fr, got en"):
        Tfds("tiny_pairs", {"en": "a"}).splits(("en", "fr"))


def test_missing_splits_are_held_out(tmp_path, capsys):
    examples = read_splits(tmp_path, "tiny_train", {"en": "a"}, held_out=0.2)
    texts_of = {split: {row["en"] for row in rows} for split, rows in examples.items()}
    assert set.union(*texts_of.values()) == {f"été train {i}" for i in range(SIZE)}
    assert sum(map(len, examples.values())) == SIZE
    for split in ("validation", "test"):  # a share of 0.2, the second of the rest; four standard deviations
        assert 16 < len(examples[split]) < 64
    assert "tiny_train has the splits train, dev; 20% of 'train' are held out" in capsys.readouterr().err
    with_dev = read_splits(tmp_path, "tiny_train", {"en": "a"}, validation="dev", held_out=0.2)
    assert {row["en"] for row in with_dev["validation"]} == {f"été dev {i}" for i in range(SIZE)}
    assert len(with_dev["test"]) < 64 and "held out for test\n" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["nope", "train[:2]+nope", "train["])
def test_unknown_split(tmp_path, split):
    with pytest.raises(KdError, match="source: expected a split of tiny_train/1.0.0 .train, dev., got"):
        read_splits(tmp_path, "tiny_train", {"en": "a"}, test=split)


def test_translation_datasets_without_tensorflow():
    command = (
        "from kd_jax.sources import tfds_reader;"
        "print(*tfds_reader.find_builder('wmt19_translate/de-en', '').info.features)"
    )
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["de", "en"]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    "dataset, message",
    [
        ("wmt19_translate/xx-yy", "expected a configuration of wmt19_translate, got 'xx-yy'. It has .*de-en"),
        ("wmt19_translate/de-en:9.9.9", "cannot be loaded at version 9.9.9, only: 1.0.0"),
        ("wmt19_translation", "got 'wmt19_translation'. Similar names: wmt19_translate,"),
        ("no such", "Parsing builder name string no such failed"),
        ("kaggle:none", "expected a dataset of the TFDS catalogue, got 'kaggle:none'"),
        ("tiny_pairs/none", "expected a configuration of tiny_pairs, got 'none'. It has none"),
    ],
)
def test_unknown_dataset(tmp_path, dataset, message):
    with pytest.raises(KdError, match=message) as error:
        tfds_reader.find_builder(dataset, str(tmp_path))
    assert str(error.value).startswith("source.dataset: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "dataset, message",
    [
        ("tiny_images", "No module named 'tensorflow'. Install the library, or .*source.data_dir"),
        ("tiny_manual", "Manual directory .* does not exist .*https://example.org"),
        ("tiny_download", "cannot be downloaded: .*127.0.0.1.*. Check the network and the disk, or .*source.data_dir"),
    ],
)
def test_dataset_that_cannot_be_prepared(tmp_path, monkeypatch, dataset, message):
    monkeypatch.setattr(downloader, "MAX_RETRIES", 0)
    with pytest.raises(KdError, match=message) as error:
        read_splits(tmp_path, dataset, {"en": "a"})
    assert str(error.value).startswith(f"source.dataset: {dataset}/1.0.0") and "\n" not in str(error.value)


def test_field_that_is_an_image(tmp_path):
    with pytest.raises(KdError, match="expected a text of tiny_images/1.0.0 .*, got 'picture', Image"):
        read_splits(tmp_path, "tiny_images", {"en": "picture"})


def test_dataset_in_another_format(tmp_path):
    read_splits(tmp_path, "tiny_pairs", {"en": "a"})
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        KdError, match="prepared as ArrayRecord if it is in source.data_dir.*already set to FileFormat.TFRECORD"
    ):
        read_splits(tmp_path, "tiny_pairs", {"en": "a"})


class TinyUnsupervised(TinyBuilder):
    """With a split without references, as imdb_reviews; every tenth text is empty."""

    parts = ("train", "validation", "test", "unsupervised")

    def row(self, part, i):
        return {"a": f"{part} {i}", "b": "" if part == "unsupervised" or not i % 10 else f"b {i}"}


def test_unlabelled_split_and_empty_texts(tmp_path, capsys):
    source = Tfds("tiny_unsupervised", {"en": "a", "fr": "b"}, unlabelled="unsupervised", data_dir=str(tmp_path))
    examples = source.splits(("en", "fr"), (), ("en",))
    assert {row["en"] for row in examples["unlabelled"]} == {f"unsupervised {i}" for i in range(SIZE)}
    assert all(row.keys() == {"en"} for row in examples["unlabelled"])
    assert {row["fr"] for row in examples["train"]} == {f"b {i}" for i in range(SIZE) if i % 10}
    assert "tiny_unsupervised/1.0.0, test: 20 examples with an empty text removed\n" in capsys.readouterr().err
    with pytest.raises(
        KdError, match="source.unlabelled: expected no unlabelled examples for this task, got 'unsupervised'"
    ):
        source.splits(("en", "fr"))


def test_held_out_fields_are_read(tmp_path):
    fields = {"en": "translation/en", "de": "translation/de", "other": "id"}
    source = Tfds("tiny_nested", fields, data_dir=str(tmp_path), labelled=50)
    examples = source.splits(("en", "de"), ("other",), ("en",))
    assert all(row.keys() == set(fields) for split in ("validation", "test") for row in examples[split])
    assert all(row.keys() == {"en", "de"} for row in examples["train"])
    assert len(examples["train"]) == 50 and len(examples["unlabelled"]) == SIZE - 50
    with pytest.raises(KdError, match="source.fields: expected the task's fields en, de, other, got en, de"):
        Tfds("tiny_nested", {"en": "id", "de": "id"}).splits(("en", "de"), ("other",))


def test_source_is_imported_without_tensorflow_datasets():
    command = "import sys; from kd_jax import Tfds; print('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    "source, message",
    [
        (Tfds("lm1b", {"text": "text"}, limit=-1), "source.limit: expected an integer in"),
        (Tfds("lm1b", {"text": "text"}, held_out=-0.1), "source.held_out: .*got -0.1"),
        (Tfds("lm1b", {}), "source: expected dataset, fields and train"),
        (Tfds("lm1b", {"text": "text"}, labelled=-1), "source.labelled: expected an integer in"),
    ],
)
def test_check_raises(source, message):
    assert_check_raises(source, message)


def test_good_settings_round_trip():
    assert_round_trip(Tfds("lm1b", {"text": "text"}))
