"""The cost of a compiled program on each device: matrix products, memory traffic, bytes sent to other devices.

XLA's `cost_analysis` counts a loop's body once and no collectives. This module reads the program's text and counts
every instruction as often as it runs.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import jax

DTYPE_BITS = {"pred": 8, "bf16": 16}  # of dtypes whose name does not end with them
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional"}
NO_TRAFFIC |= {"partition-id", "replica-id", "after-all", "opt-barrier"}

# Opcode that writes a part of its first operand in place -> index of the operand that it writes there.
IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
PARTIAL = {"dynamic-slice", "slice", "gather"}  # opcodes that read no more of their first operand than they return

INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\((.*)")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:calls|body|condition|true_computation|false_computation)=%([\w.-]+)")


class HloArray(NamedTuple):
    """Dtype, by XLA's name, and shape of an array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        bits = DTYPE_BITS.get(self.dtype) or int(re.findall(r"\d+", self.dtype)[0])
        return math.prod(self.shape) * bits // 8


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name, opcode: of the instruction.
      arrays: that it returns.
      operands: names of the instructions that it reads.
      text: the rest of the line after the opcode.
      is_root: whether its result is the result of its computation.
    """

    name: str
    opcode: str
    arrays: tuple[HloArray, ...]
    operands: tuple[str, ...]
    text: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Size of its results in bytes."""
        return sum(array.bytes for array in self.arrays)


class Collective(NamedTuple):
    """An exchange among the devices of a group.

    Attributes:
      kind: one of COLLECTIVES. An all-reduce of which each device reads its own part alone is a reduce-scatter:
        compilers for accelerators make one of it, the CPU's does not.
      arrays: that each device receives.
      devices: of the group.
      times: it runs in one call of the program.
    """

    kind: str
    arrays: tuple[HloArray, ...]
    devices: int
    times: int

    @property
    def bytes(self) -> int:
        """Bytes that each device receives, each time."""
        return sum(array.bytes for array in self.arrays)

    @property
    def bytes_sent(self) -> float:
        """Bytes that each device sends in all, in a ring: the least that is possible.

        An all-reduce is a reduce-scatter and an all-gather, each of which sends (n - 1) / n of the whole.
        """
        share = (self.devices - 1) / self.devices
        passes = {"all-reduce": 2 * share, "collective-permute": 1.0}
        return self.times * self.bytes * passes.get(self.kind, share)


class ProgramCost(NamedTuple):
    """Cost of one call of a program on each device.

    Attributes:
      flops: of its matrix products, two per multiplication; other operations are few beside them.
      traffic: bytes that its instructions read and write, without any cache.
      collectives: its exchanges.
    """

    flops: int
    traffic: int
    collectives: tuple[Collective, ...]

    @property
    def bytes_sent(self) -> dict[str, float]:
        """Kind of collective -> bytes that a device sends."""
        sums: Counter[str] = Counter()
        for collective in self.collectives:
            sums[collective.kind] += collective.bytes_sent  # pyright: ignore[reportArgumentType]  # a Counter of floats
        return dict(sums)


def analyze_program(compiled: jax.stages.Compiled) -> ProgramCost:
    """Return the cost of a compiled program, jax.jit(f).lower(...).compile()."""
    program = Program(compiled.as_text() or "")
    flops = traffic = 0
    collectives: list[Collective] = []
    for name, times in program.runs.items():
        for instruction in program.computations[name].values():
            if instruction.opcode == "dot":
                flops += times * program.flops(name, instruction)
            if instruction.opcode in COLLECTIVES:
                collectives += program.collectives(name, instruction, times)
            if name not in program.fused and instruction.opcode not in NO_TRAFFIC:
                traffic += times * program.traffic(name, instruction)
    return ProgramCost(flops, traffic, tuple(collectives))


class Program:
    """The parsed text of a compiled program.

    Attributes:
      computations: name -> its instructions, by name.
      runs: computation -> its runs in one call; each branch of a condition counts as taken.
      fused: computations inside one instruction, whose values never reach the memory.
    """

    def __init__(self, text: str):
        """Parse the text of a program."""
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.runs: Counter[str] = Counter()
        self.fused: set[str] = set()
        instructions: dict[str, Instruction] = {}
        entry = ""
        for line in text.split("\n"):
            if header := re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line):
                instructions = self.computations.setdefault(header[2], {})
                entry = header[2]  # ENTRY is the last: a computation stands before its callers
            elif match := INSTRUCTION.match(line):
                instructions[match[2]] = _instruction(*match.groups())
        self._run(entry, 1)

    def _run(self, computation: str, times: int) -> None:
        """Count the runs of a computation and of those that it calls."""
        self.runs[computation] += times
        for instruction in self.computations[computation].values():
            called = _called(instruction)
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.text)
            for name in called:
                self._run(name, times * int(trips[1]) if trips else times)
            if instruction.opcode == "fusion":
                self.fused |= set(called)

    def flops(self, computation: str, dot: Instruction) -> int:
        """Return a dot's FLOPs: 2 x values of the result x products in each value's sum."""
        shape = self.computations[computation][dot.operands[0]].arrays[0].shape
        axes = _search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.text)[1]
        return 2 * math.prod(dot.arrays[0].shape) * math.prod(shape[int(axis)] for axis in axes.split(",") if axis)

    def traffic(self, computation: str, instruction: Instruction) -> int:
        """Return the bytes that an instruction reads and writes."""
        read = sum(self._bytes_read(computation, instruction, name) for name in set(instruction.operands))
        return self._bytes_written(computation, instruction) + read

    def _bytes_written(self, computation: str, instruction: Instruction) -> int:
        """Return the bytes that an instruction writes; an update in place writes its part alone."""
        if instruction.opcode == "fusion":
            (fused,) = _called(instruction)
            (root,) = (inner for inner in self.computations[fused].values() if inner.is_root)
            return self._bytes_written(fused, root)
        if instruction.opcode in IN_PLACE:
            return self.computations[computation][instruction.operands[IN_PLACE[instruction.opcode]]].bytes
        return instruction.bytes

    def _bytes_read(self, computation: str, instruction: Instruction, operand: str) -> int:
        """Return the bytes of an operand that an instruction reads; an update in place reads none of its target."""
        size = self.computations[computation][operand].bytes
        if instruction.opcode == "fusion":
            (fused,) = _called(instruction)
            indices = {str(i) for i, name in enumerate(instruction.operands) if name == operand}
            inner = self.computations[fused].values()
            names = {x.name for x in inner if x.opcode == "parameter" and x.text.partition(")")[0] in indices}
            users = [(x, name) for x in inner for name in names & set(x.operands)]
            return min(size, sum(self._bytes_read(fused, x, name) for x, name in users))
        if instruction.operands[0] == operand and operand not in instruction.operands[1:]:
            if instruction.opcode in PARTIAL:
                return instruction.bytes
            if instruction.opcode in IN_PLACE:
                return 0
        return size

    def collectives(self, computation: str, instruction: Instruction, times: int) -> Iterator[Collective]:
        """Yield an instruction's collectives; an all-reduce read in parts is a reduce-scatter."""
        devices = group_size(instruction.text)
        if instruction.opcode != "all-reduce":
            yield Collective(instruction.opcode, instruction.arrays, devices, times)
            return
        kinds: dict[str, list[HloArray]] = {"all-reduce": [], "reduce-scatter": []}
        inner = self.computations[computation].values()
        for i, array in enumerate(instruction.arrays):
            element = rf"%{re.escape(instruction.name)}\), index={i}\b"
            names = {x.name for x in inner if x.opcode == "get-tuple-element" and re.match(element, x.text)}
            names = names or {instruction.name}
            most = max(
                (self._bytes_read(computation, x, name) for x in inner for name in names & set(x.operands)), default=0
            )
            reads_own_part = 0 < most * devices <= array.bytes
            kinds["reduce-scatter" if reads_own_part else "all-reduce"].append(array)
        yield from (Collective(kind, tuple(arrays), devices, times) for kind, arrays in kinds.items() if arrays)


def _instruction(root: str | None, name: str, types: str, opcode: str, text: str) -> Instruction:
    arrays = tuple(
        HloArray(dtype, tuple(map(int, filter(None, shape.split(","))))) for dtype, shape in ARRAY.findall(types)
    )
    operands = tuple(re.findall(r"%([\w.-]+)", text.partition(")")[0]))
    return Instruction(name, opcode, arrays, operands, text, root is not None)


def _called(instruction: Instruction) -> list[str]:
    """Return the computations that an instruction runs, without those on single values (a reduction's sum)."""
    branches = re.search(r"branch_computations=\{(.*?)\}", instruction.text)
    applied = re.findall(r"\bto_apply=%([\w.-]+)", instruction.text) if instruction.opcode == "call" else []
    return CALLED.findall(instruction.text) + applied + (re.findall(r"%([\w.-]+)", branches[1]) if branches else [])


def group_size(text: str) -> int:
    """Return the number of devices in a collective's group, in each of XLA's notations.

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
    sizes, axes = _search(r"replica_groups=mesh\[(.*?)\][^{]* \{(.*?)\}", text).groups()
    size_of = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes)  # 'x':(2)4 is a part of 4 of an axis
    return math.prod(int(part) if part else size_of[name] for name, part in parts)


def _search(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"XLA's text lacks {pattern}: {text[:200]}")
    return match
