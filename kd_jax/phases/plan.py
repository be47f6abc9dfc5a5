"""What would a cache of the teacher cost, and what would it keep? From a sample, before anything long runs."""

import functools
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.artifacts import runlog
from kd_jax.data import pipeline, store
from kd_jax.evaluation.closeness import total
from kd_jax.experiment import Experiment, Recipe
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.objective.fused_head import map_head
from kd_jax.objective.terms import Term, Terms
from kd_jax.parallel.base import Parallel, parallel
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK
from kd_jax.teaching.signal_cache import Teacher, signal_records
from kd_jax.training.model import batches
from kd_jax.training.step import init_state, train_step
from kd_jax.types import Array, Batch, Model, Params, Signal, Sum

SAMPLE = 512  # training examples that are looked at
STAND_IN_STEPS = 150
KS, DRAWS = (8, 16, 32, 64, 128, 256), (16, 32, 64)
STEPS = 5  # timed of each student step


def run(experiment: Experiment, workdir: Path, force: bool = False) -> None:
    """Prints two tables: what a signal costs and keeps, and what a student's step costs with and without it.

    Nothing is kept in the workdir but the prepared data. Where the teacher is not trained yet, one of a few
    steps stands in; a better teacher is surer, so its top k cover more.
    """
    teacher = _teacher(experiment, workdir)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample, tokens = _sample(workdir, folder)
        rows = [
            _signal_row(teacher, sample, signal, folder / signal_title(signal), tokens)
            for signal in candidates(teacher)
        ]
    runlog.say(
        "\n" + _text(("signal", "bytes/token", "whole cache", "hours to write", "mass covered", "KL lost"), rows)
    )
    runlog.say(
        f"{len(sample)} training examples, files measured with all that a record needs; {tokens:,} target tokens\n"
        "KL lost, nats a token: top-k: KL(full || k exact, the rest spread evenly); sampled: KL(drawn || full), which\n"
        "averages out over tokens (its gradient is unbiased), so it is not to be compared with top-k's.\n"
    )
    name, recipe = next(iter(experiment.students.items()))
    runlog.say(
        _text(("student step", "time", "of ce", "memory"), _step_rows(experiment, name, recipe, workdir, teacher))
    )
    runlog.say(
        f"{name}'s network and batches; memory: arguments and temporary, by XLA's account; a cache of the top 32."
    )


def candidates(teacher: Teacher) -> list[Signal]:
    """The signals that are compared."""
    vocab_size = teacher.data["vocab_size"]
    return [*(TopK(k=k) for k in KS if k <= vocab_size), *(Sampled(draws=draws) for draws in DRAWS)]


def signal_title(signal: Signal) -> str:
    return f"top {signal.k}" if isinstance(signal, TopK) else f"{signal.draws} draws"


def _teacher(experiment: Experiment, workdir: Path) -> Teacher:
    """The trained teacher, or a stand-in that has seen a few batches."""
    if (workdir / "teacher" / "manifest.json").exists():
        return Teacher(experiment, workdir)
    recipe, spread = experiment.teacher, parallel(experiment.backend)
    stand_in = Teacher(experiment, workdir, stand_in=True)
    train, _ = batches(experiment, recipe, workdir, {}, spread)
    params = jax.jit(stand_in.model.init)(jax.random.key(experiment.seed))
    steps = min(STAND_IN_STEPS, recipe.training.steps)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    step = spread.spread(
        functools.partial(train_step, model=stand_in.model, terms=recipe.terms, tx=tx), donate_state=True
    )
    state, iterator = spread.replicate(init_state(jax.random.key(experiment.seed), params, tx)), iter(train)
    with runlog.progress("plan: a stand-in for the teacher, which is not trained yet", steps) as bar:
        for _ in range(steps):
            state, sums = step(state, spread.shard(next(iterator)), None)
            bar.advance(1, loss=float(jax.device_get(spread.first(sums["loss"])).mean()))
    stand_in.params = state.params
    return stand_in


def _sample(workdir: Path, folder: Path) -> tuple[pipeline.Split, int]:
    """(evenly spaced training examples as a split of their own, target tokens of the whole split)."""
    whole = pipeline.Split(workdir / "data", "train")
    places = np.linspace(0, len(whole) - 1, min(SAMPLE, len(whole))).astype(int)
    examples = [whole.examples[int(i)] for i in places]
    store.write(folder, "train", whole.examples.schema, len(examples), lambda start, stop: examples[start:stop])
    np.save(folder / "train.lengths.npy", pipeline.lengths_of(examples))
    sampled = sum(len(example["target"]) for example in examples)
    return pipeline.Split(folder, "train"), round(sampled * len(whole) / len(examples))


def _signal_row(teacher: Teacher, sample: pipeline.Split, signal: Signal, folder: Path, tokens: int) -> tuple[str, ...]:
    """One signal's cells: it is written as the cache phase would, and timed once its program is compiled."""
    schema = dict(signal.schema(teacher.data["vocab_size"])) | pipeline.DIGEST
    with runlog.progress(f"plan: {signal_title(signal)}", 2 * len(sample)) as bar:
        records = signal_records(teacher, sample, signal, bar)
        list(records(0, len(sample)))
        began = time.perf_counter()
        store.write(folder, "records", schema, len(sample), records)
        seconds = time.perf_counter() - began
    seen = sum(len(sample.examples[i]["target"]) for i in range(len(sample)))
    size = store.Store(folder, "records").bytes() / seen
    mass, lost = _kept(teacher, sample, signal)
    hours = tokens * seconds / seen / 3600
    return signal_title(signal), f"{size:.1f}", f"{size * tokens / 2**20:,.1f} MiB", f"{hours:.3f}", mass, f"{lost:.4f}"


def _kept(teacher: Teacher, sample: pipeline.Split, signal: Signal) -> tuple[str, float]:
    """(mass covered in words, KL lost) over the sample."""
    spread = teacher.spread
    step = spread.spread(functools.partial(_kept_step, model=teacher.model, signal=signal))
    sums = [
        jax.device_get(spread.first(step(teacher.params, spread.shard(batch))))
        for batch in pipeline.EvalBatches(sample, teacher.experiment.buckets, 64, spread.devices)
    ]
    added = jax.tree.map(lambda *parts: sum(parts), *sums)
    covered = float(added["covered"].mean())
    words = f"{covered:.2%}" if isinstance(signal, TopK) else f"{covered:.1f} unique ids"
    return words, float(added["lost"].mean())


def _kept_step(
    params: Params, batch: Batch, *, model: Model, signal: Signal, all_sum=lambda tree: tree
) -> dict[str, Sum]:
    hidden_BTD = model.apply(params, batch)
    mask_N = batch.mask_BT.reshape(-1)
    keys_N = jax.random.key_data(jax.random.split(jax.random.key(0), mask_N.shape[0]))
    kept = lambda logits_NV, keys: _kept_tokens(signal, logits_NV, jax.random.wrap_key_data(keys))  # noqa: E731
    covered_N, lost_N = map_head(kept, hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), model.head(params), keys_N)
    return all_sum({"covered": total(covered_N, mask_N), "lost": total(lost_N, mask_N)})


def _kept_tokens(signal: Signal, logits_NV: Array, key_N: Array) -> tuple[Array, Array]:
    """(mass of the k, or number of unique ids; KL lost) of each token."""
    payload = signal.reduce(logits_NV, key_N)
    logp_NV = jax.nn.log_softmax(logits_NV)
    if isinstance(signal, Sampled):
        aligned = signal.align(logits_NV, payload, 1.0)
        return (payload["counts"] > 0).sum(-1, dtype=jnp.float32), forward_kl(*aligned[:2])
    rest_N = jnp.exp(signal.align(logits_NV, payload, 1.0).student_logp_NK[:, -1])
    others = logits_NV.shape[-1] - signal.k
    outside_NV = jnp.put_along_axis(logp_NV, payload["ids"], -jnp.inf, axis=-1, inplace=False)
    entropy_N = jnp.where(outside_NV > -jnp.inf, jnp.exp(outside_NV) * logp_NV, 0.0).sum(-1)
    even_N = jnp.where(rest_N > 0, rest_N * (jnp.log(jnp.maximum(rest_N, 1e-30)) - jnp.log(max(others, 1.0))), 0.0)
    return 1 - rest_N, entropy_N - even_N


def _step_rows(
    experiment: Experiment, name: str, recipe: Recipe, workdir: Path, teacher: Teacher
) -> list[tuple[str, ...]]:
    """One row per way of teaching: the student's step on a batch of the longest bucket."""
    spread, signal = parallel("jit"), TopK(k=min(32, teacher.data["vocab_size"]))
    ways: Mapping[str, Terms] = {
        "cross-entropy alone": {"ce": Term(cross_entropy)},
        "with a top-k cache": {"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=signal)},
        "with the teacher in the step": {"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=Online())},
    }
    batch = _batch(experiment, recipe, workdir, signal, teacher.data["vocab_size"])
    steps = {way: _compiled(recipe, terms, teacher, batch, spread) for way, terms in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with runlog.progress(f"plan: {name}'s step", (STEPS + 1) * len(ways)) as bar:
        for _ in range(STEPS + 1):
            for way, (compiled, arguments) in steps.items():
                began = time.perf_counter()
                jax.block_until_ready(compiled(*arguments))
                seconds[way].append(time.perf_counter() - began)
                bar.advance(1)
    rows, base = [], None
    for way, (compiled, _) in steps.items():
        median = statistics.median(seconds[way][1:])
        base = base or median
        memory = compiled.memory_analysis()
        used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        rows.append((way, f"{1e3 * median:.1f} ms", f"{median / base:.2f} x", f"{used / 2**20:,.1f} MiB"))
    return rows


def _batch(experiment: Experiment, recipe: Recipe, workdir: Path, signal: TopK, vocab_size: int) -> Batch:
    """A batch of the longest bucket, with a payload of the right shape."""
    split, length = pipeline.Split(workdir / "data", "train"), experiment.buckets[-1]
    rows = max(1, recipe.training.tokens_per_batch // length)
    fitting = np.flatnonzero(split.lengths <= length)[:rows]
    batch = pipeline.pad(split, np.resize(fitting, rows), rows, length)
    ids = np.arange(signal.k)[None, None]
    payload = {
        field: np.zeros((rows, length, *one.shape), one.dtype) for field, one in signal.schema(vocab_size).items()
    }
    payload["ids"] = payload["ids"] + ids.astype(payload["ids"].dtype)
    return batch._replace(payload={signal.name: payload})


def _compiled(recipe: Recipe, terms: Terms, teacher: Teacher, batch: Batch, spread: Parallel) -> tuple[Any, tuple]:
    """(the compiled step, its arguments); each way is handed only what it needs."""
    cached = any(isinstance(term.signal, TopK) for term in terms.values())
    online = any(isinstance(term.signal, Online) for term in terms.values())
    model = recipe.model.build(teacher.data["vocab_size"])
    tx = recipe.training.optimizer.build(recipe.training.steps)
    parts = {"model": model, "terms": terms, "tx": tx, "teacher": teacher.model if online else None}
    state = init_state(jax.random.key(1), jax.jit(model.init)(jax.random.key(0)), tx)
    beside = teacher.spread.first(teacher.params) if online else None
    arguments = state, batch if cached else batch._replace(payload={}), beside
    arguments = spread.replicate(arguments)
    return jax.jit(functools.partial(train_step, **parts)).lower(*arguments).compile(), arguments


def _text(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
