"""The step and decoding as TPUs and GPUs get them, lowered on a machine without: kernels, dtypes, donated memory."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax import DecoderOnly
from kd_jax.batches.layouts import Bucket, Segment
from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.vocabulary import argmax, top_k, top_k_mask
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.base import Head
from kd_jax.models.positions import apply_rotary, rotary_embedding
from kd_jax.objective import fused_head
from kd_jax.objective.fused_head import chunk_tokens
from kd_jax.objective.terms import Term
from kd_jax.runtime.chips import UNKNOWN_MEMORY, local_memory
from kd_jax.runtime.target import lowering_for
from kd_jax.signals.online import Online
from kd_jax.tasks.base import Encoded
from kd_jax.training.step import init_state, train_step
from tests.helpers.platforms import tracing_for

V, T, ROWS = 300, 512, 2
STUDENT = DecoderOnly(layers=2, d_model=64, heads=2, d_ff=128, dropout=0.0, compute="bfloat16")
TEACHER = dataclasses.replace(STUDENT, layers=3, d_model=96)
TERMS = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=Online())}
CALLS = {"tpu": "tpu_custom_call", "cuda": "__gpu$xla.gpu.triton"}
each_platform = pytest.mark.parametrize("platform", ["tpu", "cuda"])


@pytest.fixture(autouse=True)
def promotion(lax_promotion):
    """The kernels' own code promotes ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


def packed_batch():
    """Rows of 512 tokens with three texts each."""
    rng = np.random.default_rng(0)

    def segment(n, length):
        ids = rng.integers(3, V, length).astype(np.int32)
        return Segment(n, Encoded(ids[:0], ids, np.ones(length, bool)), 1.0, {})

    rows = [[segment(3 * row + n, length) for n, length in enumerate((200, 150, 100))] for row in range(ROWS)]
    return STUDENT.layout(1).batch(rows, ROWS, Bucket(0, T), {})


def lowered_step(platform, attention):
    """The text of a training step with the teacher in it, as a platform gets it."""
    student, teacher = (dataclasses.replace(one, attention=attention).build(V) for one in (STUDENT, TEACHER))
    tx = optax.adamw(1e-3)
    step = functools.partial(train_step, model=student, teacher=teacher, terms=TERMS, tx=tx)
    params, teacher_params = (jax.eval_shape(one.init, jax.random.key(0)) for one in (student, teacher))
    state = jax.eval_shape(lambda params: init_state(jax.random.key(1), params, tx), params)
    with tracing_for(platform):
        traced = jax.jit(step, donate_argnums=0).trace(state, packed_batch(), teacher_params)
        return traced.lower(lowering_platforms=(platform,)).as_text()


def count_calls(text, target):
    """How often a program calls a kernel; layers share functions."""
    bodies = dict(re.findall(r"func\.func \w+ @(\S+?)\((.*?)\n  }\n", text, re.DOTALL))

    def count(name):
        called = re.findall(r"(?<!custom_)call @(\S+?)\(", bodies[name])
        return bodies[name].count(f"@{target}(") + sum(map(count, called))

    return count("main")


@each_platform
def test_the_step_has_a_kernel_for_each_attention_and_no_scores(platform):
    """Two layers of the student forward and backward, three of the teacher forward.

    The backward pass of splash is one kernel; that of triton has one for a sum and one for the gradients.
    """
    text = lowered_step(platform, "auto")
    assert count_calls(text, CALLS[platform]) == 3 + 2 * (2 if platform == "tpu" else 3)
    assert f"{T}x{T}" not in text
    assert f"{T}x{T}" in lowered_step(platform, "plain")  # so the search finds them


@each_platform
def test_the_step_multiplies_in_bfloat16_and_reuses_the_state_s_memory(platform):
    text = lowered_step(platform, "auto")
    products = re.findall(r"stablehlo\.dot_general .*? : \(tensor<(\S+?)>, tensor<(\S+?)>\)", text)
    matrices = [pair for pair in products if pair[0] != pair[1]]  # splash multiplies outputs with their own gradients
    assert matrices and all(a.endswith("bf16") and b.endswith("bf16") for a, b in matrices)
    state = re.search(r"func\.func public @main\((.*?)\) ->", text, re.DOTALL).group(1)
    donated = state.count("tf.aliasing_output") + state.count("jax.buffer_donor")
    student = jax.eval_shape(STUDENT.build(V).init, jax.random.key(0))
    assert donated >= 3 * len(jax.tree.leaves(student))  # parameters and both moments
    assert "optimization_barrier" not in text


@each_platform
def test_decoding_is_one_program_with_one_loop(platform):
    """No token leaves the device before the text is written."""
    model = STUDENT.build(V)
    inputs = packed_batch().inputs._replace(index_B=np.arange(ROWS, dtype=np.int32))
    params = jax.eval_shape(model.init, jax.random.key(0))
    with tracing_for(platform):
        program = jax.jit(functools.partial(greedy, model, eos=2, length=20)).trace(params, inputs)
        text = program.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.while") == 1
    for transfer in ("infeed", "outfeed", "stablehlo.send", "stablehlo.recv", "callback"):
        assert transfer not in text
    assert "optimization_barrier" not in text


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_forms_for_accelerators_equal_those_for_cpu(platform):
    rng = np.random.default_rng(0)
    logits_NV = rng.integers(-50, 50, (20, 4000)).astype(np.float32)
    x_BHTd = rng.standard_normal((2, 3, 7, 8)).astype(np.float32)
    rotary = rotary_embedding(jnp.arange(14).reshape(2, 7), 8, 10_000.0)

    def forms():
        rotated = apply_rotary(jnp.asarray(x_BHTd), rotary)
        return argmax(logits_NV), top_k(logits_NV, 8), top_k_mask(logits_NV, 8), rotated

    want = forms()
    with lowering_for(platform):
        chex.assert_trees_all_close(forms(), want, atol=1e-6)


def test_chunks_of_the_head_follow_the_memory_of_an_accelerator():
    """32,768 tokens over 128,000 logits: 16 GB allow a 32nd, 500 MB, or 976 tokens of float32 logits in a chunk."""
    assert local_memory() == UNKNOWN_MEMORY == 16e9  # a CPU does not tell
    assert chunk_tokens(32768, 128_000) == 136  # 131 fit into 64 MiB; 251 chunks of a multiple of 8
    with lowering_for("tpu"):
        chunk = chunk_tokens(32768, 128_000)
        assert 900 < chunk <= 976 and chunk % 8 == 0
        assert chunk_tokens(32768, 4000) == 8192


def test_the_kernel_gradient_of_an_accelerator_is_not_cut_into_strips(monkeypatch):
    monkeypatch.setattr(fused_head, "CHUNK_BYTES", 4 * 8 * 9)
    hidden, head = jnp.ones((64, 16)), Head(jnp.ones((16, 90)))

    def loss(hidden):
        squares = lambda logits, _, shared: ((logits**2).sum(), ())  # noqa: E731
        return fused_head.fused_head(squares, hidden, head, None, None, 8)[0]

    def loops():
        return str(jax.make_jaxpr(jax.grad(lambda hidden: loss(hidden)))(hidden)).count("scan[")

    assert loops() == 2  # over chunks, and over the strips of each
    with lowering_for("tpu"):
        assert loops() == 1
