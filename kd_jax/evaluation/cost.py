"""What a cache of the teacher would cost and keep, and what a student's step costs: measured on a sample."""

import functools
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline, store
from kd_jax.batches.buckets import place
from kd_jax.experiment import ResolvedExperiment, ResolvedRecipe
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.base import Model
from kd_jax.objective.fused_head import map_head
from kd_jax.objective.terms import Term, Terms, needs_teacher
from kd_jax.runtime import progress
from kd_jax.runtime.backends import make_devices
from kd_jax.signals.base import Signal
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK
from kd_jax.teaching.records import Record
from kd_jax.teaching.teacher import Teacher
from kd_jax.training.step import init_state, train_step
from kd_jax.types import Array, Batch, Params, Payload

SAMPLE = 512  # most training examples that are looked at
SAMPLE_TOKENS = 2**14  # about what the teacher reads of them, so that a large one's plan ends soon
KNOWLEDGE_TOKENS = 2**12  # targets at which what a signal covers and loses is measured
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
    """Each candidate, written to `folder` from a sample of the training split.

    The teacher reads the sample once, in the cache's batches; every signal is made of what its last layer then holds,
    since all caches cost the same up to there.
    """
    whole = pipeline.Split(teacher.workdir.data, "train")
    sample = _sample(teacher, whole, Folder(folder / "sample", "plan"))
    signals = candidates(teacher.vocab_size)
    with progress.bar("plan: signals", 1 + len(signals)) as bar:
        states = _states(teacher, sample, bar)
        bar.advance(1)
        targets = len(states.hidden_ND)
        in_all = targets * len(whole) / len(sample)
        costs = []
        for title, signal in signals.items():
            seconds, size = (one / targets for one in _written(teacher, sample, states, signal, folder / title, bar))
            covered, lost = _knowledge(teacher, states.hidden_ND, signal)
            costs.append(SignalCost(title, size, size * in_all, in_all * seconds / 3600, covered, lost))
            bar.advance(1)
    return costs


def _sample(teacher: Teacher, whole: pipeline.Split, folder: Folder) -> pipeline.Split:
    """Evenly spaced examples as a split of their own: about SAMPLE_TOKENS, in at least a batch and at most SAMPLE."""
    count = int(np.clip(SAMPLE_TOKENS // max(1, whole.lengths.sum(-1).mean()), pipeline.INFERENCE_BATCH_SIZE, SAMPLE))
    places = np.linspace(0, len(whole) - 1, min(count, len(whole))).astype(int)
    shapes = teacher.experiment.shapes
    fitting = places[place(whole.lengths[places], shapes, teacher.layout) < len(shapes)]
    examples = [whole.examples[int(i)] for i in fitting]
    folder.begin({})
    store.write(folder.path, "train", whole.examples.schema, len(examples), lambda start, stop: examples[start:stop])
    np.save(folder.path / "train.lengths.npy", pipeline.lengths_of(examples))
    folder.finish({}, 0.0)
    return pipeline.Split(folder, "train")


class States(NamedTuple):
    """What the teacher's last layer holds of a sample.

    Attributes:
      hidden_ND: float, of the targets that count, example by example.
      ends: places in N at which the examples end, but the last.
      seconds: that the teacher took to read, padding included.
      padding: targets with the padded ones, over those that count.
    """

    hidden_ND: np.ndarray
    ends: np.ndarray
    seconds: float
    padding: float


def _states(teacher: Teacher, sample: pipeline.Split, bar: Any) -> States:
    """Timed once its programs are compiled, one for each bucket."""
    devices, shapes = teacher.devices, teacher.experiment.shapes
    step = devices.compile(lambda params, inputs: teacher.model.apply(params, inputs))
    batches = pipeline.EvalBatches(sample, teacher.layout, shapes, pipeline.INFERENCE_BATCH_SIZE, devices.count)
    masks, inputs = zip(*[(batch.mask_BT, devices.shard(batch.inputs)) for batch in batches], strict=True)
    buckets = [bucket for bucket, _ in batches.plan]
    for bucket in dict.fromkeys(buckets):
        with bar.compiling(bucket):
            jax.block_until_ready(step(teacher.params, inputs[buckets.index(bucket)]))
    began = time.perf_counter()
    read = jax.block_until_ready([step(teacher.params, one) for one in inputs])
    seconds = time.perf_counter() - began
    hidden = {}
    for (_, indices), mask_BT, states in zip(batches.plan, masks, read, strict=True):
        hidden_BTD = devices.to_host(states)
        hidden |= {int(i): hidden_BTD[b][mask_BT[b]] for b, i in enumerate(indices)}
    by_example = [hidden[i] for i in range(len(sample))]
    padding = sum(mask_BT.size for mask_BT in masks) / sum(mask_BT.sum() for mask_BT in masks)
    return States(np.concatenate(by_example), np.cumsum(list(map(len, by_example)))[:-1], seconds, float(padding))


def _written(
    teacher: Teacher, sample: pipeline.Split, states: States, signal: Signal, folder: Path, bar: Any
) -> tuple[float, int]:
    """(seconds to read, reduce and write the sample, without compiling; bytes on disk)."""
    devices, seen = teacher.devices, len(states.hidden_ND)
    rows = -(-seen // devices.count) * devices.count
    keys_N = jax.random.key_data(jax.random.split(jax.random.key(0), rows))
    arguments = teacher.params, devices.shard((np.resize(states.hidden_ND, (rows, states.hidden_ND.shape[1])), keys_N))
    reduce = functools.partial(_reduce, model=teacher.model, signal=signal)
    with bar.compiling(folder.name):
        program = devices.compile(reduce).lower(*arguments).compile()
    began = time.perf_counter()
    payload = devices.to_host(program(*arguments))
    reducing = time.perf_counter() - began
    parts = {name: np.split(values[:seen], states.ends) for name, values in payload.items()}

    def records(start: int, stop: int) -> Iterator[Record]:
        for i in range(start, stop):
            digest = {"digest": pipeline.example_digest(sample.read(i).encoded)}
            yield {name: values[i] for name, values in parts.items()} | digest

    began = time.perf_counter()
    store.write(
        folder, "records", dict(signal.schema(teacher.vocab_size)) | pipeline.DIGEST, len(sample), records
    )
    seconds = states.seconds + states.padding * reducing + time.perf_counter() - began
    return seconds, store.Store(folder, "records").bytes()


def _reduce(params: Params, rows: tuple[Array, Array], *, model: Model, signal: Signal) -> Payload:
    """What the signal keeps of each target: [N, ...] per field."""
    hidden_ND, keys_N = rows
    draw = lambda logits_NV, keys: signal.reduce(logits_NV, jax.random.wrap_key_data(keys))  # noqa: E731
    return map_head(draw, hidden_ND, model.head(params), keys_N)


def _knowledge(teacher: Teacher, hidden_ND: np.ndarray, signal: Signal) -> tuple[float, float]:
    """(covered, lost), means over evenly spaced targets."""
    places = np.linspace(0, len(hidden_ND) - 1, min(KNOWLEDGE_TOKENS, len(hidden_ND))).astype(int)
    step = jax.jit(functools.partial(_knowledge_step, model=teacher.model, signal=signal))
    covered_N, lost_N = jax.device_get(step(teacher.devices.unreplicate(teacher.params), hidden_ND[places]))
    return float(covered_N.mean(dtype=np.float64)), float(lost_N.mean(dtype=np.float64))


def _knowledge_step(params: Params, hidden_ND: Array, *, model: Model, signal: Signal) -> tuple[Array, Array]:
    keys_N = jax.random.key_data(jax.random.split(jax.random.key(0), len(hidden_ND)))
    measure = {TopK: _of_topk, Sampled: _of_draws}[type(signal)]
    of_tokens = lambda logits_NV, keys: measure(signal, logits_NV, jax.random.wrap_key_data(keys))  # noqa: E731
    return map_head(of_tokens, hidden_ND, model.head(params), keys_N)


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


def step_costs(experiment: ResolvedExperiment, teacher: Teacher, recipe: ResolvedRecipe) -> list[StepCost]:
    """One per way of teaching: the student's step on a batch of the longest bucket; cross-entropy alone first."""
    signal = TopK(k=min(32, teacher.vocab_size))
    ways: Mapping[str, Terms] = {
        "cross-entropy alone": {"ce": Term(cross_entropy)},
        "with a top-k cache": {"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=signal)},
        "with the teacher in the step": {"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=Online())},
    }
    batch = _batch(experiment, teacher, recipe, signal)
    with progress.bar("plan: a student's step", (STEPS + 2) * len(ways)) as bar:
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


def _batch(experiment: ResolvedExperiment, teacher: Teacher, recipe: ResolvedRecipe, signal: TopK) -> Batch:
    """A batch of the longest bucket, with a payload of the right shape."""
    split, bucket = pipeline.Split(teacher.workdir.data, "train"), experiment.shapes[-1]
    layout = recipe.model.layout(teacher.data["start"])
    rows = max(1, recipe.training.tokens_per_batch // int(layout.sizes(np.asarray(bucket))[-1]))
    fitting = np.flatnonzero(place(split.lengths, [bucket], layout) == 0)[:rows]
    batch = split.batch(layout, np.resize(fitting, rows)[:, None], rows, bucket)
    schema = signal.schema(teacher.vocab_size)
    payload = {name: np.zeros((*batch.targets_BT.shape, *field.shape), field.dtype) for name, field in schema.items()}
    payload["ids"] += np.arange(signal.k).astype(payload["ids"].dtype)
    return batch._replace(payload={signal.name: payload})


def _compiled(recipe: ResolvedRecipe, terms: Terms, teacher: Teacher, batch: Batch) -> tuple[Any, tuple]:
    """(the compiled step, its arguments); each way is handed only what it needs."""
    online, cached = needs_teacher(terms), any(term.signal and term.signal.origin == "cache" for term in terms.values())
    model = recipe.model.build(teacher.vocab_size)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    parts = {"model": model, "terms": terms, "tx": tx, "teacher": teacher.model if online else None}
    first = jax.jit(lambda key: model.stack(model.init(key)))
    state = init_state(jax.random.key(1), first(jax.random.key(0)), tx)
    beside = teacher.devices.unreplicate(teacher.params) if online else None
    one = make_devices("jit")
    arguments = one.replicate((state, batch if cached else batch._replace(payload={}), beside))
    return one.compile_sums(functools.partial(train_step, **parts)).lower(*arguments).compile(), arguments
