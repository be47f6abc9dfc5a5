"""Compare what choices of layers and widths keep of the teacher, on a sample, before any training."""

import dataclasses
import functools
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts import manifest
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches import pipeline
from kd_jax.errors import KdError
from kd_jax.evaluation.closeness import compare_step, mean_metrics
from kd_jax.experiment import ResolvedExperiment
from kd_jax.models.base import Architecture
from kd_jax.models.transformer import Transformer
from kd_jax.provenance import check_model
from kd_jax.runtime import progress
from kd_jax.students.init import FromTeacher, count_parameters, init_from_teacher, layer_maps
from kd_jax.students.narrow import WidthRule, is_narrower
from kd_jax.teaching.teacher import Teacher
from kd_jax.teaching.width_scores import width_scores
from kd_jax.types import Batch, Params

SAMPLE = 256  # maximum number of validation examples
HEADER = ("student", "layers", "width", "parameters", "outside embeddings", "loss", "KL to teacher")
NOTE = """\
Before any training, in nats per token, on {count} validation examples. width: which heads, neurons and channels a
narrower student keeps; first and random are controls, a dash means as wide as the teacher. * as the experiment sets
it."""


class Choice(NamedTuple):
    """One way to make a student of the teacher.

    Attributes:
      layers: rules that choose these teacher's layers: "spaced", "first", "last", "listed" (by the experiment), "all".
      configured: whether the experiment sets it so.
    """

    students: tuple[str, ...]
    layers: str
    model: Architecture
    init: FromTeacher
    configured: bool


class Row(NamedTuple):
    """Figures of the teacher, or of a student before any training; losses in nats per token.

    Attributes:
      choice: how the student is made; None for the teacher.
      width: rule for the width of a narrower student; None for one as wide as the teacher.
      agreement: share of the targets where student and teacher have the same most probable token.
    """

    choice: Choice | None
    width: str | None
    parameters: int
    parameters_outside_embeddings: int
    examples: int
    cross_entropy: float
    kl_to_teacher: float
    agreement: float

    def to_json(self) -> dict[str, Any]:
        """Return the row as shrink.json has it."""
        figures = self._asdict()
        width = figures.pop("width")
        choice = figures.pop("choice")
        if choice is None:
            return {"students": [TEACHER], "configured": False, **figures}
        return {
            "students": choice.students,
            "layers": choice.layers,
            "width": width,
            "encoder": choice.init.encoder,
            "decoder": choice.init.decoder,
            "configured": choice.configured,
            **figures,
        }


def run(experiment: ResolvedExperiment, workdir: Workdir) -> None:
    """Print a table of all students with init=FromTeacher, and write workdir/shrink/shrink.json.

    Args:
      experiment: the resolved experiment; its students need not be those of the run.
      workdir: the run's folder; its teacher must be trained.

    Raises:
      KdError: if no student has init=FromTeacher, or the teacher is not trained.
    """
    options = list(choices(experiment))
    if not options:
        raise KdError("students: expected one with init=FromTeacher, which `shrink` compares, got none. Add one.")
    began, teacher = time.perf_counter(), Teacher(experiment, workdir)
    check_model(experiment, workdir, TEACHER)
    splits = teacher.data["splits"]
    digests = {"teacher": workdir.model(TEACHER).outputs()["digest"], "tokenizer": teacher.data["tokenizer"]}
    digests |= {split: splits[split] for split in ("train", "validation")}
    rows = measure(teacher, options)
    recipes = {name: experiment.students[name] for option in options for name in option.students}
    inputs = {"seed": experiment.seed} | {f"consumed.{name}": digest for name, digest in digests.items()}
    for name, recipe in recipes.items():
        inputs |= config.flatten(recipe.model, f"students.{name}.model")
        inputs |= config.flatten(recipe.init, f"students.{name}.init")
    workdir.shrink.begin(inputs, force=True)  # replaces an earlier call's
    manifest.write_json(workdir.shrink.path / "shrink.json", [row.to_json() for row in rows])
    workdir.shrink.finish({}, time.perf_counter() - began)
    progress.print_result("\n" + progress.format_table(HEADER, [_cells(row) for row in rows], width=100))
    progress.print_result("\n" + textwrap.fill(NOTE.format(count=rows[0].examples), 80))
    for names in dict.fromkeys(option.students for option in options if len(option.students) > 1):
        progress.print_result(f"{names[0]} stands for {', '.join(names[1:])} too: same network, same init.")


def choices(experiment: ResolvedExperiment) -> Iterator[Choice]:
    """Yield each choice of layers, and of widths for narrower students, once.

    A choice that is an alternative of one student and the configuration of another is the latter's.
    """
    candidates = list(_all_choices(experiment))
    seen = {(choice.model, choice.init) for choice in candidates if choice.configured}
    for choice in candidates:
        if choice.configured or (choice.model, choice.init) not in seen:
            seen.add((choice.model, choice.init))
            yield choice


def _all_choices(experiment: ResolvedExperiment) -> Iterator[Choice]:
    teacher, students = experiment.teacher.model, experiment.students
    names_of: dict[tuple[Architecture, FromTeacher], list[str]] = {}
    for name, recipe in students.items():
        if isinstance(recipe.init, FromTeacher):
            names_of.setdefault((recipe.model, recipe.init), []).append(name)
    for (model, init), names in names_of.items():
        configured_maps = layer_maps(init, teacher, model)
        widths = get_args(WidthRule) if _is_narrower(teacher, model) else (init.width,)
        for layers, maps in _layer_choices(init, model, teacher):
            for width in widths:
                choice = dataclasses.replace(_with_layers(maps), width=width, sample=init.sample)
                configured = maps == configured_maps and width == init.width
                yield Choice(tuple(names), layers, model, choice, configured)


def _layer_choices(
    init: FromTeacher, model: Architecture, teacher: Architecture
) -> list[tuple[str, Mapping[str, tuple[int, ...]]]]:
    """Return (rules, stack -> the teacher's layers) of the different layer choices that fit the student."""
    teacher_depths, depths = teacher.stacks(), model.stacks()
    listed = FromTeacher(init.encoder, init.decoder)
    rules = {"listed": listed} if listed != FromTeacher() else {}
    if all(depths[stack] <= teacher_depths[stack] for stack in depths):
        rules["spaced"] = FromTeacher()
        rules["first"] = _with_layers({stack: tuple(range(count)) for stack, count in depths.items()})
        last = {
            stack: tuple(range(teacher_depths[stack] - count, teacher_depths[stack])) for stack, count in depths.items()
        }
        rules["last"] = _with_layers(last)
    rules_of: dict[tuple, list[str]] = {}
    for rule, choice in rules.items():
        try:
            rules_of.setdefault(tuple(layer_maps(choice, teacher, model).items()), []).append(rule)
        except KdError as error:  # for example if layers with their own rotary angles would move
            progress.log(f"shrink: {rule} layers skipped: {error}")
    if len(rules_of) == 1 and depths == teacher_depths and "listed" not in rules:
        return [("all", dict(maps)) for maps in rules_of]
    return [(", ".join(names), dict(maps)) for maps, names in rules_of.items()]


def _with_layers(maps: Mapping[str, tuple[int, ...]]) -> FromTeacher:
    """Return the init of these teacher's layers for each stack."""
    return FromTeacher(encoder=maps.get("encoder", ()), decoder=maps.get("decoder", ()))


def _is_narrower(teacher: Architecture, student: Architecture) -> bool:
    """Return whether a student has smaller widths; one of another architecture than ours keeps its teacher's."""
    return isinstance(teacher, Transformer) and isinstance(student, Transformer) and is_narrower(teacher, student)


def measure(teacher: Teacher, options: Sequence[Choice]) -> list[Row]:
    """Measure the teacher and each choice on the sample."""
    architecture, devices = teacher.experiment.teacher.model, teacher.devices
    params, vocab_size = devices.unreplicate(teacher.params), teacher.vocab_size
    scores = functools.cache(lambda width, sample: width_scores(teacher, width, sample))
    batches, count = _sample_batches(teacher)

    @functools.cache
    def program(student: Architecture) -> Callable[..., Any]:
        step = functools.partial(compare_step, teacher=teacher.model, student=student.build(vocab_size))
        return devices.compile_sums(step)

    def row(model: Architecture, student_params: Params, choice: Choice | None, width: str | None) -> Row:
        replicated = devices.replicate(student_params, model.build(vocab_size).axes(student_params))
        sums = [
            devices.unreplicate(program(model)((teacher.params, replicated), devices.shard((batch, batch))))
            for batch in batches
        ]
        metrics = mean_metrics(jax.tree.map(lambda *parts: sum(parts), *jax.device_get(sums)))
        total, outside_embeddings = count_parameters(student_params)
        return Row(
            choice=choice,
            width=width,
            parameters=total,
            parameters_outside_embeddings=outside_embeddings,
            examples=count,
            cross_entropy=metrics["cross_entropy"],
            kl_to_teacher=metrics["kl_to_teacher"],
            agreement=metrics["agreement"],
        )

    rows: list[Row] = []
    with progress.bar("shrink", len(options) + 1) as bar:
        with bar.compiling_once(TEACHER):
            rows.append(row(architecture, params, None, None))
        bar.advance(1)
        for choice in options:
            narrower, init = _is_narrower(architecture, choice.model), choice.init
            with bar.compiling_once(choice.students[0]):
                width = scores(init.width, init.sample) if narrower else None
                student_params = init_from_teacher(init, architecture, choice.model, params, vocab_size, width)
                rows.append(row(choice.model, student_params, choice, init.width if narrower else None))
            bar.advance(1)
    return rows


def _sample_batches(teacher: Teacher) -> tuple[list[Batch], int]:
    """Return batches of evenly spaced validation examples, and the number of the examples."""
    split = pipeline.Split(teacher.workdir.data, "validation")
    indices = np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).astype(int)
    batches = pipeline.EvalBatches(
        split,
        teacher.layout,
        teacher.experiment.shapes,
        pipeline.INFERENCE_BATCH_SIZE,
        teacher.devices.count,
        indices,
    )
    return list(batches), len(indices)


def _cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row of the table."""
    choice = row.choice
    name = TEACHER if choice is None else choice.students[0] + (" *" if choice.configured else "")
    return (
        name,
        "" if choice is None else choice.layers,
        "" if choice is None else row.width or "-",
        f"{row.parameters:,}",
        f"{row.parameters_outside_embeddings:,}",
        f"{row.cross_entropy:.3f}",
        f"{row.kl_to_teacher:.3f}",
    )
