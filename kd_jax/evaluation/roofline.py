"""Which limit of a chip binds a training step: its products, its memory, or what it sends to others."""

from typing import Any, NamedTuple

import jax

from kd_jax.experiment import ResolvedExperiment
from kd_jax.models.flops import TRAINING, flops_per_unit, count_full_workload
from kd_jax.objective.terms import needs_teacher
from kd_jax.runtime.chips import Chip
from kd_jax.runtime.mesh import MeshDevices
from kd_jax.runtime.program import COLLECTIVES, ProgramCost, analyze_program
from kd_jax.training.ahead import compile_ahead, longest_batch

MIB = 2**20


class Roofline(NamedTuple):
    """Seconds that a program takes at least for each reason, were a chip at its peak: a roofline.

    Attributes:
      compute, memory, collectives: for products, for traffic with the memory, for what is sent to other devices.
    """

    compute: float
    memory: float
    collectives: float

    @property
    def seconds(self) -> float:
        """At least, with all three at the same time."""
        return max(self)

    @property
    def binding(self) -> str:
        """Which one that is.

        Examples:
          >>> Roofline(compute=2.0, memory=3.0, collectives=1.0).binding
          'memory-bound'
        """
        titles = {"compute": "compute-bound", "memory": "memory-bound", "collectives": "collective-bound"}
        return titles[max(self._asdict(), key=self._asdict().get)]


def roofline(work: ProgramCost, chip: Chip) -> Roofline:
    """Of a program on each chip.

    Examples:
      >>> from kd_jax.runtime.chips import CHIPS
      >>> roofline(ProgramCost(flops=197 * 10**12, traffic=819 * 10**9, collectives=()), CHIPS["tpu-v5e"])
      Roofline(compute=1.0, memory=1.0, collectives=0.0)
    """
    return Roofline(
        work.flops / chip.flops, work.traffic / chip.bandwidth, sum(work.bytes_sent.values()) / chip.interconnect
    )


def device_memory(compiled: Any) -> int:
    """Bytes that a program has on each device at once: what it is given, what it gives, what it needs between."""
    memory = compiled.memory_analysis()
    together = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return together + memory.temp_size_in_bytes


def model_flops(experiment: ResolvedExperiment, name: str, vocab_size: int, portions: int) -> float:
    """FLOPs that the networks need for the batch of `compile_ahead`, on all devices together; rows as if full."""
    whole = count_full_workload(longest_batch(experiment, name, vocab_size, portions))
    passes = [(TRAINING, experiment.recipes[name].model)]
    if needs_teacher(experiment.recipes[name].terms):
        passes.append((1, experiment.teacher.model))
    models = [(times, architecture.build(vocab_size)) for times, architecture in passes]
    shapes = lambda model: jax.eval_shape(model.init, jax.random.key(0))  # noqa: E731
    return sum(times * flops_per_unit(model, shapes(model)).times(whole) for times, model in models)


def step_on_chips(experiment: ResolvedExperiment, name: str, vocab_size: int, devices: MeshDevices, chip: Chip) -> dict[str, str]:
    """Title -> what is to be said of a model's training step on each device, as text.

    Args:
      experiment, name, vocab_size, devices: as `compile_ahead`.
      chip: that each device would be.
    """
    step = compile_ahead(experiment, name, vocab_size, devices)
    work, memory = analyze_program(step.compiled), device_memory(step.compiled)
    least = roofline(work, chip)
    needed = model_flops(experiment, name, vocab_size, devices.count) / devices.devices
    kept = step.compiled.memory_analysis().argument_size_in_bytes
    told = {
        "rows x length of a batch": f"{step.rows} x {step.length}",
        "memory, MiB": f"{memory / MIB:,.1f}",
        "of it state and batch": f"{kept / MIB:,.1f}",
        f"fits {chip.memory / 1e9:.0f} GB": f"{'yes' if memory <= chip.memory else 'NO'}, {memory / chip.memory:.1%}",
        "GFLOP": f"{work.flops / 1e9:,.3f}",
        "of it the model's": f"{needed / work.flops:.0%}",
        "memory traffic, MiB": f"{work.traffic / MIB:,.1f}",
        f"FLOP a byte (chip {chip.intensity:.0f})": f"{work.flops / work.traffic:,.1f}",
    }
    told |= {f"{kind}, MiB sent": f"{work.bytes_sent.get(kind, 0) / MIB:,.2f}" for kind in COLLECTIVES}
    told |= {f"{reason}, ms at least": f"{1e3 * seconds:,.4f}" for reason, seconds in least._asdict().items()}
    return told | {
        "at most, targets a second": f"{step.rows * step.length / least.seconds:,.0f}",
        "limit": least.binding,
    }
