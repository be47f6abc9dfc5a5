"""Folders of phases are begun, finished, skipped, refused and forced; foreign files are safe; edits are detected."""

import json

import pytest

from kd_jax.artifacts import manifest
from kd_jax.artifacts.manifest import Folder
from kd_jax.errors import KdError


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "f", "teacher")


@pytest.fixture
def finished(folder):
    folder.begin({"a": 1})
    manifest.write_json(folder.path / "figures.json", {"x": 1})
    folder.finish({"digest": "d"}, 1.0)
    return folder


def test_folder_is_begun_finished_skipped_refused_and_forced(folder):
    assert folder.begin({"a": 1})
    assert folder.begin({"a": 2})  # it had no output yet
    (folder.path / "work").write_text("half done")
    with pytest.raises(KdError, match="expected a = 2, .* got 3"):
        folder.begin({"a": 3})
    assert folder.begin({"a": 2})
    with pytest.raises(KdError, match="Run `teacher` first"):
        folder.manifest()
    folder.finish({"digest": "d"}, 1.0)
    assert not folder.begin({"a": 2}) and folder.outputs() == {"digest": "d"}
    with pytest.raises(KdError, match="expected b = absent, .* got 1"):
        folder.begin({"a": 2, "b": 1})
    assert folder.begin({"a": 3}, force=True)
    assert not (folder.path / "work").exists()


def test_files_of_another_phase_are_not_replaced_even_with_force(finished):
    other = Folder(finished.path, "import-logprobs")
    for force in (False, True):
        with pytest.raises(KdError, match="expected files of `import-logprobs`, got files of `teacher`"):
            other.begin({"a": 1}, force)
    assert finished.outputs() == {"digest": "d"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["corpus.txt", "manifest.json", "inputs.json"])
def test_foreign_files_are_never_deleted(folder, force, name):
    """A web project's manifest.json does not make the folder ours."""
    folder.path.mkdir()
    (folder.path / name).write_text('{"name": "somebody else"}')
    with pytest.raises(KdError, match=f"expected files of kd_jax, got {name}.*another --workdir"):
        folder.begin({"a": 1}, force)
    assert (folder.path / name).read_text() == '{"name": "somebody else"}'
    assert len(list(folder.path.iterdir())) == 1


def test_unfinished_folder_without_inputs_is_refused(folder):
    folder.begin({"a": 1})
    (folder.path / "checkpoint").write_text("of other settings")
    (folder.path / "inputs.json").unlink()
    with pytest.raises(KdError, match=r"inputs\.json was deleted"):
        folder.begin({"a": 2})


def test_finished_folder_without_inputs_file_has_them_in_its_manifest(finished):
    (finished.path / "inputs.json").unlink()
    assert not finished.begin({"a": 1})
    with pytest.raises(KdError, match="expected a = 1, .* got 2"):
        finished.begin({"a": 2})


def test_changed_missing_and_foreign_files_are_refused(finished):
    assert json.loads(finished.file("figures.json").read_text()) == {"x": 1}
    (finished.path / "figures.json").write_text('{"x": 9}')
    with pytest.raises(KdError, match=r"figures\.json: expected the bytes that `teacher` wrote.*`teacher --force`"):
        finished.file("figures.json")
    (finished.path / "figures.json").unlink()
    with pytest.raises(KdError, match=r"figures\.json: expected a file that `teacher` wrote, missing"):
        finished.file("figures.json")
    (finished.path / "late.json").write_text("{}")
    with pytest.raises(KdError, match=r"late\.json: expected a file that `teacher` wrote, got a foreign one"):
        finished.file("late.json")


@pytest.mark.parametrize("field", ["outputs", "inputs", "files"])
def test_edited_manifest_is_refused(finished, field):
    path = finished.path / "manifest.json"
    edited = json.loads(path.read_text())
    edited[field] |= {"digest": "another"}
    path.write_text(json.dumps(edited))
    with pytest.raises(KdError, match=r"manifest\.json: expected the manifest as written"):
        finished.manifest()


@pytest.mark.parametrize("name", ["manifest.json", "inputs.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_truncated_json_is_refused(folder, name, share):
    folder.begin({"a": 1})
    (folder.path / "work").write_text("")
    if name == "manifest.json":
        folder.finish({}, 1.0)
    path = folder.path / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(KdError, match=name):
        folder.begin({"a": 1})


def test_lines_keep_every_character(tmp_path):
    """U+2028 and U+0085 end lines for str.splitlines, but not in JSON."""
    rows = [{"id": "a\u2028b", "text": "c\x85d\u2029e\x0bf\x1cg"}, {"id": "", "text": "\r"}]
    manifest.write_lines(tmp_path / "x.jsonl", rows)
    assert manifest.read_lines(tmp_path / "x.jsonl") == rows


def test_damaged_or_missing_file_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    for damage in (b'{"a": 1}\n{"a"\n', b"\xff\xfe\n"):
        path.write_bytes(damage)
        with pytest.raises(KdError, match=r"x\.jsonl: expected (JSON|UTF-8), got damaged"):
            manifest.read_lines(path)
    with pytest.raises(KdError, match=r"y\.json: expected a file, missing"):
        manifest.read_json(tmp_path / "y.json")
