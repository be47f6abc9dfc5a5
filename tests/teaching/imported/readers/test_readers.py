"""Four formats and their traps; files are somebody else's, so any bytes give records or one line."""

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers import distillkit
from kd_jax.teaching.imported.readers.base import NO_TOKEN, check, rectangular
from kd_jax.teaching.imported.readers.formats import FORMATS
from kd_jax.teaching.imported.readers.maxtext import parse
from tests.teaching.imported.readers import writers

V, K = 60, 16
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, V)) * 3
LOGP = (LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))).astype(np.float32)
TOKENS = [1, 17, 40, 5, 2]
FILES = {
    "vllm": lambda path: writers.lines(path, [writers.vllm_response(TOKENS, LOGP, K)] * 2),
    "flat": lambda path: writers.lines(path, [writers.vllm_flat(TOKENS, LOGP, K)] * 2),
    "sglang": lambda path: writers.lines(path, [writers.sglang_response(TOKENS, LOGP, K)] * 2),
    "distillkit": lambda path: writers.distillkit(path, [(TOKENS, LOGP)] * 2),
    "maxtext": lambda path: writers.maxtext(path, [(TOKENS, LOGP)] * 2, K),
}
FORMAT_OF = {name: "vllm" if name == "flat" else name for name in FILES}
ANY_EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def records(name, path):
    """What a file is read as, each record checked."""
    form = FORMATS[FORMAT_OF[name]]
    stored = list(form.read(path))
    for one in stored:
        check(one, V, form.normalised, 1e-2)
    return stored


@pytest.mark.parametrize("name", FILES)
def test_what_was_written_is_read(name, tmp_path):
    """The likeliest of every position, about the right token, and no scored token beside them."""
    stored = records(name, FILES[name](tmp_path / "file"))
    assert len(stored) == 2 and "record 2" in stored[1].where
    tokens_S, target_N, ids_NK, logp_NK = stored[0][1:]
    assert tokens_S.tolist()[:5] == TOKENS and target_N.tolist()[:4] == [1, 2, 3, 4]
    for n in range(4):
        want = dict(zip(writers.likeliest(LOGP[n], K), sorted(-LOGP[n])[:K], strict=True))
        got = {i: logp for i, logp in zip(ids_NK[n], -logp_NK[n], strict=True) if i != NO_TOKEN}
        assert got.keys() == want.keys()
        shift = 7.5 if name == "maxtext" else 0.0
        apart = np.abs([got[i] + shift - logp for i, logp in want.items()])
        # DistillKit's 12 bits, 4 bits, and a rank of the polynomial alone.
        assert apart.max() < (0.2 if name == "distillkit" else 1e-5) and apart[:12].max() < 1e-3
    assert len(target_N) == (7 if name == "maxtext" else 4)


@pytest.mark.parametrize("name", FILES)
@given(data=st.binary(max_size=300))
@ANY_EXAMPLES
def test_any_bytes_give_records_or_one_line(name, data, tmp_path):
    path = FILES[name](tmp_path / "file")
    path.write_bytes(data)
    try:
        records(name, path)
    except KdError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("name", FILES)
@given(st.data())
@ANY_EXAMPLES
def test_a_file_with_a_changed_byte_gives_records_or_one_line(name, tmp_path, data):
    path = FILES[name](tmp_path / "file")
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))]))
    try:
        records(name, path)
    except KdError as error:
        assert str(path) in str(error)


@given(st.binary(max_size=200))
def test_any_record_is_an_example_or_one_line(data):
    try:
        parse("f, record 1", data)
    except KdError as error:
        assert str(error).startswith("f, record 1: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


@pytest.mark.parametrize("name", ["vllm", "flat", "sglang"])
@given(st.data())
@settings(ANY_EXAMPLES, max_examples=150)
def test_any_value_in_any_place_gives_a_record_or_one_line(name, tmp_path, data):
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


def changed(change, tmp_path):
    """vLLM's file after a change of its response."""
    response = copy.deepcopy(writers.vllm_response(TOKENS, LOGP, 3))
    change(response["choices"][0])
    return writers.lines(tmp_path / "file", [response])


def chat(choice):
    """As a chat answers: beside the choices."""
    return {"choices": [{"index": 0}]} | {name: choice[name] for name in ("prompt_logprobs", "prompt_token_ids")}


def test_vllm_writes_minus_infinity_as_a_number_and_a_chat_beside_its_choices(tmp_path):
    (choice,) = writers.vllm_response(TOKENS, LOGP, 3)["choices"]
    for one in choice["prompt_logprobs"][2].values():
        one["logprob"] = -9999.0
    (stored,) = records("vllm", writers.lines(tmp_path / "file", [chat(choice)]))
    assert (stored.ids_NK[1] == NO_TOKEN).all() and (stored.logp_NK[1] == -np.inf).all()
    assert (stored.ids_NK[0, :3] != NO_TOKEN).all()


REFUSED = {
    "no field prompt_token_ids": lambda choice: choice.pop("prompt_token_ids"),
    "whose keys are texts": lambda choice: choice.update(prompt_logprobs=None, logprobs={"tokens": ["a"]}),
    "4 prompt_logprobs for 5 tokens": lambda choice: choice["prompt_logprobs"].pop(),
    "names the id 7 twice": lambda choice: choice["prompt_logprobs"].__setitem__(
        1, {key: {"logprob": -3.0, "rank": 1} for key in ("7", "07")}
    ),
    "add up to 1.2": lambda choice: choice["prompt_logprobs"].__setitem__(
        2, {str(i): {"logprob": float(np.log(0.6)), "rank": 1} for i in range(2)}
    ),
    "log-probability above 0": lambda choice: choice["prompt_logprobs"][1].update({"9": {"logprob": 1.5, "rank": 1}}),
    "outside this run's vocabulary of 60": lambda choice: choice["prompt_logprobs"][1].update(
        {"60": {"logprob": -9.0, "rank": 2}}
    ),
    "token id 61": lambda choice: choice["prompt_token_ids"].__setitem__(1, 61),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_teachers_word_is_refused_by_its_record(reason, tmp_path):
    with pytest.raises(KdError, match=f"file, record 1.*{reason}"):
        records("vllm", changed(REFUSED[reason], tmp_path))


def test_a_key_twice_in_an_object_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text('{"prompt_token_ids": [1], "prompt_token_ids": [2]}\n')
    with pytest.raises(KdError, match="record 1: an object names a key twice"):
        list(FORMATS["vllm"].read(path))


def test_sglang_that_begins_later_needs_the_whole_input(tmp_path):
    response = writers.sglang_response(TOKENS[2:], LOGP[2:], K)
    response["meta_info"]["prompt_tokens"] = 5
    path = writers.lines(tmp_path / "file", [response])
    with pytest.raises(KdError, match="input_token_logprobs of 3 of 5 input tokens"):
        list(FORMATS["sglang"].read(path))
    (stored,) = FORMATS["sglang"].read(writers.lines(path, [response | {"input_ids": TOKENS}]))
    assert stored.target_N.tolist() == [3, 4] and stored.tokens_S.tolist() == TOKENS


@given(st.integers(1, 17), st.data())
def test_bits_are_unpacked_as_they_were_packed(bits, data):
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=9))
    compression = distillkit.Compression(d=2**bits, k=len(numbers), exact_k=len(numbers), residual_bins=())
    packed = np.asarray([writers.packed_bits(numbers, bits)], np.uint8)
    assert distillkit.indices("f", packed, compression).tolist() == [numbers]


def test_one_bit_is_a_sign_and_no_delta_no_sum():
    bins = (distillkit.Bin("float16", 1, 3),)
    compression = distillkit.Compression(4, 4, 1, bins, delta_encoding=False)
    data = list(np.float32(-0.5).tobytes() + np.float16(0.25).tobytes()) + [0b10100000]
    assert distillkit.values("f", np.asarray([data], np.uint8), compression).tolist() == [[-0.5, 0.25, -0.25, 0.25]]
    with pytest.raises(KdError, match="1 bytes more"):
        distillkit.values("f", np.asarray([[*data, 0]], np.uint8), compression)


def test_missing_ranks_are_dropped_whatever_their_ids(tmp_path):
    """-inf, whose differences are nan; the ids behind them were never set."""
    path = writers.distillkit(tmp_path / "file", [(TOKENS, LOGP)])
    path.with_name("compression_config.yaml").write_text("{d: 60, k: 4, exact_k: 4, residual_bins: []}")
    values = np.asarray([-0.5, -1.0, -np.inf, -np.inf], np.float32)
    with np.errstate(invalid="ignore"):
        data = list(np.diff(values, prepend=np.float32(0)).tobytes())
    compression = distillkit.read_compression(path.with_name("compression_config.yaml"))
    row = {"input_ids": [1, 2], "compressed_logprobs": [data]}
    row["bytepacked_indices"] = [writers.packed_bits([5, 9, 63, 5], 6)]
    stored = distillkit._record("f", row, compression)
    check(stored, V, True, 1e-3)
    assert stored.ids_NK.tolist() == [[5, 9, NO_TOKEN, NO_TOKEN]]
    np.testing.assert_array_equal(stored.logp_NK, [[-0.5, -1.0, -np.inf, -np.inf]])


def test_settings_that_are_not_distillkits_are_refused(tmp_path):
    path = tmp_path / "compression_config.yaml"
    for text in (
        "[]",
        "d: 60",
        "{d: 60, k: 4, exact_k: 5, residual_bins: []}",
        "!!python/object:os.system {}",
        "a: [1",
    ):
        path.write_text(text)
        with pytest.raises(KdError, match="compression_config.yaml: "):
            distillkit.read_compression(path)
    with pytest.raises(KdError, match="missing; DistillKit writes it"):
        distillkit.read_compression(tmp_path / "other.yaml")


def test_a_position_said_twice_is_refused():
    with pytest.raises(KdError, match="record 1: says two things of one token"):
        check(rectangular("f, record 1", [5, 6], [(1, [(6, -0.1)]), (1, [(6, -0.1)])]), V, True, 1e-3)


def test_maxtext_lists_of_unlike_lengths_are_refused():
    data = writers.example(inputs=[1, 2], top_k_logits=[0.5, 0.25, 0.125], top_k_indices=[1, 2, 3])
    with pytest.raises(KdError, match="3 logits and 3 indices for 2 tokens"):
        parse("f, record 1", data)
    with pytest.raises(KdError, match="no field top_k_logits of float numbers; it has inputs"):
        parse("f, record 1", writers.example(inputs=[1, 2]))


def test_maxtext_logits_of_minus_infinity_name_nothing_whatever_their_ids():
    logits = [0.5, 0.25, -float("inf"), 0.125, -float("inf"), -float("inf")]
    stored = parse("f, record 1", writers.example(inputs=[1, 2], top_k_logits=logits, top_k_indices=[3, 4, V, 5, 5, 7]))
    check(stored, V, False, 1e-3)
    assert stored.ids_NK.tolist() == [[3, 4, NO_TOKEN], [5, NO_TOKEN, NO_TOKEN]]


def test_a_line_that_is_no_json_is_refused(tmp_path):
    path = tmp_path / "file"
    for text in ("{", "[" * 100_000, json.dumps({})[:-1], "1" * 5000):
        path.write_text(text)
        with pytest.raises(KdError, match="record 1: "):
            list(FORMATS["vllm"].read(path))
