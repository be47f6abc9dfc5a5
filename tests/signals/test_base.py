"""Protocols of signals, and checks of their fields."""

import pytest

from kd_jax.errors import KdError
from kd_jax.schedules import Schedule
from kd_jax.signals.base import FeatureSignal, LogitSignal, Signal, compares_layers, compares_logits, id_dtype
from kd_jax.signals.features import AttentionRelations, HiddenStates
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK

V = 100


def test_signals_implement_their_protocols():
    for signal in (TopK(), Sampled(), Online()):
        assert isinstance(signal, Signal) and isinstance(signal, LogitSignal) and not isinstance(signal, FeatureSignal)
        assert compares_logits(signal) and not compares_layers(signal)
    for signal in (HiddenStates(layers=((0, 1),)), AttentionRelations(layers=((0, 1),))):
        assert isinstance(signal, Signal) and isinstance(signal, FeatureSignal) and not isinstance(signal, LogitSignal)
        assert compares_layers(signal) and not compares_logits(signal)
    assert not isinstance("topk", Signal) and not compares_logits(None) and not compares_layers(None)


def test_signals_with_a_schema_come_from_the_cache():
    assert [s.schema(V) is None for s in (TopK(), Sampled(), Online())] == [False, False, True]
    assert [s.origin for s in (TopK(), Sampled(), Online())] == ["cache", "cache", "step"]


NO_TEMPERATURES = (float("nan"), 0.0, -1.0, float("inf"), "2", True, None)
BAD = [(signal(temperature=t), "temperature") for signal in (TopK, Sampled, Online) for t in NO_TEMPERATURES[:5]]
BAD += [(signal(temperature=t), "temperature") for signal in (TopK, Sampled) for t in NO_TEMPERATURES[5:]]
BAD += [(signal(temperature=Schedule(1.0, 2.0, 5)), "temperature") for signal in (TopK, Sampled)]
BAD += [(TopK(k=4, temperatures=(1.0, float("nan"))), "temperature")]
BAD += [(signal(k=k), "k") for signal in (TopK, Online) for k in (8.5, True, -1, V + 1, "8", None)] + [(TopK(k=0), "k")]
BAD += [(signal(k=4, tail=tail), "tail") for signal in (TopK, Online) for tail in ("drop", "Bucket", None)]
BAD += [(Sampled(draws=draws), "draws") for draws in (0, 2**16, 5.0, True)] + [(Sampled(seed=-1), "seed")]


@pytest.mark.parametrize("signal, field", BAD, ids=str)
def test_bad_fields_are_refused(signal, field):
    with pytest.raises(KdError, match=rf"^signal\.{field}: expected .*, got "):
        signal.check(V)


@pytest.mark.parametrize("signal", [TopK(k=V), TopK(k=1, temperature=2), Sampled(), Online(), Online(k=V)], ids=str)
def test_valid_fields_are_accepted(signal):
    signal.check(V)


def test_ids_fit_any_vocabulary():
    assert [id_dtype(size) for size in (2, 65_536, 65_537, 262_144)] == ["uint16", "uint16", "uint32", "uint32"]
