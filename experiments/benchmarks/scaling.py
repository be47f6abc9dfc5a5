"""How a training step's time grows with layers, width, vocabulary and length: slopes in log-log scale.

    python experiments/benchmarks/scaling.py --json scaling.json

A decoder-only network and cross-entropy, float32, on one device; one size is changed at a time, the others stay. A
slope of 1 is time in proportion, 0 is none. Beside each stands the slope of the FLOPs that the model needs
(kd_jax.models.flops): where the time's is lower, what does not grow (other parts, calls) still shows. The sizes of one
axis take turns in blocks of steps; medians of the blocks, the slope's standard error from the residuals of its fit.
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
from kd_jax.models.flops import TRAINING, flops_per_unit, count_workload
from kd_jax.runtime.backends import make_devices
from kd_jax.tasks.base import Encoded
from kd_jax.tokenizers.sentencepiece import START

HEAD = 64  # width of a head
STEPS = 3  # of a block


class Size(NamedTuple):
    """What is trained: `width` channels in heads of 64, and 4 times as many neurons; rows of `length` tokens."""

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
    """Full rows of random ids, all of which count."""
    ids = np.random.default_rng(0).integers(4, size.vocabulary, (size.rows, size.length)).astype(np.int32)
    none = np.zeros(0, np.int32)
    rows = [[Segment(i, Encoded(none, row, np.ones(size.length, bool)), 1.0, {})] for i, row in enumerate(ids)]
    return DecoderOnlyLayout(START).batch(rows, size.rows, Bucket(0, size.length), {})


def stepper(size: Size) -> tuple[Callable[[], None], float]:
    """(() -> one block of steps, finished; FLOPs that the model needs for a step)."""
    heads = max(1, size.width // HEAD)
    shape = DecoderOnly(size.layers, d_model=size.width, heads=heads, d_ff=4 * size.width, dropout=0.0)
    model, batch, devices = shape.build(size.vocabulary), random_batch(size), make_devices("jit")
    params = jax.jit(model.init)(jax.random.key(0))
    tx = Optimizer(learning_rate=1e-4, warmup=1).build(1000)
    step = functools.partial(train_step, model=model, terms={"ce": Term(cross_entropy)}, tx=tx)
    compiled, on_device = devices.compile_sums(step, donate=True), devices.shard(batch)
    needed = TRAINING * flops_per_unit(model, params).dot(count_workload(batch))
    state = devices.replicate(init_state(jax.random.key(1), params, tx))

    def block() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, sums = compiled(state, on_device)
        jax.block_until_ready(sums)

    return block, needed


def measured(sizes: list[Size], blocks: int) -> tuple[list[float], list[float]]:
    """(seconds of a step, FLOPs that it needs) of each size."""
    steppers = [stepper(size) for size in sizes]
    seconds: list[list[float]] = [[] for _ in sizes]
    for _ in range(blocks + 1):  # the first is to compile
        for (block, _), times in zip(steppers, seconds, strict=True):
            began = time.perf_counter()
            block()
            times.append((time.perf_counter() - began) / STEPS)
    return [statistics.median(times[1:]) for times in seconds], [needed for _, needed in steppers]


def main() -> None:
    """Prints a table; writes the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--axes", nargs="*", choices=AXES, default=list(AXES))
    parser.add_argument("--smaller", type=int, default=1, help="every size through this number, for a try")
    arguments = parser.parse_args()
    base, rows = Size(), []
    base = Size(*(max(1, size // arguments.smaller) for size in base))
    for axis in arguments.axes:
        values = [max(1, value // arguments.smaller) for value in AXES[axis]]
        seconds, needed = measured([base._replace(**{axis: value}) for value in values], arguments.blocks)
        time_fit, flops_fit = (stats.linregress(np.log(values), np.log(figures)) for figures in (seconds, needed))
        rows.append({"axis": axis, "values": values, "seconds": seconds, "flops": needed})
        rows[-1] |= {"slope": time_fit.slope, "error": time_fit.stderr, "flops_slope": flops_fit.slope}
        steps = ", ".join(f"{value}: {1e3 * one:.0f} ms" for value, one in zip(values, seconds, strict=True))
        fits = f"slope {time_fit.slope:.2f} +- {time_fit.stderr:.2f}, of the FLOPs {flops_fit.slope:.2f}"
        print(f"{axis:11s} {fits}   ({steps})", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"base": base._asdict(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
