"""python -m kd_jax"""

from kd_jax.cli.main import entry

entry()
