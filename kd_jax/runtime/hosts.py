"""The processes that work on one run together: who they are, what they agree on, how they end.

They meet at JAX's coordination service, which the first of them runs. What takes long on one host (a download, a
tokeniser) must not be waited for within a collective, which gives up: so the hosts agree through the service's keys.
All of them make the same calls in the same order. A process alone is the first of one, and none of this costs it
anything, the import of JAX neither.
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

CHUNK = 2**20  # characters of a value; a message of the service holds 4 MiB
GLANCE = 1.0  # seconds between looks at what the others say
HEARTBEAT = 50  # seconds after which a host that says nothing is dead; more than a host takes to end
GRACE = 10.0  # seconds in which a host may end by itself, with its own message
PATIENCE = 1800  # seconds without progress; a large model compiles for minutes
STEPS_AHEAD = 3  # no host is so many training steps ahead of another: each reads what all have added up, a step behind


class Process(NamedTuple):
    """This process among those of the run.

    Attributes:
      index: its number, from 0; process 0 is the main process.
      count: the number of processes.
    """

    index: int
    count: int


class _Shared:
    """What this process remembers of the others."""

    def __init__(self) -> None:
        self.place = Process(0, 1)
        self.client: Any = None  # of the coordination service
        self.numbers = itertools.count()  # of what was agreed on
        self.leading = False  # within what the first host does for all
        self.waiting = False  # for another host
        self.told = False  # that a host was asked to stop
        self.left = threading.Event()  # the others
        self.progress = time.monotonic()


_shared = _Shared()


def join(place: tuple[int, int] | None, coordinator: str, patience: float = PATIENCE) -> None:
    """This process becomes one of several; before JAX meets a device.

    Args:
      place: (number, of how many); None where the pod's, SLURM's or MPI's environment says it.
      coordinator: "ADDRESS:PORT" that the first host can listen at; "" where the environment says it.
      patience: seconds without progress after which this host ends, and so all do.

    Raises:
      KdError: if the environment says nothing, or the others do not come.
    """
    import jax.distributed
    from jax._src import distributed  # the service's client has no public name yet

    given = {} if place is None else {"coordinator_address": coordinator, "process_id": place[0]}
    if place is not None:
        given |= {"num_processes": place[1], "cluster_detection_method": "deactivate"}
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=300)
    except (ValueError, RuntimeError) as error:
        raise KdError(f"--host: the hosts do not meet ({' '.join(str(error).split())[:200]})") from error
    meeting = distributed.global_state
    _shared.client, _shared.place = meeting.client, Process(meeting.process_id, meeting.num_processes)
    heartbeat()
    watcher = threading.Thread(target=_watch, args=(patience,), daemon=True)
    watcher.start()
    atexit.register(lambda: (_shared.left.set(), watcher.join()))  # before JAX leaves the service


def process() -> Process:
    """Return this process's index and the number of processes."""
    return _shared.place


def is_main_process() -> bool:
    """Whether this process is the first: it alone writes what is not cut into shares, and speaks."""
    return process().index == 0


def run_on_main(make: Callable[[], Any]) -> Any:
    """What the first host's call returned, on every host; the others wait for it. Its KdError is raised by all.

    Within the call, `agreed` is the first host's own affair.

    Args:
      make: () -> a JSON-able value.

    Examples:
      >>> run_on_main(lambda: {"step": 3})
      {'step': 3}
    """
    if process().count == 1 or _shared.leading:
        return make()
    key = f"agreed/{next(_shared.numbers)}"
    if is_main_process():
        _shared.leading = True
        try:
            said = {"value": make()}
        except KdError as error:
            said = {"error": str(error)}
        finally:
            _shared.leading = False
        _publish(key, said)
    said = _awaited(key)
    if "error" in said:
        raise KdError(said["error"])
    return said["value"]


def exchange(value: Any) -> list[Any]:
    """Every host's value, in their order, on every host.

    Args:
      value: JSON-able.

    Examples:
      >>> exchange([1.5])
      [[1.5]]
    """
    here, hosts = process()
    if hosts == 1:
        return [value]
    key = f"exchanged/{next(_shared.numbers)}"
    _publish(f"{key}/{here}", value)
    return [_awaited(f"{key}/{number}") for number in range(hosts)]


def all_gather(parts: list[Any]) -> list[Any]:
    """Of parts that host i of n made those with the numbers i, i + n, ...: all of them, in order, on every host.

    Args:
      parts: this host's, JSON-able.

    Examples:
      >>> all_gather(["a", "b"])
      ['a', 'b']
    """
    everywhere = exchange(parts)
    count = sum(map(len, everywhere))
    return [everywhere[i % len(everywhere)][i // len(everywhere)] for i in range(count)]


def should_stop(step: int, asked: bool) -> bool:
    """Whether all hosts stop after this training step, of which each asks in turn.

    Args:
      step: the step that was dispatched last.
      asked: whether this host was asked to stop.
    """
    if process().count == 1:
        return asked
    if asked and not _read("stop after"):
        with contextlib.suppress(RuntimeError):  # another host was quicker
            _shared.client.key_value_set("kd_jax/stop after/0", str(step + STEPS_AHEAD))
    last = _read("stop after")
    return bool(last) and step >= int(last[0])


def announce_stop() -> None:
    """The other hosts learn that this one was asked to stop."""
    if process().count > 1 and not _shared.told:
        _shared.told = True
        _publish(f"stop/{process().index}", True)


def stop_announced() -> bool:
    """Whether another host was asked to stop."""
    return _shared.told


def heartbeat() -> None:
    """This host is not stuck."""
    _shared.progress = time.monotonic()


@contextlib.contextmanager
def coordinated_exit() -> Iterator[None]:
    """An error that leaves the block is said to the other hosts, which end too."""
    try:
        yield
    except Preempted:
        raise
    except BaseException as error:
        if process().count > 1:
            _fail(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        raise


def _fail(message: str) -> None:
    """Says that this host ends, and waits a little for the others to: the service goes with the first of them."""
    with contextlib.suppress(RuntimeError):
        _publish(f"failed/{process().index}", message)
        until = time.monotonic() + 2 * GRACE
        while len(_failed()) < process().count and time.monotonic() < until:
            time.sleep(GLANCE / 5)


def _failed() -> dict[int, str]:
    """Host -> what it said when it failed."""
    said = _shared.client.key_value_dir_get("kd_jax/failed/")
    return {int(key.split("/")[2]): json.loads(text) for key, text in said if key.endswith("portion 0")}


def _publish(key: str, value: Any) -> None:
    """Under `key` in portions; how many there are is written last."""
    text = json.dumps(value)
    portions = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    for number, portion in enumerate(portions):
        _shared.client.key_value_set(f"kd_jax/{key}/portion {number}", portion)
    _shared.client.key_value_set(f"kd_jax/{key}/portions", str(len(portions)))


def _awaited(key: str) -> Any:
    """What is, or will be, published under `key`."""
    _shared.waiting = True
    try:
        portions = range(int(_blocking(f"kd_jax/{key}/portions")))
        return json.loads("".join(_blocking(f"kd_jax/{key}/portion {number}") for number in portions))
    finally:
        _shared.waiting = False
        heartbeat()


def _blocking(key: str) -> str:
    while True:
        if _shared.told:
            raise Preempted
        try:
            return _shared.client.blocking_key_value_get(key, int(1000 * GLANCE))
        except RuntimeError as error:  # JAX raises no other
            if "DEADLINE_EXCEEDED" not in str(error):
                raise KdError(f"the first host is gone ({str(error).splitlines()[0][:200]})") from error


def _read(folder: str) -> list[str]:
    """The values under a folder of keys; [] for none."""
    return [value for _, value in _shared.client.key_value_dir_get(f"kd_jax/{folder}/")]


def _watch(patience: float) -> None:
    """Ends this process where another has failed, or where nothing goes on; and hears that one was asked to stop."""
    while not _shared.left.wait(GLANCE):
        try:
            failed, stop = _failed(), _read("stop")
        except RuntimeError:  # the service ends with the run
            return
        _shared.told |= bool(stop)
        for number, what in failed.items():
            if number != process().index:
                time.sleep(GRACE)
                _end(f"host {number} has failed ({what}), so this one ends too")
        idle = time.monotonic() - _shared.progress
        if idle > patience and not _shared.waiting:
            _end(f"no progress for {idle:.0f} seconds: a host hangs, or --patience is too short")


def _end(message: str) -> None:
    """At once: the main thread may be within a collective, which nothing interrupts."""
    print(f"error: host {process().index}: {message}; the same command goes on from here", file=sys.stderr, flush=True)
    _fail(message)
    os._exit(3)
