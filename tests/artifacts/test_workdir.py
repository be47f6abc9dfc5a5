"""One process at a time in a workdir; several writers of a cache; the dead hold nothing."""

import signal
import subprocess
import sys

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
    """Starts processes that hold the lock until they are ended."""
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


def test_a_second_process_is_refused_until_the_first_is_dead(holder, tmp_path):
    first = holder()
    with pytest.raises(KdError, match=f"another kd_jax works there .process {first.pid}"), Workdir(tmp_path).lock():
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with Workdir(tmp_path).lock():
        pass


def test_writers_share_and_keep_others_off(holder, tmp_path):
    holder((0, 2))
    with Workdir(tmp_path).lock((1, 2)):
        pass
    for other in ((0, 2), None):
        with pytest.raises(KdError, match="another kd_jax"), Workdir(tmp_path).lock(other):
            pass
