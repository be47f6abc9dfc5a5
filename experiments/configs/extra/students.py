"""Students of one teacher by start, size and length, each with cross-entropy alone and with the teacher."""

import dataclasses
from typing import Any

from kd_jax import FromTeacher, Random, Recipe

CONTROLS = ("init_ce", "scratch_ce", "long_ce", "small_ce")


def longer(recipe: Recipe, times: int) -> Recipe:
    """The same for more steps."""
    training = recipe.training
    training = dataclasses.replace(training, steps=times * training.steps, eval_every=times * training.eval_every)
    return dataclasses.replace(recipe, training=training)


def by_setting(ce: Recipe, kd: Recipe, small: Any) -> dict[str, Recipe]:
    """Name -> recipe.

    Args:
      ce: the student with cross-entropy alone.
      kd: the same with the teacher.
      small: a narrower and shallower model; twice the steps, from chance.
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
