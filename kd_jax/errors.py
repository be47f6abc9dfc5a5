"""The one error that a user is meant to see, and the end that is none; imports nothing, so that --help is quick."""


class KdError(Exception):
    """Bad input, told in one line that names the thing, what was seen and what to do.

    `main` prints it on standard error and exits with code 2.

    Examples:
      >>> raise KdError("training.steps: 0; wanted a whole number of at least 1")
      Traceback (most recent call last):
      kd_jax.errors.KdError: training.steps: 0; wanted a whole number of at least 1
    """


class Preempted(Exception):
    """The run was asked to stop, and what it had done is on disk."""
