"""A stack in a loop, scanned over, computed again: one function; and what each of the ways is for."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.stack import unstack_layers
from kd_jax.optim.optimizer import Optimizer
from kd_jax.types import Inputs, Tokens
from tests.models.cases import OPTIONS, V, batch_of, segments
from tests.models.jaxprs import equations

SIZES = {"d_model": 16, "heads": 4, "d_ff": 24, "dropout": 0.3}
# Tables and keys that all layers share; layers that differ from each other.
DEEP = {
    "encoder_decoder": EncoderDecoder(2, 3, **SIZES, **OPTIONS["t5"]),
    "decoder_only": DecoderOnly(3, **SIZES, **OPTIONS["gemma2"] | {"local": (0, 2)}),
}
WAYS = [
    {"scan_layers": True},
    {"remat": "layer"},
    {"remat": "dots"},
    {"scan_layers": True, "remat": "layer"},
    {"scan_layers": True, "remat": "dots"},
]


def batch_for(config):
    return batch_of(config, [[segment] for segment in segments(3, [(4, 3), (2, 5)])])


def drawn(config):
    """Random parameters, so that no bias or table is zero."""
    rng = np.random.default_rng(0)
    draw = lambda path, x: (path[-1].key == "scale") + 0.3 * rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(config.build(V).init, jax.random.key(0)))


def loss_of(config, batch):
    """(params, dropout key) -> (mean squares of the logits and of every tap, added up; (hidden_BTD, taps))."""
    model = config.build(V)

    def loss(params, key):
        hidden_BTD, taps = model.taps(params, batch.inputs, key)
        logits_BTV = model.head(params).logits(hidden_BTD)
        squares = [(x.astype(jnp.float32) ** 2).sum() / x.size for x in (logits_BTV, *taps.values())]
        return sum(squares) / 100, (hidden_BTD, taps)  # gradients are then around 1

    return loss


def run(config):
    grad = jax.jit(jax.value_and_grad(loss_of(config, batch_for(config)), has_aux=True))
    return grad(drawn(config), jax.random.key(5))


@pytest.fixture(scope="module", params=DEEP)
def looped(request):
    """(the architecture, what the loop gives)."""
    return DEEP[request.param], run(DEEP[request.param])


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_scanned_or_computed_again_a_stack_is_the_loop(looped, way):
    """Loss, hidden states, every tap and every gradient, with dropout."""
    config, want = looped
    chex.assert_trees_all_close(run(dataclasses.replace(config, **way)), want, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("config", DEEP.values(), ids=DEEP)
def test_stacked_parameters_are_the_same_network(config):
    """Hidden states, every gradient, prefill and steps; and stacked or not, an update of AdamW moves them alike."""
    config = dataclasses.replace(config, scan_layers=True)
    model, batch, params = config.build(V), batch_for(config), drawn(config)
    stacks = model.stack(params)
    assert set(stacks) & set(config.stacks()) and not any(key[-1].isdigit() for key in stacks)
    chex.assert_trees_all_equal(unstack_layers(stacks), params)
    tx = Optimizer(warmup=1, weight_decay=0.5).build(2)

    @jax.jit
    def updated(params):
        gradient, (hidden_BTD, _) = jax.grad(loss_of(config, batch), has_aux=True)(params, jax.random.key(5))
        with jax.numpy_dtype_promotion("standard"):  # as optax wants it
            updates, _ = tx.update(gradient, tx.init(params), params)
        prompts = batch.inputs._replace(decoder=jax.tree.map(lambda x: x[:1, :3], batch.inputs.decoder))
        prompts = jax.tree.map(lambda x: x[:1], prompts)
        logits_BTV, _ = model.extend(params, model.prefill(params, prompts, 2), jnp.ones((1, 2), jnp.int32))
        return unstack_layers(gradient), unstack_layers(updates), hidden_BTD, logits_BTV

    for one, other in zip(updated(stacks), updated(params), strict=True):
        chex.assert_trees_all_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_layer_and_sublayer_has_noise_of_its_own(scan_layers):
    """All parameters are 0, but the biases of what a sub-layer adds: a layer adds 0, 2 or 4."""
    config = DecoderOnly(2, d_model=64, heads=2, d_ff=8, dropout=0.5, biases="all", scan_layers=scan_layers)
    model, batch = config.build(V), batch_for(config)

    def draw(path, x):
        return jnp.full(x.shape, float([key.key for key in path[-2:]] == ["out", "bias"]))

    params = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))
    _, taps = jax.jit(model.taps)(params, batch.inputs, jax.random.key(0))
    there_BT = batch.inputs.decoder.segment_BT > 0
    first, second = taps["decoder_0.hidden"], taps["decoder_1.hidden"] - taps["decoder_0.hidden"]
    shares = [[float((x[there_BT] == value).mean()) for value in (0.0, 2.0, 4.0)] for x in (first, second)]
    np.testing.assert_allclose(shares, [[0.25, 0.5, 0.25]] * 2, atol=0.1)
    assert 0.3 < float((first == second)[there_BT].mean()) < 0.45  # 3 in 8, of independent noise


@pytest.mark.parametrize("config", DEEP.values(), ids=DEEP)
def test_a_step_of_stacked_parameters_is_as_long_however_many_layers_there_are(config):
    """Gradient and update; but for taking apart the layers' keys and values, which nobody reads here."""
    tx = Optimizer(warmup=1).build(2)

    def operations(**fields):
        scanned = dataclasses.replace(config, local=(), scan_layers=True, **fields)
        model, batch = scanned.build(V), batch_for(config)

        def step(params):
            gradient = jax.grad(lambda params: model.apply(params, batch.inputs, jax.random.key(5)).sum())(params)
            with jax.numpy_dtype_promotion("standard"):  # as optax wants it
                return tx.update(gradient, tx.init(params), params)

        names = [eqn.primitive.name for eqn in equations(jax.make_jaxpr(step)(model.stack(drawn(scanned))).jaxpr)]
        return {name: names.count(name) for name in set(names) - {"slice", "squeeze"}}

    few = operations()
    assert few["scan"] == 2 * len(config.depth_fields) and few == operations(**dict.fromkeys(config.depth_fields, 6))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_what_is_computed_again_is_not_kept(scan_layers):
    """Bytes that the forward pass leaves for the backward pass; as "dots" the products with matrices are among them."""
    ones_BT = jnp.ones((8, 64), jnp.int32)
    inputs = Inputs(ones_BT[:, 0], Tokens(ones_BT, ones_BT, ones_BT), None)

    def kept(remat):
        config = DecoderOnly(8, d_model=32, heads=4, d_ff=64, dropout=0.0, scan_layers=scan_layers, remat=remat)
        model = config.build(V)
        backward = lambda params: jax.vjp(lambda params: model.apply(params, inputs).sum(), params)[1]  # noqa: E731
        left = jax.eval_shape(backward, jax.eval_shape(model.init, jax.random.key(0)))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(left))

    assert 4 * kept("layer") < kept("dots") < kept("none") / 2


def test_what_is_computed_again_takes_no_memory():
    """Of a compiled step; of a loop XLA's compiler for CPUs merges what is computed again with what was computed."""
    ones_BT = jnp.ones((8, 64), jnp.int32)
    inputs = Inputs(ones_BT[:, 0], Tokens(ones_BT, ones_BT, ones_BT), None)

    def used(remat):
        config = DecoderOnly(8, d_model=32, heads=4, d_ff=64, dropout=0.0, scan_layers=True, remat=remat)
        model = config.build(V)
        loss = lambda params: model.apply(params, inputs).sum()  # noqa: E731
        step = jax.jit(jax.grad(loss)).lower(jax.eval_shape(model.init, jax.random.key(0))).compile()
        return step.memory_analysis().temp_size_in_bytes

    assert 2 * used("layer") < used("none") and used("layer") < used("dots") < used("none")
