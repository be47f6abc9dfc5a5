"""How long a step would take if the devices did nothing but the model's FLOPs, at their peak."""

from collections.abc import Callable

from kd_jax.models.base import Model
from kd_jax.models.flops import TRAINING, flops_per_unit, count_workload
from kd_jax.runtime.chips import Chip, local_chip
from kd_jax.runtime.devices import Devices
from kd_jax.types import Batch, Params

Network = tuple[Model, Params]


def seconds_at_peak(devices: Devices, trained: Network, teacher: Network | None = None) -> Callable[[Batch], float]:
    """A host's batch -> seconds; 0 where the devices are of a kind whose peak is not known, as a CPU is.

    Seconds at the peak over seconds are the model's FLOPs utilisation (MFU, arXiv 2204.02311, appendix B).

    Args:
      devices: that work on it.
      trained: the network that is trained, and its parameters.
      teacher: the one in the step, which goes forward alone.
    """
    return _seconds(local_chip(), devices.local, trained, teacher)


def _seconds(chip: Chip | None, count: int, trained: Network, teacher: Network | None) -> Callable[[Batch], float]:
    if chip is None:
        return lambda batch: 0.0
    passes = [(TRAINING, flops_per_unit(*trained))] + ([(1, flops_per_unit(*teacher))] if teacher else [])

    def seconds(batch: Batch) -> float:
        read = count_workload(batch)
        return sum(times * each.times(read) for times, each in passes) / (chip.flops * count)

    return seconds
