"""Distances between vectors of the teacher and the student, one value per position."""

import jax.numpy as jnp

from kd_jax.types import Array

EPSILON = 1e-12


def mse(teacher_NX: Array, student_NX: Array) -> Array:
    r"""Compute the mean squared difference.

    .. math:: \frac{1}{X} \sum_x (t_x - s_x)^2

    Args:
      teacher_NX: float [N, X], t.
      student_NX: float [N, X], s.

    Returns:
      float32 [N].

    References:
      Jiao et al. 2019, arXiv 1909.10351 (TinyBERT), eq. 8.

    Examples:
      >>> mse(jnp.asarray([[1.0, 2.0]]), jnp.asarray([[2.0, 4.0]]))  # (1 + 4) / 2
      Array([2.5], dtype=float32)
    """
    difference_NX = teacher_NX.astype(jnp.float32) - student_NX.astype(jnp.float32)
    return (difference_NX**2).sum(-1) / teacher_NX.shape[-1]


def cosine(teacher_NX: Array, student_NX: Array) -> Array:
    r"""Compute the cosine distance, in [0, 2]; 1 for a zero vector.

    .. math:: 1 - \frac{t \cdot s}{|t| |s|}

    Args:
      teacher_NX: float [N, X], t.
      student_NX: float [N, X], s.

    Returns:
      float32 [N].

    References:
      Sanh et al. 2019, arXiv 1910.01108 (DistilBERT), section 3.

    Examples:
      >>> cosine(jnp.asarray([[3.0, 0.0]]), jnp.asarray([[0.0, 5.0]]))  # at right angles
      Array([1.], dtype=float32)
    """
    teacher, student = (x.astype(jnp.float32) for x in (teacher_NX, student_NX))
    # The bound stands inside the root, so that the gradient of a zero vector is finite.
    norms_N = jnp.sqrt(jnp.maximum((teacher**2).sum(-1), EPSILON) * jnp.maximum((student**2).sum(-1), EPSILON))
    return 1 - (teacher * student).sum(-1) / norms_N


ALL = (mse, cosine)
