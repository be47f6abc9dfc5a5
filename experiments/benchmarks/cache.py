"""Measure the speed and size of the teacher's cache on the quickstart's corpus.

    python experiments/benchmarks/cache.py --workdir runs/quickstart --json cache.json

The teacher comes from the workdir, and is trained first if there is none. The benchmark writes caches of a part of the
training split to a temporary folder: one with the top 64, one with samples of about 12 unique ids per token. Sizes are
those of the whole files. Reading uses the training pipeline: one epoch of host batches with the cache, and one without.
The additional time per batch is divided by the time of the student's training step, measured in the same process.
"""

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np

from kd_jax import Batch, ResolvedExperiment, Sampled, TopK, init_state, load_experiment, resolve, train_step
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches import pipeline, store
from kd_jax.batches.layouts import Segment
from kd_jax.experiment import ResolvedRecipe
from kd_jax.phases.prepare import run as prepare
from kd_jax.phases.teacher import run as train_teacher
from kd_jax.runtime import progress
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.compilation_cache import use_compilation_cache
from kd_jax.teaching.records import Record, infer_records
from kd_jax.teaching.signal_cache import signal_step
from kd_jax.teaching.teacher import Teacher
from kd_jax.tokenizers.sentencepiece import START

ROOT = Path(__file__).parents[2]
REPEATS = 5


def sub_split(whole: pipeline.Split, folder: Folder, count: int) -> pipeline.Split:
    """Write the first examples of a split to a folder, and return them as a split."""
    examples = [whole.examples[i] for i in range(min(count, len(whole)))]
    folder.begin({})
    store.write(folder.path, "train", whole.examples.schema, len(examples), lambda start, stop: examples[start:stop])
    np.save(folder.path / "train.lengths.npy", pipeline.example_lengths(examples))
    folder.finish({}, 0.0)
    return pipeline.Split(folder, "train")


def write_cache(teacher: Teacher, split: pipeline.Split, signal: TopK | Sampled, folder: Path) -> float:
    """Return the seconds to write the split's records, without compilation."""
    schema = {**(signal.schema(teacher.vocab_size) or {}), **pipeline.DIGEST}
    step = functools.partial(signal_step, model=teacher.model, signal=signal, seed=teacher.experiment.seed)
    compiled = teacher.devices.compile(step)

    def infer(batch: Batch) -> Record:
        payload = teacher.devices.to_host(compiled(teacher.params, teacher.devices.shard(batch)))
        return payload | {"mask": batch.mask_BT}

    def to_record(example: Segment, b: int, outputs: Record) -> Record:
        return {name: values[b][outputs["mask"][b]] for name, values in outputs.items() if name != "mask"}

    with progress.bar(f"cache {folder.name}", 2 * len(split)) as bar:

        def make(start: int, stop: int) -> Iterator[Record]:
            indices, shapes = range(start, stop), teacher.experiment.shapes
            batches = pipeline.EvalBatches(
                split, teacher.layout, shapes, pipeline.INFERENCE_BATCH_SIZE, teacher.devices.count, indices
            )
            return infer_records(split, indices, batches, infer, to_record, bar)

        list(make(0, len(split)))  # compiles every shape
        start_time = time.perf_counter()
        store.write(folder, "records", schema, len(split), make)
        return time.perf_counter() - start_time


def train_batches(
    split: pipeline.Split, experiment: ResolvedExperiment, recipe: ResolvedRecipe
) -> pipeline.TrainBatches:
    """Return the student's batches, on the host."""
    return pipeline.TrainBatches(
        split,
        recipe.model.layout(START),
        experiment.shapes,
        tokens_per_batch=recipe.training.tokens_per_batch,
        packed=recipe.training.packed,
        divisor=1,
        seed=0,
    )


def epoch_seconds(sources: dict[str, pipeline.TrainBatches]) -> dict[str, float]:
    """Return the median seconds to make an epoch's batches from each source."""
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(REPEATS + 1):  # the first repeat opens the files
        for name, source in sources.items():
            start_time = time.perf_counter()
            for i in range(source.batches_per_epoch):
                source[i]
            seconds[name].append(time.perf_counter() - start_time)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def step_seconds(recipe: ResolvedRecipe, source: pipeline.TrainBatches, vocab_size: int) -> float:
    """Return the mean seconds of the student's step over the first batches of an epoch."""
    model, tx = recipe.model.build(vocab_size), recipe.training.optimizer.build(recipe.training.steps)
    devices = make_devices("jit")
    step = devices.compile_sums(functools.partial(train_step, model=model, terms=recipe.terms, tx=tx), donate=True)
    state = devices.replicate(init_state(jax.random.key(1), jax.jit(model.init)(jax.random.key(0)), tx))
    batches = [devices.shard(source[i]) for i in range(min(60, source.batches_per_epoch))]
    seconds = []
    for repeat in range(2):
        for batch in batches:
            start_time = time.perf_counter()
            state, sums = step(state, batch)
            jax.block_until_ready(sums)
            if repeat:  # the first repeat compiles
                seconds.append(time.perf_counter() - start_time)
    return sum(seconds) / len(seconds)


def measure(
    experiment: ResolvedExperiment, workdir: Workdir, scratch: Path, examples: int, draws: int
) -> dict[str, Any]:
    """Write caches of the first `examples` to the folder `scratch`, and return the figures."""
    assert experiment.comparison is not None
    teacher, recipe = Teacher(experiment, workdir), experiment.students[experiment.comparison.distilled]
    signals = {"topk64": TopK(k=64), "sampled12": Sampled(draws=draws)}
    whole, folder = pipeline.Split(workdir.data, "train"), Folder(scratch / "data", "benchmark")
    split = sub_split(whole, folder, examples)
    tokens = sum(int(split.examples[i]["counts"].sum()) for i in range(len(split)))
    seconds = {name: write_cache(teacher, split, signal, scratch / name) for name, signal in signals.items()}
    caches = {name: store.Store(scratch / name, "records") for name in signals}
    cached = pipeline.Split(folder, "train", {"topk": caches["topk64"]})
    sources = {"plain": train_batches(split, experiment, recipe), "topk64": train_batches(cached, experiment, recipe)}
    read = epoch_seconds(sources)
    step = step_seconds(recipe, sources["topk64"], teacher.vocab_size)
    unique = np.concatenate([(caches["sampled12"][i]["counts"] > 0).sum(-1) for i in range(len(split))])
    return {
        "write_tokens_per_second": tokens / seconds["topk64"],
        "read_tokens_per_second": tokens / read["topk64"],
        "read_share_of_step": (read["topk64"] - read["plain"]) / sources["plain"].batches_per_epoch / step,
        "bytes_per_target_token": {name: cache.num_bytes() / tokens for name, cache in caches.items()},
        "unique_ids": float(np.mean(unique)),
        "draws": draws,
        "step_seconds": step,
    }


def main() -> None:
    """Print the figures, and write them to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs/quickstart")
    parser.add_argument("--config", type=Path, default=ROOT / "experiments/configs/quickstart.py")
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--draws", type=int, default=32, help="samples per token; 32 give about 12 unique ids")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    use_compilation_cache()
    experiment, workdir = resolve(load_experiment(arguments.config)), Workdir(arguments.workdir)
    prepare(experiment, workdir)
    train_teacher(experiment, workdir)
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(experiment, workdir, Path(scratch), arguments.examples, arguments.draws)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
