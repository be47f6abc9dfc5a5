"""Packing and padding: an example's loss does not depend on its row or its neighbours (trap 11)."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest

from kd_jax.batches.layouts import Bucket
from kd_jax.models.base import Architecture
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.step import count_tokens, loss_fn
from kd_jax.types import Batch
from tests.helpers.batches import rows_of, segments_with_signal
from tests.helpers.families import SIGNAL, V, each_family, every_term, network

S, T, EXAMPLES = 5, 6, 9
SEPARATE, PACKED = (1,) * EXAMPLES, (3, 1, 3, 2)  # number of examples in each row


def batch_of(architecture: Architecture, sizes: tuple[int, ...], more: int = 0) -> Batch:
    """Return the same examples with `sizes` of them in each row; `more` adds padding to rows and empty rows."""
    segments = segments_with_signal(0, (S, T), EXAMPLES, SIGNAL, V)
    bucket, count = Bucket(max(sizes) * S + more, max(sizes) * T + more), len(sizes) + more
    return architecture.layout(START).batch(rows_of(segments, sizes), count, bucket, {SIGNAL.name: SIGNAL.schema(V)})


@functools.cache
def loss_and_gradient(architecture: Architecture):
    """Return a compiled function of a batch: ((loss, Sums), gradient)."""
    model, params, teacher_params = network(architecture)
    loss_of_batch = functools.partial(loss_fn, model=model, teacher=model, terms=every_term(architecture))
    loss = lambda params, batch: loss_of_batch((params, {}), batch, count_tokens(batch), None, teacher_params)  # noqa: E731
    return functools.partial(jax.jit(jax.value_and_grad(loss, has_aux=True)), params)


@each_family
def test_packed_rows_have_the_loss_of_separate_rows(architecture):
    """Loss, each term and gradients agree, with a weight for each example and terms on the encoder."""
    separate, packed = (batch_of(architecture, sizes) for sizes in (SEPARATE, PACKED))
    assert set(packed.inputs.decoder.segment_BT[0]) >= {1, 2, 3} and len(np.unique(separate.weight_BT)) == 5
    chex.assert_trees_all_equal(count_tokens(separate), count_tokens(packed))
    got, want = (loss_and_gradient(architecture)(batch) for batch in (packed, separate))
    chex.assert_trees_all_close(got, want, atol=1e-5, rtol=1e-5)


@functools.cache
def hidden_states(architecture: Architecture, dropout: float = 0.0):
    """Return a compiled function of inputs: hidden states with dropout from a fixed key."""
    _, params, _ = network(architecture)
    model = dataclasses.replace(architecture, dropout=dropout).build(V)
    return functools.partial(jax.jit(model.apply), params, dropout_key=jax.random.key(1))


@each_family
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_packed_rows_have_the_hidden_states_of_separate_rows(architecture, dropout):
    """Dropout belongs to the example and not to the row."""
    batches = [batch_of(architecture, sizes) for sizes in (SEPARATE, PACKED)]
    separate_ND, packed_ND = (
        np.asarray(hidden_states(architecture, dropout)(batch.inputs))[batch.inputs.decoder.segment_BT > 0]
        for batch in batches
    )
    np.testing.assert_allclose(packed_ND, separate_ND, atol=1e-5)
    no_dropout_ND = np.asarray(hidden_states(architecture)(batches[0].inputs))[batches[0].inputs.decoder.segment_BT > 0]
    assert np.allclose(no_dropout_ND, separate_ND) == (dropout == 0)


@each_family
@pytest.mark.parametrize("segment", [1, 2, 3])
def test_attention_does_not_cross_segments(architecture, segment):
    """A changed token of encoder or decoder changes no bit of another segment."""
    inputs = batch_of(architecture, PACKED).inputs

    def change(tokens):
        """Replace the first token of the segment in row 0."""
        ids_BT, place = tokens.ids_BT.copy(), int((tokens.segment_BT[0] == segment).argmax())
        ids_BT[0, place] = V - 1 - ids_BT[0, place]
        return tokens._replace(ids_BT=ids_BT)

    others = [inputs._replace(decoder=change(inputs.decoder))]
    if inputs.encoder:
        others.append(inputs._replace(encoder=change(inputs.encoder)))
    before_BTD = np.asarray(hidden_states(architecture)(inputs))
    here_BT = np.zeros(inputs.decoder.segment_BT.shape, bool)
    here_BT[0] = inputs.decoder.segment_BT[0] == segment
    for other in others:
        after_BTD = np.asarray(hidden_states(architecture)(other))
        np.testing.assert_array_equal(after_BTD[~here_BT], before_BTD[~here_BT])
        assert (np.abs(after_BTD - before_BTD).max(-1)[here_BT] > 1e-4).all()


def pad_left(batch: Batch) -> Batch:
    """Return the same rows with padding on the left, of encoder and decoder."""
    lengths = lambda segment_BT: (segment_BT > 0).sum(-1)  # noqa: E731

    def roll(length_B):
        return lambda x: np.stack([np.roll(row, x.shape[1] - n, axis=0) for row, n in zip(x, length_B, strict=True)])

    inputs, of_targets = batch.inputs, roll(lengths(batch.inputs.decoder.segment_BT))
    encoder = inputs.encoder and jax.tree.map(roll(lengths(inputs.encoder.segment_BT)), inputs.encoder)
    decoder, *rest = jax.tree.map(of_targets, (inputs.decoder, *batch[1:]))
    return Batch(inputs._replace(decoder=decoder, encoder=encoder), *rest)


@each_family
def test_loss_is_independent_of_padding(architecture):
    """More padding on the right and empty rows, or all padding on the left."""
    batch = batch_of(architecture, PACKED)
    want = loss_and_gradient(architecture)(batch)
    for other in (batch_of(architecture, PACKED, more=4), pad_left(batch)):
        got = loss_and_gradient(architecture)(other)
        chex.assert_trees_all_close(got, want, atol=1e-5, rtol=1e-5)
