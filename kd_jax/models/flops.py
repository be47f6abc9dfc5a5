"""How many FLOPs a network needs for a batch: from its parameters, and from the tokens alone, not from their padding.

A matrix of n values takes 2 n FLOPs for each token that it is applied to, and attention 4 for each channel of each pair
of tokens of which one sees the other (2 for the score, 2 for the sum). Gradients take twice as many again. So a
decoder-only network takes, for a token in training,

.. math:: 6 N + 6 D V + 12 L \\, H d \\, \\bar{t}

where N are the parameters outside the embeddings, D V those of the head, H d the width of all heads, and t the tokens
that one sees on average: half of the length. (PaLM, arXiv 2204.02311, appendix B, has the whole length: it counts pairs
that are masked.) Norms, dropout, positions and the optimiser are left out.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from kd_jax.models.base import Model
from kd_jax.types import Array, Batch, Params

TRAINING = 3  # times the forward pass: the gradient with respect to activations takes as many, and that of parameters


class Workload(NamedTuple):
    """What a network reads of a batch; or FLOPs of the forward pass for one of each.

    Attributes:
      targets: that count: the head is needed for these alone.
      decoder, encoder: tokens in each stack.
      own: pairs of decoder tokens of one example, neither behind the other, each with itself too.
      source: pairs of encoder tokens of one example, in both directions.
      across: pairs of a decoder's and an encoder's token of one example.
    """

    targets: float
    decoder: float
    encoder: float
    own: float
    source: float
    across: float

    def times(self, other: "Workload") -> float:
        """The sum of the products of their fields."""
        return float(sum(a * b for a, b in zip(self, other, strict=True)))


def flops_per_unit(model: Model, params: Params) -> Workload:
    """FLOPs of the forward pass for one token or pair of each kind.

    Args:
      model: the network.
      params: its parameters, or their shapes; named as in kd_jax.models.axes.

    Examples:
      >>> from kd_jax.models.decoder_only import DecoderOnly
      >>> model = DecoderOnly(layers=2, d_model=8, heads=2, d_ff=16).build(vocab_size=10)
      >>> each = flops_per_unit(model, jax.eval_shape(model.init, jax.random.key(0)))
      >>> each.targets == 2 * 8 * 10, each.own == 2 * 4 * 8
      (True, True)
      >>> each.decoder == 2 * 2 * (8 * 24 + 8 * 8 + 3 * 8 * 16)  # qkv, out, and a gated feed-forward layer
      True
    """
    each = {"targets": 2.0 * math.prod(jax.eval_shape(model.head, params).kernel_DV.shape)}
    each |= dict.fromkeys(Workload._fields[1:], 0.0)
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if len(names) == 1 or len(x.shape) < 2:  # embeddings are looked up, vectors are little
            continue
        stack = "encoder" if names[0].startswith("encoder") or names[-1] == "kv" else "decoder"
        each[stack] += 2 * math.prod(x.shape)
        if names[1:-1] == ["cross_attention", "out"]:
            each["across"] += 4 * x.shape[0]
        elif names[1:-1] == ["self_attention", "out"]:
            each["source" if stack == "encoder" else "own"] += 4 * x.shape[0]
    return Workload(**each)


def count_workload(batch: Batch) -> Workload:
    """What there is to read in a batch on the host, its padding left out.

    Examples:
      >>> from kd_jax.types import Inputs, Tokens
      >>> position, segment = np.array([[0, 1, 2, 0, 1, 0]]), np.array([[1, 1, 1, 2, 2, 0]])  # two examples, one place
      >>> inputs = Inputs(np.array([0]), Tokens(segment, position, segment), None)
      >>> count_workload(Batch(inputs, segment, segment > 1, segment, {}))
      Workload(targets=2, decoder=5, encoder=0, own=9, source=0, across=0)
    """
    decoder, encoder = batch.inputs.decoder, batch.inputs.encoder
    exists_BT = decoder.segment_BT > 0
    own = int((decoder.position_BT + 1)[exists_BT].sum())  # 1 + 2 + ... of each example
    targets, tokens = int(batch.mask_BT.sum()), int(exists_BT.sum())
    if encoder is None:
        return Workload(targets, tokens, 0, own, 0, 0)
    source_BS = encoder.segment_BT > 0
    source = int((2 * encoder.position_BT + 1)[source_BS].sum())  # 1 + 3 + 5 + ...: a square for each example
    written, read = _lengths(decoder.segment_BT), _lengths(encoder.segment_BT)
    across = sum(count * read[example] for example, count in written.items() if example in read)
    return Workload(targets, tokens, int(source_BS.sum()), own, source, across)


def count_full_workload(batch: Batch) -> Workload:
    """The same, were there one example in each row that fills it, and all of its targets counted."""
    rows, length = batch.targets_BT.shape
    own, tokens = rows * length * (length + 1) // 2, rows * length
    if batch.inputs.encoder is None:
        return Workload(tokens, tokens, 0, own, 0, 0)
    source = batch.inputs.encoder.ids_BT.shape[1]
    return Workload(tokens, tokens, rows * source, own, rows * source**2, tokens * source)


def _lengths(segment_BX: Array) -> dict[int, int]:
    """A number for each (row, segment) -> its tokens."""
    row_N, column_N = np.nonzero(segment_BX)
    numbers, counts = np.unique(row_N * 2**32 + np.asarray(segment_BX)[row_N, column_N], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))
