"""The lock of a folder in a bucket: of several processes at once one gets it; a dead process's lock expires."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.helpers.bucket import BUCKETS

# Each line of input, [folder, TERM, writers], starts one contender for each writer at once. A holder releases the lock
# when all contenders have an outcome. Without writers, one object is created several times.
PROGRAM = """
import json, sys, threading, time
from kd_jax.artifacts import bucket_lock, files
from kd_jax.errors import KdError

def contend(folder, writer, barrier, outcomes):
    barrier.wait()
    try:
        with bucket_lock.bucket_lock(folder, writer):
            outcomes.append("held")
            deadline = time.monotonic() + 60
            while len(outcomes) < barrier.parties and time.monotonic() < deadline:
                time.sleep(0.02)
    except KdError as error:
        outcomes.append(str(error))

for line in sys.stdin:
    path, bucket_lock.TERM, writers = json.loads(line)
    folder, barrier, outcomes = files.as_path(path), threading.Barrier(len(writers) or 1), []
    threads = [threading.Thread(target=contend, args=(folder, writer, barrier, outcomes)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not writers:
        outcomes = [files.create_object(folder / "object", data) for data in (b"1", b"2", b"1")]
    print(json.dumps(outcomes), flush=True)
"""


@pytest.fixture(scope="module", params=BUCKETS)
def bucket(request):
    for package in BUCKETS[request.param].packages:
        pytest.importorskip(package)
    with BUCKETS[request.param]() as bucket:
        bucket.protocol = request.param
        yield bucket


@pytest.fixture(scope="module")
def contend(bucket, tmp_path_factory):
    """(folder, term, writers) -> the outcome of each contender, in one process that runs all rounds."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | bucket.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path_factory.mktemp("contend"),
    )

    def contend(name, term, writers):
        path = f"{bucket.protocol}://bucket/{name}"
        process.stdin.write(json.dumps([path, term, writers]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield contend
    process.stdin.close()
    process.wait()


def check_one_holder(outcomes):
    assert outcomes.count("held") == 1, outcomes
    refusals = [outcome for outcome in outcomes if outcome != "held"]
    assert all(refusal.startswith("--workdir: expected a folder that no other process uses") for refusal in refusals)


@pytest.mark.parametrize("round", range(3))
def test_one_of_several_contenders_gets_a_free_lock(bucket, contend, round):
    if bucket.protocol == "s3":
        pytest.skip("moto checks If-None-Match and writes in two steps")
    check_one_holder(contend(f"free{round}", 2.0, [None] * 4))
    assert not bucket.names(f"free{round}/")


@pytest.mark.parametrize("round", range(2))
def test_one_of_several_contenders_takes_over_an_expired_lock(bucket, contend, round):
    if bucket.protocol == "s3":
        pytest.skip("moto checks If-None-Match and writes in two steps")
    name = f"expired{round}/.kd_jax.lock-7"
    bucket.put(name, json.dumps({"process": 1, "machine": "gone", "id": "x", "renewals": 3}).encode())
    check_one_holder(contend(f"expired{round}", 2.0, [None] * 4))
    assert not bucket.names(f"expired{round}/")


def test_renewed_lock_is_refused_and_a_released_one_is_free(bucket, contend):
    name = "renewed/.kd_jax.lock-1"
    assert contend("renewed", 0.6, [None]) == ["held"]
    stop = threading.Event()

    def renew():
        for n in range(1000):
            bucket.put(name, json.dumps({"process": 12, "machine": "other", "id": "x", "renewals": n}).encode())
            if stop.wait(0.1):
                return

    renewing = threading.Thread(target=renew)
    renewing.start()
    time.sleep(0.1)
    (refusal,) = contend("renewed", 0.6, [None])
    stop.set()
    renewing.join()
    assert "used by process 12 of other" in refusal
    assert contend("renewed", 0.6, [None]) == ["held"]  # the other process has died


def test_create_object_never_replaces_one(bucket, contend):
    """The third call is the first one's, repeated after a lost answer."""
    assert contend("create", 0.6, []) == [True, False, True]
    assert bucket.files("create/") == {"object": b"1"}


def test_writers_share_a_folder_and_exclude_others(bucket, contend):
    outcomes = contend("shared", 0.6, [(0, 3), (1, 3), (2, 3)])
    assert outcomes == ["held"] * 3
    bucket.put("shared/.kd_jax.lock.1-1", b"{}")
    assert contend("shared", 0.6, [(0, 3)]) == ["held"]  # at once: another writer's lock does not matter
    assert bucket.names("shared/") == [".kd_jax.lock.1-1"]
