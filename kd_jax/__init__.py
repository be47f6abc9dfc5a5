"""kd_jax: knowledge distillation of language-generation models in JAX."""

__version__ = "0.1.0"
