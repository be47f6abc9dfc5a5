"""FLOPs by formula equal those of the compiled network; workloads equal explicit counts."""

import jax
import pytest

from kd_jax.batches.layouts import Bucket
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.flops import count_full_workload, count_workload, flops_per_unit
from kd_jax.runtime.program import analyze_program
from kd_jax.tokenizers.sentencepiece import START
from tests.helpers.batches import random_examples, rows_of, segments_with_signal, to_batch
from tests.helpers.families import SIGNAL

V = 24
SIZES = {"d_model": 16, "heads": 4, "kv_heads": 2, "d_ff": 20, "dropout": 0.0}
FAMILIES = [
    EncoderDecoder(2, 1, **SIZES, biases="all", positions="learned", context=16),
    EncoderDecoder(1, 2, **SIZES, activation="geglu", tied=False, positions="relative"),
    DecoderOnly(2, **SIZES, tied=False),
    DecoderOnly(1, **SIZES | {"head_dim": 6}, activation="relu"),
]


@pytest.mark.parametrize("architecture", FAMILIES, ids=lambda one: one.family)
def test_flops_equal_those_of_the_compiled_program(architecture):
    """The program of short rows computes all pairs, including masked ones."""
    model = architecture.build(V)
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = to_batch(random_examples(0, [(7, 5)] * 3, V), (7, 5), architecture.layout(START))
    rows, length = batch.targets_BT.shape
    each, computed = flops_per_unit(model, params), count_full_workload(batch)._replace(decoder_pairs=rows * length**2)
    hidden = analyze_program(jax.jit(model.apply).lower(params, batch.inputs).compile()).flops
    assert hidden == each.dot(computed._replace(targets=0))

    def logits(params):
        return model.head(params).logits(model.apply(params, batch.inputs))

    assert analyze_program(jax.jit(logits).lower(params).compile()).flops == each.dot(computed)


def test_flops_follow_the_formula_of_the_docstring():
    """6 N + 6 D V + 12 L H d t per token in training, with t = (T + 1) / 2."""
    architecture = DecoderOnly(3, d_model=16, heads=2, head_dim=12, d_ff=20, positions="rotary")
    model = architecture.build(V)
    params = jax.eval_shape(model.init, jax.random.key(0))
    matrices = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2) - V * 16
    batch, length = to_batch(random_examples(0, [(0, 9)], V), (0, 9), architecture.layout(START)), 9
    token = 3 * flops_per_unit(model, params).dot(count_full_workload(batch)) / length
    assert token == 6 * matrices + 6 * 16 * V + 12 * 3 * 24 * (length + 1) / 2


@pytest.mark.parametrize("architecture", FAMILIES[1:3], ids=lambda one: one.family)
@pytest.mark.parametrize("sizes", [[1] * 6, [2, 1, 3]], ids=["one example a row", "packed"])
def test_workload_equals_explicit_count(architecture, sizes):
    segments = segments_with_signal(0, (4, 5), 6, SIGNAL, V)
    batch = architecture.layout(START).batch(
        rows_of(segments, sizes), 7, Bucket(14, 16), {SIGNAL.name: SIGNAL.schema(V)}
    )
    lengths = [(len(one.encoded.prompt), len(one.encoded.completion)) for one in segments]
    if architecture.family == "decoder_only":
        lengths = [(0, sum(one)) for one in lengths]
    pairs = sum(sum(j <= i for i in range(c) for j in range(c)) for _, c in lengths)
    workload = count_workload(batch)
    assert (workload.decoder, workload.encoder) == (sum(c for _, c in lengths), sum(p for p, _ in lengths))
    assert (workload.decoder_pairs, workload.encoder_pairs) == (pairs, sum(p * p for p, _ in lengths))
    assert workload.cross_pairs == sum(p * c for p, c in lengths)
    assert workload.targets == sum(int(one.encoded.counts.sum()) for one in segments)


def test_full_rows_have_the_full_workload():
    batch = to_batch(random_examples(0, [(4, 6)] * 2, V))
    assert count_workload(batch) == count_full_workload(batch)
