"""A model's training step, compiled before there is any data, parameter or device of its own: from shapes alone."""

from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.batches.buckets import filled
from kd_jax.experiment import ResolvedExperiment, required_signals
from kd_jax.objective.terms import cached_signals, needs_teacher
from kd_jax.runtime.mesh import MeshDevices
from kd_jax.training.loop import Run, training_step
from kd_jax.training.step import TrainState, init_adapters, init_state, state_axes
from kd_jax.types import Batch, Params

# LLVM need not make machine code fast that nobody runs; what is read of a program is settled before.
NEVER_RUN = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
START = 0  # the id that decoding begins with: it decides no shape


class Ahead(NamedTuple):
    """A step that is compiled and never run.

    Attributes:
      compiled: as jax.jit(...).lower(...).compile().
      rows, length: of a batch, over all devices.
    """

    compiled: Any
    rows: int
    length: int


def compile_ahead(experiment: ResolvedExperiment, name: str, vocab_size: int, devices: MeshDevices) -> Ahead:
    """The step that `fit` would run on a batch of the longest bucket, over the mesh.

    Args:
      experiment, name: which of its recipes.
      vocab_size: of its tokeniser.
      devices: over devices that need not be of the kind that the run is meant for.
    """
    recipe = experiment.recipes[name]
    batch = longest_batch(experiment, name, vocab_size, devices.count)
    model = recipe.model.build(vocab_size)
    params = jax.eval_shape(model.init, jax.random.key(0))
    teacher = None
    if needs_teacher(recipe.terms):
        network = experiment.teacher.model.build(vocab_size)
        teacher = network, jax.eval_shape(network.init, jax.random.key(0))

    def first_state(params: Params) -> TrainState:
        key = jax.random.key(0)
        adapters = init_adapters(key, recipe.terms, (model, params), teacher, batch) if teacher else {}
        return init_state(key, model.stack(params), tx, adapters)

    run = Run(name, recipe, model, (), [batch], 1, teacher)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    state = jax.eval_shape(first_state, params)
    beside = teacher and devices.replicate_shapes(teacher[1], teacher[0].axes(teacher[1]))
    places = state_axes(state, tx, model.axes(state.params))
    arguments = devices.replicate_shapes(state, places), devices.shard_shapes(batch), beside
    lowered = training_step(run, tx, devices).lower(*arguments)
    return Ahead(lowered.compile(compiler_options=NEVER_RUN), *batch.targets_BT.shape)


def longest_batch(experiment: ResolvedExperiment, name: str, vocab_size: int, portions: int) -> Batch:
    """A batch of empty rows of the longest bucket, with the fields of every cache that the terms read.

    Args:
      experiment, name, vocab_size: as `compile_ahead`.
      portions: that its rows are cut into.
    """
    recipe, bucket = experiment.recipes[name], experiment.shapes[-1]
    layout, training = recipe.model.layout(START), recipe.training
    width = int(layout.sizes(np.asarray(bucket))[-1])
    rows = filled(max(1, training.tokens_per_batch // width), portions * training.microbatches)
    stored = required_signals(experiment)[recipe.targets] if name != TEACHER else {}
    schemas = {signal: stored[signal].schema(vocab_size) for signal in cached_signals(recipe.terms)}
    return layout.batch([], rows, bucket, schemas)
