"""The TFDS catalogue without TensorFlow, on datasets that the tests define; nothing is downloaded."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from kd_jax.errors import KdError
from kd_jax.sources import tfds_reader as catalogue
from kd_jax.sources.tfds import Tfds

SIZE = 200


class TinyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset of the catalogue: `row` gives example i, `parts` its splits."""

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
    """As lm1b and wmt19_translate, a split short; two, here."""

    parts = ("train", "dev")


class TinyNested(TinyBuilder):
    """All that a field may be."""

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
    """Encoding an image needs TensorFlow."""

    features = TinyBuilder.features | {"picture": tfds.features.Image()}

    def row(self, part, i):
        return super().row(part, i) | {"picture": np.zeros((2, 2, 3), np.uint8)}


class TinyManual(TinyBuilder):
    """Its files must be fetched by hand."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask for them at https://example.org."

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.manual_dir)}


class TinySlow(TinyBuilder):
    """While one prepares it another comes."""

    prepared = 0

    def _split_generators(self, dl_manager):
        type(self).prepared += 1
        time.sleep(0.5)
        return super()._split_generators(dl_manager)


class TinyDownload(TinyBuilder):
    """Its files lie where no machine answers."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.download("http://127.0.0.1:9/text"))}


def splits(tmp_path, dataset, fields, **options):
    return Tfds(dataset, fields, data_dir=str(tmp_path), **options).splits(tuple(fields))


def test_a_dataset_by_name_with_its_own_splits(tmp_path):
    examples = splits(tmp_path, "tiny_pairs", {"en": "a", "fr": "b"}, limit=4)
    assert {split: len(rows) for split, rows in examples.items()} == {"train": 4, "validation": 4, "test": 4}
    for split, rows in examples.items():
        assert all(row["en"].startswith(f"été {split} ") and row["fr"].startswith("b ") for row in rows)
    sliced = splits(tmp_path, "tiny_pairs", {"en": "a"}, train="train[:10%]+test[:10%]", validation="validation[:1]")
    assert [len(sliced[split]) for split in ("train", "validation", "test")] == [40, 1, SIZE]
    assert not splits(tmp_path, "tiny_pairs", {"en": "a"}, validation="train[5:5]")["validation"]


def test_two_at_once_prepare_it_once(tmp_path, capsys):
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: splits(tmp_path, "tiny_slow", {"en": "a"}), range(2)))
    assert TinySlow.prepared == 1 and both[0] == both[1] and len(both[0]["train"]) == SIZE
    assert "tiny_slow/1.0.0: another process is at it; waiting" in capsys.readouterr().err


def test_nested_text_by_its_path(tmp_path):
    fields = {"en": "translation/en", "de": "translation/de", "id": "id"}
    rows = splits(tmp_path, "tiny_nested", fields, limit=SIZE)["test"]
    numbers = {row["id"].removeprefix("test-") for row in rows}
    assert numbers == {str(i) for i in range(SIZE)}
    assert all(row["en"].split()[-1] == row["de"].split()[-1] == row["id"].split("-")[1] for row in rows)


@pytest.mark.parametrize(
    "path, message",
    [
        ("translation", "is Translation; wanted one of its texts: translation/en, translation/de, id"),
        ("label", "is ClassLabel"),
        ("score", "is Scalar.*float32"),
        ("names", "is Sequence.*Text"),
        ("answers/text", "is Sequence"),
        ("translation/fr", "is no field"),
        ("id/text", "is Tensor"),
    ],
)
def test_a_field_that_is_no_text_is_refused_before_anything_is_fetched(tmp_path, path, message):
    with pytest.raises(KdError, match=rf"source.fields.en: '{path}' of tiny_nested/1.0.0 {message}"):
        splits(tmp_path, "tiny_nested", {"en": path})
    assert not list(tmp_path.iterdir())


def test_a_field_that_the_task_reads_and_nobody_named():
    with pytest.raises(KdError, match="source.fields: en; the task reads en, fr"):
        Tfds("tiny_pairs", {"en": "a"}).splits(("en", "fr"))


def test_missing_splits_are_held_out_of_train_by_content_and_said(tmp_path, capsys):
    examples = splits(tmp_path, "tiny_train", {"en": "a"}, held_out=0.2)
    sources_of = {split: {row["en"] for row in rows} for split, rows in examples.items()}
    assert set.union(*sources_of.values()) == {f"été train {i}" for i in range(SIZE)}
    assert sum(map(len, examples.values())) == SIZE
    for split in ("validation", "test"):  # a share of 0.2, of what is left for the second; four standard deviations
        assert 16 < len(examples[split]) < 64
    assert "tiny_train has the splits train, dev; 20% of 'train'" in capsys.readouterr().err
    named = splits(tmp_path, "tiny_train", {"en": "a"}, validation="dev", held_out=0.2)
    assert {row["en"] for row in named["validation"]} == {f"été dev {i}" for i in range(SIZE)}
    assert len(named["test"]) < 64 and "held out for test\n" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["nope", "train[:2]+nope", "train["])
def test_a_split_that_was_named_and_is_not_there(tmp_path, split):
    with pytest.raises(KdError, match="has no split .*; it has train, dev"):
        splits(tmp_path, "tiny_train", {"en": "a"}, test=split)


def test_translation_sets_are_known_without_tensorflow():
    command = (
        "from kd_jax.sources import tfds_reader;"
        "print(*tfds_reader.builder_of('wmt19_translate/de-en', '').info.features)"
    )
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["de", "en"]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    "dataset, message",
    [
        ("wmt19_translate/xx-yy", "wmt19_translate has no configuration 'xx-yy'; it has .*de-en"),
        ("wmt19_translate/de-en:9.9.9", "cannot be loaded at version 9.9.9, only: 1.0.0"),
        ("wmt19_translation", "no 'wmt19_translation' in the TFDS catalogue; the nearest are wmt19_translate,"),
        ("no such", "Parsing builder name string no such failed"),
        ("kaggle:none", "no 'kaggle:none' in the TFDS catalogue"),
        ("tiny_pairs/none", "tiny_pairs has no configuration 'none'; it has none"),
    ],
)
def test_a_dataset_that_is_not_there(tmp_path, dataset, message):
    with pytest.raises(KdError, match=message) as refused:
        catalogue.builder_of(dataset, str(tmp_path))
    assert str(refused.value).startswith("source.dataset: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "dataset, message",
    [
        ("tiny_images", "No module named 'tensorflow'; install it, or .*source.data_dir"),
        ("tiny_manual", "Manual directory .* does not exist .*https://example.org"),
        ("tiny_download", "cannot be fetched: .*127.0.0.1.*; check network and disk, or .*source.data_dir"),
    ],
)
def test_a_dataset_that_cannot_be_prepared_here(tmp_path, monkeypatch, dataset, message):
    monkeypatch.setattr(downloader, "MAX_RETRIES", 0)
    with pytest.raises(KdError, match=message) as refused:
        splits(tmp_path, dataset, {"en": "a"})
    assert str(refused.value).startswith(f"source.dataset: {dataset}/1.0.0") and "\n" not in str(refused.value)


def test_a_picture_beside_the_text_is_named(tmp_path):
    with pytest.raises(KdError, match="'picture' of tiny_images/1.0.0 is Image"):
        splits(tmp_path, "tiny_images", {"en": "picture"})


def test_a_dataset_in_another_format_is_told(tmp_path):
    splits(tmp_path, "tiny_pairs", {"en": "a"})
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(KdError, match="already set to FileFormat.TFRECORD.*; wanted .* source.data_dir"):
        splits(tmp_path, "tiny_pairs", {"en": "a"})


class TinyUnsupervised(TinyBuilder):
    """A split of text that has no use as an example, as imdb_reviews has; every tenth text is empty."""

    parts = ("train", "validation", "test", "unsupervised")

    def row(self, part, i):
        return {"a": f"{part} {i}", "b": "" if part == "unsupervised" or not i % 10 else f"b {i}"}


def test_a_split_without_references_and_examples_without_text(tmp_path, capsys):
    source = Tfds("tiny_unsupervised", {"en": "a", "fr": "b"}, unlabelled="unsupervised", data_dir=str(tmp_path))
    examples = source.splits(("en", "fr"), (), ("en",))
    assert {row["en"] for row in examples["unlabelled"]} == {f"unsupervised {i}" for i in range(SIZE)}
    assert all(row.keys() == {"en"} for row in examples["unlabelled"])
    assert {row["fr"] for row in examples["train"]} == {f"b {i}" for i in range(SIZE) if i % 10}
    assert "tiny_unsupervised/1.0.0, test: examples left out for an empty text: 20\n" in capsys.readouterr().err
    with pytest.raises(KdError, match="source.unlabelled: 'unsupervised'; this task"):
        source.splits(("en", "fr"))


def test_further_references_are_read_where_they_are_measured(tmp_path):
    fields = {"en": "translation/en", "de": "translation/de", "other": "id"}
    source = Tfds("tiny_nested", fields, data_dir=str(tmp_path), labelled=50)
    examples = source.splits(("en", "de"), ("other",), ("en",))
    assert all(row.keys() == set(fields) for split in ("validation", "test") for row in examples[split])
    assert all(row.keys() == {"en", "de"} for row in examples["train"])
    assert len(examples["train"]) == 50 and len(examples["unlabelled"]) == SIZE - 50
    with pytest.raises(KdError, match="source.fields: en, de; the task reads en, de, other: name them"):
        Tfds("tiny_nested", {"en": "id", "de": "id"}).splits(("en", "de"), ("other",))


def test_sources_are_known_without_tfds():
    command = "import sys; from kd_jax import Tfds; print('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout == "False\n"
