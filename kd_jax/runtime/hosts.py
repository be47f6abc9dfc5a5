"""The processes of one run on several hosts: their ranks, exchanged values, and a common end.

The processes exchange values through JAX's coordination service, which the main process runs. A collective gives up
after a while, but one host's download or tokeniser may take long. So processes wait for keys of the service instead.
All processes must make the same calls in the same order. With one process every function returns at once, and JAX is
not imported.

A process that dies closes its connection to the main process, or that to the others, at once. One that is stopped is
noticed by JAX's service after a while, which aborts the others.
"""

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from kd_jax import __version__
from kd_jax.errors import KdError, Preempted, ScoresNeeded
from kd_jax.runtime import rendezvous

CHUNK_CHARS = 2**20  # of one value; a message of the service holds 4 MiB
POLL_SECONDS = 1.0  # between looks at the keys of the other processes
HEARTBEAT_SECONDS = 50  # of silence after which the service counts a process as dead; more than an exit takes
LOSS_SECONDS = 3.0  # in which the end of a connection is noticed
GRACE_SECONDS = 10.0  # in which a process may end by itself, with its own message
WAIT, AUTO_WAIT = 20.0, 300.0  # seconds to wait for all hosts at the start; longer where a scheduler starts them
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
        self.peers: dict[int, socket.socket] = {}  # of the main process to all, of another one to the main process
        self.gone: set[int] = set()  # processes whose connection has ended
        self.abort_handler: Any = None
        self.last_words = ""  # of this process, while it tells the others that it ends
        self.exiting = threading.Lock()  # for the one thread that exits


_state = _State()


def join(
    process: tuple[int, int] | None,
    coordinator: str,
    patience: float = PATIENCE,
    wait: float | None = None,
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Make this process one of several; call it before JAX finds its devices.

    Args:
      process: (index, count); None to take both from the environment of a TPU pod, SLURM or MPI.
      coordinator: "ADDRESS:PORT" at which the main process can listen; "" to take it from the environment.
      patience: seconds without progress after which this process ends, and with it all others.
      wait: seconds to wait for the others; None for WAIT, or AUTO_WAIT without `process`.
      poll: called while this process waits for others; it may raise.

    Raises:
      KdError: if the hosts do not all come, or do not fit together.
    """
    import jax.distributed
    from jax._src import distributed  # the service's client has no public name

    local_devices = None
    if process:
        index, count = process
    else:
        coordinator, count, index, local_devices = _detect()
    if wait is None:
        wait = WAIT if process else AUTO_WAIT
    greeting = {"index": index, "count": count, "kd_jax": __version__, "jax": jax.__version__}
    _state.peers = rendezvous.meet(coordinator, greeting, wait, poll)
    _state.process = Process(index, count)
    _end_on_abort()
    threading.Thread(target=_listen, daemon=True).start()
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=count,
            process_id=index,
            local_device_ids=local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=300,
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise KdError(
            f"--host: expected all hosts to connect, got: {reason}. Check --host and --coordinator of each."
        ) from error
    _state.client = distributed.global_state.client
    heartbeat()
    watcher = threading.Thread(target=_watch, args=(patience,), daemon=True)
    watcher.start()
    atexit.register(_leave, watcher)  # before JAX leaves the service


def _detect() -> tuple[str, int, int, Any]:
    """Return (coordinator, count, index, local devices) as JAX finds them in the environment."""
    from jax._src import clusters  # without a public name

    environment = clusters.ClusterEnv.auto_detect_unset_distributed_params
    coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS")
    coordinator, count, index, local_devices = environment(coordinator, None, None, None, None, int(AUTO_WAIT))
    if coordinator is None or count is None or index is None:
        raise KdError(
            "--host: expected a TPU pod, SLURM or MPI for `auto`, got none of them. Set NUMBER/COUNT and --coordinator."
        )
    return coordinator, count, index, local_devices


def _leave(watcher: threading.Thread) -> None:
    """Say goodbye, so that the end of the connections is no death."""
    _state.closed.set()
    watcher.join()
    for peer in _state.peers.values():
        with contextlib.suppress(OSError):
            peer.sendall(b"bye")


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


def check_same(values: Mapping[str, Any]) -> None:
    """Check that all processes have the same JSON-able values; the error names the first that differs.

    Raises:
      KdError: on every process.

    Examples:
      >>> check_same({"seed": 1})
    """
    first, *others = exchange(dict(values))
    for index, other in enumerate(others, start=1):
        for name in first | other:
            ours, theirs = (str(one.get(name, "none"))[:60] for one in (first, other))
            if first.get(name) != other.get(name):
                raise KdError(
                    f"{name}: expected the same on all hosts, got {ours} on host 0 and {theirs} on host {index}. Run "
                    "the same command, config and version on each."
                )


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
    except (Preempted, ScoresNeeded):
        raise
    except BaseException as error:
        if process().count > 1:
            if not isinstance(error, KdError | KeyboardInterrupt):
                time.sleep(LOSS_SECONDS)  # a collective fails where another process dies: the watching thread ends this
            _announce_failure(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        raise


def _announce_failure(message: str) -> None:
    """Publish this process's failure; the main process waits until the others have ended, since its service ends."""
    if _state.client is None:
        return
    with contextlib.suppress(RuntimeError):
        _publish(f"failed/{process().index}", message)
    deadline = time.monotonic() + 2 * GRACE_SECONDS
    while is_main_process() and len(_state.gone) < process().count - 1 and time.monotonic() < deadline:
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


def _listen() -> None:
    """Note which processes end without a goodbye."""
    peers = dict(_state.peers)
    while peers:
        for connection in select.select(list(peers.values()), [], [])[0]:
            index = next(index for index, peer in peers.items() if peer is connection)
            try:
                goodbye = bool(connection.recv(16))
            except OSError:
                goodbye = False
            del peers[index]
            if not goodbye:
                _state.gone.add(index)


def _watch(patience: float) -> None:
    """End this process when another has failed or nothing makes progress; note announced stops."""
    while not _state.closed.wait(POLL_SECONDS):
        gone = set(_state.gone)  # before the failures, which a process announces before it ends
        try:
            failures, stops = _failures(), _values("stop")
        except RuntimeError:  # the service ends with the main process
            failures, stops = {}, []
        _state.stop_announced |= bool(stops)
        for index, message in failures.items():
            if index != process().index:
                time.sleep(GRACE_SECONDS)
                _end(f"host {index} has failed ({message}), so this one ends too")
        for index in gone:
            _end(f"host {index} has died, so this one ends too")
        idle = time.monotonic() - _state.last_heartbeat
        if idle > patience and not _state.is_waiting:
            _end(f"no progress for {idle:.0f} seconds: a host hangs, or --patience is too short")


def _end(message: str) -> None:
    """End at once: the main thread may be inside a collective, which nothing interrupts."""
    _state.last_words = message
    _announce_failure(message)
    _exit_with(message)


def _exit_with(message: str) -> None:
    if not _state.exiting.acquire(blocking=False):
        time.sleep(LOSS_SECONDS)  # another thread prints its line and exits
    with contextlib.suppress(OSError):
        line = f"error: host {process().index}: {message}. Run the same command again to resume."
        os.write(2, line.encode() + b"\n")
    os._exit(2)


def _end_on_abort() -> None:
    """Leave a line where JAX aborts the process because another one is gone: its callback for it crashes (0.10)."""

    def on_abort(number: int) -> None:
        _exit_with(_state.last_words or "JAX has ended it, most likely because another host has died or hangs")

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    _state.abort_handler = handler  # C holds no reference
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
