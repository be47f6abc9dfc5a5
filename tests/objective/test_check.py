"""Checks of an objective before training."""

import dataclasses
import functools
from typing import Annotated

import jax.numpy as jnp
import optax
import pytest

from kd_jax.errors import KdError
from kd_jax.losses import divergence
from kd_jax.losses.base import Range, name_of
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl, jensen_shannon, reverse_kl, skewed_forward_kl
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
def test_losses_are_accepted_only_with_signals_of_their_kind(kind, loss, signal):
    signal_kind = {None: "targets", HIDDEN: "vectors"}.get(signal, "divergence")
    if kind == signal_kind and not (signal == Sampled() and loss is not forward_kl):
        check({"a": Term(loss, signal=signal)}, 100)
    else:
        with pytest.raises(KdError, match=r"^terms\.a\.loss: expected a loss .*, got"):
            check({"a": Term(loss, signal=signal)}, 100)


def squared(a, b):
    return ((a - b) ** 2).sum(-1)


@pytest.mark.parametrize(
    "term",
    [
        Term(optax.losses.kl_divergence_with_log_targets, signal=TopK(k=4)),
        Term(optax.losses.cosine_distance, signal=HIDDEN),
        Term(optax.losses.softmax_cross_entropy_with_integer_labels),
        Term(functools.partial(jensen_shannon, beta=0.3), signal=TopK(k=4)),
        Term(functools.partial(skewed_forward_kl, alpha=0.3), signal=TopK(k=4, tail="zero")),
        Term(functools.partial(cross_entropy, label_smoothing=0.1)),
        Term(squared, signal=TopK(k=4)),
        Term(squared, signal=HIDDEN),
        Term(lambda logits, ids: jnp.where(ids > 0, logits[:, 0], 0.0)),
    ],
    ids=lambda term: name_of(term.loss),
)
def test_any_function_that_fits_the_signal_is_a_loss(term):
    check({"a": term}, 100)


@pytest.mark.parametrize(
    "term, message",
    [
        (Term(squared), r"a loss of \(logits_NV, targets_N\) for no signal, got \w+ from squared: "),
        (Term(lambda a, b: (a - b) ** 2, signal=HIDDEN), r"one float per token, .* got .*\(3, 100\)"),
        (Term(lambda a, b: (a - b).sum(), signal=HIDDEN), r"one float per token, .* got .*\(\)"),
        (Term(lambda logits, ids: ids), "one float per token, .* got .*int32"),
        (Term(lambda a: a, signal=HIDDEN), "got TypeError from <lambda>"),
        (Term(optax.losses.squared_error, signal=HIDDEN), "one float per token"),
        (Term(optax.losses.kl_divergence, signal=TopK()), r"kl_divergence of \(log_predictions, targets\)\. Wrap it"),
        (Term(optax.losses.softmax_cross_entropy, signal=TopK()), r"of \(logits, labels\)\. Wrap it"),
        (Term(functools.partial(forward_kl, 1.0), signal=TopK()), r"keyword arguments only, got \(1\.0,\)"),
        (Term(functools.partial(mse), signal=TopK()), r"got mse\(\) of \(teacher_NX, student_NX\)"),
        (Term(functools.partial(reverse_kl), signal=Sampled()), r"supports \(forward_kl\), got reverse_kl"),
        (Term(max, signal=HIDDEN), "a function with a signature, got max"),
    ],
)
def test_functions_that_do_not_fit_the_signal_are_refused(term, message):
    with pytest.raises(KdError, match=rf"^terms\.a\.loss: expected .*{message}") as error:
        check({"a": term}, 100)
    assert "\n" not in str(error.value)


WEIGHTS = [
    0.0,
    -1.0,
    float("nan"),
    float("inf"),
    "0.5",
    None,
    Schedule(0.0, 0.0, 5),
    Schedule(0.0, 1.0, 0),
    Schedule("0", 1.0, 5),
]


@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_weights_that_are_no_positive_number_are_refused(weight):
    with pytest.raises(KdError, match=r"^terms\.a\.weight(\.start|\.steps)?: "):
        check({"a": Term(cross_entropy, weight=weight)}, 100)


@pytest.mark.parametrize(
    "terms, message",
    [
        ({}, "^terms: expected at least one Term"),
        ({"a": cross_entropy}, r"^terms\.a: .*expected a Term"),
        ({"a": Term("cross_entropy")}, r"^terms\.a\.loss: expected a function.*, got 'cross_entropy'"),
        ({"a": Term(forward_kl)}, r"^terms\.a\.loss: .* for no signal, got forward_kl .*TopK"),
        ({"a": Term(forward_kl, signal="topk")}, r"^terms\.a\.signal: expected a signal.*, got 'topk'"),
        ({"a": Term(forward_kl, signal=TopK)}, r"^terms\.a\.signal: expected a signal.*, got <class"),
        (
            {"a": Term(mse, signal=TopK())},
            r"^terms\.a\.loss: .*for TopK, got mse of \(teacher_NX, student_NX\).*HiddenStates",
        ),
        ({"a": Term(forward_kl, signal=HIDDEN)}, r"^terms\.a\.loss: .*for HiddenStates, got forward_kl.*TopK"),
        ({"a": Term(cross_entropy, signal=TopK())}, r"^terms\.a\.loss: .*got cross_entropy.*Use no signal"),
        ({"a": Term(mse, signal=RELATIONS)}, r"^terms\.a\.loss: .*for AttentionRelations, got mse"),
        (
            {"a": Term(cross_entropy, options={"label_smoothing": 1.5})},
            r"^terms\.a\.options\.label_smoothing: .*got 1.5",
        ),
        ({"a": Term(jensen_shannon, signal=Online(), options={"bata": 0.5})}, r"^terms\.a\.options\.bata: .*beta\?"),
        (
            {"a": Term(forward_kl, signal=TopK(k=101))},
            r"^terms\.a\.signal\.k: expected an integer in \[1, 100\], got 101",
        ),
        (
            {"a": Term(forward_kl, signal=TopK(temperature=Schedule(1.0, 2.0, 5)))},
            "signal.temperature: .*got Schedule.*Online",
        ),
        ({"a": Term(forward_kl, signal=HiddenStates(layers=()))}, r"^terms\.a\.signal\.layers"),
        ({"a": Term(reverse_kl, signal=Sampled())}, r"^terms\.a\.loss: .*supports \(forward_kl\), got reverse_kl"),
        (
            {"a": Term(reverse_kl, signal=TopK(k=4, tail="zero"))},
            r"supports \(forward_kl, skewed_forward_kl\), got reverse_kl",
        ),
        (
            {"a": Term(reverse_kl, signal=Online(k=4, tail="zero"))},
            r"supports \(forward_kl, skewed_forward_kl\), got reverse_kl",
        ),
    ],
)
def test_the_message_names_the_field_and_the_remedy(terms, message):
    with pytest.raises(KdError, match=message) as error:
        check(terms, 100)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan"), True, "0.2", None, Schedule(0.1, 1.0, 5)], ids=str)
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(KdError, match=r"^terms\.a\.entropy_share: expected a number in \(0, 1\], got .*Use 1") as error:
        check({"a": Term(forward_kl, signal=TopK(k=4), entropy_share=share)}, 100)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "term", [Term(mse, signal=HIDDEN), Term(forward_kl, signal=RELATIONS)], ids=["vectors", "relations"]
)
def test_a_term_on_layers_has_no_share(term):
    check({"a": term}, 100)
    with pytest.raises(KdError, match=r"^terms\.a\.entropy_share: expected 1 for .*compares layers.*, got 0\.5"):
        check({"a": dataclasses.replace(term, entropy_share=0.5)}, 100)


def branching(teacher_logp_NK, student_logp_NK, t: Annotated[float, Range(0.0, 1.0, scheduled=True)] = 1.0):
    return forward_kl(teacher_logp_NK, student_logp_NK) if t > 0 else 0.0 * student_logp_NK.sum(-1)


def test_a_loss_that_branches_on_a_schedule_is_refused_before_training():
    check({"a": Term(branching, signal=TopK(k=4), options={"t": 0.5})}, 100)
    with pytest.raises(KdError, match=r"^terms\.a\.loss: .*got TracerBoolConversionError from branching"):
        check({"a": Term(branching, signal=TopK(k=4), options={"t": Schedule(0.0, 1.0, 5)})}, 100)


def test_a_valid_objective_is_accepted():
    check(
        {
            "ce": Term(cross_entropy, weight=0.5, options={"label_smoothing": 0.1}),
            "kd": Term(forward_kl, weight=Schedule(0.0, 1.0, 5), signal=Online(temperature=Schedule(4.0, 1.0, 5))),
            "hidden": Term(mse, signal=HIDDEN),
            "relations": Term(jensen_shannon, signal=RELATIONS, options={"beta": 0}),
            "optax": Term(cross_entropy, weight=optax.linear_schedule(0.0, 1.0, 5)),
            "taid": Term(divergence.taid, signal=Online(), options={"t": Schedule(0.4, 1.0, 5)}),
            "selective": Term(forward_kl, signal=TopK(k=4), entropy_share=0.2),
            "selective_ce": Term(cross_entropy, entropy_share=1),
        },
        100,
    )


def test_a_cache_without_the_required_fields_is_refused():
    schema = TopK(k=8).schema(100)
    check_readable("topk", TopK(k=8), 100, schema)
    check_readable("topk", TopK(k=3), 100, schema)
    check_readable("topk", TopK(k=3, temperature=2.0, tail="renormalise"), 100, schema)  # reads no rest
    with pytest.raises(KdError, match=r"expected a field rest_t2"):
        check_readable("topk", TopK(k=3, temperature=2.0), 100, schema)
    with pytest.raises(KdError, match=r"expected ids .*\[9\].*\[8\]"):
        check_readable("topk", TopK(k=9), 100, schema)
    with pytest.raises(KdError, match="uint32"):
        check_readable("topk", TopK(k=3), 100_000, schema)
