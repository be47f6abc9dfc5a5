"""The one error that a user is meant to see; imports nothing, so that the command line answers at once."""


class KdError(Exception):
    """Bad input, told in one line that names the thing, what was seen and what to do.

    `main` prints it on standard error and exits with code 2.

    Examples:
      >>> raise KdError("training.steps: 0; wanted a whole number of at least 1")
      Traceback (most recent call last):
      kd_jax.errors.KdError: training.steps: 0; wanted a whole number of at least 1
    """
