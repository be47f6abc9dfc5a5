"""JSON lines, and checks of records."""

import json

import pytest

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers.base import check_record, json_lines, make_record
from tests.teaching.imported.readers.files import V


def test_duplicate_key_is_rejected(tmp_path):
    path = tmp_path / "file"
    path.write_text('{"prompt_token_ids": [1], "prompt_token_ids": [2]}\n')
    with pytest.raises(KdError, match="record 1: expected different keys in an object"):
        list(json_lines(path))


def test_line_that_is_not_json_is_rejected(tmp_path):
    path = tmp_path / "file"
    for text in ("{", "[" * 100_000, json.dumps({})[:-1], "1" * 5000):
        path.write_text(text)
        with pytest.raises(KdError, match="record 1: "):
            list(json_lines(path))


def test_two_positions_for_one_token_are_rejected():
    with pytest.raises(KdError, match="record 1: expected one position for each token, got two"):
        check_record(make_record("f, record 1", [5, 6], [(1, [(6, -0.1)]), (1, [(6, -0.1)])]), V, True, 1e-3)
