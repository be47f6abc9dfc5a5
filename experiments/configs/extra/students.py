"""Students in several settings, each with and without distillation."""

import dataclasses

from kd_jax import FromTeacher, Random, Recipe
from kd_jax.models import Architecture

CONTROLS = ("init_ce", "scratch_ce", "long_ce", "small_ce")


def train_longer(recipe: Recipe, factor: int) -> Recipe:
    """Return the recipe with `factor` times the steps."""
    training = recipe.training
    training = dataclasses.replace(training, steps=factor * training.steps, eval_every=factor * training.eval_every)
    return dataclasses.replace(recipe, training=training)


def by_setting(ce: Recipe, kd: Recipe, small: Architecture) -> dict[str, Recipe]:
    """Return name -> recipe of the students in all settings.

    Args:
      ce: the student with cross-entropy alone.
      kd: the same student with distillation.
      small: a narrower model with fewer layers, trained from random parameters for twice the steps.
    """
    return {
        "init_ce": dataclasses.replace(ce, init=FromTeacher()),
        "init_kd": dataclasses.replace(kd, init=FromTeacher()),
        "scratch_ce": dataclasses.replace(ce, init=Random()),
        "scratch_kd": dataclasses.replace(kd, init=Random()),
        "long_ce": train_longer(dataclasses.replace(ce, init=FromTeacher()), 3),
        "long_kd": train_longer(dataclasses.replace(kd, init=FromTeacher()), 3),
        "small_ce": train_longer(dataclasses.replace(ce, init=Random(), model=small), 2),
        "small_kd": train_longer(dataclasses.replace(kd, init=Random(), model=small), 2),
    }
