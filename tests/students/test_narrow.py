"""Narrower students: removing parts of the teacher that have no effect changes nothing."""

import dataclasses
import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.models.axes import AXES, parameter_axes
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.students.init import FromTeacher, init_from_teacher
from kd_jax.students.narrow import best_heads, component_sizes, control_scores, narrow, select_indices
from tests.models.cases import FAMILIES, OPTIONS, V, loss_and_gradient, make_batch, random_segments, small_network

EVERY = pytest.mark.parametrize("options", OPTIONS)
BOTH = pytest.mark.parametrize("family", FAMILIES)
CHANNELS = 12  # of 16


def name_of(path):
    return ".".join(key.key for key in path)


def smaller(config, **sizes):
    """Return a configuration with half of the heads, half of the heads of keys, and 15 of 24 neurons."""
    shape = {"heads": 2, "kv_heads": max(1, config.key_heads // 2), "head_dim": config.head_width, "d_ff": 15}
    return dataclasses.replace(config, **shape | sizes)


@functools.cache
def random_binary_scores(config, student):
    """Return scores of 1 for as many random parts as the student has, and 0 for the others."""
    rng, scores = np.random.default_rng(1), {name: np.zeros(size) for name, size in component_sizes(config).items()}
    scores["channels"][rng.permutation(config.d_model)[: student.d_model]] = 1
    groups, of_each = config.key_heads, student.heads // student.key_heads
    same_H = None
    for name, score_X in scores.items():
        if name.endswith("heads"):
            if same_H is None or config.positions != "relative":
                same_H = np.zeros((groups, config.heads // groups))
                for group in rng.permutation(groups)[: student.key_heads]:
                    same_H[group, rng.permutation(config.heads // groups)[:of_each]] = 1
            score_X[:] = same_H.ravel()
        elif name.endswith("neurons"):
            score_X[rng.permutation(config.d_ff)[: student.d_ff]] = 1
    return scores


def zero_outputs(params, scores, width):
    """Return the parameters with no output of heads and neurons with score 0."""

    def zero(path, x):
        name, (layer, *_) = name_of(path), [key.key for key in path]
        if name.endswith("ffn.out.kernel"):
            return x * scores[f"{layer}.ffn.neurons"][:, None].astype(np.float32)
        if name.endswith("attention.out.kernel"):
            tap = f"{layer}.cross_attention.heads" if "cross" in name else f"{layer}.heads"
            return x * np.repeat(scores[tap], width)[:, None].astype(np.float32)
        return x

    return jax.tree_util.tree_map_with_path(zero, params)


def zero_channels(params, used_D, norm):
    """Return the parameters with zeros in channels with score 0; if norms subtract the mean, outputs sum to zero."""

    def zero(path, x):
        name, axes = name_of(path), parameter_axes(name_of(path))
        if "model" not in axes or (axes.index("model") == 0 and x.ndim == 2):  # an input axis
            return x
        if norm == "layer" and name.endswith("scale"):
            return jnp.asarray(1.25 * used_D, jnp.float32)
        x = np.asarray(x) * used_D
        if norm == "layer":
            x = (x - x.sum(-1, keepdims=True) / used_D.sum()) * used_D
        return jnp.asarray(x, jnp.float32)

    return jax.tree_util.tree_map_with_path(zero, params)


def student_of(config, student, params, scores):
    return init_from_teacher(FromTeacher(), config, student, params, V, scores)


@EVERY
@BOTH
def test_axes_of_every_parameter_have_names(family, options):
    """Each parameter matches one pattern, and axes of one name have the size of the configuration."""
    config, _, params = small_network(family, options)
    width, gated = config.head_width, 1 + (config.activation in ("swiglu", "geglu"))
    heads, groups = config.heads * width, config.key_heads * width
    sizes = {"model": config.d_model, "q": heads, "kv": 2 * groups, "qkv": heads + 2 * groups, "width": width}
    sizes |= {"neuron": config.d_ff, "inner": gated * config.d_ff, "head": config.heads, "bucket": 32}
    sizes |= {"token": config.embedding_rows(V), "position": config.context}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        assert sum(bool(re.fullmatch(pattern, name_of(path))) for pattern in AXES) == 1, name_of(path)
        assert x.shape == tuple(sizes[axis] for axis in parameter_axes(name_of(path))), name_of(path)


@pytest.mark.parametrize("options", ["default", "marian", "t5", "gemma2", "qwen3"])
@BOTH
def test_removing_heads_and_neurons_without_effect_changes_nothing(family, options):
    """Loss, hidden states and the gradients of the remaining parameters are equal."""
    config, _, params = small_network(family, options)
    student = smaller(config)
    scores = random_binary_scores(config, student)
    params = zero_outputs(params, scores, config.head_width)
    batch = make_batch(config, [[segment] for segment in random_segments(3, [(4, 3), (2, 5)])])
    (loss, (hidden_BTD, _)), gradients = loss_and_gradient(family, options)(params, batch)
    small = student_of(config, student, params, scores)
    expected = jax.eval_shape(student.build(V).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, expected)
    model = student.build(V)

    def loss_of(params):
        hidden_BTD = model.apply(params, batch.inputs)
        logp_BTV = jax.nn.log_softmax(model.head(params).logits(hidden_BTD))
        logp_BT = jnp.take_along_axis(logp_BTV, batch.targets_BT[..., None], -1)[..., 0]
        return -jnp.where(batch.mask_BT, logp_BT, 0.0).sum(), hidden_BTD

    (small_loss, small_BTD), small_gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(small)
    np.testing.assert_allclose(small_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(small_BTD, hidden_BTD, atol=1e-4)
    expected_gradients = narrow(gradients, select_indices(config, student, scores))
    chex.assert_trees_all_close(small_gradients, expected_gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("options", [name for name in OPTIONS if name not in ("marian", "m2m100")])
@BOTH
def test_removing_zero_channels_changes_nothing(family, options, scaled):
    """Norms, embeddings and the input of a tied output are rescaled for the number of channels."""
    config, _, params = small_network(family, options)
    if config.positions == "sinusoidal":  # they depend on the width
        config = dataclasses.replace(config, positions="rotary")
    config = dataclasses.replace(config, embedding_scale=scaled)
    student = smaller(config, d_model=CHANNELS, head_scale=0.5 if scaled else config.head_scale)
    scores = random_binary_scores(config, student)
    used_D = scores["channels"]
    params = zero_channels(zero_outputs(params, scores, config.head_width), used_D, config.norm)
    inputs = make_batch(config, [[segment] for segment in random_segments(3, [(4, 3), (2, 5)])]).inputs

    def logits(architecture, params):
        model = architecture.build(V)
        return jax.jit(lambda p: model.head(p).logits(model.apply(p, inputs)))(params)

    want_BTV = logits(config, params)
    np.testing.assert_allclose(logits(student, student_of(config, student, params, scores)), want_BTV, atol=2e-4)
    assert np.ptp(want_BTV, axis=-1).min() > 0.1


def test_the_same_channels_are_selected_everywhere():
    """Every entry of the teacher is unique, so the student's parameters show their origin."""
    teacher = EncoderDecoder(1, 3, d_model=6, heads=2, d_ff=4, embedding_scale=False, norm="rms")
    shapes = jax.eval_shape(teacher.build(V).init, jax.random.key(0))
    params = jax.tree.map(lambda s: jnp.arange(s.size, dtype=jnp.float32).reshape(s.shape), shapes)
    student = EncoderDecoder(1, 1, d_model=4, heads=1, head_dim=3, d_ff=2, embedding_scale=False)
    student = dataclasses.replace(student, norm="rms")
    scores = {name: np.arange(size, dtype=float) for name, size in component_sizes(teacher).items()}
    scores["channels"] = np.array([5.0, 0, 5, 0, 5, 5])
    small = init_from_teacher(FromTeacher(decoder=(1,)), teacher, student, params, V, scores)
    channels, head = np.array([0, 2, 4, 5]), np.array([3, 4, 5])
    np.testing.assert_array_equal(small["embedding"], params["embedding"][:, channels])
    block = params["decoder_1"]
    qkv = np.concatenate([head, 6 + head, 12 + head])
    np.testing.assert_array_equal(
        small["decoder_0"]["self_attention"]["qkv"]["kernel"],
        block["self_attention"]["qkv"]["kernel"][channels][:, qkv],
    )
    np.testing.assert_array_equal(
        small["decoder_0"]["ffn"]["out"]["kernel"], block["ffn"]["out"]["kernel"][2:][:, channels]
    )
    ratio = np.float32((6 / 4) ** 0.5)
    np.testing.assert_allclose(small["decoder_0"]["norm_ffn"]["scale"], ratio * block["norm_ffn"]["scale"][channels])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=6, max_size=6),
    st.sampled_from([(6, 3, 3), (3, 2, 1), (3, 2, 2), (1, 2, 1), (2, 2, 2), (2, 3, 1), (2, 4, 2)]),
)
def test_best_heads_equal_exhaustive_search(scores, sizes):
    """No other selection of groups, and of heads in each, has a larger sum of scores."""
    groups, heads, student_groups = sizes
    scores_GR, each = np.reshape(np.array(scores, float), (groups, -1)), heads // student_groups
    query, key = best_heads(scores_GR.ravel(), groups, heads, student_groups)
    assert (query // scores_GR.shape[1] == np.repeat(key, each)).all() and (np.diff(query) > 0).all()
    sums = [
        sum(max(sum(heads) for heads in itertools.combinations(scores_GR[g], each)) for g in chosen)
        for chosen in itertools.combinations(range(groups), student_groups)
    ]
    assert scores_GR.ravel()[query].sum() == max(sums)


def test_controls_are_the_first_parts_or_random_ones():
    teacher = DecoderOnly(2, d_model=8, heads=4, d_ff=16)
    student = dataclasses.replace(teacher, d_model=4, heads=2, head_dim=2, d_ff=8)
    first = select_indices(teacher, student, control_scores("first", teacher, 0))
    assert first["model"].tolist() == [0, 1, 2, 3] and first["decoder_1.ffn.neuron"].tolist() == list(range(8))
    random = [select_indices(teacher, student, control_scores("random", teacher, seed)) for seed in (0, 0, 1)]
    chex.assert_trees_all_equal(random[0], random[1])
    assert any((random[0][name] != random[2][name]).any() for name in random[0])


TEACHER = DecoderOnly(2, d_model=32, heads=4, kv_heads=2, d_ff=64)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"d_model": 64, "head_dim": 8}, r"model\.d_model: expected at most the teacher's 32 .*, got 64"),
        ({"d_ff": 65}, r"model\.d_ff: expected at most the teacher's 64 .*, got 65"),
        ({"heads": 8, "head_dim": 8}, r"model\.heads: expected at most the teacher's 4 .*, got 8"),
        ({"kv_heads": 4}, r"model\.kv_heads: expected at most the teacher's 2 .*, got 4"),
        ({"d_model": 16}, r"model\.head_dim: expected heads of width 8, .*, got 4\. Set head_dim=8"),
        ({"kv_heads": 1}, r"model\.heads: expected at most 2 for kv_heads = 1, .*, got 4\. Set more kv_heads"),
        ({"layers": 3}, r"init\.decoder: expected one of the teacher's 2 layers for each of the 3 student layers"),
        ({"activation": "geglu"}, r"model\.activation: expected the teacher's swiglu .*, got geglu"),
    ],
)
def test_students_that_are_no_smaller_teacher_are_refused(fields, message):
    with pytest.raises(KdError, match=message):
        FromTeacher().check(TEACHER, dataclasses.replace(TEACHER, **fields))


def test_heads_that_are_normalised_together_are_not_removed():
    """Their norm depends on all of them; channels and neurons may be removed."""
    teacher = dataclasses.replace(TEACHER, qk_norm=True, qk_norm_joint=True, head_dim=8)
    FromTeacher().check(teacher, dataclasses.replace(teacher, d_model=16, d_ff=32))
    message = r"model\.heads: expected 4 and kv_heads = 2, since the teacher's qk_norm_joint .*, got 2 and 1"
    with pytest.raises(KdError, match=message):
        FromTeacher().check(teacher, dataclasses.replace(teacher, heads=2, kv_heads=1))


@pytest.mark.parametrize(
    "init, message",
    [
        (FromTeacher(width="last"), "init.width: expected one of importance, first, random, got 'last'"),
        (FromTeacher(sample=0), "init.sample: expected an integer in"),
        (FromTeacher(sample=2.5), "init.sample: .* got 2.5"),
    ],
)
def test_values_out_of_range_are_refused(init, message):
    with pytest.raises(KdError, match=message):
        init.check(TEACHER, TEACHER)
