"""The teacher's cache on the quickstart's corpus: how fast it is written and read, how large it is.

    python experiments/benchmarks/cache.py --workdir runs/quickstart --json cache.json

Uses the workdir's trained teacher; trains it first where there is none. A share of the training split is written with
the top 64 and with draws of about 12 unique ids a token, into a temporary folder; sizes are those of the files, all
that a record needs included. Reading is the training pipeline's own: one epoch with the cache against one without, as
batches on the host; what the cache adds is compared with the time of the student's step, measured in the same process.
"""

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts import runlog
from kd_jax.cli import resolve as setup
from kd_jax.data import pipeline, store
from kd_jax.experiment import Experiment
from kd_jax.phases import prepare, teacher
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK
from kd_jax.teaching.signal_cache import Teacher, signal_records
from kd_jax.training.step import init_state, train_step

ROOT = Path(__file__).parents[2]
REPEATS = 5


def sub_split(workdir: Path, folder: Path, count: int) -> pipeline.Split:
    """The first examples of the training split, as a split of their own."""
    whole = pipeline.Split(workdir / "data", "train")
    examples = [whole.examples[i] for i in range(min(count, len(whole)))]
    store.write(folder, "train", whole.examples.schema, len(examples), lambda start, stop: examples[start:stop])
    np.save(folder / "train.lengths.npy", pipeline.lengths_of(examples))
    return pipeline.Split(folder, "train")


def write_cache(said: Teacher, split: pipeline.Split, signal: TopK | Sampled, folder: Path) -> float:
    """Seconds to write the split's records, the compilation left out."""
    schema = dict(signal.schema(said.data["vocab_size"])) | pipeline.DIGEST
    records = signal_records(said, split, signal, runlog.PlainBar("cache", 2 * len(split)))
    list(records(0, len(split)))  # compiles every shape
    began = time.perf_counter()
    store.write(folder, "records", schema, len(split), records)
    return time.perf_counter() - began


def epochs(splits: dict[str, pipeline.Split], experiment: Experiment) -> tuple[dict[str, float], int]:
    """(median seconds to make an epoch's batches from each split, batches of an epoch)."""
    tokens = experiment.students["student_kd"].training.tokens_per_batch
    sources = {
        name: pipeline.TrainBatches(split, experiment.buckets, tokens, 1, 0, 0, 1) for name, split in splits.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in splits}
    for _ in range(REPEATS + 1):  # the first opens the files
        for name, source in sources.items():
            began = time.perf_counter()
            for i in range(source.per_epoch):
                source[i]
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}, source.per_epoch


def step_seconds(experiment: Experiment, split: pipeline.Split, vocab_size: int) -> float:
    """Mean seconds of the distilled student's step over batches of the epoch's lengths."""
    recipe = experiment.students["student_kd"]
    source = pipeline.TrainBatches(split, experiment.buckets, recipe.training.tokens_per_batch, 1, 0, 0, 1)
    model, tx = recipe.model.build(vocab_size), recipe.training.optimizer.build(recipe.training.steps)
    step = jax.jit(functools.partial(train_step, model=model, terms=recipe.terms, tx=tx), donate_argnums=0)
    state = init_state(jax.random.key(1), jax.jit(model.init)(jax.random.key(0)), tx)
    batches = [jax.device_put(source[i]) for i in range(min(60, source.per_epoch))]
    seconds = []
    for repeat in range(2):
        for batch in batches:
            began = time.perf_counter()
            state, sums = step(state, batch)
            jax.block_until_ready(sums)
            seconds += [time.perf_counter() - began] if repeat else []
    return sum(seconds) / len(seconds)


def main() -> None:
    """Prints the figures; writes them to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs/quickstart")
    parser.add_argument("--config", type=Path, default=ROOT / "experiments/configs/quickstart.py")
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--draws", type=int, default=32, help="chosen so that about 12 ids are unique")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    arguments = parser.parse_args()
    setup.share_compiled_programs()
    experiment = config.load(arguments.config)
    for phase in (prepare, teacher):
        phase.run(experiment, arguments.workdir)
    said = Teacher(experiment, arguments.workdir)
    signals = {"topk64": TopK(k=64), "sampled12": Sampled(draws=arguments.draws)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split = sub_split(arguments.workdir, folder, arguments.examples)
        tokens = sum(len(split.examples[i]["target"]) for i in range(len(split)))
        seconds = {key: write_cache(said, split, signal, folder / key) for key, signal in signals.items()}
        caches = {key: store.Store(folder / key, "records") for key in signals}
        splits = {"plain": split, "topk64": pipeline.Split(folder, "train", {"topk": caches["topk64"]})}
        read, batches = epochs(splits, experiment)
        step = step_seconds(experiment, splits["topk64"], said.data["vocab_size"])
        unique = np.concatenate([(caches["sampled12"][i]["counts"] > 0).sum(-1) for i in range(len(split))])
        figures = {
            "write_tokens_per_second": tokens / seconds["topk64"],
            "read_tokens_per_second": tokens / read["topk64"],
            "read_share_of_step": (read["topk64"] - read["plain"]) / batches / step,
            "bytes_per_target_token": {key: cache.bytes() / tokens for key, cache in caches.items()},
            "unique_ids": float(np.sum(unique) / len(unique)),
            "draws": arguments.draws,
            "step_seconds": step,
        }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
