"""The Debian builder on index files that the test writes; no network."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from kd_jax.errors import KdError
from kd_jax.sources import apt, debian_builder, debian_texts
from kd_jax.sources.debian import Debian

ENGLISH = """Package: foo
Description-md5: 1
Description-en: a library of foo
 First paragraph that goes on
 over two lines.
 .
  * a list
 .
 Last one.

Package: foo-doc
Description-md5: 2
Description-en: documentation

Package: bar
Description-md5: 3
Description-en: a tool
 Only here.
"""
FRENCH = """Package: foo
Description-md5: 1
Description-fr: une bibliothèque de foo
 Premier paragraphe qui
 continue.
 .
  * une liste
 .
 Le dernier.

Package: foo-doc
Description-md5: 2
Description-fr: documentation

Package: bar
Description-md5: 3
Description-fr: un outil
"""
PACKAGES = (
    "Package: foo\nVersion: 1\nSection: libs\n\nPackage: foo-doc\nSource: foo (1.2)\nSection: doc\n\nPackage: bar\n"
)


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """A folder as apt leaves it."""
    folder = tmp_path / "apt" / "lists"
    folder.mkdir(parents=True)
    for name, text in (("x_Translation-en", ENGLISH), ("x_Translation-fr", FRENCH), ("x_Packages", PACKAGES)):
        (folder / name).write_text(text)
    monkeypatch.setattr(apt, "read_file", lambda path: path.read_text())
    return tmp_path / "apt"


def test_pairs_are_joined_on_the_digest_and_carry_their_source_package(lists):
    rows = list(debian_texts.rows(lists, "en-fr"))
    assert [(row["kind"], row["en"], row["fr"]) for row in rows] == [
        ("synopsis", "a library of foo", "une bibliothèque de foo"),
        ("paragraph", "First paragraph that goes on over two lines.", "Premier paragraphe qui continue."),
        ("paragraph", "Last one.", "Le dernier."),
        ("synopsis", "documentation", "documentation"),
        ("synopsis", "a tool", "un outil"),
    ]
    assert {row["package"]: row["source_package"] for row in rows} == {"foo": "foo", "foo-doc": "foo", "bar": "bar"}


def test_summaries_and_plain_english(lists):
    assert [row["synopsis"] for row in debian_texts.rows(lists, "summaries")] == ["a library of foo", "a tool"]
    documents = [(row["package"], row["text"]) for row in debian_texts.rows(lists, "english")]
    assert documents == [("foo", "First paragraph that goes on over two lines.\nLast one."), ("bar", "Only here.")]


def test_questions_are_answered_by_the_index(lists):
    rows = list(debian_texts.rows(lists, "index"))
    answers = {"foo": ("a library of foo", "foo", "libs"), "foo-doc": ("documentation", "foo-doc", "doc")}
    answers["bar"] = ("a tool", "bar", "")
    kinds = ("synopsis", "package", "section")
    for row in rows:
        synopsis, package, _ = answers[row["package"]]
        assert row["response"] == answers[package][kinds.index(row["kind"])] != ""
        assert (synopsis if row["kind"] == "package" else package) in row["prompt"]
    assert {row["package"] for row in rows} | {"bar"} == set(answers)  # bar is in no section


def test_questions_of_every_kind_are_as_many_and_none_has_two_answers():
    names = [f"package{i}" for i in range(3000)]
    packages = {name: debian_texts.Package(name, "libs") for name in names}
    own = Counter(kind for _, kind, _ in debian_texts.questions({name: f"text of {name}" for name in names}, packages))
    assert own.total() == 3000 and all(900 < count < 1100 for count in own.values())  # 1,000 of each, 4 deviations
    shared = Counter(kind for _, kind, _ in debian_texts.questions(dict.fromkeys(names, "same"), packages))
    assert shared == {"synopsis": own["synopsis"], "section": own["section"]}
    prompts = Counter(
        texts["prompt"].replace(name, "")
        for name, _, texts in debian_texts.questions(dict.fromkeys(names, "x"), packages)
    )
    assert len(prompts) == 6  # three wordings of two kinds


def test_untranslated_and_repeated_pairs_are_dropped_and_counted(lists):
    rows = [*debian_texts.rows(lists, "en-fr"), *debian_texts.rows(lists, "en-fr")]
    splits, dropped = debian_builder.clean_splits(iter(rows), ("en", "fr"))
    assert sum(map(len, splits.values())) == 4
    assert dropped["untranslated"] == 2 and dropped["repeated"] == 4
    counts = {"train": 3, "validation": 0, "test": 1}
    assert debian_builder.clean_sentence("debian", counts, dropped) == (
        "debian: 3 train, 0 validation and 1 test examples stay; 6 were dropped: 2 untranslated and 4 repeated"
    )


def test_a_source_package_is_in_one_split_and_test_sources_are_not_trained_on():
    names = [f"package{i}" for i in range(400)]
    examples = [
        {"source_package": name, "kind": "synopsis", "en": f"text {i % 300} {k}", "fr": f"texte {i % 300} {k} {name}"}
        for i, name in enumerate(names)
        for k in range(2)
    ]
    splits, _ = debian_builder.clean_splits(iter(examples), ("en", "fr"))
    owners = [{row["source_package"] for row in rows} for rows in splits.values()]
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
    trained = {row["en"] for row in splits["train"]}
    assert splits["test"] and not any(row["en"] in trained for row in splits["test"])


def test_without_apt_the_alternatives_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(apt.shutil, "which", lambda _: None)
    with pytest.raises(KdError, match="no apt-get.*Files.*Tfds"):
        Debian(data_dir=str(tmp_path)).splits(("en", "fr"))
    assert not (tmp_path / "apt").exists()
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_the_builder_prepares_and_reads_without_tensorflow(lists, tmp_path):
    import sys

    for language, words in (("en", "tool number"), ("fr", "outil numéro")):
        stanzas = [
            f"Package: p{i}\nDescription-md5: m{i}\nDescription-{language}: {words} {i}\n {words} {i} at length!!!!!\n"
            for i in range(120)
        ]
        (lists / "lists" / f"x_Translation-{language}").write_text("\n".join(stanzas))
    splits = Debian(data_dir=str(tmp_path), kinds=("synopsis", "paragraph"), max_characters=20).splits(("en", "fr"))
    rows = [row for part in splits.values() for row in part]
    assert len(rows) == 120 and all(splits.values())
    assert all(row["en"].split()[-1] == row["fr"].split()[-1] for row in rows)
    assert "tensorflow" not in sys.modules
    questions = Debian("index", data_dir=str(tmp_path), kinds=("synopsis",)).splits(("prompt", "response"))
    assert all(row["response"].startswith("tool number") for rows in questions.values() for row in rows)
    with pytest.raises(KdError, match="source.fields.de.* is no field; wanted one of its texts: .*en, fr"):
        Debian(data_dir=str(tmp_path)).splits(("en", "de"))


APT = """#!/bin/sh
echo x >> "$CALLS"
for word; do case $word in Dir::State::Lists=*) lists=${word#*=};; esac; done
sleep 0.3
echo > "$lists/x_Translation-fr"
"""


def test_two_at_once_fetch_once(tmp_path, monkeypatch):
    calls, client = tmp_path / "calls", tmp_path / "bin" / "apt-get"
    client.parent.mkdir()
    client.write_text(APT)
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(client.parent), prepend=":")
    monkeypatch.setenv("CALLS", str(calls))
    with ThreadPoolExecutor() as pool:
        lists = list(pool.map(lambda _: apt.fetch_lists(tmp_path), range(2)))
    assert lists == [tmp_path / "apt"] * 2 and (lists[0] / "lists" / "x_Translation-fr").exists()
    assert calls.read_text() == "x\n"
