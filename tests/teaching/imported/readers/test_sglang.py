"""SGLang's files."""

import pytest

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers import sglang
from tests.teaching.imported.readers import writers
from tests.teaching.imported.readers.files import LOGP, TOKENS, K


def test_logprobs_that_start_later_need_the_input_ids(tmp_path):
    response = writers.sglang_response(TOKENS[2:], LOGP[2:], K)
    response["meta_info"]["prompt_tokens"] = 5
    path = writers.lines(tmp_path / "file", [response])
    with pytest.raises(KdError, match="input_token_logprobs of all 5 input tokens, got 3"):
        list(sglang.read(path))
    (record,) = sglang.read(writers.lines(path, [response | {"input_ids": TOKENS}]))
    assert record.target_N.tolist() == [3, 4] and record.tokens_S.tolist() == TOKENS
