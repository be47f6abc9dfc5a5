"""The whole student step: cross-entropy alone, with a top-k cache, with the teacher in the step.

    python experiments/benchmarks/student_step.py --json student_step.json

End to end: records are read from disk by the training pipeline, batches go to the device, the step updates the
parameters. Random text and a random teacher's records of the right shapes: quickstart (top 32 of 4,000 tokens) and
large (6+6 layers, d 512, top 32 of 32,000). The cases take turns, in blocks of steps; medians of the blocks.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np

from kd_jax import config
from kd_jax.data import pipeline, store
from kd_jax.experiment import Recipe
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.objective.terms import Term
from kd_jax.parallel.base import parallel
from kd_jax.signals.online import Online
from kd_jax.signals.topk import TopK
from kd_jax.tasks.translation import Translation
from kd_jax.training.step import init_state, train_step

ROOT = Path(__file__).parents[2]
SIGNAL = TopK(k=32)
CE = Term(cross_entropy, weight=0.5)
CASES = {
    "ce": {"ce": CE},
    "cached_topk": {"ce": CE, "kd": Term(forward_kl, weight=0.5, signal=SIGNAL)},
    "online": {"ce": CE, "kd": Term(forward_kl, weight=0.5, signal=Online())},
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is timed: vocabulary, sentence length, examples on disk, steps in a block, networks, recipe."""

    vocab_size: int
    length: int
    examples: int
    block: int
    teacher: EncoderDecoder
    student: Recipe


def shapes() -> dict[str, Shape]:
    quickstart = config.load(ROOT / "experiments/configs/quickstart.py")
    student = quickstart.students["student_kd"]
    large = EncoderDecoder(encoder_layers=6, decoder_layers=6, d_model=512, heads=8, d_ff=2048, dropout=0.0)
    # A 6-layer student; its teacher has twice the layers.
    teacher = dataclasses.replace(large, encoder_layers=12, decoder_layers=12)
    return {
        "quickstart": Shape(4000, 16, 2048, 20, quickstart.teacher.model, student),
        "large": Shape(32_000, 32, 256, 1, teacher, dataclasses.replace(student, model=large)),
    }


def write(folder: Path, shape: Shape) -> None:
    """A split of random ids, and a cache of a random teacher's top k."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, shape.vocab_size, (2, shape.examples, shape.length)).astype(np.int32)
    mask = np.ones(shape.length, bool)
    examples = [{"source": s, "target": t, "mask": mask} for s, t in zip(*ids, strict=True)]
    store.write(folder, "train", Translation().schema(), len(examples), lambda start, stop: examples[start:stop])
    np.save(folder / "train.lengths.npy", pipeline.lengths_of(examples))
    reduce = jax.jit(SIGNAL.reduce)

    def records(start: int, stop: int) -> Any:
        for example in examples[start:stop]:
            logits = 4 * rng.standard_normal((shape.length, shape.vocab_size), np.float32)
            yield jax.device_get(reduce(logits)) | {"digest": pipeline.example_digest(example)}

    schema = SIGNAL.schema(shape.vocab_size) | pipeline.DIGEST
    store.write(folder / "cache", "records", schema, len(examples), records)


def stepper(folder: Path, shape: Shape, case: str) -> Callable[[], None]:
    """() -> one block of steps, the last one finished."""
    recipe, spread = shape.student, parallel("jit")
    payloads = {SIGNAL.name: store.Store(folder / "cache", "records")} if case == "cached_topk" else {}
    batches = pipeline.train_batches(
        pipeline.Split(folder, "train", payloads),
        buckets=(shape.length,),
        tokens_per_batch=recipe.training.tokens_per_batch,
        divisor=1,
        seed=0,
    )
    model, teacher = recipe.model.build(shape.vocab_size), shape.teacher.build(shape.vocab_size)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    parts = {"model": model, "terms": CASES[case], "tx": tx, "teacher": teacher if case == "online" else None}
    step = spread.spread(functools.partial(train_step, **parts), donate_state=True)
    state = spread.replicate(init_state(jax.random.key(1), jax.jit(model.init)(jax.random.key(0)), tx))
    beside = spread.replicate(jax.jit(teacher.init)(jax.random.key(2))) if case == "online" else None
    iterator = iter(batches)

    def block() -> None:
        nonlocal state
        for _ in range(shape.block):
            state, sums = step(state, spread.shard(next(iterator)), beside)
        jax.block_until_ready(sums)

    return block


def main() -> None:
    """Prints a table; writes the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    parser.add_argument("--blocks", type=int, default=9)
    arguments = parser.parse_args()
    rows = []
    for name, shape in shapes().items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), shape)
            blocks = {case: stepper(Path(folder), shape, case) for case in CASES}
            seconds: dict[str, list[float]] = {case: [] for case in CASES}
            for _ in range(arguments.blocks + 1):  # the first is to compile
                for case, block in blocks.items():
                    began = time.perf_counter()
                    block()
                    seconds[case].append((time.perf_counter() - began) / shape.block)
        medians = {case: statistics.median(times[1:]) for case, times in seconds.items()}
        for case, median in medians.items():
            rows.append({"config": name, "case": case, "seconds": median})
            print(f"{name:11s} {case:12s} {1e3 * median:8.1f} ms a step {median / medians['ce']:5.2f} x", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
