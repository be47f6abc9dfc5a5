"""Measure the student's training step: cross-entropy alone, with a top-k cache, with the teacher in the step.

    python experiments/benchmarks/student_step.py --json student_step.json

The measurement is end to end: the training pipeline reads records from disk, batches go to the device, the step updates
the parameters. Text and teacher's records are random, with the shapes of quickstart (top 32 of 4,000 tokens), large
(6+6 layers, d 512, top 32 of 32,000) and debian_lm (decoder-only, packed, top 32 of 4,000). The cases take turns in
blocks of steps; figures are medians of the blocks.
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

from kd_jax import (
    EncoderDecoder,
    Online,
    Term,
    TopK,
    cross_entropy,
    forward_kl,
    init_state,
    load_experiment,
    resolve,
    train_step,
)
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline, store
from kd_jax.batches.layouts import Bucket
from kd_jax.experiment import ResolvedRecipe
from kd_jax.models.base import Architecture
from kd_jax.runtime.backends import make_devices
from kd_jax.tasks.base import ENCODED, Encoded
from kd_jax.tokenizers.sentencepiece import START

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
    """Sizes of a measurement.

    Attributes:
      vocab_size: number of tokens.
      lengths: tokens of each prompt and completion.
      examples: examples on disk.
      bucket: lengths of a row, which holds several examples if the recipe is packed.
      block: steps in a block.
      teacher: the teacher's architecture.
      student: the student's recipe.
    """

    vocab_size: int
    lengths: Bucket
    examples: int
    bucket: Bucket
    block: int
    teacher: Architecture
    student: ResolvedRecipe


def shapes() -> dict[str, Shape]:
    """Return name -> shape."""
    quickstart = resolve(load_experiment(ROOT / "experiments/configs/quickstart_references.py"))
    lm = resolve(load_experiment(ROOT / "experiments/configs/debian_lm.py"))
    assert quickstart.comparison is not None and lm.comparison is not None
    student = quickstart.students[quickstart.comparison.distilled]
    large = EncoderDecoder(encoder_layers=6, decoder_layers=6, d_model=512, heads=8, d_ff=2048, dropout=0.0)
    # A 6-layer student; its teacher has twice the layers.
    teacher = dataclasses.replace(large, encoder_layers=12, decoder_layers=12)
    sentence, long, text, row = Bucket(16, 16), Bucket(32, 32), Bucket(0, 64), Bucket(0, 256)
    lm_student = lm.students[lm.comparison.distilled]
    return {
        "quickstart": Shape(4000, sentence, 2048, sentence, 20, quickstart.teacher.model, student),
        "large": Shape(32_000, long, 256, long, 1, teacher, dataclasses.replace(student, model=large)),
        "debian_lm": Shape(4000, text, 2048, row, 8, lm.teacher.model, lm_student),
    }


def write(folder: Folder, shape: Shape) -> None:
    """Write a split of random ids, and a cache of a random teacher's top k."""
    rng = np.random.default_rng(0)
    prompt, completion = shape.lengths
    ids = rng.integers(4, shape.vocab_size, (shape.examples, prompt + completion)).astype(np.int32)
    counts = np.arange(prompt + completion) >= prompt
    examples = [Encoded(row[:prompt], row[prompt:], counts) for row in ids]
    rows = [example._asdict() for example in examples]
    folder.begin({})
    store.write(folder.path, "train", ENCODED, len(rows), lambda start, stop: rows[start:stop])
    np.save(folder.path / "train.lengths.npy", pipeline.example_lengths(rows))
    folder.finish({}, 0.0)
    reduce = jax.jit(SIGNAL.reduce)

    def records(start: int, stop: int) -> Any:
        for example in examples[start:stop]:
            logits = 4 * rng.standard_normal((completion, shape.vocab_size), np.float32)
            yield jax.device_get(reduce(logits)) | {"digest": pipeline.example_digest(example)}

    schema = SIGNAL.schema(shape.vocab_size) | pipeline.DIGEST
    store.write(folder.path / "cache", "records", schema, len(examples), records)


def make_block(folder: Folder, shape: Shape, case: str) -> Callable[[], None]:
    """Return a function that runs one block of steps to its end."""
    recipe, devices = shape.student, make_devices("jit")
    payloads = {SIGNAL.name: store.Store(folder.path / "cache", "records")} if case == "cached_topk" else {}
    batches = pipeline.TrainBatches(
        pipeline.Split(folder, "train", payloads),
        recipe.model.layout(START),
        [shape.bucket],
        tokens_per_batch=recipe.training.tokens_per_batch,
        packed=recipe.training.packed,
        divisor=1,
        seed=0,
    ).prefetch()
    model, teacher = recipe.model.build(shape.vocab_size), shape.teacher.build(shape.vocab_size)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    step_teacher = teacher if case == "online" else None
    step = functools.partial(train_step, model=model, terms=CASES[case], tx=tx, teacher=step_teacher)
    compiled = devices.compile_sums(step, donate=True)
    state = devices.replicate(init_state(jax.random.key(1), jax.jit(model.init)(jax.random.key(0)), tx))
    teacher_params = devices.replicate(jax.jit(teacher.init)(jax.random.key(2))) if case == "online" else None
    iterator = iter(batches)

    def block() -> None:
        nonlocal state
        for _ in range(shape.block):
            state, sums = compiled(state, devices.shard(next(iterator)), teacher_params)
        jax.block_until_ready(sums)

    return block


def main() -> None:
    """Print a table, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--blocks", type=int, default=9)
    arguments = parser.parse_args()
    rows = []
    for name, shape in shapes().items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Folder(Path(scratch), "benchmark")
            write(folder, shape)
            blocks = {case: make_block(folder, shape, case) for case in CASES}
            seconds: dict[str, list[float]] = {case: [] for case in CASES}
            for _ in range(arguments.blocks + 1):  # the first block compiles
                for case, block in blocks.items():
                    start_time = time.perf_counter()
                    block()
                    seconds[case].append((time.perf_counter() - start_time) / shape.block)
        medians = {case: statistics.median(times[1:]) for case, times in seconds.items()}
        for case, median in medians.items():
            rows.append({"config": name, "case": case, "seconds": median})
            print(f"{name:11s} {case:12s} {1e3 * median:8.1f} ms/step {median / medians['ce']:5.2f} x ce", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
