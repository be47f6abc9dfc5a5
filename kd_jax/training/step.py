"""One training step as pure functions: no devices, no axis names, no I/O.

The number of tokens that count depends on the masks alone. It is summed over microbatches and devices before the
forward pass, each portion's loss is divided by it, and gradients are added, never averaged.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kd_jax.models.base import Model
from kd_jax.objective.entropy import count_selected, select_by_entropy, selective_terms
from kd_jax.objective.fused_head import fused_head, whole_rows
from kd_jax.objective.terms import (
    StepInputs,
    Terms,
    TokenInputs,
    chunk_signals,
    feature_signals,
    needs_teacher,
    total_loss,
)
from kd_jax.schedules import value_at
from kd_jax.signals.chunks import END
from kd_jax.types import Array, Batch, Params, Sum

Sums = dict[str, Sum]
Trainable = tuple[Params, Mapping[str, Params]]  # the model's parameters, and term name -> parameters of its adapter
Taps = Mapping[str, Array]


class TrainState(NamedTuple):
    """The state of training: all that a step changes, and the random key.

    Attributes:
      step: int32 scalar, updates so far.
      key: uint32 key data. Every random draw folds in the step, the place in the model and the example.
      params: the model's parameters.
      adapters: term name -> parameters that only its loss uses (projections between widths). They are trained with
        the model and saved with the optimizer's state, not with the model.
      opt_state: the optax state of (params, adapters).
    """

    step: Array
    key: Array
    params: Params
    adapters: Mapping[str, Params]
    opt_state: Any


class TokenCounts(NamedTuple):
    """Numbers of tokens, int32 scalars.

    Attributes:
      target: target tokens that count in the loss.
      decoder: decoder tokens without padding.
      encoder: encoder tokens without padding; None if the network has no encoder.
      selected: term name -> target tokens that it reads, of the terms with `entropy_share` below 1 and of those on
        chunks; None if there are none.
    """

    target: Array
    decoder: Array
    encoder: Array | None = None
    selected: Mapping[str, Array] | None = None


def count_tokens(batch: Batch, terms: Terms = MappingProxyType({})) -> TokenCounts:
    """Count the tokens of a batch, which are the denominators of its losses.

    Args:
      batch: rows [B, T].
      terms: the objective, name -> Term; only terms with `entropy_share` below 1 and terms on chunks matter.

    Returns:
      int32 scalars.

    Examples:
      >>> from kd_jax import Inputs, Tokens
      >>> segments = jnp.array([[1, 1, 0]])  # two tokens, one position of padding
      >>> tokens = Tokens(ids_BT=segments, position_BT=segments, segment_BT=segments)
      >>> mask = jnp.array([[False, True, False]])
      >>> batch = Batch(Inputs(jnp.array([0]), tokens, None), segments, mask, jnp.ones((1, 3)), {})
      >>> counts = count_tokens(batch)
      >>> int(counts.target), int(counts.decoder), counts.encoder
      (1, 2, None)
    """
    encoder, mask_BT, segment_BT = batch.inputs.encoder, batch.mask_BT, batch.inputs.decoder.segment_BT
    selected = {name: count_selected(mask_BT, segment_BT, share) for name, share in selective_terms(terms).items()}
    for name, signal in chunk_signals(terms).items():
        ends_BT = mask_BT & (batch.payload[signal.name]["place"] == END)
        selected[name] = ends_BT.sum(dtype=jnp.int32)
    return TokenCounts(
        target=mask_BT.sum(dtype=jnp.int32),
        decoder=_count(segment_BT),
        encoder=None if encoder is None else _count(encoder.segment_BT),
        selected=selected or None,
    )


def _count(segment_BT: Array) -> Array:
    return (segment_BT > 0).sum(dtype=jnp.int32)


def loss_fn(
    trainable: Trainable,
    batch: Batch,
    counts: TokenCounts,
    dropout_key: Array | None,
    teacher_params: Params | None = None,
    step: Array | int = 0,
    *,
    model: Model,
    terms: Terms,
    teacher: Model | None = None,
) -> tuple[Array, Sums]:
    r"""Compute a batch's share of the objective.

    .. math:: L = \frac{1}{N} \sum_n m_n \sum_i w_i u_n \ell_i(n)

    with the mask m, the weight w of term i, the weight u of target n, the term's loss l, and the number N of target
    tokens that count (`counts.target`). Terms on layers average over the positions of their stack in the same way, and
    terms with `entropy_share` below 1 over the targets that they read.

    Args:
      trainable: (the model's parameters, the terms' adapters). The loss is differentiated with respect to them.
      batch: rows [B, T]; all of a step's rows, or a portion of them.
      counts: token counts of all portions together.
      dropout_key: random key of dropout; None for no dropout.
      teacher_params: the teacher's parameters, without gradient; None if no term needs the teacher.
      step: number of the update, from 0, for weights and temperatures that follow a schedule.
      model: the network to train.
      terms: the objective, name -> Term.
      teacher: the teacher's network; None if no term needs the teacher.

    Returns:
      (L, Sums by name: "loss" and each term without its weight). The shares of all portions add up to the objective.

    Examples:
      >>> from kd_jax import Head, Inputs, Term, Tokens, cross_entropy
      >>> logits = lambda table, inputs, key: table[inputs.decoder.ids_BT]  # of the next token, by bigrams
      >>> bigrams = Model(None, logits, None, lambda table: Head(jnp.eye(2)), None, None)
      >>> one = jnp.ones((1, 1), jnp.int32)
      >>> batch = Batch(Inputs(one[0], Tokens(one, one, one), None), one, one > 0, jnp.ones((1, 1)), {})
      >>> terms = {"ce": Term(cross_entropy)}
      >>> trainable, counts = (jnp.zeros((2, 2)), {}), count_tokens(batch)
      >>> loss, sums = loss_fn(trainable, batch, counts, None, model=bigrams, terms=terms)
      >>> print(f"{loss:.4f}")  # log 2: two tokens of equal probability
      0.6931
    """
    params, adapters = trainable
    with_taps = bool(feature_signals(terms))
    hidden_BTD, taps = _apply(model, params, batch, dropout_key, with_taps)
    tokens = TokenInputs(batch.targets_BT, batch.mask_BT, batch.weight_BT, batch.payload, own=batch.own_BT)
    shared = StepInputs(step=jnp.asarray(step))
    shares, chunks = selective_terms(terms), chunk_signals(terms)
    if shares:
        segment_BT = batch.inputs.decoder.segment_BT
        selected = select_by_entropy(shares, hidden_BTD, model.head(params), batch.mask_BT, segment_BT)
        tokens = tokens._replace(selected=selected)
    if shares or chunks:
        assert counts.selected is not None
        of_terms = {name: counts.selected[name] for name in (*shares, *chunks)}
        factors = jax.tree.map(lambda count: counts.target / jnp.maximum(count, 1), of_terms)
        shared = shared._replace(factors=factors)
    feature_losses: dict[str, FeatureLoss] = {}
    if needs_teacher(terms):
        assert teacher is not None and teacher_params is not None
        teacher_hidden_BTD, teacher_taps = jax.lax.stop_gradient(
            _apply(teacher, teacher_params, batch, None, with_taps)
        )
        tokens = tokens._replace(teacher_hidden=teacher_hidden_BTD)
        shared = shared._replace(teacher_head=jax.lax.stop_gradient(teacher.head(teacher_params)))
        feature_losses = _feature_losses(terms, batch, counts, taps, teacher_taps, adapters, step)
    tokens_N, hidden_ND = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (tokens, hidden_BTD))
    objective = functools.partial(total_loss, terms)
    head, (rows, length) = model.head(params), batch.mask_BT.shape
    part = whole_rows(rows, length, head.kernel_DV.shape[1]) if chunks else 0
    head_sums: Any = fused_head(objective, hidden_ND, head, tokens_N, shared, part)
    loss, sums = head_sums
    total = loss / jnp.maximum(counts.target, 1).astype(jnp.float32)
    for name, feature_loss in feature_losses.items():
        weighted = value_at(terms[name].weight, step) * feature_loss.sum.value
        count = jnp.maximum(feature_loss.count, 1).astype(jnp.float32)
        total += weighted / count
        # "loss" is reported as a mean over target tokens, so the share of other positions is scaled to them.
        scaled = weighted * counts.target.astype(jnp.float32) / count
        sums |= {name: feature_loss.sum, "loss": Sum(sums["loss"].value + scaled, sums["loss"].weight)}
    return total, jax.lax.stop_gradient(sums)


def _apply(
    model: Model, params: Params, batch: Batch, dropout_key: Array | None, with_taps: bool
) -> tuple[Array, Taps]:
    """Return (hidden_BTD, the layers' taps; {} without `with_taps`)."""
    if with_taps:
        return model.taps(params, batch.inputs, dropout_key)
    return model.apply(params, batch.inputs, dropout_key), {}


class FeatureLoss(NamedTuple):
    """A term on layers: its Sum over the positions of a stack, and their number in the whole step."""

    sum: Sum
    count: Array


def _feature_losses(
    terms: Terms,
    batch: Batch,
    counts: TokenCounts,
    taps: Taps,
    teacher_taps: Taps,
    adapters: Mapping[str, Params],
    step: Array | int,
) -> dict[str, FeatureLoss]:
    """Return name -> loss of each term that compares layers."""
    losses = {}
    for name, signal in feature_signals(terms).items():
        if signal.uses_encoder():
            assert batch.inputs.encoder is not None and counts.encoder is not None
            segment_BT, weight_BT, count = batch.inputs.encoder.segment_BT, _encoder_weight(batch), counts.encoder
        else:
            segment_BT, weight_BT, count = batch.inputs.decoder.segment_BT, batch.weight_BT, counts.decoder
        teacher_PBTX, student_PBTX = signal.align(taps, teacher_taps, segment_BT, adapters.get(name, {}))
        teacher_NX, student_NX = (x.reshape(-1, x.shape[-1]) for x in (teacher_PBTX, student_PBTX))
        loss_PBT = terms[name].compare_at(step)(teacher_NX, student_NX).reshape(teacher_PBTX.shape[:-1])
        loss_BT = loss_PBT.sum(0) / loss_PBT.shape[0]
        losses[name] = FeatureLoss(Sum.over(weight_BT * loss_BT, segment_BT > 0), count)
    return losses


def _encoder_weight(batch: Batch) -> Array:
    """Return the weight of each encoder token, float32 [B, S]: that of its example's targets."""
    assert batch.inputs.encoder is not None
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
    """Compute one update of the parameters from a batch.

    Args:
      state: the state before the step.
      batch: rows [B, T] of this device; B is a multiple of `microbatches`.
      teacher_params: the teacher's parameters; None if no term needs the teacher.
      model: the network to train.
      terms: the objective, name -> Term.
      tx: the optimizer, of (params, adapters).
      teacher: the teacher's network; None if no term needs the teacher.
      microbatches: number of portions of the batch; their gradients are added before the update.
      all_sum: sums a pytree over devices; the identity for one device.

    Returns:
      (the state after the step, Sums over all devices by name: "loss", each term, "grad_norm", and "skipped", which
      is 1 if the optimizer skipped the update).

    Examples:
      >>> from kd_jax import Head, Inputs, Term, Tokens, cross_entropy
      >>> logits = lambda table, inputs, key: table[inputs.decoder.ids_BT]  # of the next token, by bigrams
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
    counts = all_sum(count_tokens(batch, terms))
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    trainable = (state.params, state.adapters)

    loss = functools.partial(
        loss_fn,
        counts=counts,
        dropout_key=key,
        teacher_params=teacher_params,
        step=state.step,
        model=model,
        terms=terms,
        teacher=teacher,
    )
    gradient = functools.partial(jax.grad(loss, has_aux=True), trainable)
    if microbatches == 1:
        grads, sums = gradient(batch)
    else:
        # Portion m has the rows m, m + microbatches, ..., so that over a mesh every device keeps its own rows.
        portions = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], portions)))
        add = lambda total, portion: (jax.tree.map(jnp.add, total, gradient(portion)), None)  # noqa: E731
        (grads, sums), _ = jax.lax.scan(add, zeros, portions)
    grads, sums = all_sum((grads, sums))
    updates, opt_state = tx.update(grads, state.opt_state, trainable)
    new: Any = optax.apply_updates(trainable, updates)
    params, adapters = new
    skipped = _skipped_updates(opt_state) - _skipped_updates(state.opt_state)
    sums |= {"grad_norm": Sum(optax.tree.norm(grads), jnp.int32(1))}
    sums |= {"skipped": Sum(skipped.astype(jnp.float32), jnp.int32(1))}
    return TrainState(state.step + 1, state.key, params, adapters, opt_state), sums


def _skipped_updates(opt_state: Any) -> Array:
    """Return the number of updates that the optimizer skipped so far; 0 for an optimizer that skips none."""
    return optax.tree.get(opt_state, "skipped", jnp.int32(0))


def eval_step(
    params: Params,
    batch: Batch,
    *,
    model: Model,
    terms: Terms,
    all_sum: Callable[[Any], Any] = lambda tree: tree,
) -> Sums:
    """Compute the Sums of all terms on a batch, without dropout and without the teacher.

    Args:
      params: the model's parameters.
      batch: rows [B, T] of this device.
      model: the network.
      terms: the objective, name -> Term; none needs the teacher.
      all_sum: sums a pytree over devices; the identity for one device.

    Returns:
      Sums over all devices by name: "loss" and each term without its weight.

    Examples:
      >>> from kd_jax import Head, Inputs, Term, Tokens, cross_entropy
      >>> logits = lambda table, inputs, key: table[inputs.decoder.ids_BT]  # of the next token, by bigrams
      >>> bigrams = Model(None, logits, None, lambda table: Head(jnp.eye(2)), None, None)
      >>> one = jnp.ones((1, 1), jnp.int32)
      >>> batch = Batch(Inputs(one[0], Tokens(one, one, one), None), one, one > 0, jnp.ones((1, 1)), {})
      >>> terms = {"ce": Term(cross_entropy)}
      >>> step = jax.jit(functools.partial(eval_step, model=bigrams, terms=terms))
      >>> sums = step(jnp.log(jnp.array([[0.5, 0.5], [0.75, 0.25]])), batch)
      >>> print(f"{sums['ce'].value:.4f} {sums['ce'].weight}")  # log 4, of one token
      1.3863 1
    """
    counts = TokenCounts(target=jnp.int32(1), decoder=jnp.int32(1))  # the Sums do not depend on them
    if selective_terms(terms) or chunk_signals(terms):  # but for the factors of these terms in "loss"
        counts = all_sum(count_tokens(batch, terms))
    return all_sum(loss_fn((params, {}), batch, counts, None, model=model, terms=terms)[1])


def init_state(
    key: Array, params: Params, tx: optax.GradientTransformation, adapters: Mapping[str, Params] | None = None
) -> TrainState:
    """Return the state before the first step.

    Args:
      key: random key of dropout.
      params: the model's parameters.
      tx: the optimizer.
      adapters: term name -> parameters, from `init_adapters`; None for none.

    Examples:
      >>> state = init_state(jax.random.key(0), {"w": jnp.ones(2)}, optax.trace(decay=0.9))
      >>> momentum, _ = state.opt_state.trace  # of the parameters, and of the adapters
      >>> int(state.step), momentum["w"].tolist()
      (0, [0.0, 0.0])
    """
    adapters = dict(adapters or {})
    return TrainState(jnp.int32(0), jax.random.key_data(key), params, adapters, tx.init((params, adapters)))


def state_axes(state: TrainState, tx: optax.GradientTransformation, axes: Any) -> Any:
    """Return the names of the axes of each part of the state, for `Devices.replicate`.

    The optimizer's moments have the axes of their parameters.

    Args:
      state: as `init_state` returns it.
      tx: the optimizer.
      axes: of the model's parameters, as `Model.axes` returns them.

    Returns:
      A TrainState with the names in place of arrays.

    Examples:
      >>> tx = optax.trace(decay=0.9)
      >>> state_axes(init_state(jax.random.key(0), {"w": jnp.ones(2)}, tx), tx, {"w": "model"}).opt_state.trace
      ({'w': 'model'}, {})
    """
    params_axes, adapter_axes = jax.tree.broadcast((axes, ""), (state.params, state.adapters))
    opt_state_axes = optax.tree.map_params(
        tx,
        lambda _, names: names,
        state.opt_state,
        (params_axes, adapter_axes),
        transform_non_params=lambda _: "",
    )
    names: Any = ""
    return TrainState(names, names, params_axes, adapter_axes, opt_state_axes)


def init_adapters(
    key: Array, terms: Terms, student: tuple[Model, Params], teacher: tuple[Model, Params], batch: Batch
) -> dict[str, Params]:
    """Return term name -> first parameters of its adapter, for the terms that have one.

    Args:
      key: random key.
      terms: the objective, name -> Term.
      student: (network, parameters); only the shapes of its layers' outputs matter.
      teacher: the same of the teacher.
      batch: any batch.
    """
    student_shapes, teacher_shapes = (
        jax.eval_shape(lambda p, m=model: m.taps(p, batch.inputs, None)[1], params)
        for model, params in (student, teacher)
    )
    adapters = {
        name: signal.init_adapter(jax.random.fold_in(key, i), student_shapes, teacher_shapes)
        for i, (name, signal) in enumerate(feature_signals(terms).items())
    }
    return {name: adapter for name, adapter in adapters.items() if adapter}
