"""Experiments: resolution of models and tokenizers."""

import dataclasses

import pytest

import kd_jax
from kd_jax import config
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment, Recipe, ResolvedExperiment, ResolvedRecipe, as_resolved, resolve


@pytest.fixture(scope="module")
def smoke(root):
    return kd_jax.load_experiment(root / "experiments/configs/smoke.py")


def test_resolved_experiment_is_written_as_an_experiment(smoke):
    """So its text and data do not depend on whether it was resolved, and reading it gives the resolved types."""
    resolved = resolve(smoke)
    assert config.to_text(resolved) == config.to_text(smoke)
    assert config.to_data(resolved) == config.to_data(smoke)
    read = as_resolved(config.from_data(config.to_data(resolved)))
    assert type(read) is ResolvedExperiment
    assert {type(recipe) for recipe in read.recipes.values()} == {ResolvedRecipe}
    assert list(read.recipes) == ["teacher", *smoke.students]


def test_smaller_is_the_teacher_with_other_sizes(smoke):
    students = {"small": dataclasses.replace(smoke.students["student_kd"], model=kd_jax.Smaller(decoder_layers=1))}
    resolved = resolve(dataclasses.replace(smoke, students=students))
    assert resolved.recipes["small"].model == dataclasses.replace(smoke.teacher.model, decoder_layers=1)


@pytest.mark.parametrize(
    "model, message",
    [
        (None, "teacher.model: expected a model, got None"),
        (kd_jax.Smaller(decoder_layers=1), "teacher.model: expected a model, got Smaller"),
    ],
)
def test_teacher_without_a_model_is_refused(smoke, model, message):
    with pytest.raises(KdError, match=message):
        resolve(dataclasses.replace(smoke, teacher=dataclasses.replace(smoke.teacher, model=model)))


def test_missing_folder_names_the_recipe(smoke):
    recipe = dataclasses.replace(smoke.teacher, model=None, init=kd_jax.FromHuggingFace("models/none"))
    with pytest.raises(KdError, match=r"students\.x\.init\.folder"):
        resolve(dataclasses.replace(smoke, students={"x": recipe}))


def test_types_on_disk_exist():
    assert ResolvedExperiment.config_class is Experiment
    assert ResolvedRecipe.config_class is Recipe
