"""The README's section "As a package": its code runs as it stands and gives what it says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("lax_promotion")  # as for whoever pastes it


@pytest.fixture(scope="module")
def blocks(root):
    """The section's Python, block by block."""
    section = re.search(r"^## As a package$(.*?)^## ", (root / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    return re.findall(r"^```python$(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def test_a_loop_of_ones_own(blocks, capsys):
    names = {}
    exec(blocks[0], names)
    first, last = re.search(r"# ([\d.]+) before the first update, ([\d.]+) here", blocks[0]).groups()
    assert f"{float(capsys.readouterr().out):.2f}" == last

    untrained = {"body": names["network"].init(jax.random.key(0), names["tokens_N"]), "head": jnp.zeros((64, 32))}
    z = np.exp(2.5) + 31  # the teacher's logits are 5 and 31 zeros, at T = 2
    teacher = np.asarray([np.exp(2.5), *[1] * 7, 24]) / z  # eight tokens, and the other 24
    student = np.asarray([*[1] * 8, 24]) / 32
    expected = 0.5 * np.log(32) + 0.5 * 2**2 * (teacher * np.log(teacher / student)).sum()
    assert names["loss"](untrained) == pytest.approx(expected, abs=1e-3)  # the payload's logits are float16
    assert f"{expected:.2f}" == first


def test_a_loss_of_ones_own(blocks):
    names = {}
    exec(blocks[1], names)
    p, q = np.asarray([[0.5, 0.5]]), np.asarray([[0.9, 0.1]])
    closed_form = 1 - np.sqrt(p * q).sum(-1)
    np.testing.assert_allclose(names["hellinger"](np.log(p), np.log(q)), closed_form, rtol=1e-5)
