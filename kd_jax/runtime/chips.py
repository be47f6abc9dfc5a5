"""What chips can do at most, as their makers publish it."""

from typing import NamedTuple

import jax

from kd_jax.errors import KdError


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
      names: that JAX has for it (`device_kind`).
      flops: a second, of dense products of bfloat16. JAX multiplies float32 with as many on a TPU, with half as many on
        an H100 (TF32).
      memory: bytes.
      bandwidth: bytes a second between memory and chip.
      interconnect: bytes a second that it sends to others; it receives as many at the same time.
      interconnect_domain: chips that its interconnect joins at most; beyond them there is a network that is much slower.
    """

    names: tuple[str, ...]
    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    interconnect_domain: int

    @property
    def intensity(self) -> float:
        """FLOPs for each byte of memory traffic, above which products and not the memory take the time."""
        return self.flops / self.bandwidth


# The TPUs: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e, whose interconnect is told for both directions together
# (400, 1200 and 800 GB/s). H100 SXM: NVIDIA's data sheet (989 TFLOPS without sparsity; NVLink: 900 GB/s, both ways).
CHIPS = {
    "tpu-v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 16e9, 819e9, 200e9, 256),
    "tpu-v5p": Chip(("TPU v5", "TPU v5p"), 459e12, 95e9, 2765e9, 600e9, 8960),
    "tpu-v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 32e9, 1638e9, 400e9, 256),
    "h100": Chip(("NVIDIA H100 80GB HBM3",), 989e12, 80e9, 3350e9, 450e9, 8),
}


def find_chip(kind: str) -> Chip:
    """The chip of that name.

    Raises:
      KdError: if there is none.

    Examples:
      >>> round(find_chip("tpu-v5e").intensity)
      241
    """
    if kind not in CHIPS:
        raise KdError(f"--kind: {kind!r}; wanted {', '.join(CHIPS)}")
    return CHIPS[kind]


def local_chip() -> Chip | None:
    """That of this process's first device; None where it is not in the table, as a CPU is not."""
    here = jax.local_devices()[0].device_kind
    return next((one for one in CHIPS.values() if here in one.names), None)
