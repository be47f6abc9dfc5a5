r"""FLOPs of a network for a batch, counted from its parameters and tokens; padding does not count.

A matrix of n values takes 2 n FLOPs per token. Attention takes 4 FLOPs per channel and visible pair of tokens (2 for
the score, 2 for the sum). Gradients take twice as many again. A decoder-only network takes, per token in training,

.. math:: 6 N + 6 D V + 12 L \, H d \, \bar{t}

where N is the number of parameters outside the embeddings, D V that of the head, H d the width of all heads, and
t the mean number of visible tokens: half of the length. (PaLM, arXiv 2204.02311, appendix B, takes the whole length,
because it counts masked pairs.) Windows of local layers are not counted: their tokens count as seeing all earlier
ones. Norms, dropout, positions and the optimiser do not count.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from kd_jax.models.base import Model
from kd_jax.types import Array, Batch, Params

TRAINING = 3  # FLOPs of a training step in forward passes: gradients of activations and of parameters take one each


class Workload(NamedTuple):
    """Numbers of tokens and pairs in a batch by kind; or the FLOPs of a forward pass for one of each kind.

    Attributes:
      targets: targets that count in the loss; the head runs for these only.
      decoder: tokens in the decoder.
      encoder: tokens in the encoder.
      decoder_pairs: visible pairs of decoder tokens; each token sees itself and earlier ones of its example.
      encoder_pairs: visible pairs of encoder tokens; each token sees all of its example.
      cross_pairs: pairs of a decoder and an encoder token of one example.
    """

    targets: float
    decoder: float
    encoder: float
    decoder_pairs: float
    encoder_pairs: float
    cross_pairs: float

    def dot(self, other: "Workload") -> float:
        """Return the sum of the products of both workloads' fields."""
        return float(sum(a * b for a, b in zip(self, other, strict=True)))


def flops_per_unit(model: Model, params: Params) -> Workload:
    """Return the FLOPs of a forward pass for one token or pair of each kind, from parameters or their shapes."""
    flops = dict.fromkeys(Workload._fields, 0.0)
    flops["targets"] = 2.0 * math.prod(jax.eval_shape(model.head, params).kernel_DV.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if len(names) == 1 or len(x.shape) < 2:  # embeddings are looked up; vectors are negligible
            continue
        stack = "encoder" if names[0].startswith("encoder") or names[-1] == "kv" else "decoder"
        flops[stack] += 2 * math.prod(x.shape)
        if names[1:-1] == ["cross_attention", "out"]:
            flops["cross_pairs"] += 4 * x.shape[0]
        elif names[1:-1] == ["self_attention", "out"]:
            flops[f"{stack}_pairs"] += 4 * x.shape[0]
    return Workload(**flops)


def count_workload(batch: Batch) -> Workload:
    """Return the workload of a batch on the host, without its padding."""
    decoder, encoder = batch.inputs.decoder, batch.inputs.encoder
    exists_BT = decoder.segment_BT > 0
    decoder_pairs = int((decoder.position_BT + 1)[exists_BT].sum())  # 1 + 2 + ... for each example
    targets, tokens = int(batch.mask_BT.sum()), int(exists_BT.sum())
    if encoder is None:
        return Workload(targets, tokens, 0, decoder_pairs, 0, 0)
    source_BS = encoder.segment_BT > 0
    encoder_pairs = int((2 * encoder.position_BT + 1)[source_BS].sum())  # 1 + 3 + 5 + ...: a square for each example
    target_lengths, source_lengths = _segment_lengths(decoder.segment_BT), _segment_lengths(encoder.segment_BT)
    cross_pairs = sum(count * source_lengths.get(example, 0) for example, count in target_lengths.items())
    return Workload(targets, tokens, int(source_BS.sum()), decoder_pairs, encoder_pairs, cross_pairs)


def count_full_workload(batch: Batch) -> Workload:
    """Return the workload of a batch of this shape in which one example fills each row and all targets count."""
    rows, length = batch.targets_BT.shape
    tokens, decoder_pairs = rows * length, rows * length * (length + 1) // 2
    if batch.inputs.encoder is None:
        return Workload(tokens, tokens, 0, decoder_pairs, 0, 0)
    source = batch.inputs.encoder.ids_BT.shape[1]
    return Workload(tokens, tokens, rows * source, decoder_pairs, rows * source**2, tokens * source)


def _segment_lengths(segment_BX: Array) -> dict[int, int]:
    """Return the number of tokens of each segment, by a number made of its row and segment."""
    row_N, column_N = np.nonzero(segment_BX)
    numbers, counts = np.unique(row_N * 2**32 + np.asarray(segment_BX)[row_N, column_N], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))
