"""Each architecture against transformers: the same logits and texts, from its files and from ours."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.greedy import greedy
from kd_jax.models.huggingface.read import read_architecture, read_model
from kd_jax.models.huggingface.write import find_format, write_model
from kd_jax.types import Inputs, Tokens

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.models.huggingface.cases import IDS, MODELS, V, save_random  # noqa: E402

ROWS, LENGTHS = 3, (12, 7, 4)
MAX_TOKENS, END = 9, IDS["eos_token_id"]
SETTINGS = {"max_new_tokens": MAX_TOKENS, "min_new_tokens": 0, "do_sample": False, "eos_token_id": END}
SETTINGS |= {"return_dict_in_generate": True, "early_stopping": False}
QUICK = ("llama", "marian", "t5")  # all others are run by `make test-all` only


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.extended) for name in MODELS],
)
def case(request, tmp_path_factory):
    """Return (folder, transformers' network, our hyper-parameters, our parameters)."""
    folder = tmp_path_factory.mktemp(request.param)
    network = save_random(request.param, folder)
    model, params = read_model(folder)
    return folder, network, model, jax.tree.map(jnp.asarray, params)


def rows(seed, left):
    """Return token ids [ROWS, 12] and whether they exist; padding is on the left or on the right."""
    real_BT = np.arange(LENGTHS[0]) < np.asarray(LENGTHS)[:, None]
    real_BT = real_BT[:, ::-1] if left else real_BT
    return np.where(real_BT, np.random.default_rng(seed).integers(3, V, real_BT.shape), 0), real_BT


def tokens(ids_BT, real_BT):
    position_BT = np.maximum(np.cumsum(real_BT, axis=1) - 1, 0)
    return Tokens(*(jnp.asarray(x, jnp.int32) for x in (ids_BT, position_BT, real_BT)))


def inputs_of(decoder, encoder):
    return Inputs(jnp.arange(ROWS, dtype=jnp.int32), tokens(*decoder), encoder and tokens(*encoder))


def logits_of(network, decoder, encoder):
    """Return the logits of transformers."""
    ids_BT, real_BT = decoder
    if encoder:
        pad = network.config.pad_token_id
        source = np.where(encoder[1], encoder[0], pad)
        inputs = {"input_ids": torch.tensor(source), "attention_mask": torch.tensor(encoder[1].astype(int))}
        inputs |= {"decoder_input_ids": torch.tensor(ids_BT)}
    else:
        position_BT = np.maximum(np.cumsum(real_BT, axis=1) - 1, 0)
        inputs = {"input_ids": torch.tensor(ids_BT), "attention_mask": torch.tensor(real_BT.astype(int))}
        inputs |= {"position_ids": torch.tensor(position_BT)}
    with torch.no_grad():
        return network(**inputs).logits.numpy()


def examples(model, left):
    """Return rows of (decoder, encoder); the source is padded on the right, as in transformers."""
    if model.family == "encoder_decoder":
        return rows(0, left=False), rows(1, left=False)
    return rows(0, left), None


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_logits_equal_those_of_transformers(case, left):
    _, network, model, params = case
    decoder, encoder = examples(model, left)
    built = model.build(V)
    logits_BTV = built.head(params).logits(built.apply(params, inputs_of(decoder, encoder), None))
    want_BTV = logits_of(network, decoder, encoder)
    np.testing.assert_allclose(np.asarray(logits_BTV)[decoder[1]], want_BTV[decoder[1]], atol=1e-4)


def test_decoded_logits_equal_those_of_transformers(case):
    """Token by token after a prefix, both with a cache, on rows that are longer than windows."""
    _, network, model, params = case
    if model.family == "encoder_decoder":
        pytest.skip("greedy and beam texts compare decoding")
    real_BT = np.arange(20) >= 20 - np.array([20, 15, 11])[:, None]
    ids_BT = np.where(real_BT, np.random.default_rng(0).integers(3, V, real_BT.shape), 0)
    position_BT, first = np.maximum(np.cumsum(real_BT, axis=1) - 1, 0), 12
    theirs, ours, cache = [], [], None
    with torch.no_grad():
        for begin, end in [(0, first), *((t, t + 1) for t in range(first, 20))]:
            output = network(
                input_ids=torch.tensor(ids_BT[:, begin:end]),
                attention_mask=torch.tensor(real_BT[:, :end].astype(int)),
                position_ids=torch.tensor(position_BT[:, begin:end]),
                cache=cache,
                use_cache=True,
            )
            cache = output.cache
            theirs.append(output.logits[:, -1].numpy())
    built = model.build(V)
    extend = jax.jit(built.extend)
    our_cache = built.prefill(params, inputs_of((ids_BT[:, :first], real_BT[:, :first]), None), 20 - first + 1)
    for t in range(first - 1, 20):
        logits_BTV, our_cache = extend(params, our_cache, jnp.asarray(ids_BT[:, t : t + 1], jnp.int32))
        ours.append(np.asarray(logits_BTV)[:, 0])
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def prompts(network, model):
    """Return (arguments of transformers' generate, our Inputs)."""
    if model.family == "encoder_decoder":
        ids_BT, real_BT = rows(1, left=False)
        start = np.full((ROWS, 1), network.config.decoder_start_token_id)
        inputs = inputs_of((start, np.ones((ROWS, 1), bool)), (ids_BT, real_BT))
        ids_BT = np.where(real_BT, ids_BT, network.config.pad_token_id)
    else:
        ids_BT, real_BT = rows(0, left=True)
        inputs = inputs_of((ids_BT, real_BT), None)
    return {"input_ids": torch.tensor(ids_BT), "attention_mask": torch.tensor(real_BT.astype(int))}, inputs


def new_tokens(ids_BT, arguments, model):
    """Return the generated tokens, without the prompt."""
    return ids_BT.numpy()[:, 1 if model.family == "encoder_decoder" else arguments["input_ids"].shape[1] :].tolist()


def until_end(ids_T):
    return ids_T[: ids_T.index(END)] if END in ids_T else ids_T


def test_greedy_texts_equal_those_of_transformers(case):
    _, network, model, params = case
    arguments, inputs = prompts(network, model)
    ids_BT = greedy(model.build(V), params, inputs, eos=END, length=MAX_TOKENS)
    theirs = new_tokens(network.generate(**arguments, **SETTINGS).sequences, arguments, model)
    assert [until_end(ids_T) for ids_T in np.asarray(ids_BT).tolist()] == [until_end(ids_T) for ids_T in theirs]


def test_beam_texts_equal_those_of_transformers(case):
    """Or score higher, because transformers drops ended hypotheses; without the length penalty, which differs."""
    _, network, model, params = case
    arguments, inputs = prompts(network, model)
    ours = beam_search(model.build(V), params, inputs, beam=3, alpha=0.0, eos=END, length=MAX_TOKENS)
    theirs = network.generate(**arguments, **SETTINGS | {"num_beams": 3, "length_penalty": 0.0}, output_scores=True)
    texts = zip(np.asarray(ours.ids_BKT)[:, 0].tolist(), new_tokens(theirs.sequences, arguments, model), strict=True)
    scores = zip(np.asarray(ours.logp_BK)[:, 0], theirs.sequences_scores.numpy(), strict=True)
    for (our_text, their_text), (our_score, their_score) in zip(texts, scores, strict=True):
        assert until_end(our_text) == until_end(their_text) or our_score > their_score + 1e-3


def test_written_files_hold_the_same_model(case, tmp_path):
    """Read by transformers without a warning, and by us."""
    _, network, model, params = case
    special = {key: value for key, value in network.config.to_dict().items() if key.endswith("token_id")}
    write_model(tmp_path, model, params, special, V)
    again, loading_info = type(network).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading_info.values()), loading_info
    decoder, encoder = examples(model, left=False)
    want_BTV = logits_of(network, decoder, encoder)
    np.testing.assert_allclose(logits_of(again.eval(), decoder, encoder)[decoder[1]], want_BTV[decoder[1]], atol=1e-5)
    assert read_architecture(tmp_path) == model


def test_half_precision_and_shards_are_read(case, tmp_path):
    """bfloat16, in files of at most 20 kB."""
    _, network, model, params = case
    half = copy.deepcopy(network).to(torch.bfloat16)
    half.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    half_model, half_params = read_model(tmp_path)
    assert half_model == model
    wide, narrow = params["embedding"], half_params["embedding"]
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(narrow, np.asarray(jnp.asarray(wide, jnp.bfloat16).astype(jnp.float32)))


def test_format_of_the_model_is_found(case):
    folder, network, model, _ = case
    model_type = {"mt5": "t5"}.get(network.config.model_type, network.config.model_type)
    if not model.window:
        model_type = {"mistral": "llama"}.get(model_type, model_type)
    assert find_format(dataclasses.replace(model, vocab_rows=0)).model_type == model_type
    assert read_architecture(folder).vocab_rows == V
