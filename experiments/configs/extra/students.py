"""Students of one teacher in several settings, with and without the teacher."""

import dataclasses

from kd_jax import FromTeacher, Random, Recipe
from kd_jax.models import Architecture

CONTROLS = ("init_ce", "scratch_ce", "long_ce", "small_ce")


def longer(recipe: Recipe, times: int) -> Recipe:
    """Return the recipe with `times` the steps."""
    training = recipe.training
    training = dataclasses.replace(training, steps=times * training.steps, eval_every=times * training.eval_every)
    return dataclasses.replace(recipe, training=training)


def by_setting(ce: Recipe, kd: Recipe, small: Architecture) -> dict[str, Recipe]:
    """Return name -> recipe of a student in each setting.

    Args:
      ce: the student with cross-entropy alone.
      kd: the same student with the teacher.
      small: a narrower model with fewer layers; it trains from random parameters for twice the steps.
    """
    change = dataclasses.replace
    return {
        "init_ce": change(ce, init=FromTeacher()),
        "init_kd": change(kd, init=FromTeacher()),
        "scratch_ce": change(ce, init=Random()),
        "scratch_kd": change(kd, init=Random()),
        "long_ce": longer(change(ce, init=FromTeacher()), 3),
        "long_kd": longer(change(kd, init=FromTeacher()), 3),
        "small_ce": longer(change(ce, init=Random(), model=small), 2),
        "small_kd": longer(change(kd, init=Random(), model=small), 2),
    }
