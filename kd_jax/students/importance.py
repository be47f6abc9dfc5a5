"""Importance of a teacher's heads, neurons and channels, measured on its activations."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.batches import pipeline
from kd_jax.models.base import Model
from kd_jax.runtime import progress
from kd_jax.runtime.devices import Devices
from kd_jax.students.narrow import Scores
from kd_jax.types import Array, Batch, Params

# Last parts of the names of taps that are measured.
HEADS, NEURONS, NORM = "heads", "neurons", "out"


def importance(
    model: Model, params: Params, batches: pipeline.EvalBatches[Batch], devices: Devices, head_width: int
) -> Scores:
    r"""Return the importance of each head, neuron and channel on a sample, float64.

    With |x| the size of an activation, the mean over an example's tokens, the sum over examples:

    .. math:: F = \sqrt{ \sum_b ( \frac{1}{T_b} \sum_t |x_{bt}| )^2 }

    For a head |x| is the L2 norm of its output, before the output matrix. For a neuron it is the absolute value of its
    activation after the gate. For a channel it is the absolute value of a norm's output, and F is summed over all
    norms.
    Batches hold one example a row.

    Returns:
      Component -> scores, as in `narrow.component_sizes`.

    References:
      Muralidharan et al. 2024 (Minitron), arXiv 2407.14679, section 2.2; aggregated by the L2 norm over the batch and
      the mean over the sequence.
    """
    step = functools.partial(importance_step, model=model, head_width=head_width)
    compiled, parts = devices.compile_sums(step), []
    with progress.bar("importance", sum(len(indices) for _, indices in batches.plan)) as bar:
        for (bucket, indices), batch in zip(batches.plan, batches, strict=True):
            with bar.compiling_once(bucket):
                sums = compiled(params, devices.shard(batch))
                parts.append(jax.device_get(devices.unreplicate(sums)))
            bar.advance(len(indices))
    squares = jax.tree.map(lambda *each: np.sum(each, axis=0, dtype=np.float64), *parts)
    scores = {name: np.sqrt(square_X) for name, square_X in squares.items()}
    norms = [name for name in scores if _tap_kind(name) == NORM]
    return {"channels": np.sum([scores.pop(name) for name in norms], axis=0)} | scores


def importance_step(
    params: Params, batch: Batch, *, model: Model, head_width: int, all_sum: Callable[[Any], Any]
) -> Mapping[str, Array]:
    """Return tap -> sum over examples of the squared mean over tokens of the activations' sizes, float32.

    A row of the batch holds one example; a row without tokens adds nothing. `all_sum` sums a tree over devices.
    """
    _, taps = model.taps(params, batch.inputs, None)
    stacks = {"encoder": batch.inputs.encoder, "decoder": batch.inputs.decoder}
    squares = {}
    for name, x_BTX in taps.items():
        if _tap_kind(name) not in (HEADS, NEURONS, NORM):
            continue
        x_BTX = x_BTX.astype(jnp.float32)  # a teacher in bfloat16 would round the sums
        if _tap_kind(name) == HEADS:
            x_BTX = jnp.linalg.norm(x_BTX.reshape(*x_BTX.shape[:2], -1, head_width), axis=-1)
        tokens = stacks[name.partition("_")[0]]
        assert tokens is not None
        is_token_BT = tokens.segment_BT > 0
        sum_BX = jnp.where(is_token_BT[..., None], jnp.abs(x_BTX), 0.0).sum(1)
        mean_BX = sum_BX / jnp.maximum(is_token_BT.sum(1), 1).astype(jnp.float32)[:, None]
        squares[name] = (mean_BX**2).sum(0)
    return all_sum(squares)


def _tap_kind(name: str) -> str:
    """Return the last part of a tap's name, for example "out" of "decoder_0.norm_ffn.out"."""
    return name.rsplit(".", 1)[-1]
