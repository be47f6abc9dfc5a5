"""Hidden states and attention relations: layers, masks, widths, heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.losses.divergence import forward_kl
from kd_jax.losses.features import mse
from kd_jax.signals.features import AttentionRelations, HiddenStates

B, T = 3, 5


def taps(width, layers=3, seed=0):
    rng = np.random.default_rng(seed)
    names = [
        f"{stack}_{i}.{kind}" for stack in ("encoder", "decoder") for i in range(layers) for kind in ("hidden", *"qkv")
    ]
    return {name: jnp.asarray(rng.normal(size=(B, T, width)), jnp.float32) for name in names}


def test_pairs_select_layers_and_equal_widths_need_no_projection():
    student, teacher = taps(8, seed=1), taps(8, seed=2)
    signal = HiddenStates(layers=((0, 1), (1, 2)))
    assert signal.init_adapter(jax.random.key(0), student, teacher) == {}
    theirs, ours = signal.align(student, teacher, jnp.ones((B, T), bool), {})
    np.testing.assert_array_equal(theirs[1], teacher["decoder_2.hidden"])
    np.testing.assert_array_equal(ours[0], student["decoder_0.hidden"])


def test_a_projection_bridges_widths_and_gets_a_gradient():
    student, teacher = taps(4, seed=1), taps(8, seed=2)
    signal = HiddenStates(layers=((0, 1),))
    adapter = signal.init_adapter(jax.random.key(0), student, teacher)
    loss = lambda a: mse(*signal.align(student, teacher, jnp.ones((B, T), bool), a)).sum()  # noqa: E731
    assert adapter["0"].shape == (4, 8)
    assert jnp.abs(jax.grad(loss)(adapter)["0"]).min() > 0


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_relations_compare_any_widths_and_ignore_padding(stack):
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


PAIRS = ((0, 1),)


@pytest.mark.parametrize(
    "signal, field",
    [
        (HiddenStates(layers=()), "layers"),
        (HiddenStates(layers=((0, 1), (1,))), "layers"),
        (HiddenStates(layers=((0, -1),)), "layers"),
        (HiddenStates(layers=((0, 1.0),)), "layers"),
        (HiddenStates(layers=PAIRS, stack="middle"), "stack"),
        (AttentionRelations(layers=()), "layers"),
        (AttentionRelations(layers=PAIRS, heads=0), "heads"),
        (AttentionRelations(layers=PAIRS, heads=2.0), "heads"),
        (AttentionRelations(layers=PAIRS, kinds=()), "kinds"),
        (AttentionRelations(layers=PAIRS, kinds=("q", "hidden")), "kinds"),
    ],
)
def test_bad_fields_are_refused(signal, field):
    with pytest.raises(KdError, match=rf"signal\.{field}: expected .*, got "):
        signal.check(100)


@pytest.mark.parametrize("signal", [HiddenStates(layers=((0, 2),)), AttentionRelations(layers=((0, 2),), heads=4)])
def test_layers_and_widths_of_both_networks_are_checked(signal):
    stacks = {"encoder": 3, "decoder": 3}
    signal.check(100)
    signal.check_layers({"encoder": 1, "decoder": 1}, stacks)
    signal.check_widths(*(dict.fromkeys(("hidden", "q", "k", "v"), width) for width in (8, 12)))
    with pytest.raises(
        KdError,
        match=r"signal\.layers: expected a layer of the teacher's \w+, 0 to 1, got 2",
    ):
        signal.check_layers(stacks, {"encoder": 2, "decoder": 2})
    with pytest.raises(KdError, match=r"signal\.stack: expected a stack of the student"):
        signal.check_layers({}, stacks)


def test_relation_heads_must_divide_the_compared_widths():
    """Widths of queries and keys differ from the model's if it has head_dim or kv_heads."""
    student, teacher = ({"hidden": 9, "q": 8, "k": width, "v": width} for width in (4, 10))
    AttentionRelations(layers=PAIRS, heads=4, kinds=("q",)).check_widths(student, teacher)
    with pytest.raises(KdError, match=r"signal\.heads: expected a divisor of 10, the width of the teacher's k, got 4"):
        AttentionRelations(layers=PAIRS, heads=4).check_widths(student, teacher)


def test_a_projection_preserves_the_size_of_entries():
    """A vector of ones, to a width 16 times as large: entries of variance 1, within 5 standard deviations."""
    student, teacher = ({"decoder_0.hidden": jnp.ones((1, 1, width))} for width in (64, 1024))
    adapter = HiddenStates(layers=((0, 0),)).init_adapter(jax.random.key(0), student, teacher)
    projected = jnp.ones((1, 64)) @ adapter["0"]
    assert abs(float((projected**2).mean()) - 1) < 5 * (2 / 1024) ** 0.5
