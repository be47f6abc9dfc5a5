"""What would each choice of layers and widths keep of the teacher? Measured on a sample, before any training."""

import functools
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts import manifest
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches import pipeline
from kd_jax.errors import KdError
from kd_jax.evaluation.closeness import compare_step, mean_metrics
from kd_jax.experiment import ResolvedExperiment, ResolvedRecipe
from kd_jax.models.base import Architecture
from kd_jax.runtime import progress
from kd_jax.students.init import FromTeacher, count_parameters, layer_maps, shrink
from kd_jax.students.narrow import Width, narrower
from kd_jax.teaching.teacher import Teacher
from kd_jax.teaching.width_scores import width_scores
from kd_jax.types import Batch, Params

SAMPLE = 256  # validation examples that are looked at
FIGURES = ("cross_entropy", "kl_to_teacher", "agreement")
HEAD = ("student", "layers", "width", "parameters", "outside embeddings", "loss", "KL to teacher")
NOTE = """\
Before any training, in nats a token, on {count} validation examples. width: which heads, neurons and channels a
narrower student keeps; first and random are controls, a dash is for one as wide as its teacher. * what the experiment
says."""


class Choice(NamedTuple):
    """One way to make a student of the teacher.

    Attributes:
      students: those that start as this network may.
      layers: which the teacher's layers are: "spaced", "first", "last", "listed" by the experiment; several where they
        are the same ones.
      model, init: the network and its start.
      configured: whether it is what the experiment says.
    """

    students: tuple[str, ...]
    layers: str
    model: Architecture
    init: FromTeacher
    configured: bool


def run(experiment: ResolvedExperiment, workdir: Workdir) -> None:
    """Prints a table of all students that start as their teacher, and leaves workdir/shrink/shrink.json.

    Raises:
      KdError: if no student has init=FromTeacher, or the teacher is not trained.
    """
    options = list(choices(experiment))
    if not options:
        raise KdError("students: none has init=FromTeacher; shrink compares what such students keep of the teacher")
    began, teacher = time.perf_counter(), Teacher(experiment, workdir)
    splits = teacher.data["splits"]
    digests = {"teacher": workdir.model(TEACHER).outputs()["digest"], "tokenizer": teacher.data["tokenizer"]}
    digests |= {split: splits[split] for split in ("train", "validation")}
    rows = measured(teacher, options)
    recipes = {name: experiment.students[name] for option in options for name in option.students}
    inputs = {"seed": experiment.seed} | {f"consumed.{name}": digest for name, digest in digests.items()}
    for name, recipe in recipes.items():
        inputs |= config.flatten(recipe.model, f"students.{name}.model")
        inputs |= config.flatten(recipe.init, f"students.{name}.init")
    workdir.shrink.begin(inputs, force=True)  # what was there is of an earlier call
    manifest.write_json(workdir.shrink.path / "shrink.json", rows)
    workdir.shrink.finish({}, time.perf_counter() - began)
    progress.print_result("\n" + progress.format_table(HEAD, [_cells(row) for row in rows], width=100))
    progress.print_result("\n" + textwrap.fill(NOTE.format(count=rows[0]["examples"]), 80))
    for names in dict.fromkeys(option.students for option in options if len(option.students) > 1):
        progress.print_result(f"{names[0]} stands for {', '.join(names[1:])} too: the same network, the same start.")


def choices(experiment: ResolvedExperiment) -> Iterator[Choice]:
    """Every way that is compared: of layers, and where the student is narrower, of widths.

    What one student is compared with may be another student: it is left to that one.
    """
    every = list(_every_choice(experiment))
    known = {(one.model, one.init) for one in every if one.configured}
    for one in every:
        if one.configured or (one.model, one.init) not in known:
            known.add((one.model, one.init))
            yield one


def _every_choice(experiment: ResolvedExperiment) -> Iterator[Choice]:
    teacher, students = experiment.teacher.model, experiment.students
    starts: dict[tuple[Architecture, FromTeacher], list[str]] = {}
    for name, recipe in students.items():
        if recipe.init.origin == "teacher":
            starts.setdefault((recipe.model, recipe.init), []).append(name)
    for names in starts.values():
        recipe = students[names[0]]
        own = layer_maps(recipe.init, teacher, recipe.model)
        differs = narrower(teacher, recipe.model)
        for titles, maps in _layer_choices(recipe, teacher):
            for width in get_args(Width) if differs else (recipe.init.width,):
                init = FromTeacher(**maps, width=width, sample=recipe.init.sample)
                configured = maps == own and width == recipe.init.width
                yield Choice(tuple(names), titles, recipe.model, init, configured)


def _layer_choices(recipe: ResolvedRecipe, teacher: Architecture) -> list[tuple[str, Mapping[str, tuple[int, ...]]]]:
    """(titles, the teacher's layers for each stack) of those that are different, and that fit the student."""
    depths, ours = teacher.stacks(), recipe.model.stacks()
    listed = FromTeacher(recipe.init.encoder, recipe.init.decoder)
    ways = {"listed": listed} if listed != FromTeacher() else {}
    if all(ours[stack] <= depths[stack] for stack in ours):
        ways["spaced"] = FromTeacher()
        ways["first"] = FromTeacher(**{stack: tuple(range(count)) for stack, count in ours.items()})
        lasts = {stack: tuple(range(depths[stack] - count, depths[stack])) for stack, count in ours.items()}
        ways["last"] = FromTeacher(**lasts)
    titles: dict[tuple, list[str]] = {}
    for title, init in ways.items():
        try:
            titles.setdefault(tuple(layer_maps(init, teacher, recipe.model).items()), []).append(title)
        except KdError as error:  # as where layers with angles of their own would come to stand elsewhere
            progress.log(f"shrink: not the {title} layers: {error}")
    if len(titles) == 1 and ours == depths and "listed" not in ways:
        return [("all", dict(maps)) for maps in titles]
    return [(", ".join(names), dict(maps)) for maps, names in titles.items()]


def measured(teacher: Teacher, options: Sequence[Choice]) -> list[dict[str, Any]]:
    """A row of figures for the teacher and then for each choice, JSON-able."""
    architecture, on_devices = teacher.experiment.teacher.model, teacher.devices
    params, vocab_size = on_devices.unreplicate(teacher.params), teacher.vocab_size
    scores = functools.cache(lambda width, sample: width_scores(teacher, width, sample))
    batches, count = _sample(teacher)

    @functools.cache
    def program(student: Architecture) -> Any:
        step = functools.partial(compare_step, teacher=teacher.model, student=student.build(vocab_size))
        return on_devices.compile_sums(step)

    def figures(model: Architecture, its_params: Params) -> dict[str, Any]:
        both = teacher.params, on_devices.replicate(its_params, model.build(vocab_size).axes(its_params))
        parts = [on_devices.unreplicate(program(model)(both, on_devices.shard((batch, batch)))) for batch in batches]
        compared = mean_metrics(jax.tree.map(lambda *each: sum(each), *jax.device_get(parts)))
        total, outside = count_parameters(its_params)
        sizes = {"parameters": total, "parameters_outside_embeddings": outside, "examples": count}
        return sizes | {name: compared[name] for name in FIGURES}

    rows: list[dict[str, Any]] = []
    with progress.bar("shrink", len(options) + 1) as bar:
        with bar.compiling_once(TEACHER):
            rows.append({"students": [TEACHER], "configured": False} | figures(architecture, params))
        bar.advance(1)
        for option in options:
            differs, init = narrower(architecture, option.model), option.init
            with bar.compiling_once(option.students[0]):
                its_scores = scores(init.width, init.sample) if differs else None
                its_params = shrink(init, architecture, option.model, params, vocab_size, its_scores)
                row = {"students": option.students, "layers": option.layers, "width": init.width if differs else None}
                row |= {"encoder": init.encoder, "decoder": init.decoder, "configured": option.configured}
                rows.append(row | figures(option.model, its_params))
            bar.advance(1)
    return rows


def _sample(teacher: Teacher) -> tuple[list[Batch], int]:
    """(batches of validation examples, evenly spread; how many they are)."""
    split = pipeline.Split(teacher.workdir.data, "validation")
    indices = np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).astype(int)
    shapes, rows = teacher.experiment.shapes, teacher.devices.count
    return list(pipeline.EvalBatches(split, teacher.layout, shapes, pipeline.INFERENCE_BATCH_SIZE, rows, indices)), len(indices)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the table."""
    name = row["students"][0] + (" *" if row["configured"] else "")
    chosen = ("", "") if row["students"] == [TEACHER] else (row["layers"], row["width"] or "-")
    counts = (f"{row[key]:,}" for key in ("parameters", "parameters_outside_embeddings"))
    return name, *chosen, *counts, f"{row['cross_entropy']:.3f}", f"{row['kl_to_teacher']:.3f}"
