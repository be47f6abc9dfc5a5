"""Compare a student with its teacher token by token, from the teacher's logits or from a top-k cache."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.decoding.vocabulary import argmax
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl, total_variation
from kd_jax.models.base import Model
from kd_jax.objective.fused_head import chunk_tokens, map_head
from kd_jax.signals.topk import TopK
from kd_jax.types import Array, Batch, Params, Payload, Sum

BINS = 15  # of the calibration error, as in Guo et al. 2017
COMPARED_ARRAYS = 4  # [N, V] in memory together: logits and log-probabilities of teacher and student
Sums = dict[str, Sum]


class Rows(NamedTuple):
    """Inputs of the metrics, [B, T, ...] of a batch or [N, ...] of a chunk of its tokens.

    `hidden` are the last hidden states of one model, or of (teacher, student); `payload` is None without a cache.
    """

    hidden: Any
    targets: Array
    mask: Array
    payload: Payload | None = None


def calibration(logits_NV: Array, targets_N: Array, mask_N: Array) -> Sum:
    """Return sums of (correct - confidence) and numbers of tokens per bin of confidence, each [BINS].

    `calibration_error` reduces them to one number, after all Sums were added.
    """
    logits_NV = logits_NV.astype(jnp.float32)
    confidence_N = jnp.exp(logits_NV.max(-1) - jax.nn.logsumexp(logits_NV, axis=-1))
    correct_N = (argmax(logits_NV) == targets_N).astype(jnp.float32)
    bin_N = jnp.clip((confidence_N * BINS).astype(jnp.int32), 0, BINS - 1)
    member_NX = (bin_N[:, None] == jnp.arange(BINS)[None]) & mask_N[:, None]
    excess_NX = jnp.where(member_NX, (correct_N - confidence_N)[:, None], 0.0)
    return Sum(excess_NX.sum(0), member_NX.sum(0, dtype=jnp.int32))


def calibration_error(bins: Sum) -> float:
    r"""Return the expected calibration error, the mean over tokens of |accuracy - confidence| per bin.

    .. math:: \sum_b \frac{n_b}{n} |acc_b - conf_b|

    References:
      Guo et al. 2017, arXiv 1706.04599, eq. 3.
    """
    count = int(np.sum(bins.weight))
    return float(np.abs(bins.value).sum() / count) if count else 0.0


def mean_metrics(sums: Mapping[str, Sum]) -> dict[str, float]:
    """Return the mean of each Sum, and the calibration error of its bins."""
    calibrated = {"calibration_error": calibration_error(sums["calibration_error"])}
    return {name: float(total.mean()) for name, total in sums.items() if name not in calibrated} | calibrated


def compare(teacher_logits_NV: Array, student_logits_NV: Array, targets_N: Array, mask_N: Array) -> Sums:
    """Compute the student's own metrics and its closeness to the teacher over the tokens of the mask.

    Returns:
      "cross_entropy" in nats; "kl_to_teacher" = KL(teacher || student) in nats; "agreement", the share of tokens
      with the same argmax; "acceptance" = 1 - total variation, the rate at which the teacher accepts draft tokens
      of the student (arXiv 2211.17192, corollary 3.6); "calibration_error" as `calibration`.
    """
    logp = [jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (teacher_logits_NV, student_logits_NV)]
    agree_N = argmax(teacher_logits_NV) == argmax(student_logits_NV)
    return student_metrics(student_logits_NV, targets_N, mask_N) | {
        "kl_to_teacher": Sum.over(forward_kl(*logp), mask_N),
        "agreement": Sum.over(agree_N.astype(jnp.float32), mask_N),
        "acceptance": Sum.over(1 - total_variation(*logp), mask_N),
    }


def student_metrics(logits_NV: Array, targets_N: Array, mask_N: Array) -> Sums:
    """Compute the metrics of `compare` that need no teacher: "cross_entropy" and "calibration_error"."""
    return {
        "cross_entropy": Sum.over(cross_entropy(logits_NV, targets_N), mask_N),
        "calibration_error": calibration(logits_NV, targets_N, mask_N),
    }


def compare_cached(signal: TopK, payload: Payload, student_logits_NV: Array, targets_N: Array, mask_N: Array) -> Sums:
    """Compute `compare` from a top-k cache, with bounds "kl_error" and "acceptance_error" on its errors.

    The tokens outside the k form one bucket. By the data-processing inequality the true KL is at least the value
    returned, and the true acceptance at most. Their errors are bounded by
    KL: each p outside the k is at most the k-th, so sum_rest p log(p / q) <= p_rest (log p_k - log min q);
    acceptance: the rest's part of the total variation exceeds the bucket's by at most min(p_rest, q_rest).

    The signal has the tail "bucket", at temperature 1.
    """
    aligned = signal.align(student_logits_NV, payload, 1.0)
    assert aligned.log_z_N is not None  # the tail "bucket" has it
    teacher_NX, student_NX = aligned.teacher_logp_NK, aligned.student_logp_NK
    p_N, q_N = (jnp.exp(logp[:, -1]) for logp in (teacher_NX, student_NX))
    min_logq_N = student_logits_NV.astype(jnp.float32).min(-1) - aligned.log_z_N
    has_rest_N = p_N > 0
    bucket_N = jnp.where(has_rest_N, p_N * (teacher_NX[:, -1] - student_NX[:, -1]), 0.0)
    bound_N = jnp.where(has_rest_N, p_N * (jnp.minimum(teacher_NX[:, -2], teacher_NX[:, -1]) - min_logq_N), 0.0)
    agree_N = payload["ids"][:, 0].astype(jnp.int32) == argmax(student_logits_NV)
    return {
        "cross_entropy": Sum.over(cross_entropy(student_logits_NV, targets_N, log_z_N=aligned.log_z_N), mask_N),
        "kl_to_teacher": Sum.over(forward_kl(teacher_NX, student_NX), mask_N),
        "kl_error": Sum.over(bound_N - bucket_N, mask_N),
        "agreement": Sum.over(agree_N.astype(jnp.float32), mask_N),
        "acceptance": Sum.over(1 - total_variation(teacher_NX, student_NX), mask_N),
        "acceptance_error": Sum.over(jnp.minimum(p_N, q_N), mask_N),
        "calibration_error": calibration(student_logits_NV, targets_N, mask_N),
    }


def compare_step(
    params: tuple[Params, Params],
    batches: tuple[Batch, Batch],
    *,
    teacher: Model,
    student: Model,
    all_sum: Callable[[Any], Any],
) -> Sums:
    """Compute `compare` over the targets that count.

    Both batches hold the same examples, in the rows of the teacher's layout and of the student's. The models may be of
    different families. `all_sum` adds over devices.
    """
    heads = teacher.head(params[0]), student.head(params[1])
    width = min(batch.mask_BT.shape[1] for batch in batches)  # holds every target that counts
    hidden = tuple(
        _counted_first(model.apply(p, batch.inputs), batch.mask_BT)[:, :width]
        for model, p, batch in zip((teacher, student), params, batches, strict=True)
    )
    targets_BT, mask_BT = (
        _counted_first(x_BT, batches[1].mask_BT)[:, :width] for x_BT in (batches[1].targets_BT, batches[1].mask_BT)
    )

    def sums(rows: Rows) -> Sums:
        teacher_NV, student_NV = (head.logits(hidden_ND) for head, hidden_ND in zip(heads, rows.hidden, strict=True))
        return compare(teacher_NV, student_NV, rows.targets, rows.mask)

    return all_sum(_over_chunks(sums, Rows(hidden, targets_BT, mask_BT), heads[1].kernel_DV.shape[1]))


def _counted_first(x_BTX: Array, mask_BT: Array) -> Array:
    """Move each row's entries that count to its start, in their order."""
    order_BT = jnp.argsort(~mask_BT, axis=1, stable=True)
    return jnp.take_along_axis(x_BTX, order_BT.reshape(*order_BT.shape, *[1] * (x_BTX.ndim - 2)), axis=1)


def student_metrics_step(params: Params, batch: Batch, *, student: Model, all_sum: Callable[[Any], Any]) -> Sums:
    """Compute `student_metrics` over the targets of a batch."""
    head = student.head(params)

    def sums(rows: Rows) -> Sums:
        return student_metrics(head.logits(rows.hidden), rows.targets, rows.mask)

    rows = Rows(student.apply(params, batch.inputs), batch.targets_BT, batch.mask_BT)
    return all_sum(_over_chunks(sums, rows, head.kernel_DV.shape[1]))


def compare_cached_step(
    params: Params, batch: Batch, *, student: Model, signal: TopK, all_sum: Callable[[Any], Any]
) -> Sums:
    """Compute `compare_cached` over the targets of a batch; only the student runs."""
    head = student.head(params)

    def sums(rows: Rows) -> Sums:
        assert rows.payload is not None
        return compare_cached(signal, rows.payload, head.logits(rows.hidden), rows.targets, rows.mask)

    hidden_BTD = student.apply(params, batch.inputs)
    rows = Rows(hidden_BTD, batch.targets_BT, batch.mask_BT, batch.payload[signal.name])
    return all_sum(_over_chunks(sums, rows, head.kernel_DV.shape[1]))


def negative_log_likelihood(params: Params, batch: Batch, *, model: Model) -> Array:
    """Return - sum log p of each row's targets that count, float32 [B] in nats."""
    hidden_BTD = model.apply(params, batch.inputs)
    hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    nll_N = map_head(cross_entropy, hidden_ND, model.head(params), batch.targets_BT.reshape(-1))
    return jnp.where(batch.mask_BT, nll_N.reshape(batch.mask_BT.shape), 0.0).sum(-1)


def _over_chunks(sums: Callable[[Any], Sums], rows: Rows, vocab_size: int) -> Sums:
    """Return the Sums of all tokens, with the logits of one chunk of tokens in memory at a time."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    tokens = flat.mask.shape[0]
    chunk = chunk_tokens(tokens, COMPARED_ARRAYS * vocab_size)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, -tokens % chunk)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, chunk, *x.shape[1:])

    parts = jax.lax.map(sums, jax.tree.map(split, flat))
    return jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), parts)
