"""Sources: what a person's own files may get wrong, and splits that do not leak."""

import json

import pytest
import tensorflow_datasets as tfds

from kd_jax.data.sources import Files, Tfds, Toy, without_leaks
from kd_jax.errors import KdError

FIELDS = ("en", "fr")


def put(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_parallel_text_and_json_lines_say_the_same(tmp_path):
    rows = [{"en": f"hello {i}", "fr": f"bonjour {i}"} for i in range(200)]
    sides = tuple(put(tmp_path / f"t.{f}", "".join(row[f] + "\n" for row in rows)) for f in FIELDS)
    lines = put(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    one, two = Files(train=sides, held_out=0.1).splits(FIELDS), Files(train=(lines,), held_out=0.1).splits(FIELDS)
    assert one == two
    assert sum(map(len, one.values())) == 200 and min(map(len, one.values())) > 3
    assert Files(train=(lines,), test=(lines,), limit=7).splits(FIELDS)["test"] == rows[:7]


@pytest.mark.parametrize(
    "left, right, message",
    [
        ("a\nb\n", "a\n", "has 2 lines.*has 1 lines"),
        ("", "a\n", "empty"),
        (b"a\n\xff\n", "a\nb\n", "line 2: not UTF-8"),
    ],
)
def test_bad_parallel_text(tmp_path, left, right, message):
    with pytest.raises(KdError, match=message):
        Files(train=(put(tmp_path / "a", left), put(tmp_path / "b", right))).splits(FIELDS)


@pytest.mark.parametrize(
    "text, message",
    [("{\n", "line 1: not JSON"), ('{"en": "a"}\n', "line 1: no text in the field 'fr'"), ("3\n", "no text")],
)
def test_bad_json_lines(tmp_path, text, message):
    with pytest.raises(KdError, match=message):
        Files(train=(put(tmp_path / "a.jsonl", text),)).splits(FIELDS)


def test_missing_files_and_wrong_numbers_of_them(tmp_path):
    with pytest.raises(KdError, match="no such file"):
        Files(train=(str(tmp_path / "none"),)).splits(FIELDS)
    with pytest.raises(KdError, match="3 files for the fields en, fr"):
        Files(train=("a", "b", "c")).splits(FIELDS)


def test_held_out_sources_that_are_trained_on_are_dropped():
    splits = {
        "train": [{"en": "Same"}],
        "validation": [{"en": "same"}, {"en": "v"}],
        "test": [{"en": "V"}, {"en": "t"}],
    }
    kept, dropped = without_leaks(splits, "en")
    assert kept == {"train": [{"en": "Same"}], "validation": [{"en": "v"}], "test": [{"en": "t"}]}
    assert dropped == {"train": 0, "validation": 1, "test": 1}


def test_toy_is_the_same_every_time_and_its_splits_are_disjoint():
    assert Toy(100).splits(FIELDS) == Toy(100).splits(FIELDS)
    sources = [row["en"] for rows in Toy(100).splits(FIELDS).values() for row in rows]
    assert len(sources) == len(set(sources)) == 124


class TinyPairs(tfds.core.GeneratorBasedBuilder):
    """A dataset in TFDS's catalogue."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"a": tfds.features.Text(), "b": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples() for name in ("train", "validation", "test")}

    def _generate_examples(self):
        yield from ((i, {"a": f"été {i}", "b": f"b {i}"}) for i in range(5))


def test_a_catalogue_dataset_by_name(tmp_path):
    source = Tfds(dataset="tiny_pairs", fields={"en": "a", "fr": "b"}, data_dir=str(tmp_path), limit=4)
    splits = source.splits(FIELDS)
    assert sorted(row["en"] for row in splits["test"])[0].startswith("été") and len(splits["train"]) == 4
    with pytest.raises(KdError, match="has no field 'c'"):
        Tfds(dataset="tiny_pairs", fields={"en": "c", "fr": "b"}, data_dir=str(tmp_path)).splits(FIELDS)
    with pytest.raises(KdError, match="no_such_dataset"):
        Tfds(dataset="no_such_dataset", fields={}, data_dir=str(tmp_path)).splits(FIELDS)
