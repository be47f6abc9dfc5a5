"""Compare what choices of layers and widths keep of a trained model, on a sample, before any training."""

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
from kd_jax.students.init import FromModel, FromStudent, count_parameters, init_from_teacher, layer_maps
from kd_jax.students.narrow import WidthRule, is_narrower
from kd_jax.teaching.teacher import TrainedModel
from kd_jax.teaching.width_scores import width_scores
from kd_jax.types import Batch, Params

SAMPLE = 256  # maximum number of validation examples
HEADER = ("student", "layers", "width", "parameters", "outside embeddings", "loss", "KL to teacher")
NOTE = """\
Before any training, in nats per token, on {count} validation examples. width: which heads, neurons and channels a
narrower student keeps; first and random are controls, a dash means as wide as the model it starts from. * as the
experiment sets it."""


class Choice(NamedTuple):
    """One way to make a student of the teacher, or of another student.

    Attributes:
      layers: rules that choose these layers of it: "spaced", "first", "last", "listed" (by the experiment), "all".
      configured: whether the experiment sets it so.
    """

    students: tuple[str, ...]
    layers: str
    model: Architecture
    init: FromModel
    configured: bool


class Row(NamedTuple):
    """Figures of a trained model, or of a student before any training; losses in nats per token.

    Attributes:
      names: of the students that are made so, or of the trained model.
      choice: how the students are made; None for a trained model.
      width: rule for the width of a narrower student; None for one as wide as the model that it starts from.
      agreement: share of the targets where student and teacher have the same most probable token.
    """

    names: tuple[str, ...]
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
        names, width, choice = (figures.pop(field) for field in ("names", "width", "choice"))
        if choice is None:
            return {"students": names, "configured": False, **figures}
        return {
            "students": names,
            "start": choice.init.name,
            "layers": choice.layers,
            "width": width,
            "encoder": choice.init.encoder,
            "decoder": choice.init.decoder,
            "configured": choice.configured,
            **figures,
        }


def run(experiment: ResolvedExperiment, workdir: Workdir) -> None:
    """Print a table of all students with init=FromTeacher or FromStudent, and write workdir/shrink/shrink.json.

    A student that starts from one that is not trained yet is left out.

    Args:
      experiment: the resolved experiment; its students need not be those of the run.
      workdir: the run's folder; its teacher must be trained.

    Raises:
      KdError: if no student has such an init, the teacher is not trained, or a student's start is of another run.
    """
    options = list(choices(experiment))
    if not options:
        raise KdError(
            "students: expected one with init=FromTeacher or FromStudent, which `shrink` compares, got none. Add one."
        )
    began, teacher = time.perf_counter(), TrainedModel(experiment, workdir, TEACHER)
    starts = {TEACHER: teacher}
    for name in dict.fromkeys(option.init.name for option in options):
        if name == TEACHER or workdir.model(name).finished():
            starts[name] = TrainedModel(experiment, workdir, name)
        else:
            progress.log(f"shrink: parts of {name} skipped: it is not trained yet. Run `student --only {name}` first.")
    options = [option for option in options if option.init.name in starts]
    for name in starts:
        check_model(experiment, workdir, name)
    splits = teacher.data["splits"]
    digests = {"teacher": workdir.model(TEACHER).outputs()["digest"], "tokenizer": teacher.data["tokenizer"]}
    digests |= {f"model.{name}": workdir.model(name).outputs()["digest"] for name in starts if name != TEACHER}
    digests |= {split: splits[split] for split in ("train", "validation")}
    rows = measure(starts, options)
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
    names_of: dict[tuple[Architecture, FromModel], list[str]] = {}
    for name, recipe in experiment.students.items():
        if isinstance(recipe.init, FromModel):
            names_of.setdefault((recipe.model, recipe.init), []).append(name)
    for (model, init), names in names_of.items():
        start = experiment.recipes[init.name].model
        configured_maps = layer_maps(init, start, model)
        widths = get_args(WidthRule) if _is_narrower(start, model) else (init.width,)
        for layers, maps in _layer_choices(init, model, start):
            for width in widths:
                choice = dataclasses.replace(_with_layers(init, maps), width=width)
                configured = maps == configured_maps and width == init.width
                yield Choice(tuple(names), layers, model, choice, configured)


def _layer_choices(
    init: FromModel, model: Architecture, start: Architecture
) -> list[tuple[str, Mapping[str, tuple[int, ...]]]]:
    """Return (rules, stack -> layers of the start) of the different layer choices that fit the student."""
    start_depths, depths = start.stacks(), model.stacks()
    rules = {"listed": init} if init.encoder or init.decoder else {}
    if all(depths[stack] <= start_depths[stack] for stack in depths):
        rules["spaced"] = _with_layers(init, {})
        rules["first"] = _with_layers(init, {stack: tuple(range(count)) for stack, count in depths.items()})
        last = {
            stack: tuple(range(start_depths[stack] - count, start_depths[stack])) for stack, count in depths.items()
        }
        rules["last"] = _with_layers(init, last)
    rules_of: dict[tuple, list[str]] = {}
    for rule, choice in rules.items():
        try:
            rules_of.setdefault(tuple(layer_maps(choice, start, model).items()), []).append(rule)
        except KdError as error:  # for example if layers with their own rotary angles would move
            progress.log(f"shrink: {rule} layers skipped: {error}")
    if len(rules_of) == 1 and depths == start_depths and "listed" not in rules:
        return [("all", dict(maps)) for maps in rules_of]
    return [(", ".join(names), dict(maps)) for maps, names in rules_of.items()]


def _with_layers(init: FromModel, maps: Mapping[str, tuple[int, ...]]) -> FromModel:
    """Return the init with these layers for each stack."""
    return dataclasses.replace(init, encoder=maps.get("encoder", ()), decoder=maps.get("decoder", ()))


def _is_narrower(start: Architecture, student: Architecture) -> bool:
    """Return whether a student has smaller widths; one of another architecture than ours keeps its start's."""
    return isinstance(start, Transformer) and isinstance(student, Transformer) and is_narrower(start, student)


def measure(starts: Mapping[str, TrainedModel], options: Sequence[Choice]) -> list[Row]:
    """Measure trained models, the teacher among them, and each choice of parts of one of them on the sample."""
    teacher = starts[TEACHER]
    devices, vocab_size = teacher.devices, teacher.vocab_size
    start_params = functools.cache(lambda name: devices.unreplicate(starts[name].params))
    scores = functools.cache(lambda name, width, sample: width_scores(starts[name], width, sample))
    batches, count = _sample_batches(teacher)

    @functools.cache
    def program(student: Architecture) -> Callable[..., Any]:
        step = functools.partial(compare_step, teacher=teacher.model, student=student.build(vocab_size))
        return devices.compile_sums(step)

    def row(
        names: tuple[str, ...], model: Architecture, student_params: Params, choice: Choice | None, width: str | None
    ) -> Row:
        replicated = devices.replicate(student_params, model.build(vocab_size).axes(student_params))
        sums = [
            devices.unreplicate(program(model)((teacher.params, replicated), devices.shard((batch, batch))))
            for batch in batches
        ]
        metrics = mean_metrics(jax.tree.map(lambda *parts: sum(parts), *jax.device_get(sums)))
        total, outside_embeddings = count_parameters(student_params)
        return Row(
            names=names,
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
    with progress.bar("shrink", len(starts) + len(options)) as bar:
        for name, start in starts.items():
            with bar.compiling_once(name):
                rows.append(row((name,), start.architecture, start_params(name), None, None))
            bar.advance(1)
        for choice in options:
            init, start = choice.init, starts[choice.init.name].architecture
            narrower = _is_narrower(start, choice.model)
            with bar.compiling_once(choice.students[0]):
                width = scores(init.name, init.width, init.sample) if narrower else None
                params = init_from_teacher(init, start, choice.model, start_params(init.name), vocab_size, width)
                rows.append(row(choice.students, choice.model, params, choice, init.width if narrower else None))
            bar.advance(1)
    return rows


def _sample_batches(teacher: TrainedModel) -> tuple[list[Batch], int]:
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
    name, layers = row.names[0], ""
    if choice is None:
        name += "" if name == TEACHER else ", trained"
    else:
        name += " *" if choice.configured else ""
        layers = choice.layers + (f" of {choice.init.name}" if isinstance(choice.init, FromStudent) else "")
    return (
        name,
        layers,
        "" if choice is None else row.width or "-",
        f"{row.parameters:,}",
        f"{row.parameters_outside_embeddings:,}",
        f"{row.cross_entropy:.3f}",
        f"{row.kl_to_teacher:.3f}",
    )
