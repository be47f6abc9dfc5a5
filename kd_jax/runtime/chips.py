"""Peak rates of accelerators, as their makers publish them."""

from typing import NamedTuple

import jax

from kd_jax.errors import KdError


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
      names: JAX's names for it (`device_kind`).
      flops: FLOP/s of dense bfloat16 matrix products. JAX multiplies float32 as fast on a TPU, half as fast on an H100
        (TF32).
      memory: bytes.
      bandwidth: bytes/s between memory and chip.
      interconnect: bytes/s that it sends to other chips; it receives as many at the same time.
      interconnect_domain: most chips that the interconnect connects; a much slower network connects more.
    """

    names: tuple[str, ...]
    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    interconnect_domain: int

    @property
    def intensity(self) -> float:
        """FLOPs per byte of memory traffic above which matrix products take longer than the traffic."""
        return self.flops / self.bandwidth


# TPUs: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e, which give the interconnect for both directions together (400,
# 1200 and 800 GB/s). H100 and H200 SXM: NVIDIA's data sheets (989 TFLOPS without sparsity; NVLink: 900 GB/s, both
# directions).
CHIPS = {
    "tpu-v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 16e9, 819e9, 200e9, 256),
    "tpu-v5p": Chip(("TPU v5", "TPU v5p"), 459e12, 95e9, 2765e9, 600e9, 8960),
    "tpu-v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 32e9, 1638e9, 400e9, 256),
    "h100": Chip(("NVIDIA H100 80GB HBM3",), 989e12, 80e9, 3350e9, 450e9, 8),
    "h200": Chip(("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9, 8),
}
UNKNOWN_MEMORY = 16e9  # bytes of an accelerator that does not tell


def find_chip(kind: str) -> Chip:
    """Return the chip with a name of CHIPS.

    Examples:
      >>> round(find_chip("tpu-v5e").intensity)
      241
    """
    if kind not in CHIPS:
        raise KdError(f"--kind: expected one of {', '.join(CHIPS)}, got {kind!r}. Choose one of them.")
    return CHIPS[kind]


def local_chip() -> Chip | None:
    """Return the chip of this process's first device, or None if CHIPS lacks it (a CPU)."""
    kind = jax.local_devices()[0].device_kind
    return next((chip for chip in CHIPS.values() if kind in chip.names), None)


def local_memory() -> float:
    """Return the bytes of memory of this process's first device, as it tells them."""
    stats = jax.local_devices()[0].memory_stats() or {}
    chip = local_chip()
    return float(stats.get("bytes_limit", chip.memory if chip else UNKNOWN_MEMORY))
