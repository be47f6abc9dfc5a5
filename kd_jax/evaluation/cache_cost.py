"""Measure on a sample what a cache of the teacher would cost, and how much of its distribution it would keep."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline, store
from kd_jax.batches.buckets import assign_buckets
from kd_jax.losses.divergence import forward_kl
from kd_jax.objective.fused_head import map_head
from kd_jax.runtime import progress
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK
from kd_jax.teaching.records import Record
from kd_jax.teaching.teacher import Teacher
from kd_jax.types import Array, Params, Payload

SAMPLE = 512  # maximum number of training examples
SAMPLE_TOKENS = 2**14  # approximate number of tokens, so that a large teacher is sampled in seconds too
COVERAGE_TOKENS = 2**12  # targets on which coverage and loss are measured
KS, DRAWS = (8, 16, 32, 64, 128, 256), (16, 32, 64)


class SignalCost(NamedTuple):
    """Cost and coverage of one signal.

    Attributes:
      bytes_per_token: on disk, with all fields of a record.
      bytes: of the whole cache.
      hours: to write the whole cache.
      covered: probability of the k most likely tokens; for draws, the number of unique ids.
      lost: nats a token. Top-k: KL(full || k exact, the rest spread evenly). Draws: KL(drawn || full), which averages
        out over tokens (the gradient is unbiased), so the two cannot be compared.
    """

    title: str
    bytes_per_token: float
    bytes: float
    hours: float
    covered: float
    lost: float


def candidate_signals(vocab_size: int) -> dict[str, TopK | Sampled]:
    """Return title -> signal for the signals that are compared."""
    topk = {f"top {k}": TopK(k=k) for k in KS if k <= vocab_size}
    return topk | {f"{draws} draws": Sampled(draws=draws) for draws in DRAWS}


def signal_costs(teacher: Teacher, folder: Path) -> list[SignalCost]:
    """Measure each candidate signal on a sample of the training split, written to the scratch folder.

    The teacher reads the sample once, in the batches that `cache` would use. Every signal is computed from the same
    last hidden states, since all caches cost the same up to there.
    """
    whole = pipeline.Split(teacher.workdir.data, "train")
    sample = _sample(teacher, whole, Folder(folder / "sample", "plan"))
    signals = candidate_signals(teacher.vocab_size)
    with progress.bar("plan: signals", 1 + len(signals)) as bar:
        states = _hidden_states(teacher, sample, bar)
        bar.advance(1)
        targets = len(states.hidden_ND)
        all_targets = targets * len(whole) / len(sample)
        costs = []
        for title, signal in signals.items():
            seconds, size = _write_sample(teacher, sample, states, signal, folder / title, bar)
            hours, bytes_per_token = all_targets * (seconds / targets) / 3600, size / targets
            coverage = _mean_coverage(teacher, states.hidden_ND, signal)
            costs.append(SignalCost(title, bytes_per_token, bytes_per_token * all_targets, hours, *coverage))
            bar.advance(1)
    return costs


def _sample(teacher: Teacher, whole: pipeline.Split, folder: Folder) -> pipeline.Split:
    """Write evenly spaced examples as a split: about SAMPLE_TOKENS, at least one batch, at most SAMPLE examples."""
    count = int(np.clip(SAMPLE_TOKENS // max(1, whole.lengths.sum(-1).mean()), pipeline.INFERENCE_BATCH_SIZE, SAMPLE))
    places = np.linspace(0, len(whole) - 1, min(count, len(whole))).astype(int)
    shapes = teacher.experiment.shapes
    fitting = places[assign_buckets(whole.lengths[places], shapes, teacher.layout) < len(shapes)]
    examples = [whole.examples[int(i)] for i in fitting]
    folder.begin({})
    store.write(folder.path, "train", whole.examples.schema, len(examples), lambda start, stop: examples[start:stop])
    np.save(folder.path / "train.lengths.npy", pipeline.example_lengths(examples))
    folder.finish({}, 0.0)
    return pipeline.Split(folder, "train")


class HiddenSample(NamedTuple):
    """Last hidden states of the teacher for a sample.

    Attributes:
      hidden_ND: float, of the targets that count, example by example.
      ends: places in N at which the examples end, without the last.
      seconds: of the teacher's forward passes, padding included.
      padding: number of targets with padding over number of targets that count.
    """

    hidden_ND: np.ndarray
    ends: np.ndarray
    seconds: float
    padding: float


def _hidden_states(teacher: Teacher, sample: pipeline.Split, bar: progress.Bar) -> HiddenSample:
    """Run the teacher over the sample; compilation, once for each bucket, is not timed."""
    devices, shapes = teacher.devices, teacher.experiment.shapes
    step = devices.compile(lambda params, inputs: teacher.model.apply(params, inputs))
    batches = pipeline.EvalBatches(sample, teacher.layout, shapes, pipeline.INFERENCE_BATCH_SIZE, devices.count)
    masks, inputs = zip(*[(batch.mask_BT, devices.shard(batch.inputs)) for batch in batches], strict=True)
    buckets = [bucket for bucket, _ in batches.plan]
    for bucket in dict.fromkeys(buckets):
        with bar.compiling(str(bucket)):
            jax.block_until_ready(step(teacher.params, inputs[buckets.index(bucket)]))
    began = time.perf_counter()
    outputs = jax.block_until_ready([step(teacher.params, one) for one in inputs])
    seconds = time.perf_counter() - began
    hidden = {}
    for (_, indices), mask_BT, states in zip(batches.plan, masks, outputs, strict=True):
        hidden_BTD = devices.to_host(states)
        hidden |= {int(i): hidden_BTD[b][mask_BT[b]] for b, i in enumerate(indices)}
    by_example = [hidden[i] for i in range(len(sample))]
    padding = sum(mask_BT.size for mask_BT in masks) / sum(mask_BT.sum() for mask_BT in masks)
    ends = np.cumsum([len(states) for states in by_example])[:-1]
    return HiddenSample(np.concatenate(by_example), ends, seconds, float(padding))


def _write_sample(
    teacher: Teacher,
    sample: pipeline.Split,
    states: HiddenSample,
    signal: TopK | Sampled,
    folder: Path,
    bar: progress.Bar,
) -> tuple[float, int]:
    """Return (seconds to read, reduce and write the sample, without compilation; bytes on disk)."""
    devices, targets = teacher.devices, len(states.hidden_ND)
    rows = -(-targets // devices.count) * devices.count
    keys_N = jax.random.key_data(jax.random.split(jax.random.key(0), rows))
    hidden_ND = np.resize(states.hidden_ND, (rows, states.hidden_ND.shape[1]))
    arguments = teacher.params, devices.shard((hidden_ND, keys_N))

    def reduce(params: Params, rows: tuple[Array, Array]) -> Payload:
        reduce_rows = lambda logits_NV, keys: signal.reduce(logits_NV, jax.random.wrap_key_data(keys))  # noqa: E731
        return map_head(reduce_rows, rows[0], teacher.model.head(params), rows[1])

    with bar.compiling(folder.name):
        program = devices.compile(reduce).lower(*arguments).compile()
    began = time.perf_counter()
    payload = devices.to_host(program(*arguments))
    reducing = time.perf_counter() - began
    parts = {name: np.split(values[:targets], states.ends) for name, values in payload.items()}

    def records(start: int, stop: int) -> Iterator[Record]:
        for i in range(start, stop):
            digest = {"digest": pipeline.example_digest(sample.read(i).encoded)}
            yield {name: values[i] for name, values in parts.items()} | digest

    schema = dict(signal.schema(teacher.vocab_size)) | pipeline.DIGEST
    began = time.perf_counter()
    store.write(folder, "records", schema, len(sample), records)
    seconds = states.seconds + states.padding * reducing + time.perf_counter() - began
    return seconds, store.Store(folder, "records").num_bytes()


def _mean_coverage(teacher: Teacher, hidden_ND: np.ndarray, signal: TopK | Sampled) -> tuple[float, float]:
    """Return (covered, lost) of SignalCost, means over evenly spaced targets."""
    places = np.linspace(0, len(hidden_ND) - 1, min(COVERAGE_TOKENS, len(hidden_ND))).astype(int)

    def measure(logits_NV: Array, keys_N: Array) -> tuple[Array, Array]:
        keys_N = jax.random.wrap_key_data(keys_N)
        if isinstance(signal, TopK):
            return topk_coverage(signal, logits_NV, keys_N)
        return draws_coverage(signal, logits_NV, keys_N)

    @jax.jit
    def coverage(params: Params, hidden_ND: Array) -> tuple[Array, Array]:
        keys_N = jax.random.key_data(jax.random.split(jax.random.key(0), len(hidden_ND)))
        return map_head(measure, hidden_ND, teacher.model.head(params), keys_N)

    covered_N, lost_N = jax.device_get(coverage(teacher.devices.unreplicate(teacher.params), hidden_ND[places]))
    return float(covered_N.mean(dtype=np.float64)), float(lost_N.mean(dtype=np.float64))


def topk_coverage(signal: TopK, logits_NV: Array, keys_N: Array) -> tuple[Array, Array]:
    """Return (probability of the k; KL lost where the rest is spread evenly) of each token.

    Examples:
      >>> probabilities = jnp.array([[0.5, 0.3, 0.15, 0.05]])  # the rest, 0.2, becomes 0.1 twice
      >>> covered, lost = topk_coverage(TopK(k=2), jnp.log(probabilities), jax.random.split(jax.random.key(0), 1))
      >>> expected = 0.15 * jnp.log(0.15 / 0.1) + 0.05 * jnp.log(0.05 / 0.1)
      >>> bool(jnp.allclose(covered, 0.8, atol=1e-3)), bool(jnp.allclose(lost, expected, atol=1e-3))
      (True, True)
    """
    payload = signal.reduce(logits_NV, keys_N)
    logp_NV = jax.nn.log_softmax(logits_NV)
    rest_N = jnp.exp(signal.align(logits_NV, payload, 1.0).student_logp_NK[:, -1])
    others = logits_NV.shape[-1] - signal.k
    outside_NV = jnp.put_along_axis(logp_NV, payload["ids"], -jnp.inf, axis=-1, inplace=False)
    entropy_N = jnp.where(outside_NV > -jnp.inf, jnp.exp(outside_NV) * logp_NV, 0.0).sum(-1)
    even_N = jnp.where(rest_N > 0, rest_N * (jnp.log(jnp.maximum(rest_N, 1e-30)) - jnp.log(max(others, 1.0))), 0.0)
    return 1 - rest_N, entropy_N - even_N


def draws_coverage(signal: Sampled, logits_NV: Array, keys_N: Array) -> tuple[Array, Array]:
    """Return (number of unique ids; KL(drawn || full)) of each token."""
    payload = signal.reduce(logits_NV, keys_N)
    aligned = signal.align(logits_NV, payload, 1.0)
    lost_N = forward_kl(aligned.teacher_logp_NK, aligned.student_logp_NK)
    return (payload["counts"] > 0).sum(-1, dtype=jnp.float32), lost_N
