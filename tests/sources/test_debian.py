"""Debian on index files that the tests write; no network."""

import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from kd_jax.errors import KdError
from kd_jax.sources import debian_apt, debian_builder, debian_texts
from kd_jax.sources.debian import Debian
from tests.helpers.sources import assert_check_raises, assert_round_trip

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
    """Write index files as apt does; return their folder."""
    folder = tmp_path / "apt" / "lists"
    folder.mkdir(parents=True)
    for name, text in (("x_Translation-en", ENGLISH), ("x_Translation-fr", FRENCH), ("x_Packages", PACKAGES)):
        (folder / name).write_text(text)
    monkeypatch.setattr(debian_apt, "read_file", lambda path: path.read_text())
    return tmp_path / "apt"


def test_translations_and_their_source_packages(lists):
    rows = list(debian_texts.generate_rows(lists, "en-fr"))
    assert [(row["kind"], row["en"], row["fr"]) for row in rows] == [
        ("synopsis", "a library of foo", "une bibliothèque de foo"),
        ("paragraph", "First paragraph that goes on over two lines.", "Premier paragraphe qui continue."),
        ("paragraph", "Last one.", "Le dernier."),
        ("synopsis", "documentation", "documentation"),
        ("synopsis", "a tool", "un outil"),
    ]
    assert {row["package"]: row["source_package"] for row in rows} == {"foo": "foo", "foo-doc": "foo", "bar": "bar"}


def test_summaries_and_documents(lists):
    assert [row["synopsis"] for row in debian_texts.generate_rows(lists, "summaries")] == ["a library of foo", "a tool"]
    documents = [(row["package"], row["text"]) for row in debian_texts.generate_rows(lists, "english")]
    assert documents == [("foo", "First paragraph that goes on over two lines.\nLast one."), ("bar", "Only here.")]


def test_questions(lists):
    rows = list(debian_texts.generate_rows(lists, "index"))
    answers = {"foo": ("a library of foo", "foo", "libs"), "foo-doc": ("documentation", "foo-doc", "doc")}
    answers["bar"] = ("a tool", "bar", "")
    kinds = ("synopsis", "package", "section")
    for row in rows:
        synopsis, package, _ = answers[row["package"]]
        assert row["response"] == answers[package][kinds.index(row["kind"])] != ""
        assert (synopsis if row["kind"] == "package" else package) in row["prompt"]
    assert {row["package"] for row in rows} | {"bar"} == set(answers)  # bar is in no section


def test_questions_are_uniform_and_unambiguous():
    names = [f"package{i}" for i in range(3000)]
    packages = {name: debian_texts.Package(name, "libs") for name in names}
    rows = debian_texts.questions({name: f"text of {name}" for name in names}, packages)
    unique = Counter(row["kind"] for row in rows)
    assert unique.total() == 3000
    assert all(900 < count < 1100 for count in unique.values())  # 1,000 of each, 4 deviations
    rows = list(debian_texts.questions(dict.fromkeys(names, "same"), packages))
    shared = Counter(row["kind"] for row in rows)
    assert shared == {"synopsis": unique["synopsis"], "section": unique["section"]}
    assert len({row["prompt"].replace(row["package"], "") for row in rows}) == 6  # three wordings of two kinds


def test_untranslated_and_repeated_pairs_are_dropped(lists):
    rows = [*debian_texts.generate_rows(lists, "en-fr"), *debian_texts.generate_rows(lists, "en-fr")]
    splits, dropped = debian_builder.make_splits(iter(rows), ("en", "fr"))
    assert sum(map(len, splits.values())) == 4
    assert dropped["untranslated"] == 2 and dropped["repeated"] == 4


def test_source_package_is_in_one_split_without_leaks():
    names = [f"package{i}" for i in range(400)]
    examples = [
        {"source_package": name, "kind": "synopsis", "en": f"text {i % 300} {k}", "fr": f"texte {i % 300} {k} {name}"}
        for i, name in enumerate(names)
        for k in range(2)
    ]
    splits, _ = debian_builder.make_splits(iter(examples), ("en", "fr"))
    owners = [{row["source_package"] for row in rows} for rows in splits.values()]
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
    trained = {row["en"] for row in splits["train"]}
    assert splits["test"] and not any(row["en"] in trained for row in splits["test"])


def test_missing_apt(tmp_path, monkeypatch):
    monkeypatch.setattr(debian_apt.shutil, "which", lambda _: None)
    with pytest.raises(KdError, match="expected apt-get .*Files.*Tfds"):
        Debian(data_dir=str(tmp_path)).splits(("en", "fr"))
    assert not (tmp_path / "apt").exists()
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_prepare_and_read_without_tensorflow(lists, tmp_path, capsys):
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
    log = capsys.readouterr().err.replace("\n", " ")
    assert re.search(r"\d+ train, \d+ validation, \d+ test examples; dropped: none", log)
    questions = Debian("index", data_dir=str(tmp_path), kinds=("synopsis",)).splits(("prompt", "response"))
    assert all(row["response"].startswith("tool number") for rows in questions.values() for row in rows)
    with pytest.raises(KdError, match="source.fields.de: expected a text of .*en, fr.*, got 'de', no field"):
        Debian(data_dir=str(tmp_path)).splits(("en", "de"))


APT = """#!/bin/sh
echo x >> "$CALLS"
for word; do case $word in Dir::State::Lists=*) lists=${word#*=};; esac; done
sleep 0.3
echo > "$lists/x_Translation-fr"
"""


def test_concurrent_runs_fetch_once(tmp_path, monkeypatch):
    calls, client = tmp_path / "calls", tmp_path / "bin" / "apt-get"
    client.parent.mkdir()
    client.write_text(APT)
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(client.parent), prepend=":")
    monkeypatch.setenv("CALLS", str(calls))
    with ThreadPoolExecutor() as pool:
        lists = list(pool.map(lambda _: debian_apt.fetch_lists(tmp_path), range(2)))
    assert lists == [tmp_path / "apt"] * 2 and (lists[0] / "lists" / "x_Translation-fr").exists()
    assert calls.read_text() == "x\n"


def test_unlabelled_examples_need_prompts():
    with pytest.raises(KdError, match="^source.labelled: expected no unlabelled examples for this task, got 9"):
        Debian(labelled=9).splits(("en", "fr"))


@pytest.mark.parametrize(
    "source, message",
    [
        (Debian(config="en-xx"), "source.config: expected en-fr, en-de, summaries, english, index, got 'en-xx'"),
        (Debian(kinds=("novel",)), "source.kinds: expected kinds of en-fr"),
        (Debian(config="index", kinds=("paragraph",)), "source.kinds: .*index .synopsis, package, section., got"),
        (Debian(labelled=-1), "source.labelled: expected an integer in"),
        (Debian(max_characters=-1), "source.max_characters: expected an integer in"),
        (Debian(limit=-1), "source.limit: expected an integer in"),
    ],
)
def test_check_raises(source, message):
    assert_check_raises(source, message)


def test_good_settings_round_trip():
    assert_round_trip(Debian("index", kinds=("section",)))
