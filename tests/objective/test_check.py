"""What an objective refuses before anything is trained."""

import pytest

from kd_jax.errors import KdError
from kd_jax.losses import divergence
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl, jensen_shannon, reverse_kl
from kd_jax.losses.features import cosine, mse
from kd_jax.objective.check import check, check_readable
from kd_jax.objective.terms import Term
from kd_jax.schedules import Schedule
from kd_jax.signals.features import AttentionRelations, HiddenStates
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK

HIDDEN, RELATIONS = HiddenStates(layers=((0, 2),)), AttentionRelations(layers=((0, 2),), heads=2)
LOSSES = {"targets": [cross_entropy], "divergence": divergence.ALL, "vectors": [mse, cosine]}
SIGNALS = [None, TopK(k=4), Sampled(), Online(), Online(k=4), HIDDEN, RELATIONS]
PAIRINGS = [(kind, loss, signal) for kind, losses in LOSSES.items() for loss in losses for signal in SIGNALS]


@pytest.mark.parametrize("kind, loss, signal", PAIRINGS, ids=lambda x: x.__name__ if callable(x) else str(x))
def test_a_loss_stands_with_signals_that_feed_its_kind_alone(kind, loss, signal):
    feeds = {None: "targets", HIDDEN: "vectors"}
    wanted = feeds[signal] if signal in feeds else "divergence"
    if kind == wanted and not (signal == Sampled() and loss is not forward_kl):
        check({"a": Term(loss, signal=signal)}, 100)
    else:
        with pytest.raises(KdError, match=r"^terms\.a\.(loss|signal): .*(wanted|supports)"):
            check({"a": Term(loss, signal=signal)}, 100)


WEIGHTS = [0.0, -1.0, float("nan"), float("inf"), "0.5", None, Schedule(0.0, 0.0, 5), Schedule(0.0, 1.0, 0), Schedule("0", 1.0, 5)]


@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_weights_are_positive_numbers(weight):
    with pytest.raises(KdError, match=r"^terms\.a\.weight(\.start|\.steps)?: "):
        check({"a": Term(cross_entropy, weight=weight)}, 100)


@pytest.mark.parametrize(
    "terms, message",
    [
        ({}, "^terms: empty"),
        ({"a": cross_entropy}, r"^terms\.a: .*wanted a Term"),
        ({"a": Term("cross_entropy")}, r"^terms\.a\.loss: 'cross_entropy', a str; wanted"),
        ({"a": Term(forward_kl)}, r"^terms\.a\.signal: None, with forward_kl; wanted a signal .*TopK"),
        ({"a": Term(forward_kl, signal="topk")}, r"^terms\.a\.signal: 'topk'; wanted"),
        ({"a": Term(forward_kl, signal=TopK)}, r"^terms\.a\.signal: .*; wanted one of kd_jax\.signals"),
        ({"a": Term(mse, signal=TopK())}, r"^terms\.a\.loss: mse.*vectors, with TopK.*HiddenStates"),
        ({"a": Term(forward_kl, signal=HIDDEN)}, r"^terms\.a\.loss: forward_kl.*HiddenStates, which feeds vectors"),
        ({"a": Term(cross_entropy, signal=TopK())}, r"^terms\.a\.loss: cross_entropy.*wanted no signal"),
        ({"a": Term(mse, signal=RELATIONS)}, r"^terms\.a\.loss: mse.*AttentionRelations"),
        ({"a": Term(cross_entropy, options={"label_smoothing": 1.5})}, r"^terms\.a\.options\.label_smoothing: 1.5"),
        ({"a": Term(jensen_shannon, signal=Online(), options={"bata": 0.5})}, r"^terms\.a\.options\.bata: .*beta\?"),
        ({"a": Term(forward_kl, signal=TopK(k=101))}, r"^terms\.a\.signal\.k: 101; wanted 1 to .* 100"),
        ({"a": Term(forward_kl, signal=TopK(temperature=Schedule(1.0, 2.0, 5)))}, "signal.temperature: Schedule.*Online"),
        ({"a": Term(forward_kl, signal=HiddenStates(layers=()))}, r"^terms\.a\.signal\.layers"),
        ({"a": Term(reverse_kl, signal=Sampled())}, r"^terms\.a\.loss: reverse_kl.*supports forward_kl$"),
        ({"a": Term(reverse_kl, signal=TopK(k=4, tail="zero"))}, "supports forward_kl, skewed_forward_kl$"),
        ({"a": Term(reverse_kl, signal=Online(k=4, tail="zero"))}, "supports forward_kl, skewed_forward_kl$"),
    ],
)
def test_the_message_names_the_field_and_the_remedy(terms, message):
    with pytest.raises(KdError, match=message) as refused:
        check(terms, 100)
    assert "\n" not in str(refused.value)


def test_good_objectives_pass():
    check(
        {
            "ce": Term(cross_entropy, weight=0.5, options={"label_smoothing": 0.1}),
            "kd": Term(forward_kl, weight=Schedule(0.0, 1.0, 5), signal=Online(temperature=Schedule(4.0, 1.0, 5))),
            "hidden": Term(mse, signal=HIDDEN),
            "relations": Term(jensen_shannon, signal=RELATIONS, options={"beta": 0}),
        },
        100,
    )


def test_a_cache_without_what_is_needed_is_refused():
    stored = TopK(k=8).schema(100)
    check_readable("topk", TopK(k=8), 100, stored)
    check_readable("topk", TopK(k=3), 100, stored)
    check_readable("topk", TopK(k=3, temperature=2.0, tail="renormalise"), 100, stored)  # which reads no rest
    with pytest.raises(KdError, match=r"no field rest_t2"):
        check_readable("topk", TopK(k=3, temperature=2.0), 100, stored)
    with pytest.raises(KdError, match=r"field ids .*\[8\].*\[9\]"):
        check_readable("topk", TopK(k=9), 100, stored)
    with pytest.raises(KdError, match="uint32"):
        check_readable("topk", TopK(k=3), 100_000, stored)
