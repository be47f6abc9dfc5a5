"""Work on one corpus by several processes, each with its own way to the examples."""

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

Map = Callable[[Callable[[Any, Any], Any], Iterable[Any]], Iterator[Any]]
_shared: Any = None  # in a worker: what it was given when it began


class Workers(Protocol):
    """Who does the work."""

    def sharing(self, shared: Any) -> contextlib.AbstractContextManager[Map]:
        """Gives (function, items) -> function(shared, item) of every item, in order.

        Args:
          shared: the first argument of every call, handed to each process once; pickled where there are several.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Processes:
    """Processes of this machine (`Workers`); one does the work where it is called.

    They end with the process that began them, however that ends; signals are its matter, not theirs.

    Attributes:
      count: how many.

    Examples:
      >>> with Processes().sharing(10) as each:
      ...     list(each(max, [3, 12]))
      [10, 12]
    """

    count: int = 1

    @contextlib.contextmanager
    def sharing(self, shared: Any) -> Iterator[Map]:
        """As Workers.sharing; the function must be found by its name, where there are several.

        Raises:
          KdError: in use, if a process was ended from outside.
        """
        if self.count == 1:
            yield lambda function, items: (function(shared, item) for item in items)
            return
        # Not forked from here: JAX has threads, and what they hold would be held for ever.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "kd_jax.batches.encode"])
        executor = concurrent.futures.ProcessPoolExecutor(self.count, context, _begin, (shared,))
        try:
            yield functools.partial(self._each, executor)
        finally:
            executor.shutdown(cancel_futures=True)

    def _each(self, executor: concurrent.futures.Executor, function: Any, items: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from executor.map(functools.partial(_call, function), items)
        except BrokenProcessPool as error:
            raise KdError(
                f"--processes {self.count}: one of them was ended from outside, as where memory runs out; the same "
                "command goes on from what is done: wanted fewer processes, or more memory"
            ) from error


IN_PROCESS = Processes()


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
