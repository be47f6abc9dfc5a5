"""compute="bfloat16": the dtypes of products, sums, parameters and caches."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.training.step import init_state, train_step
from tests.helpers.families import V, every_term
from tests.models.cases import OPTIONS, pad_left
from tests.models.jaxprs import equations
from tests.training.test_step import make_batch

SIZES = {"d_model": 16, "heads": 4, "d_ff": 24, "compute": "bfloat16"}
NETWORKS = {
    "encoder_decoder": EncoderDecoder(1, 2, **SIZES, dropout=0.2, **OPTIONS["marian"]),
    "t5": EncoderDecoder(2, 1, **SIZES, dropout=0.2, **OPTIONS["t5"]),
    "decoder_only": DecoderOnly(2, **SIZES, dropout=0.2, **OPTIONS["gemma2"]),
    "qwen3": DecoderOnly(2, **SIZES, dropout=0.2, scan_layers=True, remat="dots", **OPTIONS["qwen3"]),
}
EXTENDED = ("t5", "decoder_only")  # run by `make test-all` only
each_network = pytest.mark.parametrize(
    "config",
    [pytest.param(c, marks=pytest.mark.extended if name in EXTENDED else (), id=name) for name, c in NETWORKS.items()],
)


def traced(config):
    """Return (jaxpr of a training step with every kind of term, state before, state after, sums)."""
    model, tx = config.build(V), optax.sgd(1.0)
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda params: init_state(jax.random.key(1), params, tx), params)
    step = functools.partial(train_step, model=model, teacher=model, terms=every_term(config), tx=tx, microbatches=2)
    jaxpr, (after, sums) = jax.make_jaxpr(step, return_shape=True)(state, make_batch(config), params)
    return jaxpr.jaxpr, state, after, sums


@each_network
def test_products_are_in_bfloat16_and_sums_in_float32(config):
    """In a training step with every kind of term, forward and backward."""
    jaxpr, before, after, sums = traced(config)
    operands = {
        tuple(x.aval.dtype.name for x in one.invars) for one in equations(jaxpr) if one.primitive.name == "dot_general"
    }
    assert operands == {("bfloat16", "bfloat16")}
    reduced = [one for one in equations(jaxpr) if one.primitive.name in ("exp", "log", "rsqrt", "reduce_sum")]
    assert reduced and {one.invars[0].aval.dtype.name for one in reduced} <= {"float32", "int32"}
    lookups = [one for one in equations(jaxpr) if one.primitive.name == "scatter-add"]
    assert lookups and {one.outvars[0].aval.dtype.name for one in lookups} == {"float32"}
    chex.assert_trees_all_equal_shapes_and_dtypes(after, before)
    assert {x.dtype.name for x in jax.tree.leaves(sums)} == {"float32", "int32"}


@pytest.fixture(scope="module", params=[pytest.param("t5", marks=pytest.mark.extended), "decoder_only"])
def both(request):
    """Return (architecture in bfloat16, the same in float32, parameters, batch)."""
    config = NETWORKS[request.param]
    exact = dataclasses.replace(config, compute="float32")
    return config, exact, jax.jit(exact.build(V).init)(jax.random.key(0)), make_batch(config)


def test_loss_and_gradients_are_close_to_float32(both):
    """bfloat16 has 8 bits of precision: an error of 0.4% per rounding."""

    def run(config, params, batch):
        model = config.build(V)

        def loss(params):
            logits_BTV = model.head(params).logits(model.apply(params, batch.inputs, jax.random.key(0)))
            each_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch.targets_BT)
            return jnp.where(batch.mask_BT, each_BT, 0.0).sum() / np.float32(batch.mask_BT.sum())

        return jax.jit(jax.value_and_grad(loss))(params)

    config, exact, params, batch = both
    (got, gradients), (want, exact_gradients) = run(config, params, batch), run(exact, params, batch)
    assert got.dtype == jnp.float32 and got != want
    np.testing.assert_allclose(got, want, rtol=1e-2)
    error = optax.tree.norm(jax.tree.map(jnp.subtract, gradients, exact_gradients))
    assert 0 < error < 0.05 * optax.tree.norm(exact_gradients)


def test_single_steps_equal_extend(both):
    """The cache is in bfloat16, the logits in float32."""
    config, _, params, batch = both
    model, inputs = config.build(V), jax.tree.map(lambda x: x[:3], batch.inputs)
    prefix = pad_left(jax.tree.map(lambda x: x[:, :2], inputs.decoder))
    prompts, ids_BT = inputs._replace(decoder=prefix), jnp.asarray(inputs.decoder.ids_BT[:, 1:4])

    @jax.jit
    def decode(params):
        cache = model.prefill(params, prompts, 4)
        at_once, after = model.extend(params, cache, ids_BT)
        logits = []
        for token_B in ids_BT.T:
            logits_BV, cache = model.step(params, cache, token_B)
            logits.append(logits_BV)
        return at_once, jnp.stack(logits, 1), after

    at_once, one_by_one, cache = decode(params)
    assert at_once.dtype == jnp.float32 and {x.dtype.name for x in jax.tree.leaves(cache.self_kv)} == {"bfloat16"}
    np.testing.assert_allclose(one_by_one, at_once, atol=0.05)
