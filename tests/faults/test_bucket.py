"""A run in a bucket, killed and gone on with, is the run on a disk; whoever works there keeps others off."""

import os
import subprocess
import sys
import time

import pytest

from tests.faults.pipeline import start
from tests.faults.test_kills import PATIENCE, SHORT, assert_same_run
from tests.helpers.bucket import S3, Bucket

KINDS = {"gs": (Bucket, ["gcsfs"]), "s3": (S3, ["s3fs", "moto"])}  # protocol -> what stands for it, what that needs
TERM = 12.0  # seconds, so that a dead process's lock is soon known for one
PROGRAM = f"""
import sys
from kd_jax.artifacts import lease
from kd_jax.cli.main import main
lease.TERM = {TERM}
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(params=KINDS)
def bucket(request):
    """Its stand-in on this machine, with a workdir in it."""
    stand_in, needed = KINDS[request.param]
    for package in needed:
        pytest.importorskip(package)
    with stand_in() as bucket:
        bucket.workdir = f"{request.param}://bucket/runs/smoke"
        yield bucket


@pytest.fixture(scope="module")
def command(root):
    return [str(root / "experiments/configs/smoke.py"), *" ".join(SHORT).split()]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The process that works on a disk, and its workdir."""
    path = tmp_path_factory.mktemp("whole") / "whole"
    return start(["run", *command, "--workdir", str(path)], path.with_suffix(".log")), path


def begun(bucket, words, log):
    with open(log, "a") as file:
        arguments = [sys.executable, "-c", PROGRAM, *words, "--workdir", bucket.workdir]
        return subprocess.Popen(arguments, env=os.environ | bucket.environment(), stdout=file, stderr=file)


def wait_for(bucket, name, process):
    until = time.monotonic() + PATIENCE
    while name not in bucket.names("runs/smoke/"):
        assert process.poll() is None and time.monotonic() < until, name
        time.sleep(0.01)


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket, command, whole, tmp_path):
    log = tmp_path / "log"
    first = begun(bucket, ["run", *command], log)
    wait_for(bucket, f"teacher/checkpoints/12/{bucket.last}", first)
    first.kill()
    first.wait()
    bucket.put("runs/smoke/teacher/checkpoints/24/params/half", b"of an upload")
    again = begun(bucket, ["run", *command], log)
    wait_for(bucket, "teacher/manifest.json", again)
    other = begun(bucket, ["teacher", *command], tmp_path / "refused")
    assert other.wait(PATIENCE) == 2
    refusal = (tmp_path / "refused").read_text().splitlines()[-1]
    assert refusal.startswith(f"error: --workdir {bucket.workdir}: another kd_jax works there (process {again.pid} of ")
    assert again.wait(PATIENCE) == 0, log.read_text()
    said = log.read_text()
    assert "locked by a process that may be dead" in said and "teacher: goes on from step" in said
    assert f"report: {bucket.workdir}/report/report.html" in said
    names = bucket.files("runs/smoke/")
    assert not [name for name in names if ".kd_jax.lock" in name or name.endswith(".part")]
    for name, data in names.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    process, path = whole
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert_same_run(tmp_path / "copy", path, command)


def test_a_finished_phase_is_known_and_a_changed_object_is_noticed(bucket, command, tmp_path):
    log = tmp_path / "log"
    assert begun(bucket, ["prepare", *command], log).wait(PATIENCE) == 0
    assert begun(bucket, ["prepare", *command], log).wait(PATIENCE) == 0
    assert f"data: already prepared, {bucket.workdir}/data" in log.read_text()
    name = "data/train-00000.arrayrecord"
    data = bucket.files("runs/smoke/")[name]
    bucket.put(f"runs/smoke/{name}", data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert begun(bucket, ["teacher", *command], log).wait(PATIENCE) == 2
    assert f"error: {bucket.workdir}/{name}: its bytes are not those that were written" in log.read_text()


def test_what_a_bucket_lacks_is_said(bucket, command, tmp_path):
    log = tmp_path / "log"
    assert begun(bucket, ["teacher", *command, "--profile", "1:2"], log).wait(PATIENCE) == 2
    assert f"error: --profile: {bucket.workdir} is in a bucket; wanted a --workdir on a disk" in log.read_text()
