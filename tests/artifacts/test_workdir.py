"""One process at a time works in a workdir, or several writers of a cache; the lock of a dead process is free."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kd_jax.artifacts.workdir import Workdir
from kd_jax.errors import KdError

HOLD = """
import sys
from pathlib import Path
from kd_jax.artifacts.workdir import Workdir
with Workdir(Path(sys.argv[1])).lock(eval(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path, root):
    """Start processes that hold the lock until they end."""
    started = []

    def start(writer=None):
        command = [sys.executable, "-c", HOLD, str(tmp_path), repr(writer)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=root, **pipes)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_second_process_is_refused_until_the_first_is_dead(holder, tmp_path):
    first = holder()
    with pytest.raises(KdError, match=f"used by process {first.pid} of"), Workdir(tmp_path).lock():
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with Workdir(tmp_path).lock():
        pass


def test_writers_share_a_workdir_and_exclude_others(holder, tmp_path):
    holder((0, 2))
    with Workdir(tmp_path).lock((1, 2)):
        pass
    for other in ((0, 2), None):
        with pytest.raises(KdError, match="no other process uses"), Workdir(tmp_path).lock(other):
            pass


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run"])
def test_bucket_in_a_pathlib_path_is_refused(path):
    with pytest.raises(KdError, match="as a string, got a pathlib.Path"):
        Workdir(Path(path))
