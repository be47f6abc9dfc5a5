"""Networks of both families with every option: causality, padding, segments, the cache, dropout's keys."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.types import Inputs, Tokens
from tests.models.cases import (
    BUCKET,
    ROWS,
    V,
    each_family,
    each_option,
    loss_and_gradient,
    make_batch,
    pad_left,
    random_segments,
    small_network,
    tokens_by_stack,
)

LENGTHS = [(4, 3), (2, 5)]


def examples_of(config, lengths=LENGTHS):
    """Return a batch of one example per row."""
    return make_batch(config, [[segment] for segment in random_segments(3, lengths)])


@pytest.mark.parametrize("options", ["default", "t5"])
@each_family
def test_a_token_attends_to_earlier_tokens_and_the_source_only(family, options):
    """By the gradient of each hidden state with respect to each token's embedding; all tokens differ."""
    _, model, params = small_network(family, options)
    ids_T, ones_T = jnp.arange(V - 5), jnp.ones(V - 5, jnp.int32)
    rows = Tokens(*(x_T[None] for x_T in (ids_T, ids_T, ones_T)))
    source, target = jax.tree.map(lambda x: x[:, :5], rows), jax.tree.map(lambda x: x[:, 5:11], rows)
    inputs = Inputs(index_B=jnp.zeros(1, jnp.int32), decoder=target, encoder=source)
    direction_D = jax.random.normal(jax.random.key(2), (16,))

    @jax.jit
    @jax.jacrev
    def gradient_TVD(embedding):
        return model.apply(params | {"embedding": embedding}, inputs)[0] @ direction_D

    has_gradient_TV = jnp.abs(gradient_TVD(params["embedding"])).max(-1) > 0
    np.testing.assert_array_equal(has_gradient_TV[:, 5:11], np.tri(6, dtype=bool))
    assert (has_gradient_TV[:, :5] == (family == "encoder_decoder")).all()


@each_option
@each_family
def test_packed_segments_equal_separate_rows(family, options):
    """Hidden states, loss and gradients agree; no bit depends on the tokens of another segment."""
    config, _, params = small_network(family, options)
    separate, packed = examples_of(config), make_batch(config, [random_segments(3, LENGTHS)])
    run = loss_and_gradient(family, options)
    (loss, (hidden_BTD, _)), gradients = run(params, separate)
    (packed_loss, (packed_BTD, _)), packed_gradients = run(params, packed)
    segment_T = np.asarray(packed.inputs.decoder.segment_BT[0])
    for b, segment in enumerate((1, 2)):
        separate_TD = hidden_BTD[b][separate.inputs.decoder.segment_BT[b] > 0]
        np.testing.assert_allclose(packed_BTD[0, segment_T == segment], separate_TD, atol=1e-5)
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
    chex.assert_trees_all_close(packed_gradients, gradients, rtol=1e-4, atol=3e-5)
    for stack, tokens in tokens_by_stack(packed.inputs).items():
        changed = tokens._replace(ids_BT=tokens.ids_BT.at[0, 0].set(3))  # of the first example
        (_, (changed_BTD, _)), _ = run(params, packed._replace(inputs=packed.inputs._replace(**{stack: changed})))
        differs_T = (packed_BTD != changed_BTD).any(-1)[0]
        assert differs_T[segment_T == 1].all() and not differs_T[segment_T == 2].any()


@each_option
@each_family
def test_padding_does_not_affect_hidden_states(family, options):
    """On either side, whatever its token ids are."""
    config, _, params = small_network(family, options)
    batch, run = examples_of(config), loss_and_gradient(family, options)

    def hidden_of_tokens(stacks):
        inputs = batch.inputs._replace(**stacks)
        (_, (hidden_BTD, _)), _ = run(params, batch._replace(inputs=inputs))
        return hidden_BTD[inputs.decoder.segment_BT > 0]

    stacks = tokens_by_stack(batch.inputs)
    other_ids = {name: x._replace(ids_BT=jnp.where(x.segment_BT > 0, x.ids_BT, 7)) for name, x in stacks.items()}
    chex.assert_trees_all_equal(hidden_of_tokens(other_ids), hidden_of_tokens(stacks))
    left = {name: pad_left(x) for name, x in stacks.items()}
    np.testing.assert_allclose(hidden_of_tokens(left), hidden_of_tokens(stacks), atol=1e-5)


@each_option
@each_family
def test_steps_equal_teacher_forcing(family, options):
    """Prompts of 1, 3 and 4 tokens, padded on the left, in one batch and alone; then four tokens each."""
    config, model, params = small_network(family, options)
    batch, read, more = examples_of(config, [(2, 6), (5, 7), (1, 8)]), (1, 3, 4), 4
    (_, (_, want_BTV)), _ = loss_and_gradient(family, options)(params, batch)

    @jax.jit
    def decode(params, prompts, tokens_TB):
        step = lambda cache, token_B: model.step(params, cache, token_B)[::-1]  # noqa: E731
        return jax.lax.scan(step, model.prefill(params, prompts, more), tokens_TB)

    whole = jax.tree.map(np.asarray, batch.inputs.decoder)
    unread_BT = np.arange(whole.ids_BT.shape[1]) >= np.array(read)[:, None]
    begun = Tokens(*(np.where(unread_BT, 0, x_BT)[:, :4] for x_BT in whole))
    prompts = batch.inputs._replace(decoder=pad_left(begun))
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


@each_option
@each_family
def test_extend_equals_single_steps_after_rewind(family, options):
    """Three tokens are discarded, then four read at once: logits and cache are those of single steps."""
    config, model, params = small_network(family, options)
    inputs = examples_of(config, [(2, 6), (5, 7), (1, 8)]).inputs
    prompts = inputs._replace(decoder=pad_left(jax.tree.map(lambda x: x[:, :3], inputs.decoder)))
    ids_BT = jnp.asarray(np.random.default_rng(1).integers(0, V, (ROWS, 4)))

    @jax.jit
    def both(params, prompts, ids_BT):
        cache = model.prefill(params, prompts, 4)
        _, discarded = model.extend(params, cache, (ids_BT[:, :3] + 1) % V)
        at_once = model.extend(params, discarded.rewind(3), ids_BT)
        logits = []
        for token_B in ids_BT.T:
            logits_BV, cache = model.step(params, cache, token_B)
            logits.append(logits_BV)
        return at_once, (jnp.stack(logits, 1), cache)

    at_once, one_by_one = both(params, prompts, ids_BT)
    chex.assert_shape(at_once[0], (ROWS, 4, V))
    chex.assert_trees_all_close(at_once, one_by_one, rtol=1e-5, atol=1e-5)


@each_option
@each_family
def test_forked_hypotheses_can_be_reordered(family, options):
    """Two hypotheses per text read different tokens; then both continue the second one."""
    config, model, params = small_network(family, options)
    batch, read, more = examples_of(config, [(2, 8), (5, 8), (1, 8)]), (1, 3, 2), 4
    (_, (_, want_BTV)), _ = loss_and_gradient(family, options)(params, batch)
    whole = jax.tree.map(np.asarray, batch.inputs.decoder)
    unread_BT = np.arange(whole.ids_BT.shape[1]) >= np.array(read)[:, None]
    begun = Tokens(*(np.where(unread_BT, 0, x_BT)[:, :3] for x_BT in whole))
    prompts = batch.inputs._replace(decoder=pad_left(begun))
    target_TB = np.stack([whole.ids_BT[b, count - 1 :][:more] for b, count in enumerate(read)], 1)
    changed_TB = np.where(np.arange(more)[:, None] == 1, (target_TB + 1) % V, target_TB)

    @jax.jit
    def decode(params, prompts, changed_TBK, target_TBK):
        cache = model.prefill(params, prompts, more).reserve(more).fork(2)
        for token_BK in changed_TBK[:3]:
            logits_BKV, cache = model.extend(params, cache, token_BK)
        cache = cache.reorder(jnp.ones_like(token_BK))
        return logits_BKV, model.extend(params, cache, target_TBK[3])[0]

    other_BKV, same_BKV = decode(
        params, prompts, np.stack([changed_TB, target_TB], 2), np.stack([target_TB, target_TB], 2)
    )
    for b, count in enumerate(read):
        np.testing.assert_allclose(other_BKV[b, 1], want_BTV[b, count + 1], atol=1e-4)
        assert not np.allclose(other_BKV[b, 0], other_BKV[b, 1], atol=1e-3)
        np.testing.assert_allclose(same_BKV[b], [want_BTV[b, count + 2]] * 2, atol=1e-4)


@each_family
def test_dropout_depends_on_the_example_not_the_row(family):
    config, model, params = small_network(family, "default")
    inputs, key, run = examples_of(config).inputs, jax.random.key(5), jax.jit(model.apply)
    whole = run(params, inputs, key)
    assert not jnp.allclose(whole, run(params, inputs))
    alone = run(params, jax.tree.map(lambda x: x[1:2], inputs), key)
    np.testing.assert_allclose(alone[0], whole[1], atol=1e-5)
    next_segment = lambda x: jnp.where(x > 0, x + 1, 0)  # noqa: E731
    parts = {
        stack: tokens._replace(segment_BT=next_segment(tokens.segment_BT))
        for stack, tokens in tokens_by_stack(inputs).items()
    }
    assert not jnp.allclose(whole, run(params, inputs._replace(**parts), key))


@each_family
def test_taps_are_the_activations_of_layers(family):
    """The last layer's output, normalised, is the hidden state; keys have their own number of heads.

    A layer's output is its input plus the heads and the neurons, each through its output matrix.
    """
    config, model, params = small_network(family, "qwen3")
    inputs = examples_of(config).inputs
    hidden_BTD, taps = jax.jit(model.taps)(params, inputs)
    lengths = {stack: tokens.ids_BT.shape[1] for stack, tokens in tokens_by_stack(inputs).items()}
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
    block, tokens = params[f"{stack}_0"], tokens_by_stack(inputs)[stack]
    sum_BTD = params["embedding"][tokens.ids_BT] * (4.0 if config.embedding_scale else 1.0)
    sum_BTD += taps[f"{stack}_0.heads"] @ block["self_attention"]["out"]["kernel"]
    sum_BTD += taps[f"{stack}_0.ffn.neurons"] @ block["ffn"]["out"]["kernel"]
    exists_BT1 = (tokens.segment_BT > 0)[..., None]
    np.testing.assert_allclose(*(jnp.where(exists_BT1, x, 0) for x in (sum_BTD, taps[f"{stack}_0.hidden"])), atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@each_family
def test_lowers_for_every_platform(family, platform):
    config, model, params = small_network(family, "gemma2")

    def read_and_step(params, inputs):
        return model.apply(params, inputs), model.step(params, model.prefill(params, inputs, 2), inputs.index_B)

    exported = jax.export.export(jax.jit(read_and_step), platforms=[platform])(params, examples_of(config).inputs)
    assert exported.platforms == (platform,)


@each_family
def test_rows_that_pad_the_vocabulary_get_no_gradient(family):
    config, _, params = small_network(family, "bart")
    _, gradients = loss_and_gradient(family, "bart")(params, examples_of(config))
    assert gradients["embedding"].shape[0] == 32 and not gradients["embedding"][V:].any()


def test_rows_longer_than_learned_positions_raise():
    config, model, params = small_network("decoder_only", "bart")
    row = Tokens(*(jnp.ones((ROWS, 25), jnp.int32) for _ in Tokens._fields))
    inputs = examples_of(config).inputs
    with pytest.raises(KdError, match=r"model\.context: expected at least 25, .* got 24"):
        jax.eval_shape(model.apply, params, inputs._replace(decoder=row))
    with pytest.raises(KdError, match=r"model\.context: expected at least 25, .* got 24"):
        jax.eval_shape(lambda: model.prefill(params, inputs, 24 - sum(BUCKET) + 2))
