"""Files are whole or missing; bucket addresses are told from local paths."""

from pathlib import Path

import pytest

from kd_jax.artifacts import files, manifest
from kd_jax.errors import KdError
from kd_jax.runtime import hosts


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    manifest.write_json(tmp_path / "x.json", {"old": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError):
        manifest.write_json(tmp_path / "x.json", {"new": 2})
    assert manifest.read_json(tmp_path / "x.json") == {"old": 1}


def test_each_process_has_its_own_partial_file(tmp_path, monkeypatch):
    own = files.part_path(tmp_path / "inputs.json")
    monkeypatch.setattr(files.os, "getpid", lambda: 1)
    assert files.part_path(tmp_path / "inputs.json") != own


def test_every_host_writes(tmp_path, monkeypatch):
    """Callers check hosts.is_main_process where hosts share a file."""
    monkeypatch.setattr(hosts._state, "process", hosts.Process(1, 2))
    manifest.write_json(tmp_path / "x.json", {"host": 1})
    assert manifest.read_json(tmp_path / "x.json") == {"host": 1}


def test_bucket_address_in_a_pathlib_path_is_refused():
    assert not files.in_bucket(Path("gs/bucket")) and not files.in_bucket(Path("/data/gs:/x"))
    for path in (Path("gs://bucket/run"), "s3:/bucket"):
        with pytest.raises(KdError, match="as a string, got a pathlib.Path"):
            files.in_bucket(path)
