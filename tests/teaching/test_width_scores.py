"""Scores of a trained teacher's parts: the sample, the controls, and the student that is cut out by them."""

import dataclasses

import jax
import numpy as np

from kd_jax.students.init import FromTeacher
from kd_jax.students.narrow import component_sizes
from kd_jax.teaching.teacher import Teacher
from kd_jax.teaching.width_scores import width_scores
from kd_jax.training.model import initial_params


def test_sample_depends_on_seed(experiment, workdir):
    first, again = (width_scores(Teacher(experiment, workdir), "importance", 40) for _ in range(2))
    other = width_scores(Teacher(dataclasses.replace(experiment, seed=1), workdir), "importance", 40)
    assert {name: score.shape for name, score in first.items()} == {
        name: (size,) for name, size in component_sizes(experiment.teacher.model).items()
    }
    for name, score in first.items():
        np.testing.assert_array_equal(score, again[name])
    assert any((first[name] != other[name]).any() for name in first)


def test_first_channels_score_highest_for_width_first(experiment, workdir):
    assert (width_scores(Teacher(experiment, workdir), "first", 40)["channels"] == -np.arange(32)).all()


def test_narrower_student_starts_with_highest_scoring_channels(experiment, workdir):
    small = dataclasses.replace(experiment.teacher.model, d_model=20, heads=1, head_dim=16, d_ff=48)
    recipe = dataclasses.replace(experiment.students["student_kd"], model=small, init=FromTeacher(sample=40))
    params = initial_params(experiment, workdir, recipe)
    teacher = Teacher(experiment, workdir)
    channels = np.sort(np.argsort(width_scores(teacher, "importance", 40)["channels"])[-20:])
    expected = teacher.devices.unreplicate(teacher.params)["embedding"][:, channels] * (32 / 20) ** 0.5
    np.testing.assert_allclose(params["embedding"], expected, rtol=1e-6)
    shapes = jax.eval_shape(small.build(teacher.vocab_size).init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
