"""One update, as pure functions: no device, no axis name, no I/O.

Counts first. How many tokens count depends on the masks alone, so they are summed over microbatches and
devices before the forward pass; every portion's one scalar is divided by them, and gradients are added,
never averaged.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kd_jax import schedules
from kd_jax.models.base import Model
from kd_jax.objective.fused_head import fused_head
from kd_jax.objective.terms import Terms, feature_terms, needs_teacher, total_loss
from kd_jax.types import Array, Batch, Params, Sum

Sums = dict[str, Sum]
Trained = tuple[Params, Mapping[str, Params]]  # of the model, and of the terms' adapters


class TrainState(NamedTuple):
    """All that a training step changes, and the key it draws from.

    Attributes:
      step: int32 scalar, updates made so far.
      key: uint32 key data; every draw is folded from it, the step, the place in the model and the example.
      params: the model's parameters.
      adapters: term name -> parameters that only its loss uses (projections between widths); they are
        trained along and saved with the optimiser's state, never with the model.
      opt_state: the optax state of (params, adapters).
    """

    step: Array
    key: Array
    params: Params
    adapters: Mapping[str, Params]
    opt_state: Any


def count_tokens(batch: Batch) -> dict[str, Array]:
    """int32 scalars: target tokens that count in the loss, and the encoder's and decoder's tokens."""
    segments = {"decoder": batch.inputs.decoder.segment_BT}
    if batch.inputs.encoder is not None:
        segments["encoder"] = batch.inputs.encoder.segment_BT
    tokens = {stack: (segment > 0).sum(dtype=jnp.int32) for stack, segment in segments.items()}
    return tokens | {"target": batch.mask_BT.sum(dtype=jnp.int32)}


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

    Examples:
      >>> from kd_jax import Head, Inputs, Term, Tokens, cross_entropy
      >>> logits = lambda table, inputs, key: table[inputs.decoder.ids_BT]  # of the token behind each token
      >>> bigrams = Model(None, logits, None, lambda table: Head(jnp.eye(2)), None, None)
      >>> one = jnp.ones((1, 1), jnp.int32)
      >>> batch = Batch(Inputs(one[0], Tokens(one, one, one), None), one, one > 0, jnp.ones((1, 1)), {})
      >>> terms = {"ce": Term(cross_entropy)}
      >>> trained, counts = (jnp.zeros((2, 2)), {}), count_tokens(batch)
      >>> loss, sums = loss_fn(trained, batch, counts, None, model=bigrams, terms=terms)
      >>> print(f"{loss:.4f}")  # log 2: two tokens, as likely
      0.6931
    """
    params, adapters = trained
    tapped = bool(feature_terms(terms))
    hidden_BTD, taps = _apply(model, params, batch, dropout_key, tapped)
    fixed: dict[str, Any] = {"step": jnp.asarray(step)}
    rows = {"targets": batch.targets_BT, "mask": batch.mask_BT, "weight": batch.weight_BT, "payload": batch.payload}
    feature_losses = {}
    if needs_teacher(terms):
        said = _apply(teacher, teacher_params, batch, None, tapped)
        rows["teacher_hidden"], teacher_taps = jax.lax.stop_gradient(said)
        fixed["teacher_head"] = jax.lax.stop_gradient(teacher.head(teacher_params))
        feature_losses = _feature_losses(terms, batch, taps, teacher_taps, adapters)
    rows_N, hidden_ND = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (rows, hidden_BTD))
    loss, sums = fused_head(functools.partial(total_loss, terms), hidden_ND, model.head(params), rows_N, fixed)
    total = loss / jnp.maximum(counts["target"], 1).astype(jnp.float32)
    for name, (feature_loss, where) in feature_losses.items():
        weighted = schedules.value_at(terms[name].weight, step) * feature_loss.value
        count = jnp.maximum(counts[where], 1).astype(jnp.float32)
        total += weighted / count
        # The reported loss is a mean over target tokens; a share of other positions is brought to it.
        scaled = weighted * counts["target"].astype(jnp.float32) / count
        sums |= {name: feature_loss, "loss": Sum(sums["loss"].value + scaled, sums["loss"].weight)}
    return total, jax.lax.stop_gradient(sums)


def _apply(model: Model, params: Params, batch: Batch, dropout_key: Array | None, tapped: bool):
    if tapped:
        return model.taps(params, batch.inputs, dropout_key)
    return model.apply(params, batch.inputs, dropout_key), {}


def _feature_losses(terms: Terms, batch: Batch, taps: Any, teacher_taps: Any, adapters: Mapping[str, Params]):
    """Name -> (Sum over the stack's positions, the stack) of the terms that compare insides."""
    losses = {}
    for name, term in feature_terms(terms).items():
        source = term.signal.source()
        segment_BT = (batch.inputs.encoder if source else batch.inputs.decoder).segment_BT
        adapter = adapters[name] if name in adapters else {}
        teacher_PBTX, student_PBTX = term.signal.align(taps, teacher_taps, segment_BT, adapter)
        flat = [x.reshape(-1, x.shape[-1]) for x in (teacher_PBTX, student_PBTX)]
        loss_PBT = term.loss(*flat, **term.options).reshape(teacher_PBTX.shape[:-1])
        loss_BT = loss_PBT.sum(0) / loss_PBT.shape[0]
        weight_BT = _source_weight(batch) if source else batch.weight_BT
        losses[name] = Sum.over(weight_BT * loss_BT, segment_BT > 0), "encoder" if source else "decoder"
    return losses


def _source_weight(batch: Batch) -> Array:
    """The weight of each source token's example, float32 [B, S]: that of its targets."""
    source_BS, target_BT = batch.inputs.encoder.segment_BT, batch.inputs.decoder.segment_BT
    same_BST = source_BS[:, :, None] == target_BT[:, None, :]
    return jnp.where(same_BST, batch.weight_BT[:, None, :], 0.0).max(-1)


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
      (state after the step, Sums over all devices; "grad_norm" among them, and "skipped": 1 where the update was).

    Examples:
      >>> from kd_jax import Head, Inputs, Term, Tokens, cross_entropy
      >>> logits = lambda table, inputs, key: table[inputs.decoder.ids_BT]  # of the token behind each token
      >>> bigrams = Model(None, logits, None, lambda table: Head(jnp.eye(2)), None, None)
      >>> one = jnp.ones((1, 1), jnp.int32)
      >>> batch = Batch(Inputs(one[0], Tokens(one, one, one), None), one, one > 0, jnp.ones((1, 1)), {})
      >>> terms = {"ce": Term(cross_entropy)}
      >>> tx = optax.sgd(1.0)
      >>> state = init_state(jax.random.key(0), jnp.zeros((2, 2)), tx)
      >>> step = jax.jit(functools.partial(train_step, model=bigrams, terms=terms, tx=tx))
      >>> state, sums = step(state, batch)
      >>> print(state.params[1])  # of token 1: minus the gradient p - [0, 1], where p = [0.5, 0.5]
      [-0.5  0.5]
    """
    counts = all_sum(count_tokens(batch))
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    trained = (state.params, state.adapters)
    loss = functools.partial(loss_fn, model=model, terms=terms, teacher=teacher)
    fixed = {"counts": counts, "dropout_key": key, "teacher_params": teacher_params, "step": state.step}
    gradient = functools.partial(jax.grad(loss, has_aux=True), trained, **fixed)
    if microbatches == 1:
        grads, sums = gradient(batch)
    else:
        # Rows m, m + M, ... and not M blocks of them: over a mesh every device keeps its own rows.
        portions = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], portions)))
        add = lambda total, microbatch: (jax.tree.map(jnp.add, total, gradient(microbatch)), None)  # noqa: E731
        (grads, sums), _ = jax.lax.scan(add, zeros, portions)
    grads, sums = all_sum((grads, sums))
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    params, adapters = optax.apply_updates(trained, updates)
    skipped = _skipped(opt_state) - _skipped(state.opt_state)
    sums |= {"grad_norm": Sum(optax.tree.norm(grads), jnp.int32(1))}
    sums |= {"skipped": Sum(skipped.astype(jnp.float32), jnp.int32(1))}
    return TrainState(state.step + 1, state.key, params, adapters, opt_state), sums


def _skipped(opt_state: Any) -> Array:
    """Updates that were left out so far; 0 of an optimiser that leaves none out."""
    return optax.tree.get(opt_state, "skipped", jnp.int32(0))


def eval_step(params: Params, batch: Batch, *, model: Model, terms: Terms, all_sum=lambda tree: tree) -> Sums:
    """Sums of every term without dropout or teacher, over all devices.

    Args:
      params: the model's.
      batch: this device's examples.
      model, terms, all_sum: as `train_step`.

    Returns:
      Sums by name: "loss" and every term unweighted.

    Examples:
      >>> from kd_jax import Head, Inputs, Term, Tokens, cross_entropy
      >>> logits = lambda table, inputs, key: table[inputs.decoder.ids_BT]  # of the token behind each token
      >>> bigrams = Model(None, logits, None, lambda table: Head(jnp.eye(2)), None, None)
      >>> one = jnp.ones((1, 1), jnp.int32)
      >>> batch = Batch(Inputs(one[0], Tokens(one, one, one), None), one, one > 0, jnp.ones((1, 1)), {})
      >>> terms = {"ce": Term(cross_entropy)}
      >>> step = jax.jit(functools.partial(eval_step, model=bigrams, terms=terms))
      >>> sums = step(jnp.log(jnp.array([[0.5, 0.5], [0.75, 0.25]])), batch)
      >>> print(f"{sums['ce'].value:.4f} {sums['ce'].weight}")  # log 4, of one token
      1.3863 1
    """
    counts = {"target": jnp.int32(1)}
    return all_sum(loss_fn((params, {}), batch, counts, None, model=model, terms=terms)[1])


def init_state(
    key: Array, params: Params, tx: optax.GradientTransformation, adapters: Mapping[str, Params] | None = None
) -> TrainState:
    """The state before the first step.

    Args:
      key: decides dropout.
      params: the model's.
      tx: whose state is begun.
      adapters: term name -> its own parameters, as `init_adapters`; None for none.

    Examples:
      >>> state = init_state(jax.random.key(0), {"w": jnp.ones(2)}, optax.trace(decay=0.9))
      >>> momentum, _ = state.opt_state.trace  # of the parameters, and of the adapters
      >>> int(state.step), momentum["w"].tolist()
      (0, [0.0, 0.0])
    """
    adapters = dict(adapters or {})
    return TrainState(jnp.int32(0), jax.random.key_data(key), params, adapters, tx.init((params, adapters)))


def state_axes(state: TrainState, tx: optax.GradientTransformation, axes: Any) -> TrainState:
    """What the axes of every part of the state are called, for `Devices.put`: moments are as their parameters.

    Args:
      state, tx: as `init_state` begins it.
      axes: of the model's parameters, as `Model.axes`.

    Examples:
      >>> tx = optax.trace(decay=0.9)
      >>> state_axes(init_state(jax.random.key(0), {"w": jnp.ones(2)}, tx), tx, {"w": "model"}).opt_state.trace
      ({'w': 'model'}, {})
    """
    trained = jax.tree.broadcast((axes, ""), (state.params, state.adapters))
    moments = optax.tree.map_params(
        tx, lambda _, names: names, state.opt_state, trained, transform_non_params=lambda _: ""
    )
    return TrainState("", "", *trained, moments)


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
        jax.eval_shape(lambda p, m=model: m.taps(p, batch.inputs, None)[1], params)
        for model, params in (student, teacher)
    ]
    adapters = {
        name: term.signal.init(jax.random.fold_in(key, i), *shapes)
        for i, (name, term) in enumerate(feature_terms(terms).items())
    }
    return {name: adapter for name, adapter in adapters.items() if adapter}
