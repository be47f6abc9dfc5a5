"""The check of an experiment before any work: it refuses whatever a later phase would refuse."""

import difflib
import re
from pathlib import Path
from typing import get_args

import numpy as np

from kd_jax.artifacts import files
from kd_jax.batches.on_policy import OwnTextRule, Rounds
from kd_jax.config import (
    MAX_BEAM,
    MAX_COUNT,
    MAX_LENGTH,
    MAX_NAME,
    MAX_RESAMPLES,
    MAX_ROWS,
    MAX_SEED,
    MAX_STEPS,
    MAX_TOKENS,
    MAX_VOCAB,
    check_count,
)
from kd_jax.errors import KdError
from kd_jax.experiment import Evaluation, ResolvedExperiment, ResolvedRecipe, Select
from kd_jax.fields import show
from kd_jax.models.base import Architecture
from kd_jax.models.int8 import Int8
from kd_jax.objective import check as objective
from kd_jax.objective.terms import cached_signals, feature_signals, needs_teacher
from kd_jax.runtime import backends
from kd_jax.students.init import FromModel, FromStudent, Random
from kd_jax.students.pretrained import FromHuggingFace
from kd_jax.tokenizers.base import is_pretrained
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from kd_jax.tokenizers.tokenizer_json import other_token

STUDENT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
# Names of files and columns beside a student's.
RESERVED_NAMES = {"teacher", "manifest", "inputs", "baselines", "number", "source", "reference"}


def check(experiment: ResolvedExperiment) -> None:
    """Check every field of an experiment; the error names the first invalid one."""
    check_names(experiment)
    check_student_starts(experiment)
    check_buckets(experiment)
    backends.check(experiment.backend, experiment.mesh)
    check_count("seed", experiment.seed, 0, MAX_SEED, "Set `--seed`.")
    if comparison := experiment.comparison:
        fields = {
            "baseline": (comparison.baseline,),
            "distilled": (comparison.distilled,),
            "controls": comparison.controls,
        }
        for field, names in fields.items():
            for name in names:
                if name not in experiment.students:
                    known = ", ".join(experiment.students) or "there are none"
                    raise KdError(f"comparison.{field}: expected a student ({known}), got {name!r}.")
    check_evaluation(experiment.evaluation)
    check_int8(experiment)
    for part in (experiment.source, experiment.task, experiment.tokenizer):
        part.check()
    check_wording(experiment)
    for name, recipe in experiment.recipes.items():
        field = name if recipe is experiment.teacher else f"students.{name}"
        try:
            check_recipe(recipe, experiment)
        except KdError as error:
            raise KdError(f"{field}.{error}") from error


def check_wording(experiment: ResolvedExperiment) -> None:
    """Check that the tokenizer words no prompts for a task without prompts."""
    tokenizer, task = experiment.tokenizer, experiment.task
    if isinstance(tokenizer, HuggingFaceTokenizer) and not task.prompted and (tokenizer.chat or tokenizer.prefix):
        field = "chat" if tokenizer.chat else "prefix"
        raise KdError(
            f"tokenizer.{field}: expected its default, since {task.name} has no prompts to put it around, got "
            f"{getattr(tokenizer, field)!r}. Remove it, or choose the task instructions."
        )


def check_names(experiment: ResolvedExperiment) -> None:
    """Check that students' names can be names of folders, files and columns, and that no name is too long."""
    terms = [name for recipe in experiment.recipes.values() for name in recipe.terms]
    for field, names in {"name": [experiment.name], "students": experiment.students, "terms": terms}.items():
        for name in names:
            if len(name.encode()) > MAX_NAME:
                raise KdError(f"{field}: expected at most {MAX_NAME} bytes in a name, got {show(name)}. Shorten it.")
    for name in experiment.students:
        if not STUDENT_NAME.fullmatch(name):
            raise KdError(
                f"students: expected names of a letter, then letters, digits, `_`, `-` or `.`, got {name!r}. Rename it."
            )
        if name in RESERVED_NAMES:
            raise KdError(f"students: expected none of {', '.join(sorted(RESERVED_NAMES))}, got {name!r}. Rename it.")


def check_student_starts(experiment: ResolvedExperiment) -> None:
    """Check that a student that starts from another one comes after it, since students are trained in this order."""
    names = list(experiment.students)
    for place, (name, recipe) in enumerate(experiment.students.items()):
        if not isinstance(recipe.init, FromStudent) or recipe.init.name in names[:place]:
            continue
        other, earlier = recipe.init.name, names[:place]
        remedy = "Name one of them, or use FromTeacher." if earlier else "Use FromTeacher."
        if other == name:
            problem = f"{other!r}, the student itself. {remedy}"
        elif other in names:
            problem = f"{other!r}, which comes later. Move it before {name}."
        else:
            nearest = difflib.get_close_matches(other, earlier, 1)
            problem = f"{show(other)}. " + (f"Did you mean {nearest[0]}?" if nearest else remedy)
        raise KdError(
            f"students.{name}.init.name: expected a student before {name} in the experiment "
            f"({', '.join(earlier) or 'there are none'}), got {problem}"
        )


def check_buckets(experiment: ResolvedExperiment) -> None:
    """Check that padded lengths ascend, and that each completion bucket has its prompt bucket."""
    for field, lengths in {"buckets": experiment.buckets, "prompt_buckets": experiment.prompt_buckets}.items():
        for length in lengths:
            check_count(field, length, 1, MAX_LENGTH)
        if list(lengths) != sorted(lengths):
            raise KdError(f"{field}: expected padded lengths in ascending order, got {lengths}. Example: 12 20 32.")
    if not experiment.buckets or len(set(experiment.shapes)) < len(experiment.shapes):
        raise KdError(
            f"buckets: expected different lengths in ascending order, got {experiment.buckets}. Example: 12 20 32."
        )
    if experiment.prompt_buckets and len(experiment.prompt_buckets) != len(experiment.buckets):
        raise KdError(
            f"prompt_buckets: expected one for each of buckets {experiment.buckets}, got {experiment.prompt_buckets}."
        )


def check_evaluation(evaluation: Evaluation) -> None:
    """Check the ranges of the evaluation's fields."""
    if evaluation.split not in ("validation", "test"):
        raise KdError(f"evaluation.split: expected validation or test, got {evaluation.split!r}.")
    bounds = {
        "batch_size": (1, MAX_ROWS),
        "texts": (0, MAX_COUNT),
        "own_texts": (0, MAX_COUNT),
        "bootstrap": (2, MAX_RESAMPLES),
        "speed_texts": (1, MAX_COUNT),
        "samples": (1, MAX_ROWS),
        "cached_k": (0, MAX_VOCAB),
        "draft": (0, MAX_BEAM),
    }
    for field, (low, high) in bounds.items():
        check_count(f"evaluation.{field}", getattr(evaluation, field), low, high)


def check_int8(experiment: ResolvedExperiment) -> None:
    """Check that each int8 source model exists, can be quantized, and that its name is free."""
    for name, source in experiment.evaluation.in_int8.items():
        if source not in experiment.recipes:
            raise KdError(f"evaluation.int8: expected models of {', '.join(experiment.recipes)}, got {source!r}.")
        if name in experiment.recipes:
            raise KdError(
                f"students: expected another name than {name!r}, which {source} with int8 weights has. Rename it."
            )
        Int8(experiment.recipes[source].model).check()


def check_recipe(recipe: ResolvedRecipe, experiment: ResolvedExperiment) -> None:
    """Check a model's shape, training, objective, first parameters and targets."""
    training, teacher = recipe.training, experiment.teacher
    check_count("references", recipe.references, 0, MAX_COUNT, "Use 0 for all.")
    bounds = {
        "steps": (int(isinstance(recipe.init, Random)), MAX_STEPS),
        "tokens_per_batch": (1, MAX_TOKENS),
        "microbatches": (1, MAX_ROWS),
        "eval_every": (1, MAX_COUNT),
        "select_texts": (1, MAX_COUNT),
    }
    for field, (low, high) in bounds.items():
        check_count(f"training.{field}", getattr(training, field), low, high)
    if training.select not in get_args(Select):
        raise KdError(f"training.select: expected one of {', '.join(get_args(Select))}, got {training.select!r}.")
    recipe.model.check()
    check_model(recipe.model, experiment)
    if isinstance(recipe.init, FromHuggingFace):
        check_pretrained(recipe, recipe.init, experiment)
    if training.steps:
        training.optimizer.check(training.steps)
    objective.check(recipe.terms, experiment.tokenizer.vocab_size)
    if recipe.model.family != teacher.model.family and needs_teacher(recipe.terms):
        raise KdError(
            f"model: expected {teacher.model.family}, as the teacher in the step, got {recipe.model.family}. "
            "Choose that family, or terms with cached signals alone, for example TopK."
        )
    for name, signal in feature_signals(recipe.terms).items():
        try:
            signal.check_layers(recipe.model.stacks(), teacher.model.stacks())
            signal.check_widths(recipe.model.widths(), teacher.model.widths())
        except KdError as error:
            raise KdError(f"terms.{name}.{error}") from error
    if recipe is teacher:
        if isinstance(recipe.init, FromModel):
            kind = type(recipe.init).__name__
            raise KdError(f"init: expected Random, FromCheckpoint or FromHuggingFace, got {kind}. It is for students.")
        if recipe.targets or any(term.signal for term in recipe.terms.values()):
            field = "targets" if recipe.targets else "terms"
            raise KdError(
                f"{field}: expected references alone and no signal, since a teacher has no teacher. Remove them."
            )
    if recipe.targets:
        recipe.targets.check()
    if isinstance(recipe.targets, OwnTextRule):
        check_own_texts(recipe, recipe.targets, experiment)
    if recipe.pseudo_targets and not experiment.task.prompted:
        field = "targets" if recipe.pseudo_targets is recipe.targets else "targets.others"
        raise KdError(
            f"{field}: expected None, since {experiment.task.name} has no prompts for the teacher to answer, got "
            f"{type(recipe.pseudo_targets).__name__}. Remove it."
        )
    source = experiment.recipes[recipe.init.name] if isinstance(recipe.init, FromModel) else teacher
    recipe.init.check(source.model, recipe.model)


def check_own_texts(recipe: ResolvedRecipe, targets: OwnTextRule, experiment: ResolvedExperiment) -> None:
    """Check that own texts have room, and that the teacher judges them: in the step, or for rounds from a cache."""
    targets.check_room(experiment.buckets, experiment.task.prompted)
    cached = cached_signals(recipe.terms)
    if isinstance(targets, Rounds):
        if needs_teacher(recipe.terms):
            raise KdError(
                "terms: expected no teacher in the step beside Rounds, whose signals are cached, got one. Use a cached "
                "signal, such as TopK(k=64), or targets=OnPolicy()."
            )
        if not cached:
            raise KdError(
                "terms: expected a term with a cached signal beside Rounds, such as Term(forward_kl, signal=TopK(k=64))"
                f", got {', '.join(recipe.terms)}."
            )
        if recipe.training.steps < targets.count:
            raise KdError(
                f"targets.count: expected at most {recipe.training.steps}, one update a round, got {targets.count}. "
                "Set targets.count."
            )
    elif cached:
        raise KdError(
            "targets: expected no cached signal beside OnPolicy, whose texts are written while the student trains, got "
            f"{', '.join(cached)}. Use signal=Online()."
        )
    elif not needs_teacher(recipe.terms):
        raise KdError(
            "terms: expected a term with the teacher in the step beside OnPolicy, such as Term(reverse_kl, "
            f"signal=Online()), got {', '.join(recipe.terms)}."
        )
    if targets.unlabelled and not experiment.task.prompted:
        raise KdError(
            f"targets.unlabelled: expected False, since {experiment.task.name} has no prompts, got True. Remove it."
        )


def check_pretrained(recipe: ResolvedRecipe, init: FromHuggingFace, experiment: ResolvedExperiment) -> None:
    """Check that a pretrained model has its own tokenizer, a row for each token, and is not trained in bfloat16."""
    if not experiment.tokenizer.pretrained:
        raise KdError(
            f"init: expected tokenizer=HuggingFaceTokenizer beside FromHuggingFace, whose model knows its own tokens "
            f"alone, got {type(experiment.tokenizer).__name__}."
        )
    rows, tokens = init.architecture().vocab_rows, experiment.tokenizer.vocab_size
    if rows < tokens:
        raise KdError(
            f"init.folder: expected an embedding with at least {tokens} rows, one for each token, got {rows} in "
            f"{init.folder!r}. Use the tokenizer of the same folder."
        )
    check_vocabulary(init, experiment)
    init.check_decoding(experiment.task.decoding, recipe.model.family == "encoder_decoder")
    if init.dtype == "bfloat16" and recipe.training.steps:
        raise KdError(
            f"init.dtype: expected float32 for {recipe.training.steps} training steps, got bfloat16. Small updates "
            "would be lost in rounding: set float32, or 0 steps."
        )


def check_vocabulary(init: FromHuggingFace, experiment: ResolvedExperiment) -> None:
    """Check that a model's folder has the run's tokenizer, where that is another folder's."""
    tokenizer = experiment.tokenizer
    if not is_pretrained(tokenizer) or files.as_path(tokenizer.folder) == files.as_path(init.folder):
        return
    if difference := other_token(Path(tokenizer.folder), Path(init.folder)):
        raise KdError(
            f"init.folder: expected a model with the run's tokenizer, that of {tokenizer.folder!r}, got "
            f"{init.folder!r}, where {difference}. Use a model of the same tokenizer."
        )


def check_model(model: Architecture, experiment: ResolvedExperiment) -> None:
    """Check that the model's family serves the task, and that every bucket fits its positions."""
    task = experiment.task
    if model.family not in task.families:
        raise KdError(f"model: expected {' or '.join(task.families)} for {task.name}, got {model.family}.")
    longest = int(model.layout.sizes(np.asarray(experiment.shapes)).max())
    if model.context and longest > model.context:
        raise KdError(
            f"model.context: expected at least {longest}, the length of the longest rows, got {model.context}."
        )
    if model.family == "encoder_decoder" and task.counted == "all":
        raise KdError("task.counted: expected completion, since an encoder-decoder predicts no prompts, got all.")
