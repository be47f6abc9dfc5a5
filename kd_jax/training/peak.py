"""Time of a training step at the devices' peak rate, the denominator of the FLOPs utilization."""

from collections.abc import Callable

from kd_jax.models.base import Model
from kd_jax.models.flops import TRAINING, count_workload, flops_per_unit
from kd_jax.runtime.chips import Chip, local_chip
from kd_jax.runtime.devices import Devices
from kd_jax.types import Batch, Params

Network = tuple[Model, Params]


def seconds_at_peak(devices: Devices, student: Network, teacher: Network | None = None) -> Callable[[Batch], float]:
    """Return a function of this host's batch: seconds of its step if only the model's FLOPs took time.

    Seconds at peak / seconds is the model's FLOPs utilization (MFU). The function returns 0 on devices whose peak is
    unknown, such as CPUs.

    Args:
      devices: the devices that share the step.
      student: (network, parameters) of the model in training, with forward and backward passes.
      teacher: those of the teacher in the step, with a forward pass only; None for none.

    References:
      Chowdhery et al. 2022, PaLM, arXiv 2204.02311, appendix B.
    """
    return _seconds_on(local_chip(), devices.local, student, teacher)


def _seconds_on(
    chip: Chip | None, num_devices: int, student: Network, teacher: Network | None
) -> Callable[[Batch], float]:
    if chip is None:
        return lambda batch: 0.0
    flops_per_second = chip.flops * num_devices
    passes = [(TRAINING, flops_per_unit(*student))]
    if teacher is not None:
        passes.append((1, flops_per_unit(*teacher)))

    def seconds(batch: Batch) -> float:
        workload = count_workload(batch)
        return sum(factor * flops.dot(workload) for factor, flops in passes) / flops_per_second

    return seconds
