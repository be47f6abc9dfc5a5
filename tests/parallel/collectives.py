"""What a compiled program moves between devices."""

import math
import re
from typing import Any, NamedTuple

KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
BYTES = {"f16": 2, "bf16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1, "u8": 1, "s8": 1}


class Collective(NamedTuple):
    """One collective operation: its kind, and (dtype, shape) of every array that it gives each device."""

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def bytes(self) -> int:
        return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in self.arrays)


def collectives(compiled: Any) -> list[Collective]:
    """Of jax.jit(f).lower(...).compile(), those within loops too."""
    found = []
    for line in compiled.as_text().split("\n"):
        if match := re.search(rf"= (.*?) ({KINDS})(-start)?\(", line):
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            shapes = tuple((dtype, tuple(int(n) for n in shape.split(",") if n)) for dtype, shape in arrays)
            found.append(Collective(match[2], shapes))
    return found
