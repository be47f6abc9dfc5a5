"""Ahead-of-time compilation of a model's training step, from shapes alone."""

from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.batches.buckets import round_up, training_rows
from kd_jax.batches.on_policy import OwnTextRule, Rounds
from kd_jax.experiment import ResolvedExperiment, required_signals
from kd_jax.objective.terms import cached_signals, needs_teacher
from kd_jax.runtime.mesh import MeshDevices
from kd_jax.training.loop import compile_train_step
from kd_jax.training.step import TrainState, init_adapters, init_state, state_axes
from kd_jax.types import Batch, Params

# The program is inspected and never run, so LLVM can skip its optimizations.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
START = 0  # any start id: it decides no shape


class CompiledStep(NamedTuple):
    """A training step that is compiled and not run.

    Attributes:
      compiled: the result of jax.jit(...).lower(...).compile().
      rows: rows of its batch, over all devices.
      full_rows: of these, the rows that hold examples; the others are padding, so that each device has as many.
      length: tokens of a row.
    """

    compiled: Any
    rows: int
    full_rows: int
    length: int


def compile_step(experiment: ResolvedExperiment, name: str, vocab_size: int, devices: MeshDevices) -> CompiledStep:
    """Compile the step that `fit` would run on a batch of the longest bucket.

    Args:
      experiment: the experiment.
      name: of the model in `experiment.recipes`.
      vocab_size: number of tokens.
      devices: the mesh to compile for. Its devices need not be of the target's kind.
    """
    recipe = experiment.recipes[name]
    batch = longest_batch(experiment, name, vocab_size, devices.count)
    model = recipe.model.build(vocab_size)
    params = jax.eval_shape(model.init, jax.random.key(0))
    teacher, teacher_shapes = None, None
    if needs_teacher(recipe.terms):
        teacher_model = experiment.teacher.model.build(vocab_size)
        teacher_params = jax.eval_shape(teacher_model.init, jax.random.key(0))
        teacher = teacher_model, teacher_params
        teacher_shapes = devices.replicate_shapes(teacher_params, teacher_model.axes(teacher_params))

    def first_state(params: Params) -> TrainState:
        key = jax.random.key(0)
        adapters = init_adapters(key, recipe.terms, (model, params), teacher, batch) if teacher else {}
        return init_state(key, model.stack(params), tx, adapters)

    tx = recipe.training.optimizer.build(recipe.training.steps)
    state = jax.eval_shape(first_state, params)
    state_shapes = devices.replicate_shapes(state, state_axes(state, tx, model.axes(state.params)))
    step = compile_train_step(recipe, model, teacher and teacher[0], tx, devices, shapes=1)
    lowered = step.lower(state_shapes, devices.shard_shapes(batch), teacher_shapes)
    rows, length = batch.targets_BT.shape
    full_rows = training_rows(recipe.training.tokens_per_batch, length)
    return CompiledStep(lowered.compile(compiler_options=COMPILER_OPTIONS), rows, full_rows, length)


def longest_batch(experiment: ResolvedExperiment, name: str, vocab_size: int, divisor: int) -> Batch:
    """Return a batch of padding of the longest bucket, with the fields of all signals that the terms read.

    Args:
      experiment: the experiment.
      name: of the model in `experiment.recipes`.
      vocab_size: number of tokens.
      divisor: the number of rows is a multiple of it, such as the number of devices.
    """
    recipe, bucket = experiment.recipes[name], experiment.shapes[-1]
    layout, training = recipe.model.layout(START), recipe.training
    width = int(layout.sizes(np.asarray(bucket))[-1])
    rows = round_up(training_rows(training.tokens_per_batch, width), divisor * training.microbatches)
    signals = cached_signals(recipe.terms)
    if name != TEACHER and not isinstance(recipe.targets, Rounds):
        signals = required_signals(experiment)[recipe.train_targets]
    schemas = {}
    for signal in cached_signals(recipe.terms):
        schemas[signal] = signals[signal].schema(vocab_size)
        assert schemas[signal] is not None  # a cached signal has one
    batch = layout.batch([], rows, bucket, schemas)
    return batch._replace(own_BT=np.zeros_like(batch.mask_BT)) if isinstance(recipe.targets, OwnTextRule) else batch
