"""A killed and resumed run in a bucket equals a run on a disk; its lock keeps other processes out."""

import os
import subprocess
import sys
import time

import pytest

from tests.faults.pipeline import start
from tests.faults.test_kills import PATIENCE, SHORT, assert_same_run
from tests.helpers.bucket import BUCKETS

TERM = 12.0  # seconds after which the lock of a dead process expires
PROGRAM = f"""
import sys
from kd_jax.artifacts import bucket_lock
from kd_jax.cli.main import main
bucket_lock.TERM = {TERM}
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(params=["gs", pytest.param("s3", marks=pytest.mark.extended)])
def bucket(request, root, tmp_path):
    """A fake bucket on this machine, with a workdir in it."""
    for package in BUCKETS[request.param].packages:
        pytest.importorskip(package)
    with BUCKETS[request.param]() as bucket:
        bucket.workdir = f"{request.param}://bucket/runs/smoke"
        yield bucket
    for folder in (root, tmp_path):
        assert not (folder / f"{request.param}:").exists(), "a bucket's path was taken for a local one"


@pytest.fixture(scope="module")
def command(root):
    return [str(root / "experiments/configs/smoke.py"), *" ".join(SHORT).split()]


@pytest.fixture(scope="module")
def disk_run(command, tmp_path_factory):
    """The process of a run on a disk, and its workdir."""
    path = tmp_path_factory.mktemp("disk") / "run"
    return start(["run", *command, "--workdir", str(path)], path.with_suffix(".log")), path


def start_command(bucket, words, log):
    """Start a command with the bucket's workdir; in the log's folder, so that nothing is written to the repository."""
    with open(log, "a") as file:
        arguments = [sys.executable, "-c", PROGRAM, *words, "--workdir", bucket.workdir]
        environment = os.environ | bucket.environment()
        return subprocess.Popen(arguments, env=environment, stdout=file, stderr=file, cwd=log.parent)


def wait_for(bucket, name, process):
    deadline = time.monotonic() + PATIENCE
    while name not in bucket.names("runs/smoke/"):
        assert process.poll() is None and time.monotonic() < deadline, name
        time.sleep(0.01)


@pytest.mark.extended
def test_resumed_run_in_a_bucket_equals_a_run_on_a_disk(bucket, command, disk_run, tmp_path):
    log = tmp_path / "log"
    first = start_command(bucket, ["run", *command], log)
    wait_for(bucket, f"teacher/checkpoints/12/{bucket.last}", first)
    first.kill()
    first.wait()
    bucket.put("runs/smoke/teacher/checkpoints/24/params/half", b"of an upload")
    again = start_command(bucket, ["run", *command], log)
    wait_for(bucket, "teacher/manifest.json", again)
    other = start_command(bucket, ["teacher", *command], tmp_path / "refused")
    assert other.wait(PATIENCE) == 2
    refusal = (tmp_path / "refused").read_text().splitlines()[-1]
    assert refusal.startswith("error: --workdir: expected a folder that no other process uses")
    assert f"got {bucket.workdir}, used by process {again.pid} of " in refusal
    assert again.wait(PATIENCE) == 0, log.read_text()
    lines = log.read_text()
    assert ": locked; waiting" in lines and "teacher: resuming from step" in lines
    assert f"report: {bucket.workdir}/report/report.html" in lines
    names = bucket.files("runs/smoke/")
    assert not [name for name in names if ".kd_jax.lock" in name or name.endswith(".part")]
    for name, data in names.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    process, path = disk_run
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert_same_run(tmp_path / "copy", path, command)


def test_finished_phase_is_skipped_and_a_changed_object_is_refused(bucket, command, tmp_path):
    log = tmp_path / "log"
    assert start_command(bucket, ["prepare", *command], log).wait(PATIENCE) == 0
    assert start_command(bucket, ["prepare", *command], log).wait(PATIENCE) == 0
    assert f"data: already prepared, {bucket.workdir}/data" in log.read_text()
    name = "data/train-00000.arrayrecord"
    data = bucket.files("runs/smoke/")[name]
    bucket.put(f"runs/smoke/{name}", data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert start_command(bucket, ["teacher", *command], log).wait(PATIENCE) == 2
    assert f"error: {bucket.workdir}/{name}: expected the bytes that were written, got modified ones" in log.read_text()


def test_option_that_a_bucket_lacks_is_refused(bucket, command, tmp_path):
    log = tmp_path / "log"
    assert start_command(bucket, ["teacher", *command, "--profile", "1:2"], log).wait(PATIENCE) == 2
    assert f"error: --profile: expected a --workdir on a disk, got {bucket.workdir}." in log.read_text()
