"""A stack in a loop, in a scan, or rematerialised computes one function; each saves what it should."""

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
from tests.models.cases import OPTIONS, V, make_batch, random_segments
from tests.models.jaxprs import equations

SIZES = {"d_model": 16, "heads": 4, "d_ff": 24, "dropout": 0.3}
# With tables that all layers share, and with local and unrotated layers.
DEEP = {
    "encoder_decoder": EncoderDecoder(2, 3, **SIZES, **OPTIONS["t5"]),
    "decoder_only": DecoderOnly(3, **SIZES, **OPTIONS["gemma2"] | {"local": (0, 2), "unrotated": (1,)}),
}
WAYS = [
    {"scan_layers": True, "remat": "dots"},
    pytest.param({"scan_layers": True}, marks=pytest.mark.extended),
    pytest.param({"remat": "layer"}, marks=pytest.mark.extended),
    pytest.param({"remat": "dots"}, marks=pytest.mark.extended),
    pytest.param({"scan_layers": True, "remat": "layer"}, marks=pytest.mark.extended),
]


def batch_for(config):
    return make_batch(config, [[segment] for segment in random_segments(3, [(4, 3), (2, 5)])])


def draw_params(config):
    """Return random parameters; no bias or table is zero."""
    rng = np.random.default_rng(0)
    draw = lambda path, x: (path[-1].key == "scale") + 0.3 * rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(config.build(V).init, jax.random.key(0)))


def loss_of(config, batch):
    """Return (params, dropout key) -> (sum of mean squares of logits and taps, (hidden_BTD, taps))."""
    model = config.build(V)

    def loss(params, key):
        hidden_BTD, taps = model.taps(params, batch.inputs, key)
        logits_BTV = model.head(params).logits(hidden_BTD)
        squares = [(x.astype(jnp.float32) ** 2).sum() / x.size for x in (logits_BTV, *taps.values())]
        return sum(squares) / 100, (hidden_BTD, taps)  # so gradients are around 1

    return loss


def run(config):
    grad = jax.jit(jax.value_and_grad(loss_of(config, batch_for(config)), has_aux=True))
    return grad(draw_params(config), jax.random.key(5))


@pytest.fixture(scope="module", params=DEEP)
def loop_result(request):
    """Return (architecture, loss and gradients of the loop)."""
    return DEEP[request.param], run(DEEP[request.param])


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_scan_and_remat_equal_the_loop(loop_result, way):
    """Loss, hidden states, every tap and every gradient, with dropout."""
    config, want = loop_result
    chex.assert_trees_all_close(run(dataclasses.replace(config, **way)), want, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize(
    "config",
    [pytest.param(DEEP["encoder_decoder"], marks=pytest.mark.extended), DEEP["decoder_only"]],
    ids=["encoder_decoder", "decoder_only"],
)
def test_stacked_parameters_equal_separate_ones(config):
    """Hidden states, gradients, updates of AdamW, prefill and steps."""
    config = dataclasses.replace(config, scan_layers=True)
    model, batch, params = config.build(V), batch_for(config), draw_params(config)
    stacks = model.stack(params)
    assert set(stacks) & set(config.stacks()) and not any(key[-1].isdigit() for key in stacks)
    chex.assert_trees_all_equal(unstack_layers(stacks), params)
    tx = Optimizer(warmup=1, weight_decay=0.5).build(2)

    @jax.jit
    def update(params):
        gradient, (hidden_BTD, _) = jax.grad(loss_of(config, batch), has_aux=True)(params, jax.random.key(5))
        with jax.numpy_dtype_promotion("standard"):  # optax needs it
            updates, _ = tx.update(gradient, tx.init(params), params)
        prompts = batch.inputs._replace(decoder=jax.tree.map(lambda x: x[:1, :3], batch.inputs.decoder))
        prompts = jax.tree.map(lambda x: x[:1], prompts)
        logits_BTV, _ = model.extend(params, model.prefill(params, prompts, 2), jnp.ones((1, 2), jnp.int32))
        return unstack_layers(gradient), unstack_layers(updates), hidden_BTD, logits_BTV

    for one, other in zip(update(stacks), update(params), strict=True):
        chex.assert_trees_all_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_each_sublayer_has_its_own_dropout_noise(scan_layers):
    """All parameters are 0 but the biases of the sub-layers' outputs, so a layer adds 0, 2 or 4."""
    config = DecoderOnly(2, d_model=64, heads=2, d_ff=8, dropout=0.5, biases="all", scan_layers=scan_layers)
    model, batch = config.build(V), batch_for(config)

    def draw(path, x):
        return jnp.full(x.shape, float([key.key for key in path[-2:]] == ["out", "bias"]))

    params = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))
    _, taps = jax.jit(model.taps)(params, batch.inputs, jax.random.key(0))
    exists_BT = batch.inputs.decoder.segment_BT > 0
    first, second = taps["decoder_0.hidden"], taps["decoder_1.hidden"] - taps["decoder_0.hidden"]
    shares = [[float((x[exists_BT] == value).mean()) for value in (0.0, 2.0, 4.0)] for x in (first, second)]
    np.testing.assert_allclose(shares, [[0.25, 0.5, 0.25]] * 2, atol=0.1)
    assert 0.3 < float((first == second)[exists_BT].mean()) < 0.45  # 3/8 if the noise is independent


@pytest.mark.parametrize("config", DEEP.values(), ids=DEEP)
def test_stacked_step_does_not_grow_with_depth(config):
    """Gradient and update, except for the unused slices of each layer's keys and values."""
    tx = Optimizer(warmup=1).build(2)

    def operations(**fields):
        scanned = dataclasses.replace(config, local=(), scan_layers=True, **fields)
        model, batch = scanned.build(V), batch_for(config)

        def step(params):
            gradient = jax.grad(lambda params: model.apply(params, batch.inputs, jax.random.key(5)).sum())(params)
            with jax.numpy_dtype_promotion("standard"):  # optax needs it
                return tx.update(gradient, tx.init(params), params)

        names = [eqn.primitive.name for eqn in equations(jax.make_jaxpr(step)(model.stack(draw_params(scanned))).jaxpr)]
        return {name: names.count(name) for name in set(names) - {"slice", "squeeze"}}

    few = operations()
    assert few["scan"] == 2 * len(config.depth_fields) and few == operations(**dict.fromkeys(config.depth_fields, 6))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_saves_fewer_residuals(scan_layers):
    """Bytes that the forward pass saves for the backward pass; "dots" saves the products with matrices."""
    ones_BT = jnp.ones((8, 64), jnp.int32)
    inputs = Inputs(ones_BT[:, 0], Tokens(ones_BT, ones_BT, ones_BT), None)

    def saved_bytes(remat):
        config = DecoderOnly(8, d_model=32, heads=4, d_ff=64, dropout=0.0, scan_layers=scan_layers, remat=remat)
        model = config.build(V)
        backward = lambda params: jax.vjp(lambda params: model.apply(params, inputs).sum(), params)[1]  # noqa: E731
        residuals = jax.eval_shape(backward, jax.eval_shape(model.init, jax.random.key(0)))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))

    assert 4 * saved_bytes("layer") < saved_bytes("dots") < saved_bytes("none") / 2


@pytest.mark.extended
def test_remat_uses_less_memory():
    """In a compiled scan. In a loop, XLA on CPU merges rematerialised values with the original ones."""
    ones_BT = jnp.ones((8, 64), jnp.int32)
    inputs = Inputs(ones_BT[:, 0], Tokens(ones_BT, ones_BT, ones_BT), None)

    def used_bytes(remat):
        config = DecoderOnly(8, d_model=32, heads=4, d_ff=64, dropout=0.0, scan_layers=True, remat=remat)
        model = config.build(V)
        loss = lambda params: model.apply(params, inputs).sum()  # noqa: E731
        step = jax.jit(jax.grad(loss)).lower(jax.eval_shape(model.init, jax.random.key(0))).compile()
        return step.memory_analysis().temp_size_in_bytes

    layer, dots, none = map(used_bytes, ("layer", "dots", "none"))
    assert 2 * layer < none and layer < dots < none
