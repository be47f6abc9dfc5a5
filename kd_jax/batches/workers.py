"""Map a function over items by one process or several, each with its own copy of shared data."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from kd_jax.errors import KdError

# (function, items) -> function(shared, item) for each item, in order
ParallelMap = Callable[[Callable[[Any, Any], Any], Iterable[Any]], Iterator[Any]]
_shared: Any = None  # in a worker process: the first argument of every call


class Workers(Protocol):
    """Processes or machines that map a function over items."""

    def start(self, shared: Any) -> contextlib.AbstractContextManager[ParallelMap]:
        """Start the workers; give (function, items) -> iterator of function(shared, item), in order.

        Args:
          shared: the first argument of every call; pickled and sent to each worker once.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Processes:
    """Processes of this machine (`Workers`); a count of one calls the function in this process.

    Worker processes end with their parent, however it ends. They ignore SIGTERM and SIGINT, which the parent handles.

    Examples:
      >>> with Processes().start(10) as parallel_map:
      ...     list(parallel_map(max, [3, 12]))
      [10, 12]
    """

    count: int = 1

    @contextlib.contextmanager
    def start(self, shared: Any) -> Iterator[ParallelMap]:
        """Start the processes, as `Workers.start`; several need a function that can be pickled."""
        if self.count == 1:
            yield lambda function, items: (function(shared, item) for item in items)
            return
        # Not forked from this process: a fork would copy locks that JAX's threads hold.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "kd_jax.batches.encode"])
        executor = concurrent.futures.ProcessPoolExecutor(self.count, context, _init_worker, (shared,))

        def parallel_map(function: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            try:
                yield from executor.map(functools.partial(_call, function), items)
            except BrokenProcessPool as error:
                raise KdError(
                    f"--processes {self.count}: expected every process to finish, got one that was killed (for example "
                    "because memory ran out). Run the same command with fewer processes; it resumes."
                ) from error

        try:
            yield parallel_map
        finally:
            executor.shutdown(cancel_futures=True)


IN_PROCESS = Processes()


def _init_worker(shared: Any) -> None:
    global _shared
    _shared = shared
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(function: Callable[[Any, Any], Any], item: Any) -> Any:
    return function(_shared, item)
