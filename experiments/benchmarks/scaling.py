"""Measure how a training step's time grows with layers, width, vocabulary and length: slopes in log-log scale.

    python experiments/benchmarks/scaling.py --json scaling.json

A decoder-only network and cross-entropy, in float32, on one device; one size changes at a time. A slope of 1 means time
in proportion to the size, 0 means no effect. The table also shows the slope of the model's FLOPs (kd_jax.models.flops).
A lower slope of the time means that constant costs (other parts, calls) still matter. The sizes of one axis take turns
in blocks of steps; figures are medians of the blocks. The slope's standard error comes from the residuals of its fit.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np
from scipy import stats

from kd_jax import Batch, DecoderOnly, Optimizer, Term, cross_entropy, init_state, train_step
from kd_jax.batches.layouts import Bucket, DecoderOnlyLayout, Segment
from kd_jax.models.flops import TRAINING, count_workload, flops_per_unit
from kd_jax.runtime.backends import make_devices
from kd_jax.tasks.base import Encoded
from kd_jax.tokenizers.sentencepiece import START

HEAD = 64  # width of a head
STEPS = 3  # steps of a block


class Size(NamedTuple):
    """Sizes of network and batch: `width` channels in heads of 64, 4 times as many neurons, rows of `length` tokens."""

    layers: int = 4
    width: int = 256
    vocabulary: int = 8192
    length: int = 128
    rows: int = 8


AXES = {
    "layers": (2, 4, 8, 16),
    "width": (128, 256, 512, 1024),
    "vocabulary": (4096, 8192, 16_384, 32_768),
    "length": (64, 128, 256, 512),
}


def random_batch(size: Size) -> Batch:
    """Return full rows of random ids, all of which count."""
    ids = np.random.default_rng(0).integers(4, size.vocabulary, (size.rows, size.length)).astype(np.int32)
    none = np.zeros(0, np.int32)
    rows = [[Segment(i, Encoded(none, row, np.ones(size.length, bool)), 1.0, {})] for i, row in enumerate(ids)]
    return DecoderOnlyLayout(START).batch(rows, size.rows, Bucket(0, size.length), {})


class Case(NamedTuple):
    """A function that runs a block of steps to its end, and the model's FLOPs for one step."""

    run_block: Callable[[], None]
    flops: float


def make_case(size: Size) -> Case:
    """Return the case of one size."""
    heads = max(1, size.width // HEAD)
    shape = DecoderOnly(size.layers, d_model=size.width, heads=heads, d_ff=4 * size.width, dropout=0.0)
    model, batch, devices = shape.build(size.vocabulary), random_batch(size), make_devices("jit")
    params = jax.jit(model.init)(jax.random.key(0))
    tx = Optimizer(learning_rate=1e-4, warmup=1).build(1000)
    step = functools.partial(train_step, model=model, terms={"ce": Term(cross_entropy)}, tx=tx)
    compiled, on_device = devices.compile_sums(step, donate=True), devices.shard(batch)
    flops = TRAINING * flops_per_unit(model, params).dot(count_workload(batch))
    state = devices.replicate(init_state(jax.random.key(1), params, tx))

    def run_block() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, sums = compiled(state, on_device)
        jax.block_until_ready(sums)

    return Case(run_block, flops)


def measure(sizes: list[Size], blocks: int) -> tuple[list[float], list[float]]:
    """Return (seconds of a step, FLOPs of a step) for each size."""
    cases = [make_case(size) for size in sizes]
    seconds: list[list[float]] = [[] for _ in sizes]
    for _ in range(blocks + 1):  # the first block compiles
        for case, times in zip(cases, seconds, strict=True):
            start_time = time.perf_counter()
            case.run_block()
            times.append((time.perf_counter() - start_time) / STEPS)
    return [statistics.median(times[1:]) for times in seconds], [case.flops for case in cases]


def main() -> None:
    """Print a table, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--axes", nargs="*", choices=AXES, default=list(AXES))
    parser.add_argument("--smaller", type=int, default=1, help="divide every size by this number, for a quick check")
    arguments = parser.parse_args()
    base, rows = Size(), []
    base = Size(*(max(1, size // arguments.smaller) for size in base))
    for axis in arguments.axes:
        values = [max(1, value // arguments.smaller) for value in AXES[axis]]
        seconds, flops = measure([base._replace(**{axis: value}) for value in values], arguments.blocks)
        time_fit, flops_fit = (stats.linregress(np.log(values), np.log(figures)) for figures in (seconds, flops))
        rows.append({"axis": axis, "values": values, "seconds": seconds, "flops": flops})
        rows[-1] |= {"slope": time_fit.slope, "error": time_fit.stderr, "flops_slope": flops_fit.slope}
        steps = ", ".join(f"{value}: {1e3 * median:.0f} ms" for value, median in zip(values, seconds, strict=True))
        fits = f"slope {time_fit.slope:.2f} +- {time_fit.stderr:.2f}, slope of FLOPs {flops_fit.slope:.2f}"
        print(f"{axis:11s} {fits}   ({steps})", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"base": base._asdict(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
