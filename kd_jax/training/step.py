"""One update, as pure functions: no device, no axis name, no I/O.

Counts first. How many tokens count depends on the masks alone, so they are summed over microbatches and
devices before the forward pass; every portion's one scalar is divided by them, and gradients are added,
never averaged.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kd_jax.objective.fused_head import fused_head
from kd_jax.objective.terms import Terms, feature_terms, is_feature, needs_teacher, token_losses
from kd_jax.optim import ramp as schedules
from kd_jax.types import Array, Batch, Head, Model, Params, Sum, TrainState

Sums = dict[str, Sum]
Trained = tuple[Params, Mapping[str, Params]]  # of the model, and of the terms' adapters


def count_tokens(batch: Batch) -> dict[str, Array]:
    """int32 scalars: target tokens that count in the loss, and source tokens."""
    return {
        "target": batch.mask_BT.sum(dtype=jnp.int32),
        "source": batch.source_mask_BS.sum(dtype=jnp.int32),
    }


def loss_fn(
    trained: Trained,
    batch: Batch,
    counts: Mapping[str, Array],
    dropout_key: Array | None,
    teacher_params: Params | None = None,
    step: Array | int = 0,
    *,
    model: Model,
    terms: Terms,
    teacher: Model | None = None,
):
    """The objective's share of this batch: sum over tokens of mask * weight * loss / count.

    Args:
      trained: (the model's parameters, the terms' adapters).
      batch: one portion of the tokens.
      counts: of all portions together, as `count_tokens`.
      dropout_key: None to leave dropout out.
      teacher_params: of the teacher in the step; nothing of it is differentiated. None where no term needs one.
      step: number of the update, for weights and temperatures that change.
      model, terms, teacher: what is trained, on what, beside whom.

    Returns:
      (scalar to differentiate, Sums by name: "loss" and every term unweighted).
    """
    params, adapters = trained
    features = feature_terms(terms)
    hidden_BTD, taps = _apply(model, params, batch, dropout_key, bool(features))
    fixed: dict[str, Any] = {"step": jnp.asarray(step)}
    rows: dict[str, Any] = {"targets": batch.targets_BT, "mask": batch.mask_BT, "payload": batch.payload}
    rows["weight"] = jnp.broadcast_to(batch.weight_B[:, None], batch.mask_BT.shape)
    feature_losses = {}
    if needs_teacher(terms):
        said = _apply(teacher, teacher_params, batch, None, bool(features))
        rows["teacher_hidden"], teacher_taps = jax.lax.stop_gradient(said)
        fixed["teacher_head"] = jax.lax.stop_gradient(teacher.head(teacher_params))
        feature_losses = _feature_losses(terms, batch, taps, teacher_taps, adapters)
    rows_N = jax.tree.map(_flatten_tokens, rows)
    sums = fused_head_sums(terms, _flatten_tokens(hidden_BTD), model.head(params), rows_N, fixed)
    total, sums = sums[0] / jnp.maximum(counts["target"], 1).astype(jnp.float32), sums[1]
    for name, (loss, where) in feature_losses.items():
        weighted = schedules.at(terms[name].weight, step) * loss.value
        total += weighted / jnp.maximum(counts[where], 1).astype(jnp.float32)
        # The reported loss is a mean over target tokens; a share of source tokens is brought to it.
        scale = counts["target"].astype(jnp.float32) / jnp.maximum(counts[where], 1).astype(jnp.float32)
        sums |= {name: loss, "loss": Sum(sums["loss"].value + weighted * scale, sums["loss"].weight)}
    return total, jax.lax.stop_gradient(sums)


def fused_head_sums(terms: Terms, hidden_ND: Array, head: Head, rows_N: Any, fixed: Any, chunk: int = 0):
    """(sum of mask * weight * loss over tokens, Sums by name) of all terms that read logits."""

    def objective(logits_NV: Array, rows: Mapping[str, Any], fixed: Mapping[str, Any]) -> tuple[Array, Sums]:
        mask_N, payload = rows["mask"], dict(rows["payload"])
        if "teacher_hidden" in rows:
            payload["online"] = {"logits": fixed["teacher_head"].logits(rows["teacher_hidden"])}
        losses = token_losses(terms, logits_NV, rows["targets"], payload, fixed["step"])
        weight = mask_N.sum(dtype=jnp.int32)
        values = {name: jnp.where(mask_N, rows["weight"] * loss_N, 0.0).sum() for name, loss_N in losses.items()}
        weights = {name: schedules.at(terms[name].weight, fixed["step"]) for name in values}
        total = sum((weights[name] * value for name, value in values.items()), jnp.float32(0.0))
        return total, {name: Sum(value, weight) for name, value in (values | {"loss": total}).items()}

    return fused_head(objective, hidden_ND, head, rows_N, fixed, chunk)


def _apply(model: Model, params: Params, batch: Batch, dropout_key: Array | None, tapped: bool):
    return model.taps(params, batch, dropout_key) if tapped else (model.apply(params, batch, dropout_key), {})


def _flatten_tokens(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _feature_losses(terms: Terms, batch: Batch, taps: Any, teacher_taps: Any, adapters: Mapping[str, Params]):
    """Name -> (Sum over positions, "source" or "target") of the terms that compare insides."""
    losses = {}
    for name, term in terms.items():
        if not is_feature(term):
            continue
        mask_BT = batch.source_mask_BS if term.signal.source() else batch.mask_BT
        adapter = adapters[name] if name in adapters else {}
        teacher_PBTX, student_PBTX = term.signal.align(taps, teacher_taps, mask_BT, adapter)
        flat = [x.reshape(-1, x.shape[-1]) for x in (teacher_PBTX, student_PBTX)]
        loss_PBT = term.loss(*flat, **term.options).reshape(teacher_PBTX.shape[:-1])
        loss_BT = batch.weight_B[:, None] * loss_PBT.sum(0) / loss_PBT.shape[0]
        value = Sum(jnp.where(mask_BT, loss_BT, 0.0).sum(), mask_BT.sum(dtype=jnp.int32))
        losses[name] = value, "source" if term.signal.source() else "target"
    return losses


def train_step(
    state: TrainState,
    batch: Batch,
    teacher_params: Params | None = None,
    *,
    model: Model,
    terms: Terms,
    tx: optax.GradientTransformation,
    teacher: Model | None = None,
    microbatches: int = 1,
    all_sum: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[TrainState, Sums]:
    """One update from all microbatches and devices.

    Args:
      state: before the step.
      batch: this device's examples; B is a multiple of `microbatches`.
      teacher_params: of the teacher in the step; read only.
      model, terms, tx, teacher: network, objective, optax transformation, the teacher's network.
      microbatches: portions whose gradients are added.
      all_sum: adds a pytree over devices; the identity where there is one.

    Returns:
      (state after the step, Sums over all devices; "grad_norm" among them).
    """
    counts = all_sum(count_tokens(batch))
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    trained = (state.params, state.adapters)
    gradient = jax.grad(loss_fn, has_aux=True)

    def portion(microbatch: Batch):
        parts = {"model": model, "terms": terms, "teacher": teacher}
        return gradient(trained, microbatch, counts, key, teacher_params, state.step, **parts)

    if microbatches == 1:
        grads, sums = portion(batch)
    else:
        portions = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(portion, jax.tree.map(lambda x: x[0], portions)))
        add = lambda total, microbatch: (jax.tree.map(jnp.add, total, portion(microbatch)), None)  # noqa: E731
        (grads, sums), _ = jax.lax.scan(add, zeros, portions)

    grads, sums = all_sum((grads, sums))
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    params, adapters = optax.apply_updates(trained, updates)
    sums |= {"grad_norm": Sum(optax.tree.norm(grads), jnp.int32(1))}
    return TrainState(state.step + 1, state.key, params, adapters, opt_state), sums


def eval_step(params: Params, batch: Batch, *, model: Model, terms: Terms, all_sum=lambda tree: tree) -> Sums:
    """Sums of every term without dropout or teacher, over all devices."""
    counts = {"target": jnp.int32(1), "source": jnp.int32(1)}
    return all_sum(loss_fn((params, {}), batch, counts, None, model=model, terms=terms)[1])


def init_state(
    key: Array, params: Params, tx: optax.GradientTransformation, adapters: Mapping[str, Params] | None = None
) -> TrainState:
    """The state before the first step."""
    adapters = dict(adapters or {})
    return TrainState(jnp.int32(0), jax.random.key_data(key), params, adapters, tx.init((params, adapters)))


def init_adapters(
    key: Array, terms: Terms, student: tuple[Model, Params], teacher: tuple[Model, Params], batch: Batch
) -> dict[str, Params]:
    """Term name -> the first parameters of its comparison, for the terms that have any.

    Args:
      key: decides them.
      terms: the objective.
      student, teacher: (network, parameters), for the shapes of what their layers hold.
      batch: any.
    """
    shapes = [
        jax.eval_shape(lambda p, m=model: m.taps(p, batch, None)[1], params) for model, params in (student, teacher)
    ]
    found = {
        name: term.signal.init(jax.random.fold_in(key, i), *shapes)
        for i, (name, term) in enumerate(feature_terms(terms).items())
    }
    return {name: adapter for name, adapter in found.items() if adapter}
