"""Estimate which limit of a chip binds a training step: computation, memory bandwidth or collectives."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.batches.buckets import training_rows
from kd_jax.batches.on_policy import OwnTextRule
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE
from kd_jax.experiment import ResolvedExperiment, ResolvedRecipe
from kd_jax.models.attend import Scores, choose
from kd_jax.models.flops import TRAINING, count_full_workload, flops_per_unit
from kd_jax.models.transformer import Transformer
from kd_jax.objective.terms import needs_teacher
from kd_jax.runtime.chips import Chip
from kd_jax.runtime.mesh import MeshDevices
from kd_jax.runtime.program import COLLECTIVES, ProgramCost, analyze_program
from kd_jax.training.compile import START, compile_step, longest_batch

MIB = 2**20


class Roofline(NamedTuple):
    """Lower bounds of a program's seconds for matrix products, memory traffic and collectives, at a chip's peak."""

    compute: float
    memory: float
    collectives: float

    @property
    def seconds(self) -> float:
        """Lower bound where all three overlap."""
        return max(self)

    @property
    def bound(self) -> str:
        """The largest of the three."""
        titles = ("compute-bound", "memory-bound", "collective-bound")
        return titles[self.index(self.seconds)]


def roofline(cost: ProgramCost, chip: Chip) -> Roofline:
    """Compute the bounds of a program on one chip.

    Examples:
      >>> from kd_jax.runtime.chips import CHIPS
      >>> roofline(ProgramCost(flops=197 * 10**12, traffic=819 * 10**9, collectives=()), CHIPS["tpu-v5e"])
      Roofline(compute=1.0, memory=1.0, collectives=0.0)
    """
    sent = sum(cost.bytes_sent.values())
    return Roofline(cost.flops / chip.flops, cost.traffic / chip.bandwidth, sent / chip.interconnect)


def device_memory(compiled: Any) -> int:
    """Return the bytes that a compiled program needs on each device: arguments, outputs and temporaries."""
    memory = compiled.memory_analysis()
    together = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return together + memory.temp_size_in_bytes


def model_flops(experiment: ResolvedExperiment, name: str, vocab_size: int, portions: int) -> float:
    """Return the FLOPs that the networks need for the batch of `compile_step`, on all devices, if no row is padding."""
    whole = count_full_workload(longest_batch(experiment, name, vocab_size, portions))
    passes = [(TRAINING, experiment.recipes[name].model)]
    if needs_teacher(experiment.recipes[name].terms):
        passes.append((1, experiment.teacher.model))
    models = [(times, architecture.build(vocab_size)) for times, architecture in passes]
    shapes = lambda model: jax.eval_shape(model.init, jax.random.key(0))  # noqa: E731
    return sum(times * flops_per_unit(model, shapes(model)).dot(whole) for times, model in models)


def step_figures(
    experiment: ResolvedExperiment, name: str, vocab_size: int, devices: MeshDevices, chip: Chip
) -> dict[str, str]:
    """Return title -> figure, as text, of a model's training step on each device of a mesh."""
    experiment, kernel = with_attention_of(experiment, name, chip)
    step = compile_step(experiment, name, vocab_size, devices)
    cost, memory = analyze_program(step.compiled), device_memory(step.compiled)
    bounds = roofline(cost, chip)
    full = step.full_rows / step.rows
    needed = full * model_flops(experiment, name, vocab_size, devices.count) / devices.devices
    arguments = step.compiled.memory_analysis().argument_size_in_bytes
    fits = "yes" if memory <= chip.memory else "NO"
    sampling = sampling_seconds(experiment, name, vocab_size, devices, chip)
    return {
        "attention": kernel,
        "rows x length of a batch": f"{step.rows} x {step.length}",
        "of them padding": f"{1 - full:.0%}",
        "memory, MiB": f"{memory / MIB:,.1f}",
        "of it state and batch": f"{arguments / MIB:,.1f}",
        f"fits {chip.memory / 1e9:.0f} GB": f"{fits}, {memory / chip.memory:.1%}",
        "GFLOP": f"{cost.flops / 1e9:,.3f}",
        "of it the model's": f"{needed / cost.flops:.0%}",
        "memory traffic, MiB": f"{cost.traffic / MIB:,.1f}",
        f"FLOP a byte (chip {chip.intensity:.0f})": f"{cost.flops / cost.traffic:,.1f}",
        **{f"{kind}, MiB sent": f"{cost.bytes_sent.get(kind, 0) / MIB:,.2f}" for kind in COLLECTIVES},
        **{f"{reason}, ms at least": f"{1e3 * seconds:,.4f}" for reason, seconds in bounds._asdict().items()},
        "at most, targets a second": f"{step.full_rows * step.length / bounds.seconds:,.0f}",
        "limit": bounds.bound,
        **({"own texts, ms an update at least": f"{1e3 * sampling:,.4f}"} if sampling else {}),
    }


def with_attention_of(experiment: ResolvedExperiment, name: str, chip: Chip) -> tuple[ResolvedExperiment, str]:
    """Return (the experiment with the attention that a model and its teacher have on a chip, the model's kernel).

    Where the chip's kernel needs no scores in memory, nor does the form that stands in for it on CPU: "blocks".
    """
    kernels: dict[str, str] = {}

    def on_chip(recipe: ResolvedRecipe, key: str) -> ResolvedRecipe:
        model = recipe.model
        if not isinstance(model, Transformer):
            return recipe
        length = int(model.layout(START).sizes(np.asarray(experiment.shapes[-1]))[-1])
        kernels[key] = kernel = choose(
            model.attention,
            (length, length),
            same_tokens=True,
            window=model.window,
            relative=model.positions == "relative",
            scores=Scores(model.attention_scale, model.attention_soft_cap),
            compute=model.compute,
            platform="tpu" if chip.names[0].startswith("TPU") else "gpu",
        )
        attention = "plain" if kernel == "plain" else "flash"
        return dataclasses.replace(recipe, model=dataclasses.replace(model, attention=attention))

    teacher = on_chip(experiment.teacher, TEACHER)
    students = {student: on_chip(recipe, student) for student, recipe in experiment.students.items()}
    changed = dataclasses.replace(experiment, teacher=teacher, students=students)
    return changed, kernels.get(name, "of its own")


def sampling_seconds(
    experiment: ResolvedExperiment, name: str, vocab_size: int, devices: MeshDevices, chip: Chip
) -> float:
    """Return the seconds for which a student that learns from own texts writes them, for each update; 0 without.

    A lower bound, for texts of the last bucket: each step of decoding reads all parameters and half of the longest
    cache, and multiplies each parameter once for each row.
    """
    recipe = experiment.recipes[name]
    rule, model = recipe.targets, recipe.model
    if not (isinstance(rule, OwnTextRule) and isinstance(model, Transformer)):
        return 0.0
    length = rule.length or experiment.shapes[-1].completion
    texts = training_rows(recipe.training.tokens_per_batch, length) * rule.share_at(0)
    shapes = jax.eval_shape(model.build(vocab_size).init, jax.random.key(0))
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    size = 2 if model.compute == "bfloat16" else 4
    rows = INFERENCE_BATCH_SIZE / devices.count
    cached = model.stacks()["decoder"] * 2 * model.key_heads * model.head_width * length / 2
    step = max(size * (parameters + rows * cached) / chip.bandwidth, 2 * rows * parameters / chip.flops)
    return texts / INFERENCE_BATCH_SIZE * length * step
