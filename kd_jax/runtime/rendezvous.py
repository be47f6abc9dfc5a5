"""The meeting of a run's processes before JAX connects them: whether all are there, and fit together.

JAX's client waits for minutes, and ends the process with a native stack, where an address is wrong or two processes
have one number. So the processes first meet at the coordinator's port by plain TCP, and say in one line of JSON who
they are. Process 0 answers all of them, and JAX takes over the port. The connections stay open: the system closes them
at once when a process dies, however it dies.
"""

import contextlib
import errno
import json
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from kd_jax.errors import KdError

ANSWER_SECONDS = 8.0  # in which process 0 answers a connection; a stranger's that says nothing holds it up
GREETING_SECONDS = 2.0  # in which a process says who it is
LINGER_SECONDS = 4.0  # in which process 0 still tells others why it ends
LINE_BYTES = 4096
POLL_SECONDS = 0.5

Greeting = dict[str, Any]  # index, count, versions of packages, and an id of the process


def parse_address(text: str, option: str = "--coordinator") -> tuple[str, int]:
    """Return (host, port) of "ADDRESS:PORT"; an IPv6 address stands in brackets.

    Examples:
      >>> parse_address("10.0.0.1:1234"), parse_address("[::1]:80")
      (('10.0.0.1', 1234), ('::1', 80))
      >>> parse_address("10.0.0.1:99999")
      Traceback (most recent call last):
      kd_jax.errors.KdError: --coordinator: expected ADDRESS:PORT with a port in [1, 65535], got 10.0.0.1:99999. \
Example: 10.0.0.1:1234.
    """
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not (port.isascii() and port.isdigit() and len(port) < 6 and 1 <= int(port) <= 65535):
        raise KdError(f"{option}: expected ADDRESS:PORT with a port in [1, 65535], got {text}. Example: 10.0.0.1:1234.")
    return host, int(port)


def meet(address: str, greeting: Greeting, wait: float, poll: Callable[[], None]) -> dict[int, socket.socket]:
    """Wait for the other processes; return index -> open connection: of process 0 to all, of another one to process 0.

    Args:
      address: "ADDRESS:PORT" of process 0.
      greeting: this process's "index" and "count", and more that all processes must have in common.
      wait: seconds to wait for the others.
      poll: called twice a second; it may raise to stop waiting.

    Raises:
      KdError: if the address is wrong, a process is missing, or the greetings do not fit together.
    """
    host, port = parse_address(address)
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise KdError(
            f"--coordinator: expected an address that this machine knows, got {address} ({error})."
        ) from error
    greeting = greeting | {"id": os.urandom(8).hex()}
    if greeting["index"] == 0:
        return _Host(address, greeting, poll).wait_for_all(wait)
    return {0: _join(address, greeting, wait, poll)}


class _Host:
    """Process 0 at the meeting."""

    def __init__(self, address: str, greeting: Greeting, poll: Callable[[], None]):
        self.address, self.greeting, self.poll = address, greeting, poll
        self.listener = _listen(address, greeting)
        self.peers: dict[int, socket.socket] = {}
        self.is_reached = False  # whether the address leads to this process

    def wait_for_all(self, wait: float) -> dict[int, socket.socket]:
        """Return the connections of all other processes, once they have come and fit together."""
        deadline, count = time.monotonic() + wait, self.greeting["count"]
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.listener)
            own = stack.enter_context(self._connect_to_self())
            answer_deadline = time.monotonic() + ANSWER_SECONDS
            while not self.is_reached or len(self.peers) < count - 1:
                self.poll()
                if not self.is_reached and (_is_readable(own) or time.monotonic() > answer_deadline):
                    raise KdError(_read(own, 1.0).get("problem") or self._wrong_address("another program answers"))
                if time.monotonic() > deadline:
                    missing = ", ".join(str(i) for i in range(1, count) if i not in self.peers)
                    self._refuse(
                        f"--host: expected {count} hosts within {wait:g} seconds, got none with the number {missing}. "
                        "Start all of them, or set --wait SECONDS."
                    )
                if problem := self._receive(POLL_SECONDS):
                    self._refuse(problem)
                self._forget_the_gone()
            for peer in self.peers.values():
                _send(peer, {"begin": True})
        return self.peers

    def _connect_to_self(self) -> socket.socket:
        host, port = parse_address(self.address)
        try:
            own = socket.create_connection((host, port), timeout=ANSWER_SECONDS / 2)
        except OSError as error:
            raise KdError(self._wrong_address(_reason(error))) from error
        _send(own, self.greeting)
        return own

    def _wrong_address(self, reason: str) -> str:
        return f"--coordinator: expected an address of host 0, which is this machine, got {self.address} ({reason})."

    def _receive(self, seconds: float) -> str:
        """Receive one process, if one comes; return what is wrong with it, "" for nothing."""
        if not _is_readable(self.listener, seconds):
            return ""
        connection, _ = self.listener.accept()
        theirs = _read(connection, GREETING_SECONDS)
        if theirs.get("id") == self.greeting["id"]:
            self.is_reached = True
            connection.close()
            return ""
        index = theirs.get("index")
        if type(index) is not int:  # a stranger's
            connection.close()
            return ""
        self._forget_the_gone()
        problem = self._compare(theirs)
        if problem:
            _send(connection, {"problem": problem})
            connection.close()
            return problem
        self.peers[index] = connection
        _send(connection, {"welcome": True})
        return ""

    def _compare(self, theirs: Greeting) -> str:
        """Return how a process does not fit to this one, "" if it does."""
        ours, index = self.greeting, theirs["index"]
        count = theirs.get("count")
        if count != ours["count"]:
            return f"--host: expected the same COUNT on all hosts, got 0/{ours['count']} and {index}/{count}."
        if index in self.peers or not 0 < index < count:
            return f"--host: expected each NUMBER once, got two hosts with {index}/{ours['count']}. Number them from 0."
        for name in ours.keys() - {"index", "count", "id"}:
            if theirs.get(name) != ours[name]:
                versions = f"{ours[name]} on host 0 and {theirs.get(name)} on host {index}"
                return f"{name}: expected the same version on all hosts, got {versions}."
        return ""

    def _forget_the_gone(self) -> None:
        """Forget processes that have ended while they waited; they may come again."""
        for index, peer in list(self.peers.items()):
            if _is_readable(peer):  # they have nothing to say
                peer.close()
                del self.peers[index]

    def _refuse(self, problem: str) -> None:
        """Tell a problem to all others, also to those that come a little later, and raise it."""
        for peer in self.peers.values():
            _send(peer, {"problem": problem})
        told, deadline = len(self.peers), time.monotonic() + LINGER_SECONDS
        while told < self.greeting["count"] - 1 and time.monotonic() < deadline:
            self.poll()
            if _is_readable(self.listener, POLL_SECONDS):
                connection, _ = self.listener.accept()
                told += "index" in _read(connection, GREETING_SECONDS)
                _send(connection, {"problem": problem})
        raise KdError(problem)


def _listen(address: str, greeting: Greeting) -> socket.socket:
    """Return a socket that listens at the port on all of this machine's addresses, as JAX does later."""
    _, port = parse_address(address)
    try:
        has_ipv6 = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if has_ipv6 else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=has_ipv6, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            try:  # perhaps by another host 0 on this machine, which must know
                _join(address, greeting, GREETING_SECONDS, lambda: None)
            except KdError as problem:
                if str(problem).startswith("--host"):
                    raise
        raise KdError(
            f"--coordinator: expected a port that is free here on host 0, got {address} ({_reason(error)}). Choose "
            "another port."
        ) from error


def _join(address: str, greeting: Greeting, wait: float, poll: Callable[[], None]) -> socket.socket:
    """Return a connection to process 0, once it says that all have come."""
    host, port = parse_address(address)
    deadline = time.monotonic() + wait
    while True:
        poll()
        try:
            connection = socket.create_connection((host, port), timeout=max(0.1, min(5.0, deadline - time.monotonic())))
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise KdError(
                    f"--coordinator: expected host 0 at {address}, got no answer in {wait:g} seconds "
                    f"({_reason(error)}). Check the address, start host 0, or set --wait SECONDS."
                ) from error
            time.sleep(POLL_SECONDS)
    _send(connection, greeting)
    answer = _read(connection, ANSWER_SECONDS)
    if answer.get("welcome"):
        deadline = time.monotonic() + wait + LINGER_SECONDS  # process 0 waits as long, and began earlier or later
        while not _is_readable(connection, POLL_SECONDS) and time.monotonic() < deadline:
            poll()
        answer = _read(connection, POLL_SECONDS)
        if not answer:
            raise KdError(f"--host: expected host 0 to begin, got nothing more from {address}. See what it printed.")
    if "problem" in answer:
        raise KdError(str(answer["problem"]))
    if not answer.get("begin"):
        raise KdError(
            f"--coordinator: expected host 0 of a run that has not begun at {address}, got another program. Choose "
            "another port."
        )
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if number := getattr(socket, option, None):  # a machine that is gone is noticed in 30 seconds
            connection.setsockopt(socket.IPPROTO_TCP, number, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def _is_readable(connection: socket.socket, seconds: float = 0.0) -> bool:
    return bool(select.select([connection], [], [], seconds)[0])


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a process that is gone is noticed where it is read
        connection.sendall(json.dumps(message).encode() + b"\n")


def _read(connection: socket.socket, seconds: float) -> dict[str, Any]:
    """Return the next line of a connection; {} if it is none of ours, or does not come in time."""
    data, deadline = b"", time.monotonic() + seconds
    try:
        while not data.endswith(b"\n") and len(data) < LINE_BYTES:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            byte = connection.recv(1)
            if not byte or time.monotonic() > deadline:
                return {}
            data += byte
        message = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return {}
    finally:
        connection.settimeout(None)
    return message if isinstance(message, dict) else {}


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
