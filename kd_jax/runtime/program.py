"""What a compiled program does on each device: products, traffic with the memory, what is sent to other devices.

XLA's own account (`cost_analysis`) takes what a loop repeats once, and knows nothing of collectives; this reads the
program's text, and counts every instruction as often as it runs.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

BITS = {"pred": 8, "bf16": 16}  # of dtypes whose name does not end with them
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional"}
NO_TRAFFIC |= {"partition-id", "replica-id", "after-all", "opt-barrier"}

# Opcode of what changes a part of its first operand in place -> which operand it puts there.
IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
PARTIAL = {"dynamic-slice", "slice", "gather"}  # what reads of its first operand no more than it gives

INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\((.*)")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:calls|body|condition|true_computation|false_computation)=%([\w.-]+)")


class Array(NamedTuple):
    """Dtype, as XLA calls it, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = BITS[self.dtype] if self.dtype in BITS else int(re.findall(r"\d+", self.dtype)[0])
        return math.prod(self.shape) * bits // 8


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name, opcode: its own, and of what it does.
      arrays: that it gives.
      operands: names of what it reads.
      text: what stands behind the opcode.
      root: whether it gives its computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)


class Collective(NamedTuple):
    """What devices of one group exchange.

    Attributes:
      kind: one of COLLECTIVES. An all-reduce of which a device reads no more than its own part is called
        reduce-scatter: accelerators' compilers make one of it, the CPU's does not.
      arrays: that each device is given.
      devices: of the group.
      times: it runs in one call of the program.
    """

    kind: str
    arrays: tuple[Array, ...]
    devices: int
    times: int

    @property
    def bytes(self) -> int:
        """What it gives each device, each time."""
        return sum(array.bytes for array in self.arrays)

    @property
    def moved(self) -> float:
        """Bytes that each device sends in all, in a ring: the least that is possible.

        An all-reduce is a reduce-scatter and an all-gather, each of which sends (n - 1) / n of the whole.
        """
        share = (self.devices - 1) / self.devices
        passes = {"all-reduce": 2 * share, "collective-permute": 1.0}
        return self.times * self.bytes * (passes[self.kind] if self.kind in passes else share)


class ProgramCost(NamedTuple):
    """Of one call of a program, on each device.

    Attributes:
      flops: of its matrix products, two for each multiplication; all else is little beside them.
      traffic: bytes that its instructions read and write, were each to find nothing in a cache.
      collectives: what it exchanges.
    """

    flops: int
    traffic: int
    collectives: tuple[Collective, ...]

    @property
    def moved(self) -> dict[str, float]:
        """Kind of collective -> bytes that a device sends."""
        sums = Counter()
        for one in self.collectives:
            sums[one.kind] += one.moved
        return dict(sums)


def analyze_program(compiled: Any) -> ProgramCost:
    """The work of jax.jit(f).lower(...).compile().

    Examples:
      >>> import jax
      >>> square = jax.ShapeDtypeStruct((8, 8), "float32")
      >>> ten_times = lambda x, y: jax.lax.fori_loop(0, 10, lambda _, x: x @ y, x)
      >>> analyze_program(jax.jit(ten_times).lower(square, square).compile()).flops == 10 * 2 * 8**3
      True
    """
    program = Program(compiled.as_text())
    flops = traffic = 0
    collectives: list[Collective] = []
    for name, times in program.runs.items():
        for one in program.computations[name].values():
            if one.opcode == "dot":
                flops += times * program.flops(name, one)
            if one.opcode in COLLECTIVES:
                collectives += program.collectives(name, one, times)
            if name not in program.fused and one.opcode not in NO_TRAFFIC:
                traffic += times * program.traffic(name, one)
    return ProgramCost(flops, traffic, tuple(collectives))


class Program:
    """The text of a compiled program, read.

    Attributes:
      computations: name -> its instructions, by name.
      runs: computation -> how often it runs in one call; each branch of a condition as if it were taken.
      fused: computations within one instruction, whose values never reach the memory.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.runs: Counter[str] = Counter()
        self.fused: set[str] = set()
        for line in text.split("\n"):
            if header := re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line):
                lines = self.computations.setdefault(header[2], {})
                entry = header[2]  # of the last one, ENTRY: what is called stands before who calls it
            elif found := INSTRUCTION.match(line):
                lines[found[2]] = _instruction(*found.groups())
        self._run(entry, 1)

    def _run(self, computation: str, times: int) -> None:
        """Notes that a computation runs, and what it calls."""
        self.runs[computation] += times
        for one in self.computations[computation].values():
            called = _called(one)
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.text)
            for name in called:
                self._run(name, times * int(trips[1]) if trips else times)
            self.fused |= set(called) if one.opcode == "fusion" else set()

    def flops(self, computation: str, dot: Instruction) -> int:
        """2 x values of the result x products that each is a sum of."""
        shape = self.computations[computation][dot.operands[0]].arrays[0].shape
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.text)[1]
        return 2 * math.prod(dot.arrays[0].shape) * math.prod(shape[int(axis)] for axis in summed.split(",") if axis)

    def traffic(self, computation: str, one: Instruction) -> int:
        """Bytes that it reads and writes."""
        return self._written(computation, one) + sum(self._read(computation, one, name) for name in set(one.operands))

    def _written(self, computation: str, one: Instruction) -> int:
        """Bytes; of what is changed in place, those that change."""
        if one.opcode == "fusion":
            (fused,) = _called(one)
            (root,) = (inner for inner in self.computations[fused].values() if inner.root)
            return self._written(fused, root)
        if one.opcode in IN_PLACE:
            return self.computations[computation][one.operands[IN_PLACE[one.opcode]]].bytes
        return one.bytes

    def _read(self, computation: str, one: Instruction, operand: str) -> int:
        """Bytes of an operand that an instruction reads; of what is changed in place, none."""
        if one.opcode == "fusion":
            (fused,) = _called(one)
            places = {str(i) for i, name in enumerate(one.operands) if name == operand}
            inside = self.computations[fused].values()
            names = {x.name for x in inside if x.opcode == "parameter" and x.text.partition(")")[0] in places}
            users = [(x, name) for x in inside for name in names & set(x.operands)]
            most = self.computations[computation][operand].bytes
            return min(most, sum(self._read(fused, x, name) for x, name in users))
        if one.operands[0] == operand and operand not in one.operands[1:]:
            if one.opcode in PARTIAL:
                return one.bytes
            if one.opcode in IN_PLACE:
                return 0
        return self.computations[computation][operand].bytes

    def collectives(self, computation: str, one: Instruction, times: int) -> Iterator[Collective]:
        """A collective; an all-reduce apart for what is read whole, and what a device reads its own part of."""
        devices = group_size(one.text)
        if one.opcode != "all-reduce":
            yield Collective(one.opcode, one.arrays, devices, times)
            return
        kinds: dict[str, list[Array]] = {"all-reduce": [], "reduce-scatter": []}
        inside = self.computations[computation].values()
        for i, array in enumerate(one.arrays):
            part = rf"%{re.escape(one.name)}\), index={i}\b"
            names = {x.name for x in inside if x.opcode == "get-tuple-element" and re.match(part, x.text)} or {one.name}
            most = max(
                (self._read(computation, x, name) for x in inside for name in names & set(x.operands)), default=0
            )
            own_part = 0 < most * devices <= array.bytes
            kinds["reduce-scatter" if own_part else "all-reduce"].append(array)
        yield from (Collective(kind, tuple(arrays), devices, times) for kind, arrays in kinds.items() if arrays)


def _instruction(root: str | None, name: str, given: str, opcode: str, text: str) -> Instruction:
    arrays = tuple(
        Array(dtype, tuple(map(int, filter(None, shape.split(","))))) for dtype, shape in ARRAY.findall(given)
    )
    operands = tuple(re.findall(r"%([\w.-]+)", text.partition(")")[0]))
    return Instruction(name, opcode, arrays, operands, text, root is not None)


def _called(one: Instruction) -> list[str]:
    """Computations that it runs; not those that it applies to single values, as a sum does."""
    branches = re.search(r"branch_computations=\{(.*?)\}", one.text)
    applied = re.findall(r"\bto_apply=%([\w.-]+)", one.text) if one.opcode == "call" else []
    return CALLED.findall(one.text) + applied + (re.findall(r"%([\w.-]+)", branches[1]) if branches else [])


def group_size(text: str) -> int:
    """Devices that exchange something with each other, in any of the ways that XLA writes them.

    Examples:
      >>> [group_size(f"replica_groups={groups}, x") for groups in ("{{0,1},{2,3}}", "[2,4]<=[4,2]T(1,0)")]
      [2, 4]
      >>> group_size("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x")
      4
      >>> group_size("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, x")
      4
      >>> group_size("source_target_pairs={{0,1},{1,0}}, x")
      2
    """
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", text):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(counted[1])
    sizes, axes = re.search(r"replica_groups=mesh\[(.*?)\][^{]* \{(.*?)\}", text).groups()
    named = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes)  # 'x':(2)4 is a part of 4 of an axis
    return math.prod(int(part) if part else named[name] for name, part in parts)
