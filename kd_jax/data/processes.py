"""Work on one corpus by several processes of this machine, each with its own way to the examples."""

import concurrent.futures
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from kd_jax.errors import KdError

_shared: Any = None  # in a worker: what it was given when it began


class Workers:
    """Calls functions in several processes; with one it calls them here.

    Workers end with the process that began them, however that ends; signals are its matter, not theirs.

    Args:
      count: number of processes.
      shared: the first argument of every call, handed to each process once; pickled where there are several.

    Examples:
      >>> with Workers(1, shared=10) as workers:
      ...     list(workers.map(max, [3, 12]))
      [10, 12]
    """

    def __init__(self, count: int, shared: Any):
        self._count, self._shared, self._executor = count, shared, None

    def __enter__(self) -> "Workers":
        if self._count > 1:
            # Not forked from here: JAX has threads, and what they hold would be held for ever.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__, "kd_jax.data.encoding"])
            self._executor = concurrent.futures.ProcessPoolExecutor(self._count, context, _begin, (self._shared,))
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """function(shared, item) of every item, in order; the function must be found by its name.

        Raises:
          KdError: if a process was ended from outside.
        """
        if self._executor is None:
            yield from (function(self._shared, item) for item in items)
            return
        try:
            yield from self._executor.map(functools.partial(_call, function), items)
        except BrokenProcessPool as error:
            raise KdError(
                f"--processes {self._count}: one of them was ended from outside, as where memory runs out; the same "
                "command goes on from what is done: wanted fewer processes, or more memory"
            ) from error


def _begin(shared: Any) -> None:
    global _shared
    _shared = shared
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(function: Callable[[Any, Any], Any], item: Any) -> Any:
    return function(_shared, item)
