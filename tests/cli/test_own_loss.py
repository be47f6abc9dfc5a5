"""A loss of one's own in a module beside the config: resolved, named in the fingerprint, differentiated."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import StepInputs, TokenInputs, total_loss
from kd_jax.cli.overrides import apply_overrides
from kd_jax.config import to_text
from kd_jax.errors import KdError

LOSSES = """
from typing import Annotated

import jax.numpy as jnp

from kd_jax.losses.base import Range


def hellinger(teacher_logp_NK, student_logp_NK, factor: Annotated[float, Range(0.0, 10.0)] = 1.0):
    return factor * 0.5 * ((jnp.exp(0.5 * teacher_logp_NK) - jnp.exp(0.5 * student_logp_NK)) ** 2).sum(-1)
"""
CONFIG = """
import dataclasses

from my_losses import hellinger

from kd_jax import Term, TopK, load_experiment

smoke = load_experiment({smoke!r})
terms = {{"own": Term(hellinger, weight=0.5, signal=TopK(k=1), options={{"factor": {factor}}})}}
mine = dataclasses.replace(smoke.students["student_kd"], terms=terms)
experiment = dataclasses.replace(smoke, students={{"mine": mine}}, comparison=None)
"""


@pytest.fixture
def config(tmp_path, root, monkeypatch):
    """Options to a config of one's own, with the losses beside it; nothing of it stays importable."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_losses.py").write_text(LOSSES)

    def write(factor: float) -> str:
        text = CONFIG.format(smoke=str(root / "experiments/configs/smoke.py"), factor=factor)
        (tmp_path / "my_config.py").write_text(text)
        return str(tmp_path / "my_config.py")

    yield write
    del sys.modules["my_losses"]


def test_its_name_is_in_the_fingerprint(config):
    text = to_text(apply_overrides(config(factor=2.0), ["--students.mine.terms.own.weight", "0.25"]))
    assert 'students.mine.terms.own.loss = "my_losses.hellinger"\n' in text
    assert "students.mine.terms.own.weight = 0.25\n" in text


def test_its_value_and_gradient_are_the_closed_form(config):
    terms = apply_overrides(config(factor=2.0), []).students["mine"].terms
    p, q = np.asarray([0.5, 0.3, 0.2], np.float32), np.asarray([0.6, 0.1, 0.3], np.float32)
    payload = {"topk": terms["own"].signal.reduce(jnp.log(p)[None])}
    tokens = TokenInputs(jnp.array([0]), mask=jnp.array([True]), weight=jnp.ones(1), payload=payload)
    loss = jax.jit(lambda logits_NV: total_loss(terms, logits_NV, tokens, StepInputs())[0])
    value, gradient_NV = jax.value_and_grad(loss)(jnp.log(q)[None])

    # The likeliest token and the other two: 1 - sqrt(0.5 * 0.6) - sqrt(0.5 * 0.4), twice, at half the weight.
    overlap = np.asarray([np.sqrt(0.5 * 0.6), np.sqrt(0.5 * 0.4)])
    assert value == pytest.approx(1 - overlap.sum(), abs=1e-4)
    # d/dq of -sqrt(pq) is -sqrt(p / q) / 2, pulled back through the softmax.
    of_first = 0.5 * (overlap.sum() * 0.6 - overlap[0])
    np.testing.assert_allclose(gradient_NV[0], [of_first, -of_first * 0.1 / 0.4, -of_first * 0.3 / 0.4], atol=1e-4)


def test_its_options_are_checked(config):
    with pytest.raises(KdError, match=r"mine.*terms\.own\.options\.factor: expected a number in"):
        apply_overrides(config(factor=20.0), [])
