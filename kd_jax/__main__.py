"""Run the command line: `python -m kd_jax` is `kd-jax`."""

from kd_jax.cli.entry import entry

if __name__ == "__main__":
    entry()
