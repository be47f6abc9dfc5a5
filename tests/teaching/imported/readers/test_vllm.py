"""vLLM's files: infinities, chats, and records that are rejected."""

import copy

import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers.base import NO_TOKEN
from tests.teaching.imported.readers import writers
from tests.teaching.imported.readers.files import LOGP, TOKENS, records


def changed_file(change, tmp_path):
    """Return vLLM's file after a change of its response."""
    response = copy.deepcopy(writers.vllm_response(TOKENS, LOGP, 3))
    change(response["choices"][0])
    return writers.lines(tmp_path / "file", [response])


def chat(choice):
    """Return a chat's response: the fields stand beside the choices."""
    return {"choices": [{"index": 0}]} | {name: choice[name] for name in ("prompt_logprobs", "prompt_token_ids")}


def test_minus_infinity_is_a_number_and_a_chat_has_fields_beside_choices(tmp_path):
    (choice,) = writers.vllm_response(TOKENS, LOGP, 3)["choices"]
    for one in choice["prompt_logprobs"][2].values():
        one["logprob"] = -9999.0
    (record,) = records("vllm", writers.lines(tmp_path / "file", [chat(choice)]))
    assert (record.ids_NK[1] == NO_TOKEN).all() and (record.logp_NK[1] == -np.inf).all()
    assert (record.ids_NK[0, :3] != NO_TOKEN).all()


REJECTED = {
    "expected a field prompt_token_ids": lambda choice: choice.pop("prompt_token_ids"),
    "whose keys are texts": lambda choice: choice.update(prompt_logprobs=None, logprobs={"tokens": ["a"]}),
    "for each of 5 tokens, got 4": lambda choice: choice["prompt_logprobs"].pop(),
    "got the id 7 twice": lambda choice: choice["prompt_logprobs"].__setitem__(
        1, {key: {"logprob": -3.0, "rank": 1} for key in ("7", "07")}
    ),
    "--sum-error 0.01, got 1.2": lambda choice: choice["prompt_logprobs"].__setitem__(
        2, {str(i): {"logprob": float(np.log(0.6)), "rank": 1} for i in range(2)}
    ),
    "log-probabilities of at most 0": lambda choice: choice["prompt_logprobs"][1].update(
        {"9": {"logprob": 1.5, "rank": 1}}
    ),
    "token 1: expected ids from 0 to 59": lambda choice: choice["prompt_logprobs"][1].update(
        {"60": {"logprob": -9.0, "rank": 2}}
    ),
    "0 to 59, got 61": lambda choice: choice["prompt_token_ids"].__setitem__(1, 61),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_invalid_record_is_rejected_by_its_number(reason, tmp_path):
    with pytest.raises(KdError, match=f"file, record 1.*{reason}"):
        records("vllm", changed_file(REJECTED[reason], tmp_path))
