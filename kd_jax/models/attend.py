"""Attention as pure functions: plain, in blocks, and by the kernels of TPUs and GPUs.

In names, G is the number of key heads and d the width of a head. All functions compute the same values, up to rounding;
`choose` decides between them.

- plain: XLA's own operations, with scores [B, H, T, S] in memory. The fastest for short texts.
- blocks: the same operations, a block of queries at a time, and again in the backward pass. Memory is linear in T.
- splash: JAX's Pallas kernel for TPUs, with segments, windows, grouped keys and soft caps.
- triton: JAX's Pallas kernel for GPUs, with segments, for 16-bit floats. JAX's interface to cuDNN takes no segments: a
  mask of packed rows would be a bias [B, 1, T, T]. Nor does the public function of tokamax 0.0.12. JAX will remove the
  kernel some day; without it GPUs get blocks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kd_jax.models.positions import relative_buckets
from kd_jax.runtime.devices import ROWS
from kd_jax.runtime.target import Platform, is_for_cpu, target_platform
from kd_jax.types import Array

Attention = Literal["auto", "plain", "flash"]
Kernel = Literal["plain", "blocks", "splash", "triton"]

MASKED = -1e9

# Causal attention on CPU splits its queries into at most MAX_BLOCKS blocks of at least MIN_BLOCK tokens.
MAX_BLOCKS, MIN_BLOCK = 4, 64
BLOCK = 128  # queries of a block, where memory must be linear in T
LANES = 128  # lengths of texts are padded to a multiple of it for the kernels
# "auto" is "flash" from this number of tokens of a row on. None was timed on idle machines.
FLASH_FROM = {"cpu": 1024, "gpu": 512, "tpu": 512, "any": 1024}
TRITON = "jax.experimental.pallas.ops.gpu.attention"
PADDING = -1  # segment of what is added to a row for a kernel


class Visibility(NamedTuple):
    """Which keys a query sees, and the biases of what it sees.

    A query sees the keys of its own segment; padding has segment 0 and sees padding.

    Attributes:
      query_BT: int32, segments of the queries.
      key_BS: int32, segments of the keys.
      causal: whether queries and keys are the same tokens, and no query sees a later key.
      window: keys that a causal query sees, itself included; 0 for all.
      table_KH: bias of each bucket of `relative_buckets` and each head; None for none. Tokens of an example are
        contiguous, so distances of columns are distances of positions.
    """

    query_BT: Array
    key_BS: Array
    causal: bool = False
    window: int = 0
    table_KH: Array | None = None

    def bias(self, first_query: Array | int = 0, first_key: Array | int = 0) -> Array:
        """Return the bias of the scores, float [B, 1 or H, T, S], for slices that begin at these columns."""
        column_T = first_query + jnp.arange(self.query_BT.shape[1])
        column_S = first_key + jnp.arange(self.key_BS.shape[1])
        distance_TS = column_S[None] - column_T[:, None]
        mask = same_segment(self.query_BT, self.key_BS)
        if self.causal:
            mask &= (distance_TS <= 0)[None, None]
        if self.window:
            mask &= (distance_TS > -self.window)[None, None]
        bias = mask_bias(mask)
        if self.table_KH is not None:
            bias += relative_bias(self.table_KH, distance_TS, two_sided=not self.causal)
        return bias


def mask_bias(mask: Array) -> Array:
    """Return the bias of a mask: 0 where true, a large negative number elsewhere."""
    return jnp.where(mask, 0.0, MASKED)


def same_segment(query_BT: Array, key_BS: Array) -> Array:
    """Return whether query and key have the same segment, bool [B, 1, T, S]; padding matches padding."""
    return (query_BT[:, :, None] == key_BS[:, None, :])[:, None]


def relative_bias(table_KH: Array, distance_TS: Array, two_sided: bool) -> Array:
    """Return the biases of distances, float32 [1, H, T, S]."""
    return table_KH[relative_buckets(distance_TS, two_sided)].astype(jnp.float32).transpose(2, 0, 1)[None]


class Scores(NamedTuple):
    """How scores are made of products q k'.

    Attributes:
      scale: factor; 0 for 1 / sqrt(d).
      soft_cap: bound, by tanh; 0 for none.
    """

    scale: float = 0.0
    soft_cap: float = 0.0


UNCHANGED = Scores()


def attend(q_BHTd: Array, k_BGSd: Array, v_BGSd: Array, bias: Array, scores: Scores = UNCHANGED) -> Array:
    r"""Return multi-head attention with grouped keys, heads side by side.

    .. math:: softmax(cap(scale \cdot q k^T) + bias) v

    The softmax is computed in float32. Queries that share a key head are stacked along T, so no key is repeated.

    Args:
      q_BHTd: queries.
      k_BGSd: keys; query head h reads key head h // (H / G).
      v_BGSd: values.
      bias: [B or 1, H or 1, T or 1, S].
      scores: scale and bound of the scores.

    Returns:
      [B, T, H d].
    """
    # Batch and heads stay two axes: if they were one, XLA on CPU would copy the decoding cache three times a step.
    batch, heads, length, width = q_BHTd.shape
    groups = k_BGSd.shape[1]
    q_BGRd = q_BHTd.reshape(batch, groups, heads // groups * length, width)
    scores_BGRS = jnp.einsum("bgrd,bgsd->bgrs", q_BGRd, k_BGSd).astype(jnp.float32) * (scores.scale or width**-0.5)
    if scores.soft_cap:
        scores_BGRS = scores.soft_cap * jnp.tanh(scores_BGRS / scores.soft_cap)
    weights_BHTS = jax.nn.softmax(scores_BGRS.reshape(batch, heads, length, k_BGSd.shape[2]) + bias, axis=-1)
    weights_BGRS = weights_BHTS.reshape(scores_BGRS.shape).astype(v_BGSd.dtype)
    out_BGRd = jnp.einsum("bgrs,bgsd->bgrd", weights_BGRS, v_BGSd)
    return join_heads(out_BGRd.reshape(q_BHTd.shape))


def join_heads(x_BHTd: Array) -> Array:
    """Return heads side by side, [B, T, H d]."""
    batch, heads, length, width = x_BHTd.shape
    return x_BHTd.swapaxes(1, 2).reshape(batch, length, heads * width)


def attend_causal(q_BHTd: Array, k_BGTd: Array, v_BGTd: Array, bias: Array, scores: Scores = UNCHANGED) -> Array:
    """Return `attend` for a causal bias, S = T, in blocks of queries; each block reads the keys up to its end."""
    # A CPU optimisation: four blocks skip three eighths of the products. Plain `attend` gives the same values.
    length, parts = q_BHTd.shape[2], []
    block = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
    for start in range(0, max(length, 1), block):
        end = min(start + block, length)
        k_BGSd, v_BGSd = k_BGTd[:, :, :end], v_BGTd[:, :, :end]
        parts.append(attend(q_BHTd[:, :, start:end], k_BGSd, v_BGSd, bias[:, :, start:end, :end], scores))
    return jnp.concatenate(parts, axis=1)


def attend_plain(
    q_BHTd: Array, k_BGSd: Array, v_BGSd: Array, bias: Array, scores: Scores = UNCHANGED, causal: bool = False
) -> Array:
    """Return `attend`, on CPU in the blocks of `attend_causal`."""
    attention = attend_causal if causal and is_for_cpu() else attend
    return attention(q_BHTd, k_BGSd, v_BGSd, bias, scores)


def attend_in_blocks(
    q_BHTd: Array, k_BGSd: Array, v_BGSd: Array, visibility: Visibility, scores: Scores = UNCHANGED
) -> Array:
    """Return `attend` with memory linear in T: a block of queries at a time, forward and again backward.

    A block reads the keys that its window reaches or, of a causal row, one of MAX_BLOCKS beginnings of the row.
    """
    length, key_length, window = q_BHTd.shape[2], k_BGSd.shape[2], visibility.window
    q_BHTd, query_BT = _pad(q_BHTd, BLOCK, 2), _pad(visibility.query_BT, BLOCK, 1, PADDING)
    reach = min(key_length, window - 1 + BLOCK) if window else key_length

    def block(start: Array, q_BHtd: Array, query_Bt: Array, end: int) -> Array:
        first = jnp.clip(start - (window - 1), 0, end - min(reach, end)) if window else 0
        k, v = (jax.lax.dynamic_slice_in_dim(x[:, :, :end], first, min(reach, end), axis=2) for x in (k_BGSd, v_BGSd))
        key_Bs = jax.lax.dynamic_slice_in_dim(visibility.key_BS[:, :end], first, min(reach, end), axis=1)
        bias = visibility._replace(query_BT=query_Bt, key_BS=key_Bs).bias(start, first)
        return attend(q_BHtd, k, v, bias, scores)

    parts = []
    in_parts = visibility.causal and not window
    part_length = -(-q_BHTd.shape[2] // (MAX_BLOCKS * BLOCK)) * BLOCK if in_parts else q_BHTd.shape[2]
    for begin in range(0, q_BHTd.shape[2], part_length):
        end = min(begin + part_length, q_BHTd.shape[2])
        last_key = min(end, key_length) if in_parts else key_length
        # Each block is computed again in the backward pass, so no scores are saved.
        one = jax.checkpoint(functools.partial(block, end=last_key), prevent_cse=False)
        blocks = (end - begin) // BLOCK
        q_NBHtd = jnp.stack(jnp.split(q_BHTd[:, :, begin:end], blocks, axis=2))
        query_NBt = jnp.stack(jnp.split(query_BT[:, begin:end], blocks, axis=1))
        starts_N = begin + BLOCK * jnp.arange(blocks)
        _, out_NBtX = jax.lax.scan(lambda _, xs, one=one: (None, one(*xs)), None, (starts_N, q_NBHtd, query_NBt))
        parts += list(out_NBtX)
    return jnp.concatenate(parts, axis=1)[:, :length]


def attend_splash(
    q_BHTd: Array,
    k_BGSd: Array,
    v_BGSd: Array,
    visibility: Visibility,
    scores: Scores = UNCHANGED,
    interpret: bool = False,
) -> Array:
    """Return `attend` by the TPU's kernel; `interpret` for CPU, in tests."""
    from jax.experimental.pallas.ops.tpu import splash_attention  # 0.3 s, for those who have a TPU

    heads, length, width = q_BHTd.shape[1:]
    q_BHTd, k_BGSd, v_BGSd = (_pad(x, LANES, 2) for x in (q_BHTd, k_BGSd, v_BGSd))
    segments = [_pad(x, LANES, 1, PADDING) for x in (visibility.query_BT, visibility.key_BS)]
    shape = q_BHTd.shape[2], k_BGSd.shape[2]
    if visibility.window:
        mask = splash_attention.LocalMask(shape, (visibility.window - 1, 0), offset=0)
    else:
        mask = splash_attention.CausalMask(shape) if visibility.causal else splash_attention.FullMask(shape)
    query_block, key_block = (next(n for n in (512, 256, 128) if size % n == 0) for size in shape)
    blocks = splash_attention.BlockSizes(
        block_q=query_block,
        block_kv=key_block,
        block_kv_compute=key_block,
        block_q_dkv=query_block,
        block_kv_dkv=key_block,
        block_kv_dkv_compute=key_block,
        use_fused_bwd_kernel=True,
    )

    def kernel(q_BHTd: Array, k_BGSd: Array, v_BGSd: Array, query_BT: Array, key_BS: Array) -> Array:
        one = splash_attention.make_splash_mha_single_device(
            mask=splash_attention.MultiHeadMask([mask] * q_BHTd.shape[1]),
            block_sizes=blocks,
            attn_logits_soft_cap=scores.soft_cap or None,
            interpret=interpret,
        )
        segments = splash_attention.SegmentIds(query_BT, key_BS)
        return cast(Array, jax.vmap(one)(q_BHTd, k_BGSd, v_BGSd, segments))

    scaled_BHTd = q_BHTd * jnp.asarray(scores.scale or width**-0.5, q_BHTd.dtype)
    out_BHTd = _over_mesh(kernel, heads, k_BGSd.shape[1])(scaled_BHTd, k_BGSd, v_BGSd, *segments)
    return join_heads(out_BHTd[:, :, :length].astype(v_BGSd.dtype))


def attend_triton(
    q_BHTd: Array,
    k_BGSd: Array,
    v_BGSd: Array,
    visibility: Visibility,
    scores: Scores = UNCHANGED,
    interpret: bool = False,
) -> Array:
    """Return `attend` by the GPU's kernel, for queries and keys of the same tokens; `interpret` for CPU, in tests."""
    from jax.experimental.pallas.ops.gpu import attention as triton_attention  # 0.3 s, for those who have a GPU

    heads, length, width = q_BHTd.shape[1:]
    # The kernel has no grouped keys, so they are repeated.
    k_BHSd, v_BHSd = (jnp.repeat(x, heads // x.shape[1], axis=1) for x in (k_BGSd, v_BGSd))
    q_BHTd, k_BHSd, v_BHSd = (_pad(x, LANES, 2) for x in (q_BHTd, k_BHSd, v_BHSd))
    segment_BT = _pad(visibility.query_BT, LANES, 1, PADDING)

    def kernel(q_BHTd: Array, k_BHTd: Array, v_BHTd: Array, segment_BT: Array) -> Array:
        q_BTHd, k_BTHd, v_BTHd = (x.swapaxes(1, 2) for x in (q_BHTd, k_BHTd, v_BHTd))
        scale = scores.scale or width**-0.5
        out_BTHd = triton_attention.mha(
            q_BTHd, k_BTHd, v_BTHd, segment_BT, scale, visibility.causal, interpret=interpret
        )
        return cast(Array, out_BTHd).swapaxes(1, 2)

    out_BHTd = _over_mesh(kernel, heads, heads)(q_BHTd, k_BHSd, v_BHSd, segment_BT)
    return join_heads(out_BHTd[:, :, :length])


def _pad(x: Array, multiple: int, axis: int, value: int = 0) -> Array:
    """Pad an axis at its end to a multiple."""
    widths = [(0, -x.shape[i] % multiple if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def _over_mesh(kernel: Callable[..., Array], heads: int, groups: int) -> Callable[..., Array]:
    """Wrap a kernel in `jax.shard_map` over the mesh that is set, if there is one: the compiler cannot divide it.

    Arrays of heads are sharded by rows and heads, segments by rows.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if all(size == 1 for size in sizes.values()):
        return kernel
    tensor = "tensor" if not (heads % sizes["tensor"] or groups % sizes["tensor"]) else None
    arrays, segments = PartitionSpec(ROWS, tensor), PartitionSpec(ROWS)

    def sharded(q: Array, k: Array, v: Array, *segment_arrays: Array) -> Array:
        specs = (arrays, arrays, arrays, *(segments for _ in segment_arrays))
        # check_vma: the kernels do not declare over which axes of the mesh their results vary.
        mapped = jax.shard_map(kernel, in_specs=specs, out_specs=arrays, check_vma=False)
        return mapped(q, k, v, *segment_arrays)

    return sharded


Attend = Callable[
    [Array, Array, Array, Any], Array
]  # (q_BHTd, k_BGSd, v_BGSd, whether the layer is local) -> [B, T, H d]


def attention_of(
    attention: Attention,
    visibility: Visibility,
    scores: Scores,
    *,
    same_tokens: bool,
    window: int = 0,
    compute: str = "float32",
) -> Attend:
    """Return the attention of a stack's layers, of which local ones see a window.

    Args:
      attention: as of `choose`.
      visibility: of all layers, without a window.
      scores: scale and bound of the scores.
      same_tokens: whether queries and keys are of the same tokens.
      window: keys that a query of a local layer sees; 0 if no layer is local.
      compute: dtype of queries, keys and values.
    """
    shape = visibility.query_BT.shape[1], visibility.key_BS.shape[1]
    visibilities = [visibility, visibility._replace(window=window)] if window else [visibility]
    kernels: list[Kernel] = [
        choose(
            attention,
            shape,
            same_tokens=same_tokens,
            window=each.window,
            relative=visibility.table_KH is not None,
            scores=scores,
            compute=compute,
        )
        for each in visibilities
    ]
    # The layers share the biases.
    biases = [each.bias() if kernel == "plain" else None for each, kernel in zip(visibilities, kernels, strict=True)]

    def one(n: int, q_BHTd: Array, k_BGSd: Array, v_BGSd: Array) -> Array:
        bias = biases[n]
        if bias is not None:
            return attend_plain(q_BHTd, k_BGSd, v_BGSd, bias, scores, visibility.causal)
        return KERNELS[kernels[n]](q_BHTd, k_BGSd, v_BGSd, visibilities[n], scores)

    return _by_layer([functools.partial(one, n) for n in range(len(visibilities))])


def attention_under_masks(masks: Sequence[Array], relative: Array | None, scores: Scores) -> Attend:
    """Return plain attention under explicit masks, bool [B, 1, T, S]: of all layers, and a second one of local layers.

    `relative` are biases of relative positions, [1, H, T, S].
    """
    biases = [mask_bias(mask) if relative is None else mask_bias(mask) + relative for mask in masks]
    return _by_layer([functools.partial(attend, bias=bias, scores=scores) for bias in biases])


def _by_layer(functions: Sequence[Callable[..., Array]]) -> Attend:
    """Return one attention of a function for all layers, or of (a function, another one for local layers)."""

    def attention(q_BHTd: Array, k_BGSd: Array, v_BGSd: Array, local: Any) -> Array:
        if len(functions) == 1:
            return functions[0](q_BHTd, k_BGSd, v_BGSd)
        if isinstance(local, bool):
            return functions[local](q_BHTd, k_BGSd, v_BGSd)
        return jax.lax.cond(local, functions[1], functions[0], q_BHTd, k_BGSd, v_BGSd)  # in a scan over layers

    return attention


def choose(
    attention: Attention,
    shape: tuple[int, int],
    *,
    same_tokens: bool,
    window: int = 0,
    relative: bool = False,
    scores: Scores = UNCHANGED,
    compute: str = "bfloat16",
    platform: Platform | None = None,
) -> Kernel:
    """Return the kernel for an attention.

    Args:
      attention: "plain", "flash" (memory linear in T), or "auto": flash for long texts.
      shape: (T, S), numbers of queries and keys.
      same_tokens: whether queries and keys are of the same tokens.
      window: keys that a query sees; 0 for all.
      relative: whether scores have biases of relative positions.
      scores: scale and bound of the scores.
      compute: dtype of queries, keys and values.
      platform: for which it is compiled; None for `target_platform`.

    Examples:
      >>> choose("auto", (4096, 4096), same_tokens=True, platform="tpu")
      'splash'
      >>> choose("auto", (4096, 4096), same_tokens=True, relative=True, platform="tpu")  # T5
      'blocks'
      >>> choose("auto", (128, 128), same_tokens=True, platform="tpu")
      'plain'
    """
    platform, longest = platform or target_platform(), max(shape)
    if attention == "plain" or (attention == "auto" and longest < FLASH_FROM[platform]):
        return "plain"
    if platform == "tpu" and not relative:
        return "splash"
    is_simple = same_tokens and not (relative or window or scores.soft_cap)
    if platform == "gpu" and is_simple and compute == "bfloat16" and find_spec(TRITON):
        return "triton"
    return "blocks" if shape[0] > BLOCK else "plain"


KERNELS: Mapping[Kernel, Callable[..., Array]] = {
    "blocks": attend_in_blocks,
    "splash": attend_splash,
    "triton": attend_triton,
}
