"""XLA's cache of compiled programs on disk."""

import os

import jax


def use_compilation_cache() -> None:
    """Let XLA keep compiled programs in $KD_JAX_CACHE (~/.cache/kd_jax/xla), so that phases and reruns share them."""
    folder = os.environ.get("KD_JAX_CACHE", "~/.cache/kd_jax/xla")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
