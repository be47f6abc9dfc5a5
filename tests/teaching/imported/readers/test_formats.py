"""All formats: files are read back, and any bytes give records or an error that names the file."""

import copy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers.base import NO_TOKEN
from tests.teaching.imported.readers import writers
from tests.teaching.imported.readers.files import FILES, LOGP, TOKENS, K, records

ANY_EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", FILES)
def test_reader_returns_what_was_written(name, tmp_path):
    """The most likely tokens of every position, for the right token, without the scored token."""
    read = records(name, FILES[name](tmp_path / "file"))
    assert len(read) == 2 and "record 2" in read[1].where
    tokens_S, target_N, ids_NK, logp_NK = read[0][1:]
    assert tokens_S.tolist()[:5] == TOKENS and target_N.tolist()[:4] == [1, 2, 3, 4]
    for n in range(4):
        expected = dict(zip(writers.most_likely(LOGP[n], K), sorted(-LOGP[n])[:K], strict=True))
        actual = {i: logp for i, logp in zip(ids_NK[n], -logp_NK[n], strict=True) if i != NO_TOKEN}
        assert actual.keys() == expected.keys()
        shift = 7.5 if name == "maxtext" else 0.0
        error = np.abs([actual[i] + shift - logp for i, logp in expected.items()])
        # DistillKit: 12 bits, 4 bits, and one rank of the polynomial alone.
        assert error.max() < (0.2 if name == "distillkit" else 1e-5) and error[:12].max() < 1e-3
    assert len(target_N) == (7 if name == "maxtext" else 4)


@pytest.mark.parametrize("name", FILES)
@given(data=st.binary(max_size=300))
@ANY_EXAMPLES
def test_any_bytes_give_records_or_an_error(name, data, tmp_path):
    path = FILES[name](tmp_path / "file")
    path.write_bytes(data)
    try:
        records(name, path)
    except KdError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("name", FILES)
@given(st.data())
@ANY_EXAMPLES
def test_changed_bytes_give_records_or_an_error(name, tmp_path, data):
    path = FILES[name](tmp_path / "file")
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))]))
    try:
        records(name, path)
    except KdError as error:
        assert str(path) in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def places(value, path=()):
    """Yield the path of every value in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


@pytest.mark.parametrize("name", ["vllm", "flat", "sglang"])
@given(st.data())
@settings(ANY_EXAMPLES, max_examples=150)
def test_any_value_in_any_place_gives_a_record_or_an_error(name, tmp_path, data):
    write = {"vllm": writers.vllm_response, "flat": writers.vllm_flat, "sglang": writers.sglang_response}[name]
    response = copy.deepcopy(write(TOKENS, LOGP, 2))
    holder, *rest = data.draw(st.sampled_from([place for place in places(response) if place]))
    where, path = response, [holder, *rest]
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = data.draw(JSON)
    file = writers.lines(tmp_path / "file", [response])
    try:
        records(name, file)
    except KdError as error:
        assert str(file) in str(error)
