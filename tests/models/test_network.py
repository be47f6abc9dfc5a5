"""The networks of both families, with every option: causality, padding, segments, the cache, dropout's keys."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.types import Inputs, Tokens
from tests.models.cases import (
    BUCKET,
    FAMILIES,
    OPTIONS,
    ROWS,
    V,
    batch_of,
    case,
    on_the_left,
    program,
    segments,
    stacks_of,
)

EVERY = pytest.mark.parametrize("options", OPTIONS)
BOTH = pytest.mark.parametrize("family", FAMILIES)
LENGTHS = [(4, 3), (2, 5)]


def examples_of(config, lengths=LENGTHS):
    """One example a row."""
    return batch_of(config, [[segment] for segment in segments(3, lengths)])


@pytest.mark.parametrize("options", ["default", "t5"])
@BOTH
def test_a_token_sees_its_past_and_the_source_but_not_its_future(family, options):
    """By the gradient of each hidden state with respect to each token's embedding; no token occurs twice."""
    _, model, params = case(family, options)
    ids_T, ones_T = jnp.arange(V - 5), jnp.ones(V - 5, jnp.int32)
    rows = Tokens(*(x_T[None] for x_T in (ids_T, ids_T, ones_T)))
    source, written = jax.tree.map(lambda x: x[:, :5], rows), jax.tree.map(lambda x: x[:, 5:11], rows)
    inputs = Inputs(index_B=jnp.zeros(1, jnp.int32), decoder=written, encoder=source)
    direction_D = jax.random.normal(jax.random.key(2), (16,))

    @jax.jit
    @jax.jacrev
    def gradient_TVD(embedding):
        return model.apply(params | {"embedding": embedding}, inputs)[0] @ direction_D

    touched_TV = jnp.abs(gradient_TVD(params["embedding"])).max(-1) > 0
    np.testing.assert_array_equal(touched_TV[:, 5:11], np.tri(6, dtype=bool))
    assert (touched_TV[:, :5] == (family == "encoder_decoder")).all()


@EVERY
@BOTH
def test_segments_of_one_row_are_what_they_are_alone(family, options):
    """Hidden states, loss, the gradient of every parameter; and no bit depends on the other segment's tokens."""
    config, _, params = case(family, options)
    apart, packed = examples_of(config), batch_of(config, [segments(3, LENGTHS)])
    run = program(family, options)
    (loss, (hidden_BTD, _)), gradients = run(params, apart)
    (packed_loss, (packed_BTD, _)), packed_gradients = run(params, packed)
    segment_T = np.asarray(packed.inputs.decoder.segment_BT[0])
    for b, segment in enumerate((1, 2)):
        alone_TD = hidden_BTD[b][apart.inputs.decoder.segment_BT[b] > 0]
        np.testing.assert_allclose(packed_BTD[0, segment_T == segment], alone_TD, atol=1e-5)
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
    chex.assert_trees_all_close(packed_gradients, gradients, rtol=1e-4, atol=3e-5)
    for stack, tokens in stacks_of(packed.inputs).items():
        junk = tokens._replace(ids_BT=tokens.ids_BT.at[0, 0].set(3))  # of the first example
        (_, (other_BTD, _)), _ = run(params, packed._replace(inputs=packed.inputs._replace(**{stack: junk})))
        moved_T = (packed_BTD != other_BTD).any(-1)[0]
        assert moved_T[segment_T == 1].all() and not moved_T[segment_T == 2].any()


@EVERY
@BOTH
def test_padding_on_either_side_and_junk_in_it_change_nothing(family, options):
    config, _, params = case(family, options)
    batch, run = examples_of(config), program(family, options)

    def real_hidden(stacks):
        inputs = batch.inputs._replace(**stacks)
        (_, (hidden_BTD, _)), _ = run(params, batch._replace(inputs=inputs))
        return hidden_BTD[inputs.decoder.segment_BT > 0]

    stacks = stacks_of(batch.inputs)
    junk = {name: x._replace(ids_BT=jnp.where(x.segment_BT > 0, x.ids_BT, 7)) for name, x in stacks.items()}
    chex.assert_trees_all_equal(real_hidden(junk), real_hidden(stacks))
    left = {name: on_the_left(x) for name, x in stacks.items()}
    np.testing.assert_allclose(real_hidden(left), real_hidden(stacks), atol=1e-5)


@EVERY
@BOTH
def test_step_by_step_equals_teacher_forced(family, options):
    """Prompts of 1, 3 and 4 tokens padded on the left, together and one by one; then four tokens each."""
    config, model, params = case(family, options)
    batch, read, more = examples_of(config, [(2, 6), (5, 7), (1, 8)]), (1, 3, 4), 4
    (_, (_, want_BTV)), _ = program(family, options)(params, batch)

    @jax.jit
    def decode(params, prompts, tokens_TB):
        step = lambda cache, token_B: model.step(params, cache, token_B)[::-1]  # noqa: E731
        return jax.lax.scan(step, model.prefill(params, prompts, more), tokens_TB)

    whole = jax.tree.map(np.asarray, batch.inputs.decoder)
    unread_BT = np.arange(whole.ids_BT.shape[1]) >= np.array(read)[:, None]
    begun = Tokens(*(np.where(unread_BT, 0, x_BT)[:, :4] for x_BT in whole))
    prompts = batch.inputs._replace(decoder=on_the_left(begun))
    tokens_TB = np.stack([whole.ids_BT[b, count - 1 :][:more] for b, count in enumerate(read)], 1)
    cache, logits_TBV = decode(params, prompts, tokens_TB)
    sizes = chex.Dimensions(T=more, B=ROWS, V=V, X=3 + more, G=config.key_heads, D=config.head_width)
    chex.assert_shape(logits_TBV, sizes["TBV"])
    chex.assert_shape(cache.visible_BKS, (ROWS, 1, 3 + more))
    chex.assert_shape(jax.tree.leaves(cache.self_kv), sizes["BGXD"])
    for b, count in enumerate(read):
        np.testing.assert_allclose(logits_TBV[:, b], want_BTV[b, count - 1 :][:more], atol=1e-4)
    only = jax.tree.map(lambda x: np.where(np.arange(ROWS).reshape(-1, *[1] * (x.ndim - 1)) == 1, x, 0), prompts)
    np.testing.assert_allclose(decode(params, only, tokens_TB)[1][:, 1], logits_TBV[:, 1], atol=1e-5)


@EVERY
@BOTH
def test_several_tokens_at_once_are_read_as_one_by_one_also_after_going_back(family, options):
    """Three tokens that are thrown away, then four at once: logits and cache are those of single steps."""
    config, model, params = case(family, options)
    inputs = examples_of(config, [(2, 6), (5, 7), (1, 8)]).inputs
    prompts = inputs._replace(decoder=on_the_left(jax.tree.map(lambda x: x[:, :3], inputs.decoder)))
    ids_BT = jnp.asarray(np.random.default_rng(1).integers(0, V, (ROWS, 4)))

    @jax.jit
    def both(params, prompts, ids_BT):
        cache = model.prefill(params, prompts, 4)
        _, astray = model.extend(params, cache, (ids_BT[:, :3] + 1) % V)
        at_once = model.extend(params, astray.rewind(3), ids_BT)
        logits = []
        for token_B in ids_BT.T:
            logits_BV, cache = model.step(params, cache, token_B)
            logits.append(logits_BV)
        return at_once, (jnp.stack(logits, 1), cache)

    at_once, one_by_one = both(params, prompts, ids_BT)
    chex.assert_shape(at_once[0], (ROWS, 4, V))
    chex.assert_trees_all_close(at_once, one_by_one, rtol=1e-5, atol=1e-5)


@EVERY
@BOTH
def test_a_cache_forks_and_a_hypothesis_goes_on_from_another(family, options):
    """Prompts padded on the left; two hypotheses are read apart, then both of every text go on from its second one."""
    config, model, params = case(family, options)
    batch, read, more = examples_of(config, [(2, 8), (5, 8), (1, 8)]), (1, 3, 2), 4
    (_, (_, want_BTV)), _ = program(family, options)(params, batch)
    whole = jax.tree.map(np.asarray, batch.inputs.decoder)
    unread_BT = np.arange(whole.ids_BT.shape[1]) >= np.array(read)[:, None]
    begun = Tokens(*(np.where(unread_BT, 0, x_BT)[:, :3] for x_BT in whole))
    prompts = batch.inputs._replace(decoder=on_the_left(begun))
    told_TB = np.stack([whole.ids_BT[b, count - 1 :][:more] for b, count in enumerate(read)], 1)
    apart_TB = np.where(np.arange(more)[:, None] == 1, (told_TB + 1) % V, told_TB)

    @jax.jit
    def decode(params, prompts, apart_TBK, told_TBK):
        cache = model.prefill(params, prompts, more).reserve(more).fork(2)
        for token_BK in apart_TBK[:3]:
            logits_BKV, cache = model.extend(params, cache, token_BK)
        cache = cache.reorder(jnp.ones_like(token_BK))
        return logits_BKV, model.extend(params, cache, told_TBK[3])[0]

    other_BKV, same_BKV = decode(params, prompts, np.stack([apart_TB, told_TB], 2), np.stack([told_TB, told_TB], 2))
    for b, count in enumerate(read):
        np.testing.assert_allclose(other_BKV[b, 1], want_BTV[b, count + 1], atol=1e-4)
        assert not np.allclose(other_BKV[b, 0], other_BKV[b, 1], atol=1e-3)
        np.testing.assert_allclose(same_BKV[b], [want_BTV[b, count + 2]] * 2, atol=1e-4)


@BOTH
def test_dropout_belongs_to_the_example(family):
    config, model, params = case(family, "default")
    inputs, key, run = examples_of(config).inputs, jax.random.key(5), jax.jit(model.apply)
    whole = run(params, inputs, key)
    assert not jnp.allclose(whole, run(params, inputs))
    alone = run(params, jax.tree.map(lambda x: x[1:2], inputs), key)
    np.testing.assert_allclose(alone[0], whole[1], atol=1e-5)
    moved = lambda x: jnp.where(x > 0, x + 1, 0)  # noqa: E731
    parts = {stack: tokens._replace(segment_BT=moved(tokens.segment_BT)) for stack, tokens in stacks_of(inputs).items()}
    assert not jnp.allclose(whole, run(params, inputs._replace(**parts), key))


@BOTH
def test_taps_are_what_the_layers_hold(family):
    """The last hidden states are the last layer's, normalised; keys have their own number of heads.

    A layer adds what its heads and its neurons say, through the output matrices.
    """
    config, model, params = case(family, "qwen3")
    inputs = examples_of(config).inputs
    hidden_BTD, taps = jax.jit(model.taps)(params, inputs)
    lengths = {stack: tokens.ids_BT.shape[1] for stack, tokens in stacks_of(inputs).items()}
    widths = {"hidden": 16, "q": 24, "k": 12, "v": 12, "heads": 24, "ffn.neurons": 24}
    widths |= {"norm_self.out": 16, "norm_ffn.out": 16}
    want = {f"{stack}_0.{kind}": (ROWS, lengths[stack], widths[kind]) for stack in config.stacks() for kind in widths}
    want |= {f"{stack}_norm.out": (ROWS, lengths[stack], 16) for stack in config.stacks()}
    if family == "encoder_decoder":
        want["decoder_0.norm_cross.out"] = (ROWS, lengths["decoder"], 16)
        want["decoder_0.cross_attention.heads"] = (ROWS, lengths["decoder"], 24)
    assert {name: x.shape for name, x in taps.items()} == want
    last = taps["decoder_0.hidden"]
    rms = jnp.sqrt((last**2).mean(-1, keepdims=True) + config.norm_epsilon)
    np.testing.assert_allclose(last / rms * params["decoder_norm"]["scale"][None, None], hidden_BTD, atol=1e-5)
    np.testing.assert_array_equal(taps["decoder_norm.out"], hidden_BTD)
    stack = next(iter(config.stacks()))  # without cross-attention
    block, tokens = params[f"{stack}_0"], stacks_of(inputs)[stack]
    added_BTD = params["embedding"][tokens.ids_BT] * (4.0 if config.embedding_scale else 1.0)
    added_BTD += taps[f"{stack}_0.heads"] @ block["self_attention"]["out"]["kernel"]
    added_BTD += taps[f"{stack}_0.ffn.neurons"] @ block["ffn"]["out"]["kernel"]
    there_BT1 = (tokens.segment_BT > 0)[..., None]
    np.testing.assert_allclose(*(jnp.where(there_BT1, x, 0) for x in (added_BTD, taps[f"{stack}_0.hidden"])), atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@BOTH
def test_lowers_for_every_platform(family, platform):
    config, model, params = case(family, "gemma2")

    def read_and_step(params, inputs):
        return model.apply(params, inputs), model.step(params, model.prefill(params, inputs, 2), inputs.index_B)

    exported = jax.export.export(jax.jit(read_and_step), platforms=[platform])(params, examples_of(config).inputs)
    assert exported.platforms == (platform,)


@BOTH
def test_a_padded_vocabulary_gets_no_gradient_and_logits_keep_below_their_cap(family):
    config, _, params = case(family, "bart")
    _, gradients = program(family, "bart")(params, examples_of(config))
    assert gradients["embedding"].shape[0] == 32 and not gradients["embedding"][V:].any()
    _, model, params = case(family, "gemma2")
    logits_NV = model.head(params).logits(100 * jax.random.normal(jax.random.key(0), (5, 16)))
    assert logits_NV.shape == (5, V) and 2.9 < jnp.abs(logits_NV).max() <= 3.0


def test_rows_longer_than_the_learned_positions_are_refused():
    config, model, params = case("decoder_only", "bart")
    row = Tokens(*(jnp.ones((ROWS, 25), jnp.int32) for _ in Tokens._fields))
    inputs = examples_of(config).inputs
    with pytest.raises(KdError, match=r"model\.context: 24; a row has 25 tokens"):
        jax.eval_shape(model.apply, params, inputs._replace(decoder=row))
    with pytest.raises(KdError, match=r"model\.context: 24; a row has 25 tokens"):
        jax.eval_shape(lambda: model.prefill(params, inputs, 24 - sum(BUCKET) + 2))
