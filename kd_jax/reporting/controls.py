"""Controls of a distilled student: the same student without its teacher, plain and with label smoothing."""

import dataclasses

from kd_jax.errors import KdError
from kd_jax.experiment import Comparison, ResolvedExperiment, ResolvedRecipe
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.objective.terms import Term

# Label smoothing alone has part of the effect of soft targets (Yuan et al. 2020, arXiv 1909.11723).
CONTROLS: dict[str, dict[str, float]] = {"control_ce": {}, "control_smoothed": {"label_smoothing": 0.1}}


def with_controls(experiment: ResolvedExperiment) -> ResolvedExperiment:
    """Return the experiment with both controls of the distilled student, and a comparison that names them.

    Both controls have the distilled student's model, start, steps and data, with cross-entropy on the data's own
    targets: plain ("shrink and fine-tune", arXiv 2010.13002) and with label smoothing 0.1. A control is added unless
    a student equals it under another name. The distilled student is the comparison's, or the last one.

    Examples:
      >>> from kd_jax.config import load_experiment
      >>> enlarged = with_controls(load_experiment("experiments/configs/smoke.py"))
      >>> list(enlarged.students)
      ['student_scratch', 'student_init', 'student_kd', 'control_smoothed']
      >>> enlarged.comparison.controls  # student_init is the distilled one with cross-entropy alone
      ('student_init', 'control_smoothed')
    """
    if not experiment.students:
        raise KdError("students: expected at least the distilled student, got none. Add one to the config.")
    students, comparison = dict(experiment.students), experiment.comparison
    distilled = comparison.distilled if comparison else list(students)[-1]
    names = []
    for name, options in CONTROLS.items():
        terms = {"ce": Term(cross_entropy, options=options)}
        names.append(_add(students, name, dataclasses.replace(students[distilled], terms=terms, targets=None)))
    controls = tuple(dict.fromkeys([*(comparison.controls if comparison else ()), *names]))
    baseline = comparison.baseline if comparison else names[0]
    return dataclasses.replace(experiment, students=students, comparison=Comparison(baseline, distilled, controls))


def _add(students: dict[str, ResolvedRecipe], name: str, control: ResolvedRecipe) -> str:
    """Return the name of the student that equals this control; add it to `students` if there is none."""
    for student, recipe in students.items():
        if _identity(recipe) == _identity(control):
            return student
    if name in students:
        raise KdError(f"students: expected {name} to be the control that ablate adds, got another recipe. Rename it.")
    students[name] = control
    return name


def _identity(recipe: ResolvedRecipe) -> tuple[ResolvedRecipe, list[Term]]:
    """Return all fields of a recipe but the names of its terms."""
    return dataclasses.replace(recipe, terms={}), list(recipe.terms.values())
