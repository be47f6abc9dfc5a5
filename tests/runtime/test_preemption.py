"""SIGTERM requests a stop, which loops notice at their next advance."""

import os
import signal

import pytest

from kd_jax.errors import Preempted
from kd_jax.runtime import hosts, preemption


def test_sigterm_stops_at_the_next_poll():
    with preemption.handle_signals(resumes=True):
        preemption.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.stop_requested() and preemption.may_stop_alone()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one ends the process
        with preemption.defer_stop():
            preemption.poll()
        with pytest.raises(Preempted):
            preemption.poll()
    assert not preemption.stop_requested()


def test_process_among_several_does_not_stop_alone(monkeypatch):
    monkeypatch.setattr(hosts._state, "process", hosts.Process(1, 2))
    monkeypatch.setattr(hosts._state, "stop_announced", True)
    assert preemption.stop_requested() and not preemption.may_stop_alone()
