"""Worker processes: the order of results, and a process that is killed."""

import os

import pytest

from kd_jax.batches.workers import Processes
from kd_jax.errors import KdError


def process_of(shared, item):
    """Return the item and the process; the process is killed at the item `shared`."""
    if item == shared:
        os._exit(9)
    return item, os.getpid()


def test_results_are_in_order_and_killed_process_is_an_error():
    with Processes(2).start(-1) as parallel_map:
        items, pids = zip(*parallel_map(process_of, range(20)), strict=True)
    assert items == tuple(range(20)) and os.getpid() not in pids
    killed = pytest.raises(KdError, match="^--processes 2: expected every process to finish, got one that was killed")
    with killed, Processes(2).start(7) as parallel_map:
        list(parallel_map(process_of, range(20)))
