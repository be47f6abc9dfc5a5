"""What a cache of the teacher would cost and keep, and what a student's step costs: measured on a sample."""

import functools
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.artifacts import runlog
from kd_jax.artifacts.manifest import Folder
from kd_jax.data import pipeline, store
from kd_jax.data.buckets import place
from kd_jax.experiment import Experiment, Recipe
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.base import Model
from kd_jax.objective.fused_head import map_head
from kd_jax.objective.terms import Term, Terms, needs_teacher
from kd_jax.parallel import devices
from kd_jax.signals.base import Signal
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK
from kd_jax.teaching.base import Teacher
from kd_jax.teaching.signal_cache import signal_records
from kd_jax.training.step import init_state, train_step
from kd_jax.types import Array, Batch, Params, Sum

SAMPLE = 512  # training examples that are looked at
KS, DRAWS = (8, 16, 32, 64, 128, 256), (16, 32, 64)
STEPS = 9  # timed of each student step


class SignalCost(NamedTuple):
    """What one signal costs and keeps.

    Attributes:
      title: such as "top 32" or "64 draws".
      bytes_per_token: on disk, with all that a record needs.
      bytes: of the whole cache.
      hours: to write it.
      covered: mass of the k likeliest; for draws, unique ids.
      lost: nats a token. Top-k: KL(full || k exact, the rest spread evenly). Draws: KL(drawn || full), which averages
        out over tokens (the gradient is unbiased), so the two are not to be compared.
    """

    title: str
    bytes_per_token: float
    bytes: float
    hours: float
    covered: float
    lost: float


class StepCost(NamedTuple):
    """A student's step.

    Attributes:
      title: the way of teaching.
      seconds: median.
      memory: bytes of arguments and temporaries, by XLA's account.
    """

    title: str
    seconds: float
    memory: int


def candidates(vocab_size: int) -> dict[str, Signal]:
    """Title -> the signals that are compared."""
    topk = {f"top {k}": TopK(k=k) for k in KS if k <= vocab_size}
    return topk | {f"{draws} draws": Sampled(draws=draws) for draws in DRAWS}


def signal_costs(teacher: Teacher, folder: Path) -> list[SignalCost]:
    """Each candidate, written to `folder` as the cache phase would from an evenly spaced sample.

    Every example is padded to the longest bucket, so that each signal is compiled once.
    """
    whole = pipeline.Split(teacher.workdir.data, "train")
    places = np.linspace(0, len(whole) - 1, min(SAMPLE, len(whole))).astype(int)
    lengths = whole.lengths[places]
    shapes = teacher.experiment.shapes
    fitting = places[place(lengths, shapes, teacher.layout) < len(shapes)]
    sample = _sample(whole, fitting, Folder(folder / "sample", "plan"))
    tokens = _counted(sample) * len(whole) / len(sample)
    signals = candidates(teacher.data["vocab_size"])
    with runlog.progress("plan: signals", 3 * len(sample) * len(signals)) as bar:
        return [
            _signal_cost(teacher, sample, title, signal, folder / title, tokens, bar)
            for title, signal in signals.items()
        ]


def _sample(whole: pipeline.Split, places: np.ndarray, folder: Folder) -> pipeline.Split:
    """Those examples as a split of their own."""
    examples = [whole.examples[int(i)] for i in places]
    folder.begin({})
    store.write(folder.path, "train", whole.examples.schema, len(examples), lambda start, stop: examples[start:stop])
    np.save(folder.path / "train.lengths.npy", pipeline.lengths_of(examples))
    folder.finish({}, 0.0)
    return pipeline.Split(folder, "train")


def _counted(split: pipeline.Split) -> int:
    """Target tokens that count, of which a cache holds a record each."""
    return sum(int(split.examples[i]["counts"].sum()) for i in range(len(split)))


def _signal_cost(
    teacher: Teacher, sample: pipeline.Split, title: str, signal: Signal, folder: Path, tokens: float, bar: Any
) -> SignalCost:
    """Timed once its program is compiled."""
    schema = dict(signal.schema(teacher.data["vocab_size"])) | pipeline.DIGEST
    records = signal_records(teacher, sample, signal, bar, teacher.experiment.shapes[-1:])
    with bar.compiling(title):
        list(records(0, len(sample)))
    began = time.perf_counter()
    store.write(folder, "records", schema, len(sample), records)
    seconds = time.perf_counter() - began
    seen = _counted(sample)
    size = store.Store(folder, "records").bytes() / seen
    covered, lost = _knowledge(teacher, sample, signal)
    bar.advance(len(sample))
    return SignalCost(title, size, size * tokens, tokens * seconds / seen / 3600, covered, lost)


def _knowledge(teacher: Teacher, sample: pipeline.Split, signal: Signal) -> tuple[float, float]:
    """(covered, lost) over the sample."""
    step = teacher.devices.compile_sums(functools.partial(_knowledge_step, model=teacher.model, signal=signal))
    shapes = teacher.experiment.shapes[-1:]
    batches = pipeline.EvalBatches(sample, teacher.layout, shapes, 64, teacher.devices.count)
    parts = [teacher.devices.first(step(teacher.params, teacher.devices.cut(batch))) for batch in batches]
    sums = jax.tree.map(lambda *each: sum(each), *jax.device_get(parts))
    return float(sums["covered"].mean()), float(sums["lost"].mean())


def _knowledge_step(params: Params, batch: Batch, *, model: Model, signal: Signal, all_sum: Any) -> dict[str, Sum]:
    hidden_BTD = model.apply(params, batch.inputs)
    mask_N = batch.mask_BT.reshape(-1)
    keys_N = jax.random.key_data(jax.random.split(jax.random.key(0), mask_N.shape[0]))
    measure = {TopK: _of_topk, Sampled: _of_draws}[type(signal)]
    of_tokens = lambda logits_NV, keys: measure(signal, logits_NV, jax.random.wrap_key_data(keys))  # noqa: E731
    covered_N, lost_N = map_head(of_tokens, hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), model.head(params), keys_N)
    return all_sum({"covered": Sum.over(covered_N, mask_N), "lost": Sum.over(lost_N, mask_N)})


def _of_topk(signal: TopK, logits_NV: Array, key_N: Array) -> tuple[Array, Array]:
    """(mass of the k; KL lost where the rest is spread evenly) of each token."""
    payload = signal.reduce(logits_NV, key_N)
    logp_NV = jax.nn.log_softmax(logits_NV)
    rest_N = jnp.exp(signal.align(logits_NV, payload, 1.0).student_logp_NK[:, -1])
    others = logits_NV.shape[-1] - signal.k
    outside_NV = jnp.put_along_axis(logp_NV, payload["ids"], -jnp.inf, axis=-1, inplace=False)
    entropy_N = jnp.where(outside_NV > -jnp.inf, jnp.exp(outside_NV) * logp_NV, 0.0).sum(-1)
    even_N = jnp.where(rest_N > 0, rest_N * (jnp.log(jnp.maximum(rest_N, 1e-30)) - jnp.log(max(others, 1.0))), 0.0)
    return 1 - rest_N, entropy_N - even_N


def _of_draws(signal: Sampled, logits_NV: Array, key_N: Array) -> tuple[Array, Array]:
    """(number of unique ids; KL(drawn || full)) of each token."""
    payload = signal.reduce(logits_NV, key_N)
    aligned = signal.align(logits_NV, payload, 1.0)
    lost_N = forward_kl(aligned.teacher_logp_NK, aligned.student_logp_NK)
    return (payload["counts"] > 0).sum(-1, dtype=jnp.float32), lost_N


def step_costs(experiment: Experiment, teacher: Teacher, recipe: Recipe) -> list[StepCost]:
    """One per way of teaching: the student's step on a batch of the longest bucket; cross-entropy alone first."""
    signal = TopK(k=min(32, teacher.data["vocab_size"]))
    ways: Mapping[str, Terms] = {
        "cross-entropy alone": {"ce": Term(cross_entropy)},
        "with a top-k cache": {"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=signal)},
        "with the teacher in the step": {"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=Online())},
    }
    batch = _batch(experiment, teacher, recipe, signal)
    with runlog.progress("plan: a student's step", (STEPS + 2) * len(ways)) as bar:
        steps = {}
        for way, terms in ways.items():
            with bar.compiling(way):
                steps[way] = _compiled(recipe, terms, teacher, batch)
            bar.advance(1)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(STEPS + 1):
            for way, (compiled, arguments) in steps.items():
                began = time.perf_counter()
                jax.block_until_ready(compiled(*arguments))
                seconds[way].append(time.perf_counter() - began)
                bar.advance(1)
    costs = []
    for way, (compiled, _) in steps.items():
        memory = compiled.memory_analysis()
        used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        costs.append(StepCost(way, statistics.median(seconds[way][1:]), used))
    return costs


def _batch(experiment: Experiment, teacher: Teacher, recipe: Recipe, signal: TopK) -> Batch:
    """A batch of the longest bucket, with a payload of the right shape."""
    split, bucket = pipeline.Split(teacher.workdir.data, "train"), experiment.shapes[-1]
    layout = recipe.model.layout(teacher.data["start"])
    rows = max(1, recipe.training.tokens_per_batch // int(layout.sizes(np.asarray(bucket))[-1]))
    fitting = np.flatnonzero(place(split.lengths, [bucket], layout) == 0)[:rows]
    batch = split.batch(layout, np.resize(fitting, rows)[:, None], rows, bucket)
    schema = signal.schema(teacher.data["vocab_size"])
    payload = {name: np.zeros((*batch.targets_BT.shape, *field.shape), field.dtype) for name, field in schema.items()}
    payload["ids"] += np.arange(signal.k).astype(payload["ids"].dtype)
    return batch._replace(payload={signal.name: payload})


def _compiled(recipe: Recipe, terms: Terms, teacher: Teacher, batch: Batch) -> tuple[Any, tuple]:
    """(the compiled step, its arguments); each way is handed only what it needs."""
    online, cached = needs_teacher(terms), any(term.signal and term.signal.origin == "cache" for term in terms.values())
    model = recipe.model.build(teacher.data["vocab_size"])
    tx = recipe.training.optimizer.build(recipe.training.steps)
    parts = {"model": model, "terms": terms, "tx": tx, "teacher": teacher.model if online else None}
    state = init_state(jax.random.key(1), jax.jit(model.init)(jax.random.key(0)), tx)
    beside = teacher.devices.first(teacher.params) if online else None
    one = devices("jit")
    arguments = one.put((state, batch if cached else batch._replace(payload={}), beside))
    return one.compile_sums(functools.partial(train_step, **parts)).lower(*arguments).compile(), arguments
