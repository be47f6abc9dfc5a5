"""MaxText's records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers.base import NO_TOKEN, check_record
from kd_jax.teaching.imported.readers.maxtext import parse
from tests.teaching.imported.readers import writers
from tests.teaching.imported.readers.files import V


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_rejected(data):
    try:
        parse("f, record 1", data)
    except KdError as error:
        assert str(error).startswith("f, record 1: ")


def test_lists_of_different_lengths_are_rejected():
    data = writers.example(inputs=[1, 2], top_k_logits=[0.5, 0.25, 0.125], top_k_indices=[1, 2, 3])
    with pytest.raises(KdError, match="each of 2 tokens, got 3 logits and 3 indices"):
        parse("f, record 1", data)
    with pytest.raises(KdError, match="expected a field top_k_logits of float numbers, got the fields inputs"):
        parse("f, record 1", writers.example(inputs=[1, 2]))


def test_logits_of_minus_infinity_name_no_token():
    logits = [0.5, 0.25, -float("inf"), 0.125, -float("inf"), -float("inf")]
    record = parse("f, record 1", writers.example(inputs=[1, 2], top_k_logits=logits, top_k_indices=[3, 4, V, 5, 5, 7]))
    check_record(record, V, False, 1e-3)
    assert record.ids_NK.tolist() == [[3, 4, NO_TOKEN], [5, NO_TOKEN, NO_TOKEN]]
