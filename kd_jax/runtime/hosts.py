"""The processes of one run on several hosts: their ranks, exchanged values, and a common end.

The processes exchange values through JAX's coordination service, which the main process runs. A collective gives up
after a while, but one host's download or tokeniser may take long. So processes wait for keys of the service instead.
All processes must make the same calls in the same order. With one process every function returns at once, and JAX is
not imported.
"""

import atexit
import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kd_jax.errors import KdError, Preempted

CHUNK_CHARS = 2**20  # of one value; a message of the service holds 4 MiB
POLL_SECONDS = 1.0  # between looks at the keys of the other processes
HEARTBEAT_SECONDS = 50  # of silence after which the service counts a process as dead; more than an exit takes
GRACE_SECONDS = 10.0  # in which a process may end by itself, with its own message
PATIENCE = 1800  # seconds without progress after which a process ends; a large model compiles for minutes
STEPS_AHEAD = 3  # no process is so many training steps ahead of another: each reads the common sums one step later


class Process(NamedTuple):
    """This process among `count` processes of the run: its index, from 0; process 0 is the main process."""

    index: int
    count: int


class _State:
    """What this process knows of the others."""

    def __init__(self) -> None:
        self.process = Process(0, 1)
        self.client: Any = None  # of the coordination service; its class has no public name
        self.key_numbers = itertools.count()
        self.in_main_call = False  # inside a function that `run_on_main` calls
        self.is_waiting = False  # for another process
        self.stop_announced = False
        self.closed = threading.Event()
        self.last_heartbeat = time.monotonic()


_state = _State()


def join(process: tuple[int, int] | None, coordinator: str, patience: float = PATIENCE) -> None:
    """Make this process one of several; call it before JAX finds its devices.

    Args:
      process: (index, count); None to take both from the environment of a TPU pod, SLURM or MPI.
      coordinator: "ADDRESS:PORT" at which the main process can listen; "" to take it from the environment.
      patience: seconds without progress after which this process ends, and with it all others.
    """
    import jax.distributed
    from jax._src import distributed  # the service's client has no public name

    index, count = process or (None, None)
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator if process else None,
            num_processes=count,
            process_id=index,
            cluster_detection_method="deactivate" if process else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=300,
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise KdError(
            f"--host: expected all hosts to connect, got: {reason}. Check --host and --coordinator of each."
        ) from error
    connection = distributed.global_state
    _state.client, _state.process = connection.client, Process(connection.process_id, connection.num_processes)
    heartbeat()
    watcher = threading.Thread(target=_watch, args=(patience,), daemon=True)
    watcher.start()
    atexit.register(lambda: (_state.closed.set(), watcher.join()))  # before JAX leaves the service


def process() -> Process:
    """Return this process's index and the number of processes."""
    return _state.process


def is_main_process() -> bool:
    """Return whether this process is the main process, which alone logs and writes shared files."""
    return _state.process.index == 0


def run_on_main(function: Callable[[], Any]) -> Any:
    """Call a function on the main process and return its JSON-able result on every process.

    The other processes wait, and a KdError is raised on all. A nested call runs on the main process alone.

    Examples:
      >>> run_on_main(lambda: {"step": 3})
      {'step': 3}
    """
    if process().count == 1 or _state.in_main_call:
        return function()
    key = f"main/{next(_state.key_numbers)}"
    if is_main_process():
        _state.in_main_call = True
        try:
            result = {"value": function()}
        except KdError as error:
            result = {"error": str(error)}
        finally:
            _state.in_main_call = False
        _publish(key, result)
    result = _wait_for(key)
    if "error" in result:
        raise KdError(result["error"])
    return result["value"]


def exchange(value: Any) -> list[Any]:
    """Return every process's JSON-able value, by process index, on every process.

    Examples:
      >>> exchange([1.5])
      [[1.5]]
    """
    index, count = process()
    if count == 1:
        return [value]
    key = f"exchange/{next(_state.key_numbers)}"
    _publish(f"{key}/{index}", value)
    return [_wait_for(f"{key}/{i}") for i in range(count)]


def all_gather(parts: list[Any]) -> list[Any]:
    """Return the JSON-able parts of all processes in order, where process i of n has parts i, i + n, ...

    Examples:
      >>> all_gather(["a", "b"])
      ['a', 'b']
    """
    parts_of = exchange(parts)
    count = sum(map(len, parts_of))
    return [parts_of[i % len(parts_of)][i // len(parts_of)] for i in range(count)]


# jax.experimental.multihost_utils.reached_preemption_sync_point answers this inside training steps only, and its
# service takes SIGTERM away from Python. Processes must also stop in other phases and while they wait for each other.
def should_stop(step: int, requested: bool) -> bool:
    """Return whether all processes stop after this training step; call it on each at every step."""
    if process().count == 1:
        return requested
    if requested and not _values("last step"):
        with contextlib.suppress(RuntimeError):  # another process was quicker
            _state.client.key_value_set("kd_jax/last step/0", str(step + STEPS_AHEAD))
    last = _values("last step")
    return bool(last) and step >= int(last[0])


def announce_stop() -> None:
    """Tell the other processes that this one was asked to stop."""
    if process().count > 1 and not _state.stop_announced:
        _state.stop_announced = True
        _publish(f"stop/{process().index}", True)


def stop_announced() -> bool:
    """Return whether any process has announced that it was asked to stop."""
    return _state.stop_announced


def heartbeat() -> None:
    """Record that this process makes progress."""
    _state.last_heartbeat = time.monotonic()


@contextlib.contextmanager
def coordinated_exit() -> Iterator[None]:
    """Publish an error that leaves the block, so that the other processes end too."""
    try:
        yield
    except Preempted:
        raise
    except BaseException as error:
        if process().count > 1:
            _announce_failure(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        raise


def _announce_failure(message: str) -> None:
    """Publish this process's failure, and wait for the others: the service ends with the main process."""
    with contextlib.suppress(RuntimeError):
        _publish(f"failed/{process().index}", message)
        deadline = time.monotonic() + 2 * GRACE_SECONDS
        while len(_failures()) < process().count and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)


def _failures() -> dict[int, str]:
    """Return process index -> its failure's message."""
    entries = _state.client.key_value_dir_get("kd_jax/failed/")
    return {int(key.split("/")[2]): json.loads(text) for key, text in entries if key.endswith("chunk 0")}


def _publish(key: str, value: Any) -> None:
    """Set a key to a JSON value in chunks; their number is written last."""
    text = json.dumps(value)
    chunks = [text[start : start + CHUNK_CHARS] for start in range(0, len(text), CHUNK_CHARS)]
    for number, chunk in enumerate(chunks):
        _state.client.key_value_set(f"kd_jax/{key}/chunk {number}", chunk)
    _state.client.key_value_set(f"kd_jax/{key}/chunks", str(len(chunks)))


def _wait_for(key: str) -> Any:
    """Return the value of a key, once it is published."""
    _state.is_waiting = True
    try:
        count = int(_wait_for_text(f"kd_jax/{key}/chunks"))
        return json.loads("".join(_wait_for_text(f"kd_jax/{key}/chunk {number}") for number in range(count)))
    finally:
        _state.is_waiting = False
        heartbeat()


def _wait_for_text(key: str) -> str:
    while True:
        if _state.stop_announced:
            raise Preempted
        try:
            return _state.client.blocking_key_value_get(key, int(1000 * POLL_SECONDS))
        except RuntimeError as error:  # JAX raises no other
            if "DEADLINE_EXCEEDED" not in str(error):
                reason = str(error).splitlines()[0][:200]
                raise KdError(f"the main process is gone: {reason}. Run the same command again.") from error


def _values(folder: str) -> list[str]:
    """Return the values of all keys in a folder."""
    return [value for _, value in _state.client.key_value_dir_get(f"kd_jax/{folder}/")]


def _watch(patience: float) -> None:
    """End this process when another has failed or nothing makes progress; note announced stops."""
    while not _state.closed.wait(POLL_SECONDS):
        try:
            failures, stops = _failures(), _values("stop")
        except RuntimeError:  # the service ends with the run
            return
        _state.stop_announced |= bool(stops)
        for index, message in failures.items():
            if index != process().index:
                time.sleep(GRACE_SECONDS)
                _end(f"host {index} has failed ({message}), so this one ends too")
        idle = time.monotonic() - _state.last_heartbeat
        if idle > patience and not _state.is_waiting:
            _end(f"no progress for {idle:.0f} seconds: a host hangs, or --patience is too short")


def _end(message: str) -> None:
    """End at once: the main thread may be inside a collective, which nothing interrupts."""
    line = f"error: host {process().index}: {message}. Run the same command again to resume."
    print(line, file=sys.stderr, flush=True)
    _announce_failure(message)
    os._exit(3)
