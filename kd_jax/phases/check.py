"""Refuses, before any work is done, what a later phase would refuse: each part of an experiment checks itself."""

import re
from collections.abc import Mapping

import numpy as np

from kd_jax.config import is_count
from kd_jax.errors import KdError
from kd_jax.experiment import Evaluation, ResolvedExperiment, ResolvedRecipe
from kd_jax.models.base import Architecture
from kd_jax.models.int8 import Int8
from kd_jax.objective import check as objective
from kd_jax.objective.terms import feature_terms, needs_teacher
from kd_jax.runtime import backends

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
# Beside a student's files and texts.
TAKEN = {"teacher", "manifest", "inputs", "baselines", "number", "source", "reference"}


def check(experiment: ResolvedExperiment) -> None:
    """Raises KdError naming the field, the value and what is wanted."""
    check_names(experiment.students)
    check_buckets(experiment)
    backends.check(experiment.backend, experiment.mesh)
    if not is_count(experiment.seed, 0) or experiment.seed >= 2**32:
        raise KdError(f"seed: {experiment.seed}; wanted a whole number from 0 to {2**32 - 1}")
    if experiment.comparison:
        compared = experiment.comparison
        fields = {"baseline": (compared.baseline,), "distilled": (compared.distilled,), "controls": compared.controls}
        for field, name in [(field, name) for field, names in fields.items() for name in names]:
            if name not in experiment.students:
                known = ", ".join(experiment.students) or "there are none"
                raise KdError(f"comparison.{field}: no student is called {name!r}; wanted one of {known}")
    check_evaluation(experiment.evaluation)
    check_int8(experiment)
    for part in (experiment.source, experiment.task, experiment.tokenizer):
        part.check()
    for name, recipe in experiment.recipes.items():
        try:
            check_recipe(recipe, experiment)
        except KdError as error:
            raise KdError(f"{name}: {error}") from error


def check_names(students: Mapping[str, ResolvedRecipe]) -> None:
    """A student's name is the name of a folder, of files and of a column."""
    for name in students:
        if not NAME.fullmatch(name):
            raise KdError(
                f"students: {name!r} cannot be a student's name; wanted a letter, then letters, digits, _, - or ."
            )
        if name in TAKEN:
            raise KdError(f"students: {name!r} is taken; wanted another name than {', '.join(sorted(TAKEN))}")


def check_buckets(experiment: ResolvedExperiment) -> None:
    """Lengths ascend, each prompt bucket beside a completion bucket."""
    for field in ("buckets", "prompt_buckets"):
        lengths = vars(experiment)[field]
        if not all(is_count(n, 1) for n in lengths) or list(lengths) != sorted(lengths):
            raise KdError(f"{field}: {lengths}; wanted padded lengths in ascending order, such as 12 20 32")
    shapes = experiment.shapes
    if not shapes or len(set(shapes)) < len(shapes):
        raise KdError(f"buckets: {experiment.buckets}; wanted padded lengths in ascending order, such as 12 20 32")
    if experiment.prompt_buckets and len(experiment.prompt_buckets) != len(experiment.buckets):
        raise KdError(
            f"prompt_buckets: {experiment.prompt_buckets}; wanted one for each of buckets {experiment.buckets}"
        )


def check_evaluation(evaluation: Evaluation) -> None:
    """Every value has a range."""
    if evaluation.split not in ("validation", "test"):
        raise KdError(f"evaluation.split: {evaluation.split!r}; wanted validation or test")
    least = {"batch_size": 1, "texts": 0, "bootstrap": 2, "speed_texts": 1, "samples": 1, "cached_k": 0, "draft": 0}
    for field, smallest in least.items():
        value = vars(evaluation)[field]
        if not is_count(value, smallest):
            raise KdError(f"evaluation.{field}: {value}; wanted a whole number of at least {smallest}")


def check_int8(experiment: ResolvedExperiment) -> None:
    """What is measured with int8 weights is there, and the name that it is measured under is not."""
    for name, of in experiment.evaluation.in_int8.items():
        if of not in experiment.recipes:
            raise KdError(f"evaluation.int8: no model is called {of!r}; wanted any of {', '.join(experiment.recipes)}")
        if name in experiment.recipes:
            raise KdError(f"students: {name!r} is what {of} with int8 weights is called; wanted another name")
        Int8(experiment.recipes[of].model).check()


def check_recipe(recipe: ResolvedRecipe, experiment: ResolvedExperiment) -> None:
    """A model's shape, training, objective, start and targets."""
    training, teacher = recipe.training, experiment.teacher
    for field in ("steps", "tokens_per_batch", "microbatches", "eval_every"):
        value, least = vars(training)[field], 0 if field == "steps" and recipe.init.origin != "chance" else 1
        if not is_count(value, least):
            raise KdError(f"training.{field}: {value}; wanted a whole number of at least {least}")
    recipe.model.check()
    check_served(recipe.model, experiment)
    if recipe.init.origin == "folder":
        check_pretrained(recipe, experiment)
    if training.steps:
        training.optimizer.check(training.steps)
    objective.check(recipe.terms, experiment.tokenizer.vocab_size)
    if recipe.model.family != teacher.model.family and needs_teacher(recipe.terms):
        raise KdError(
            f"model: {recipe.model.family}, beside a teacher that is {teacher.model.family} in the step; "
            "wanted one family, or terms with cached signals alone, such as TopK"
        )
    for name, term in feature_terms(recipe.terms).items():
        try:
            term.signal.check_layers(recipe.model.stacks(), teacher.model.stacks())
            term.signal.check_widths(recipe.model.widths(), teacher.model.widths())
        except KdError as error:
            raise KdError(f"terms.{name}.{error}") from error
    if recipe is teacher and (
        recipe.init.origin == "teacher" or recipe.targets or any(term.signal for term in recipe.terms.values())
    ):
        raise KdError("has init=FromTeacher, a term with a signal, or pseudo-targets; it has no teacher of its own")
    if recipe.targets:
        recipe.targets.check()
        if not experiment.task.prompted:
            raise KdError(f"targets: {experiment.task.name} has no prompts for the teacher to answer; leave them out")
    recipe.init.check(teacher.model, recipe.model)


def check_pretrained(recipe: ResolvedRecipe, experiment: ResolvedExperiment) -> None:
    """A pretrained model knows its own tokens alone, and too few bits for small updates are not trained."""
    if not experiment.tokenizer.pretrained:
        raise KdError("init: FromHuggingFace; wanted tokenizer=HuggingFaceTokenizer, whose tokens the model knows")
    if recipe.init.dtype == "bfloat16" and recipe.training.steps:
        raise KdError(
            f"init.dtype: bfloat16, and training.steps: {recipe.training.steps}; updates would be lost in rounding, "
            "wanted float32, or 0 steps"
        )


def check_served(model: Architecture, experiment: ResolvedExperiment) -> None:
    """The family can do the task, and every bucket has a place in its positions."""
    task = experiment.task
    if model.family not in task.families:
        raise KdError(f"model: {model.family} cannot serve {task.name}; wanted {' or '.join(task.families)}")
    longest = int(model.layout.sizes(np.asarray(experiment.shapes)).max())
    if model.context and longest > model.context:
        raise KdError(f"model.context: {model.context} positions for rows of {longest}; wanted at least {longest}")
    if model.family == "encoder_decoder" and task.counted == "all":
        raise KdError("task.counted: all; an encoder-decoder predicts the completion alone: wanted completion")
