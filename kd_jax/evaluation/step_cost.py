"""Measure what a student's training step costs, with and without the teacher."""

import functools
import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax.batches import pipeline
from kd_jax.batches.buckets import assign_buckets, training_rows
from kd_jax.experiment import ResolvedExperiment, ResolvedRecipe
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.objective.terms import Term, Terms, needs_teacher
from kd_jax.runtime import progress
from kd_jax.runtime.backends import make_devices
from kd_jax.signals.online import Online
from kd_jax.signals.topk import TopK
from kd_jax.teaching.teacher import Teacher
from kd_jax.training.step import init_state, train_step
from kd_jax.types import Batch

STEPS = 9  # timed for each objective


class StepCost(NamedTuple):
    """Cost of a student's step with one objective: median seconds, and bytes of arguments and temporaries."""

    title: str
    seconds: float
    memory: int


def step_costs(experiment: ResolvedExperiment, teacher: Teacher, recipe: ResolvedRecipe) -> list[StepCost]:
    """Time a student's step on a batch of the longest bucket, with three objectives; cross-entropy comes first."""
    signal = TopK(k=min(32, teacher.vocab_size))
    objectives: Mapping[str, Terms] = {
        "cross-entropy alone": {"ce": Term(cross_entropy)},
        "with a top-k cache": {"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=signal)},
        "with the teacher in the step": {"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=Online())},
    }
    batch = _longest_batch(experiment, teacher, recipe, signal)
    with progress.bar("plan: a student's step", (STEPS + 2) * len(objectives)) as bar:
        steps = {}
        for title, terms in objectives.items():
            with bar.compiling(title):
                steps[title] = _compile_step(recipe, terms, teacher, batch)
            bar.advance(1)
        seconds: dict[str, list[float]] = {title: [] for title in objectives}
        for _ in range(STEPS + 1):
            for title, (compiled, arguments) in steps.items():
                began = time.perf_counter()
                jax.block_until_ready(compiled(*arguments))
                seconds[title].append(time.perf_counter() - began)
                bar.advance(1)
    costs = []
    for title, (compiled, _) in steps.items():
        memory = compiled.memory_analysis()
        used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        costs.append(StepCost(title, statistics.median(seconds[title][1:]), used))  # the first one warms up
    return costs


def _longest_batch(experiment: ResolvedExperiment, teacher: Teacher, recipe: ResolvedRecipe, signal: TopK) -> Batch:
    """Return a batch of the longest bucket, with a payload of the right shapes."""
    split, bucket = pipeline.Split(teacher.workdir.data, "train"), experiment.shapes[-1]
    layout = recipe.model.layout(teacher.data["start"])
    rows = training_rows(recipe.training.tokens_per_batch, int(layout.sizes(np.asarray(bucket))[-1]))
    fitting = np.flatnonzero(assign_buckets(split.lengths, [bucket], layout) == 0)[:rows]
    batch = split.batch(layout, np.resize(fitting, rows)[:, None], rows, bucket)
    schema = signal.schema(teacher.vocab_size)
    payload = {name: np.zeros((*batch.targets_BT.shape, *field.shape), field.dtype) for name, field in schema.items()}
    payload["ids"] += np.arange(signal.k).astype(payload["ids"].dtype)
    return batch._replace(payload={signal.name: payload})


def _compile_step(recipe: ResolvedRecipe, terms: Terms, teacher: Teacher, batch: Batch) -> tuple[Any, tuple]:
    """Return (the compiled step, its arguments); an objective gets the teacher and the cache only if it reads them."""
    online, cached = needs_teacher(terms), any(term.signal and term.signal.origin == "cache" for term in terms.values())
    model = recipe.model.build(teacher.vocab_size)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    first_params = jax.jit(lambda key: model.stack(model.init(key)))
    state = init_state(jax.random.key(1), first_params(jax.random.key(0)), tx)
    teacher_params = teacher.devices.unreplicate(teacher.params) if online else None
    devices = make_devices("jit")
    arguments = devices.replicate((state, batch if cached else batch._replace(payload={}), teacher_params))
    step = functools.partial(train_step, model=model, terms=terms, tx=tx, teacher=teacher.model if online else None)
    return devices.compile_sums(step).lower(*arguments).compile(), arguments
