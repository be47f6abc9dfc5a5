"""The controls that papers forget: the distilled student without its teacher, plain and smoothed."""

import dataclasses
from collections.abc import Mapping

from kd_jax.errors import KdError
from kd_jax.experiment import Comparison, ResolvedExperiment, ResolvedRecipe
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.objective.terms import Term

# Smoothing alone does part of what soft targets do (Yuan et al. 2020, arXiv 1909.11723).
CONTROLS = {"control_ce": {}, "control_smoothed": {"label_smoothing": 0.1}}


def with_controls(experiment: ResolvedExperiment) -> ResolvedExperiment:
    """The experiment with what distillation must be held against, and a comparison that names it.

    Both controls are the distilled student with the same start, steps and data, but cross-entropy alone and the data's
    own targets: plain ("shrink and fine-tune", arXiv 2010.13002) and with label smoothing 0.1. Each is added where no
    student is that already, whatever it is called. The distilled student is the comparison's, else the last one.

    Raises:
      KdError: if there are no students, or another student has a control's name.

    Examples:
      >>> from kd_jax.config import load_experiment
      >>> enlarged = with_controls(load_experiment("experiments/configs/smoke.py"))
      >>> list(enlarged.students)
      ['student_scratch', 'student_init', 'student_kd', 'control_smoothed']
      >>> enlarged.comparison.controls  # student_init is the distilled one with cross-entropy alone
      ('student_init', 'control_smoothed')
    """
    if not experiment.students:
        raise KdError("students: none; ablate compares them, wanted at least the distilled one")
    students, compared = dict(experiment.students), experiment.comparison
    distilled = compared.distilled if compared else list(students)[-1]
    equals = [_add(students, name, _undistilled(students[distilled], options)) for name, options in CONTROLS.items()]
    controls = tuple(dict.fromkeys([*(compared.controls if compared else ()), *equals]))
    baseline = compared.baseline if compared else equals[0]
    return dataclasses.replace(experiment, students=students, comparison=Comparison(baseline, distilled, controls))


def _undistilled(recipe: ResolvedRecipe, options: Mapping[str, float]) -> ResolvedRecipe:
    """The same model, start and training on the data's targets, with cross-entropy alone."""
    return dataclasses.replace(recipe, terms={"ce": Term(cross_entropy, options=options)}, targets=None)


def _add(students: dict[str, ResolvedRecipe], name: str, control: ResolvedRecipe) -> str:
    """The name of the student that is this control; added to `students` where there is none."""
    for known, recipe in students.items():
        if _shape(recipe) == _shape(control):
            return known
    if name in students:
        raise KdError(f"students: {name} is not the control that ablate adds by this name; call it something else")
    students[name] = control
    return name


def _shape(recipe: ResolvedRecipe) -> tuple[ResolvedRecipe, list[Term]]:
    """What makes two recipes the same student: all but the names of its terms."""
    return dataclasses.replace(recipe, terms={}), list(recipe.terms.values())
