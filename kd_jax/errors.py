"""Exceptions for users. The module imports nothing, so that `kd-jax --help` stays fast."""


class KdError(Exception):
    """Invalid input.

    The message is one line: "field: expected X, got Y. Remedy." The command line prints it on standard error
    and exits with code 2.

    Examples:
      >>> raise KdError("training.steps: expected an integer of at least 1, got 0. Set `--teacher.training.steps`.")
      Traceback (most recent call last):
      kd_jax.errors.KdError: training.steps: expected an integer of at least 1, got 0. Set `--teacher.training.steps`.
    """


class ScoresNeeded(KdError):
    """A student's round waits for scores of a teacher elsewhere; the line says where its texts are and what to run.

    The command line prints it on standard output and exits with code 0, since all work that can be done is done.
    """


class Preempted(Exception):
    """The run stopped on request; a checkpoint holds its state."""
