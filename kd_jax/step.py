"""One update, as pure functions: no device, no axis name, no I/O.

Counts first. How many tokens count depends on the mask alone, so it is summed over microbatches and
devices before the forward pass; every portion's one scalar is divided by it, and gradients are added,
never averaged.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kd_jax.fused_head import fused_head
from kd_jax.objective import Terms, token_losses
from kd_jax.types import Array, Batch, Model, Params, Sum, TrainState

Sums = dict[str, Sum]


def loss_fn(params: Params, batch: Batch, count: Array, dropout_key: Array | None, *, model: Model, terms: Terms):
    """The objective's share of this batch: sum over tokens of mask * weight * loss / count.

    Args:
      params: of the model.
      batch: one portion of the tokens.
      count: int32 scalar, tokens that count in all portions together.
      dropout_key: None to leave dropout out.
      model, terms: what is trained, and on what.

    Returns:
      (scalar to differentiate, Sums by name: "loss" and every term unweighted).
    """

    def objective(logits_NV: Array, rows: tuple[Batch, Array]) -> tuple[Array, Sums]:
        targets_N, mask_N, payload = rows
        weight = mask_N.sum(dtype=jnp.int32)
        losses = token_losses(terms, logits_NV, targets_N, payload)
        values = {name: jnp.where(mask_N, loss_N, 0.0).sum() for name, loss_N in losses.items()}
        total = sum(terms[name].weight * value for name, value in values.items())
        return total, {name: Sum(value, weight) for name, value in (values | {"loss": total}).items()}

    hidden_BTD = model.apply(params, batch, dropout_key)
    rows = jax.tree.map(_flatten_tokens, (batch.targets_BT, batch.mask_BT, batch.payload))
    total, sums = fused_head(objective, _flatten_tokens(hidden_BTD), model.head(params), rows)
    return total / jnp.maximum(count, 1).astype(jnp.float32), jax.lax.stop_gradient(sums)


def _flatten_tokens(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    terms: Terms,
    tx: optax.GradientTransformation,
    microbatches: int = 1,
    all_sum: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[TrainState, Sums]:
    """One update from all microbatches and devices.

    Args:
      state: before the step.
      batch: this device's examples; B is a multiple of `microbatches`.
      model, terms, tx: network, objective, optax transformation.
      microbatches: portions whose gradients are added.
      all_sum: adds a pytree over devices; the identity where there is one.

    Returns:
      (state after the step, Sums over all devices; "grad_norm" among them).
    """
    count = all_sum(batch.mask_BT.sum(dtype=jnp.int32))
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    gradient = jax.grad(loss_fn, has_aux=True)

    def portion(microbatch: Batch):
        return gradient(state.params, microbatch, count, key, model=model, terms=terms)

    if microbatches == 1:
        grads, sums = portion(batch)
    else:
        portions = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(portion, jax.tree.map(lambda x: x[0], portions)))
        add = lambda total, microbatch: (jax.tree.map(jnp.add, total, portion(microbatch)), None)  # noqa: E731
        (grads, sums), _ = jax.lax.scan(add, zeros, portions)

    grads, sums = all_sum((grads, sums))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    sums |= {"grad_norm": Sum(optax.tree.norm(grads), jnp.int32(1))}
    return TrainState(state.step + 1, state.key, params, opt_state), sums


def eval_step(params: Params, batch: Batch, *, model: Model, terms: Terms, all_sum=lambda tree: tree) -> Sums:
    """Sums of every term without dropout, over all devices."""
    return all_sum(loss_fn(params, batch, jnp.int32(1), None, model=model, terms=terms)[1])


def init_state(key: Array, params: Params, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), jax.random.key_data(key), params, tx.init(params))
