"""Hidden states and attention relations: closed forms, masks, widths, heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kd_jax.losses.divergence import forward_kl
from kd_jax.losses.features import cosine, mse
from kd_jax.signals.features import AttentionRelations, HiddenStates

RNG = np.random.default_rng(0)
B, T = 3, 5


def taps(width, layers=3, seed=0):
    rng = np.random.default_rng(seed)
    names = [
        f"{stack}_{i}.{kind}" for stack in ("encoder", "decoder") for i in range(layers) for kind in ("hidden", *"qkv")
    ]
    return {name: jnp.asarray(rng.normal(size=(B, T, width)), jnp.float32) for name in names}


def test_closed_forms():
    a, b = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[2.0, 4.0]])
    np.testing.assert_allclose(mse(a, b), [2.5])
    np.testing.assert_allclose(cosine(a, b), [0.0], atol=1e-6)
    np.testing.assert_allclose(cosine(a, -b), [2.0], rtol=1e-6)
    np.testing.assert_allclose(cosine(a, jnp.asarray([[-2.0, 1.0]])), [1.0], rtol=1e-6)


def test_gradients_even_at_zero():
    a, b = (jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32) for _ in range(2))
    for loss in (mse, cosine):
        check_grads(lambda x, f=loss: f(a, x).sum(), (b,), 1, ["rev"], rtol=2e-2)
    assert jnp.isfinite(jax.grad(lambda x: cosine(a, x).sum())(jnp.zeros_like(a))).all()


def test_the_layer_map_picks_layers_and_equal_widths_need_no_projection():
    student, teacher = taps(8, seed=1), taps(8, seed=2)
    signal = HiddenStates(layers=((0, 1), (1, 2)))
    assert signal.init(jax.random.key(0), student, teacher) == {}
    theirs, ours = signal.align(student, teacher, jnp.ones((B, T), bool), {})
    np.testing.assert_array_equal(theirs[1], teacher["decoder_2.hidden"])
    np.testing.assert_array_equal(ours[0], student["decoder_0.hidden"])


def test_a_projection_bridges_widths_and_gets_a_gradient():
    student, teacher = taps(4, seed=1), taps(8, seed=2)
    signal = HiddenStates(layers=((0, 1),))
    adapter = signal.init(jax.random.key(0), student, teacher)
    loss = lambda a: mse(*signal.align(student, teacher, jnp.ones((B, T), bool), a)).sum()  # noqa: E731
    assert adapter["0"].shape == (4, 8)
    assert jnp.abs(jax.grad(loss)(adapter)["0"]).min() > 0


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_relations_compare_any_widths_and_ignore_what_is_masked(stack):
    student, teacher = taps(4, seed=1), taps(8, seed=2)
    mask = jnp.arange(T)[None] < jnp.asarray([[5], [3], [1]])
    signal = AttentionRelations(layers=((0, 2),), stack=stack, heads=2)

    def loss(ours, theirs):
        teacher_PBTX, student_PBTX = signal.align(ours, theirs, mask, {})
        assert teacher_PBTX.shape == student_PBTX.shape == (6, B, T, T)
        return jnp.where(mask[None], forward_kl(teacher_PBTX, student_PBTX), 0.0)

    changed = {k: jnp.where(mask[..., None], x, 1e4) for k, x in student.items()}
    np.testing.assert_array_equal(loss(changed, teacher), loss(student, teacher))
    same = dataclasses.replace(signal, layers=((2, 2),)).align(student, student, mask, {})
    assert jnp.abs(forward_kl(*same)).max() < 1e-6
    want = jax.nn.log_softmax(
        (student[f"{stack}_0.q"][0, :, :2] @ student[f"{stack}_0.q"][0, :, :2].T) / 2**0.5
        + (0.0 if stack == "encoder" else jnp.where(jnp.tri(T) > 0, 0.0, -1e9))
    )
    np.testing.assert_allclose(signal.align(student, teacher, mask, {})[1][0, 0], want, rtol=1e-5, atol=1e-5)
