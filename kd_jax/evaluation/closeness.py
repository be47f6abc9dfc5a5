"""How close a student is to its teacher, token by token, as Sums on the device; with the teacher, or from a cache."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.decoding.base import argmax
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl, total_variation
from kd_jax.models.base import Model
from kd_jax.objective.fused_head import chunk_tokens, map_head
from kd_jax.signals.topk import TopK
from kd_jax.types import Array, Batch, Params, Payload, Sum

BINS = 15  # of the calibration error, as in Guo et al. 2017
COMPARED_ARRAYS = 4  # [N, V] that live beside each other: logits and log-probabilities of both sides
Sums = dict[str, Sum]


def calibration(logits_NV: Array, targets_N: Array, mask_N: Array) -> Sum:
    """Per bin of confidence: the sum of (right or not - confidence), and the number of tokens, each [BINS].

    `calibration_error` makes one number of the added Sums.
    """
    logits_NV = logits_NV.astype(jnp.float32)
    confidence_N = jnp.exp(logits_NV.max(-1) - jax.nn.logsumexp(logits_NV, axis=-1))
    right_N = (argmax(logits_NV) == targets_N).astype(jnp.float32)
    bin_N = jnp.clip((confidence_N * BINS).astype(jnp.int32), 0, BINS - 1)
    member_NX = (bin_N[:, None] == jnp.arange(BINS)[None]) & mask_N[:, None]
    excess_NX = jnp.where(member_NX, (right_N - confidence_N)[:, None], 0.0)
    return Sum(excess_NX.sum(0), member_NX.sum(0, dtype=jnp.int32))


def calibration_error(bins: Sum) -> float:
    """Expected calibration error in [0, 1]: the mean over tokens of each bin's |accuracy - confidence|.

    .. math:: \\sum_b \\frac{n_b}{n} |acc_b - conf_b|

    References:
      Guo et al. 2017, arXiv 1706.04599, eq. 3.
    """
    count = int(np.sum(bins.weight))
    return float(np.abs(bins.value).sum() / count) if count else 0.0


def means(sums: Mapping[str, Sum]) -> dict[str, float]:
    """What people read: each mean, and the calibration error of its bins."""
    calibrated = {"calibration_error": calibration_error(sums["calibration_error"])}
    return {name: float(one.mean()) for name, one in sums.items() if name not in calibrated} | calibrated


def compare(teacher_logits_NV: Array, student_logits_NV: Array, targets_N: Array, mask_N: Array) -> Sums:
    """The student's cross-entropy and calibration, and how close it is to the teacher.

    Args:
      teacher_logits_NV, student_logits_NV: float [N, V].
      targets_N: int [N].
      mask_N: bool [N], tokens that count.

    Returns:
      "cross_entropy", "kl_to_teacher" = KL(teacher || student) in nats, "agreement": share of equal
      likeliest tokens, "acceptance" = 1 - total variation: the rate at which the teacher accepts the
      student's draft tokens (arXiv 2211.17192, corollary 3.6), "calibration_error" as `calibration`.
    """
    logp = [jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (teacher_logits_NV, student_logits_NV)]
    agree_N = argmax(teacher_logits_NV) == argmax(student_logits_NV)
    return student_metrics(student_logits_NV, targets_N, mask_N) | {
        "kl_to_teacher": Sum.over(forward_kl(*logp), mask_N),
        "agreement": Sum.over(agree_N.astype(jnp.float32), mask_N),
        "acceptance": Sum.over(1 - total_variation(*logp), mask_N),
    }


def student_metrics(logits_NV: Array, targets_N: Array, mask_N: Array) -> Sums:
    """Of `compare`, what needs no teacher: "cross_entropy" and "calibration_error"."""
    return {
        "cross_entropy": Sum.over(cross_entropy(logits_NV, targets_N), mask_N),
        "calibration_error": calibration(logits_NV, targets_N, mask_N),
    }


def compare_cached(signal: TopK, payload: Payload, student_logits_NV: Array, targets_N: Array, mask_N: Array) -> Sums:
    """As `compare`, from a cache and without the teacher, with what the cache leaves open.

    The tokens outside the k are one bucket, so by the data-processing inequality KL is at least what is
    measured and acceptance at most. By how much they can be off at most:
    KL: all p outside the k are at most the k-th, so sum_rest p log(p / q) <= p_rest (log p_k - log min q);
    acceptance: the rest's part of the total variation is at most min(p_rest, q_rest) above the bucket's.

    Args:
      signal: with the tail "bucket", at temperature 1.
      payload: of the cache.
      student_logits_NV, targets_N, mask_N: as `compare`.

    Returns:
      As `compare`, and "kl_error", "acceptance_error".
    """
    aligned = signal.align(student_logits_NV, payload, 1.0)
    teacher_NX, student_NX = aligned.teacher_logp_NK, aligned.student_logp_NK
    p_N, q_N = (jnp.exp(logp[:, -1]) for logp in (teacher_NX, student_NX))
    least_N = student_logits_NV.astype(jnp.float32).min(-1) - aligned.log_z_N
    there_N = p_N > 0
    bucket_N = jnp.where(there_N, p_N * (teacher_NX[:, -1] - student_NX[:, -1]), 0.0)
    most_N = jnp.where(there_N, p_N * (jnp.minimum(teacher_NX[:, -2], teacher_NX[:, -1]) - least_N), 0.0)
    agree_N = payload["ids"][:, 0].astype(jnp.int32) == argmax(student_logits_NV)
    return {
        "cross_entropy": Sum.over(cross_entropy(student_logits_NV, targets_N, log_z_N=aligned.log_z_N), mask_N),
        "kl_to_teacher": Sum.over(forward_kl(teacher_NX, student_NX), mask_N),
        "kl_error": Sum.over(most_N - bucket_N, mask_N),
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
    """`compare` over the targets that count.

    Args:
      params: the teacher's and the student's.
      batches: the same rows in the teacher's and in the student's layout.
      teacher, student, all_sum: networks; adds over devices.
    """
    heads = teacher.head(params[0]), student.head(params[1])
    width = min(batch.mask_BT.shape[1] for batch in batches)  # which holds all that counts
    teacher_BTD, student_BTD = (
        _counted_first(model.apply(p, batch.inputs), batch.mask_BT)[:, :width]
        for model, p, batch in zip((teacher, student), params, batches, strict=True)
    )
    targets_BT, mask_BT = (
        _counted_first(x_BT, batches[1].mask_BT)[:, :width] for x_BT in (batches[1].targets_BT, batches[1].mask_BT)
    )
    rows = {"teacher": teacher_BTD, "student": student_BTD, "targets": targets_BT, "mask": mask_BT}

    def sums(row: Mapping[str, Array]) -> Sums:
        logits = (head.logits(row[who]) for who, head in zip(("teacher", "student"), heads, strict=True))
        return compare(*logits, row["targets"], row["mask"])

    return all_sum(_over_chunks(sums, rows, heads[1].kernel_DV.shape[1]))


def _counted_first(x_BTX: Array, mask_BT: Array) -> Array:
    """Each row's entries that count, in their order, and then the others."""
    order_BT = jnp.argsort(~mask_BT, axis=1, stable=True)
    return jnp.take_along_axis(x_BTX, order_BT.reshape(*order_BT.shape, *[1] * (x_BTX.ndim - 2)), axis=1)


def student_metrics_step(params: Params, batch: Batch, *, student: Model, all_sum: Callable[[Any], Any]) -> Sums:
    """`alone` over the batch's targets."""
    head = student.head(params)
    rows = {"hidden": student.apply(params, batch.inputs), "targets": batch.targets_BT, "mask": batch.mask_BT}

    def sums(row: Mapping[str, Array]) -> Sums:
        return student_metrics(head.logits(row["hidden"]), row["targets"], row["mask"])

    return all_sum(_over_chunks(sums, rows, head.kernel_DV.shape[1]))


def compare_cached_step(
    params: Params, batch: Batch, *, student: Model, signal: TopK, all_sum: Callable[[Any], Any]
) -> Sums:
    """`compare_cached` over the batch's targets; the student alone runs."""
    head, payload = student.head(params), batch.payload[signal.name]
    rows = {"hidden": student.apply(params, batch.inputs), "targets": batch.targets_BT, "mask": batch.mask_BT}

    def sums(row: Mapping[str, Any]) -> Sums:
        logits_NV = head.logits(row["hidden"])
        return compare_cached(signal, row["payload"], logits_NV, row["targets"], row["mask"])

    return all_sum(_over_chunks(sums, rows | {"payload": payload}, head.kernel_DV.shape[1]))


def likelihood(params: Params, batch: Batch, *, model: Model) -> Array:
    """How unlikely each row's targets are that count, float32 [B] in nats: - sum log p."""
    rows = {"hidden": model.apply(params, batch.inputs), "targets": batch.targets_BT}
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    nll_N = map_head(cross_entropy, flat["hidden"], model.head(params), flat["targets"])
    return jnp.where(batch.mask_BT, nll_N.reshape(batch.mask_BT.shape), 0.0).sum(-1)


def _over_chunks(sums: Callable[[Any], Sums], rows: Any, vocab_size: int) -> Sums:
    """The Sums of all tokens, with logits of a chunk of them at a time."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    tokens = flat["mask"].shape[0]
    chunk = chunk_tokens(tokens, COMPARED_ARRAYS * vocab_size)

    def split(x: Array) -> Array:
        filled = jnp.pad(x, [(0, -tokens % chunk)] + [(0, 0)] * (x.ndim - 1))
        return filled.reshape(-1, chunk, *x.shape[1:])

    parts = jax.lax.map(sums, jax.tree.map(split, flat))
    return jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), parts)
